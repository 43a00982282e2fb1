"""What tests of several rooms share: the digits as channels, and a clean environment."""

import fcntl
import importlib.util
import os
import re
import runpy
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from torture import faulty_disk

# A shell that starts this in the background has Ctrl-C ignored, and all that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits"

# Without their libraries, the modules that are about a wing cannot even be imported.
_WINGS = {"train": "torch", "aws": "moto"}
_missing = [mark for mark, library in _WINGS.items() if importlib.util.find_spec(library) is None]
_here = Path(__file__).parent
collect_ignore = [
    str(path.relative_to(_here))
    for path in (*_here.glob("test_*.py"), *_here.glob("torture/test_*.py"))
    if any(re.search(rf"^pytestmark = .*pytest\.mark\.{mark}\b", path.read_text(), re.MULTILINE) for mark in _missing)
]
if "aws" in _missing:
    collect_ignore.append("sagemaker")
else:
    from sagemaker.fixture import _sagemaker_server, sagemaker, unpaused  # noqa: F401 - the fixtures of all tests


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the channels `train` and `validation` of the digits example."""
    pytest.importorskip("sklearn")
    directory = tmp_path_factory.mktemp("digits")
    runpy.run_path(str(DIGITS / "data.py"))["write_channels"](directory)
    return directory


@pytest.fixture(autouse=True)
def environment_is_left_as_it_was() -> Iterator[None]:
    """Fail a test in which smkit changes an environment variable: it sets none."""
    before = _environment()
    yield
    assert _environment() == before


def _environment() -> dict[str, str]:
    # scikit-learn sets KMP_* and torch's compiler TORCH* and TRITON_*, when they are imported.
    others = ("PYTEST_", "KMP_", "TORCH", "_TORCH", "TRITON_")
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}


@pytest.fixture
def meeting_port() -> Iterator[int]:
    """The port at which the hosts of every job meet; one test at a time of all that run here has it."""
    with (Path(tempfile.gettempdir()) / "smkit-meeting-port.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield 7777


@pytest.fixture
def gcc() -> None:
    """Skip a test of faulty disks where they cannot be compiled."""
    if not faulty_disk.is_available():
        pytest.skip("a faulty disk is compiled by gcc, which is not here")


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Measure no coverage in a test that lets a signal raise (Ctrl-C), nor in the processes that it starts.

    At each call of a measured function coverage's tracer locks and unlocks its data in Python code. An exception that a
    signal raises just there leaves the lock locked, and the next call of such a function waits for ever.
    """
    with _no_coverage():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test, so that nothing waits for it alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_soak.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure no coverage in what is killed over and over: it would see what the other tests see, in twice the time."""
    with _no_coverage() if item.get_closest_marker("endurance") else nullcontext():
        return (yield)


@contextmanager
def _no_coverage() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            yield
        finally:
            sys.settrace(tracer)
