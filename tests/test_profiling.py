"""A window of steps becomes one trace; whatever goes wrong, the run goes on."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from smkit.errors import ConfigurationError
from smkit.profiling import ProfileWindow, parse_window

pytestmark = pytest.mark.train


def run(window: ProfileWindow, steps: range) -> list[Path]:
    """Train as the trainer does: each step, then the window if it is due."""
    written = []
    for step in steps:
        torch.ones(2, 2) @ torch.ones(2, 2)
        if step >= window.due_step:
            written.append(window.at(step))
    window.close()
    return [path for path in written if path is not None]


def marks(trace: Path) -> tuple[list[str], int]:
    """The steps that a trace tells apart, and how many products of matrices it holds."""
    with gzip.open(trace) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    return sorted({name for name in names if name.startswith("ProfilerStep")}), names.count("aten::mm")


def test_the_steps_of_a_window_are_in_one_trace_each_with_its_mark(tmp_path: Path) -> None:
    window = ProfileWindow("2:5", tmp_path / "new", rank=3)
    assert window.due_step == 2
    (trace,) = run(window, range(1, 9))
    assert trace == tmp_path / "new" / "steps-2-5-rank-3.pt.trace.json.gz"
    assert marks(trace) == (["ProfilerStep#3", "ProfilerStep#4", "ProfilerStep#5"], 3)
    assert list(trace.parent.iterdir()) == [trace]
    assert window.due_step == math.inf


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (range(1, 4), "steps-2-3"),  # ends inside of the window
        (range(4, 9), "steps-4-5"),  # is resumed inside of it
        (range(5, 9), None),  # is resumed after it
        (range(1, 2), None),  # ends before it
    ],
)
def test_a_run_that_meets_a_part_of_the_window_profiles_that(steps: range, name: str | None, tmp_path: Path) -> None:
    run(ProfileWindow("2:5", tmp_path, rank=0), steps)
    assert [file.name for file in tmp_path.iterdir()] == ([f"{name}-rank-0.pt.trace.json.gz"] if name else [])


def test_without_a_window_nothing_is_ever_due(tmp_path: Path) -> None:
    window = ProfileWindow(None, tmp_path, rank=0)
    assert window.due_step == math.inf
    assert run(window, range(3)) == []


def test_a_disk_error_or_another_profiler_costs_the_trace_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert run(ProfileWindow("1:2", tmp_path / "file", rank=0), range(1, 5)) == []
    assert "the trace of steps 1 to 2 is lost" in caplog.text
    with torch.profiler.profile() as own:
        assert run(ProfileWindow("1:2", tmp_path / "other", rank=0), range(1, 5)) == []
    assert "another profiler is running" in caplog.text
    assert any(event.name == "aten::mm" for event in own.events())


def test_a_window_is_two_steps_in_order() -> None:
    assert parse_window(" 10:20 ") == (10, 20)
    assert parse_window("0:1") == (0, 1)
    for wrong in ("10", "10:10", "20:10", "-1:2", "a:b", "1:2:3", "", "1.5:2"):
        with pytest.raises(ConfigurationError, match=r"(?s)no window of steps.*'profile_steps'.*10:20"):
            parse_window(wrong)
