"""Wheels for a job without a network: pip of this machine downloads them for the image's Python and processor.

This room runs pip, and knows nothing of smkit and of who asks for what.
"""

from __future__ import annotations

import atexit
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from smkit.errors import ConfigurationError

FOLDER = "wheels"
"""Where the wheels lie in the archive."""
_NEWEST_GLIBC = 31
"""That of Ubuntu 20.04, which the oldest of the images for PyTorch 2 have."""
_MACHINE = "x86_64"
"""The processor that the training images are built for."""
_TIMEOUT_SECONDS = 1200
_SHOWN_LINES = 14
"""Of what pip says at its end: a conflict takes as many."""
_PIP = """
import runpy, sys
# The user's files lie in the current folder, for paths in requirements; they must not be taken for pip's modules.
sys.path[:] = [path for path in sys.path if path]
from pip._vendor.packaging import markers
# pip evaluates markers for the Python that it runs in, whatever --python-version says (pypa/pip#11198).
here, there = markers.default_environment(), dict(python_version={python!r}, python_full_version={python!r} + ".0")
there |= dict(sys_platform="linux", platform_system="Linux", os_name="posix", platform_machine={machine!r})
there |= dict(implementation_name="cpython", platform_python_implementation="CPython")
markers.default_environment = lambda: here | there
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def download(
    texts: Mapping[str, str], *, root: Path, python_version: str, torch_version: str | None
) -> dict[str, bytes | Path]:
    """Download the wheels of all requirements, and return them by their path in the archive.

    They lie in a temporary folder that is deleted when the process ends.

    Args:
        texts: Requirements files by their path, that of the root first.
        root: The folder that paths in them are relative to.
        python_version: The image's, as `3.12` or `py312`.
        torch_version: The image's; torch itself is never downloaded.

    Raises:
        ConfigurationError: pip cannot, with what it says.
    """
    folder = Path(tempfile.mkdtemp(prefix="smkit-wheels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path, text in texts.items():
        file = folder / "requirements" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    stand_in = _write_stand_in(folder / "torch", torch_version)
    major, minor = re.findall(r"(\d)\D?(\d+)", python_version)[0]
    arguments = [
        *("download", "--progress-bar=off", "--no-input", "--disable-pip-version-check", "--only-binary=:all:"),
        *("--dest", str(folder / FOLDER), "--find-links", str(folder / "torch"), "-c", str(folder / "torch/only.txt")),
        *("--implementation", "cp", "--python-version", f"{major}{minor}"),
        *(word for platform in _platforms() for word in ("--platform", platform)),
        *("-r", str(folder / "requirements" / next(iter(texts)))),
    ]
    _run_pip(_PIP.format(python=f"{major}.{minor}", machine=_MACHINE), arguments, root)
    wheels = sorted(path for path in (folder / FOLDER).glob("*.whl") if path.name != stand_in)
    return {f"{FOLDER}/{path.name}": path for path in wheels}


def _platforms() -> list[str]:
    """Return the tags of wheels that the image can load; pip takes those that are named, and no older ones."""
    named = [f"manylinux_2_{minor}" for minor in range(_NEWEST_GLIBC, 4, -1)]
    return [f"{platform}_{_MACHINE}" for platform in (*named, "manylinux2014", "manylinux2010", "manylinux1", "linux")]


def _write_stand_in(folder: Path, torch_version: str | None) -> str:
    """Write a wheel that says it is the image's torch, and a constraint that allows no other; return its name.

    So pip can choose packages that require torch, and does not download gigabytes that the image has.
    """
    folder.mkdir()
    if torch_version is None:
        (folder / "only.txt").write_text("torch<0\n")
        return ""
    version = f"{torch_version.partition('+')[0]}+image"
    (folder / "only.txt").write_text(f"torch=={version}\n")
    name = f"torch-{version}-py3-none-any.whl"
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: smkit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return name


def _run_pip(program: str, arguments: Sequence[str], root: Path) -> None:
    command = [sys.executable, "-c", program, *arguments]
    try:
        run = subprocess.run(  # noqa: S603 - pip, told what the user requires
            command,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        said = f"no end after {_TIMEOUT_SECONDS} s"
    else:
        if run.returncode == 0:
            return
        lines = run.stdout.decode(errors="replace").strip().splitlines()
        said = "\n".join(f"    {line}" for line in lines[-_SHOWN_LINES:] if line.strip())
    fix = "mend requirements.txt, or give vendor='none' and an image that has all"
    if "No module named 'pip'" in said:
        fix = f"install pip: {sys.executable} -m ensurepip"
    elif "torch<0" in said:
        fix = "give a framework_version: a requirement needs torch, and which one the image has is not known"
    raise ConfigurationError(f"pip cannot download the wheels:\n{said}", where="vendor='wheels'", fix=fix)
