"""A few steps of a run under torch's profiler, written as a trace that a browser can show.

This room knows steps by their numbers only. What fails here costs the trace, never the run.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from smkit.errors import ConfigurationError

_log = logging.getLogger(__name__)
_WINDOW = re.compile(r"(\d+):(\d+)", re.ASCII)


def parse_window(text: str) -> tuple[int, int]:
    """Return the two steps of a window like `10:20`: after the first it opens, after the last it closes.

    Raises:
        ConfigurationError: It is no window, or an empty one.
    """
    match = _WINDOW.fullmatch(text.strip())
    first, last = map(int, match.groups()) if match else (0, 0)
    if first >= last:
        raise ConfigurationError(
            f"{text!r} is no window of steps",
            where="hyperparameter 'profile_steps'",
            fix="write two steps, as 10:20 for the ten steps after the tenth",
        )
    return first, last


class ProfileWindow:
    """Profiles the steps of a window, once in the life of a run.

        window = ProfileWindow("10:20", directory, rank)
        for step in ...:
            ...
            if step >= window.due_step:
                window.at(step)
        window.close()

    The trace, `steps-10-20-rank-0.pt.trace.json.gz`, opens in https://ui.perfetto.dev and in TensorBoard's profiler
    plugin. It holds operations on the CPU and kernels on the GPU, and a mark around each step.

    Args:
        window: What `parse_window` takes; None profiles nothing.
        directory: Where to write; made when there is something to write.
        rank: The number of this process, for the name of the file.

    Raises:
        ConfigurationError: `window` is none.
    """

    def __init__(self, window: str | None, directory: Path, rank: int) -> None:
        self._first, self._last = (0, 0) if window is None else parse_window(window)
        self._directory = directory
        self._rank = rank
        self._profile: profile | None = None
        self._mark: record_function | None = None
        self._seen = 0
        self.due_step: float = math.inf if window is None else self._first
        """The step after which `at` wants to be called next; infinite when there is nothing more to do."""

    def at(self, step: int) -> Path | None:
        """Open or close the window if it is time; return the file if one was written.

        A run that is resumed inside of the window profiles the rest of it, and nothing if it is resumed after it.
        """
        if step < self.due_step:
            return None
        if self._profile is None and step < self._last:
            self._open(step)
        if self._profile is None:
            self.due_step = math.inf
            return None
        self._seen = step
        if step >= self._last:
            return self._write()
        self._mark_step(step + 1)
        self.due_step = step + 1
        return None

    def close(self) -> None:
        """Write what there is, if the run ends inside of the window."""
        if self._profile is not None:
            self._write()

    def _open(self, step: int) -> None:
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]  # noqa: SLF001 - else it would be cut off
            _log.warning("profile_steps: another profiler is running, there will be no trace")
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        started = profile(activities=activities)
        try:
            with warnings.catch_warnings():
                # torch 2.11 says so of every profile; this one has one cycle.
                warnings.filterwarnings("ignore", message=".*Profiler clears events")
                started.start()
        except RuntimeError as error:
            _log.warning("profile_steps: the profiler does not start, there will be no trace: %s", error)
        else:
            self._profile = started
            self._first = step

    def _mark_step(self, step: int | None) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
        # The name by which TensorBoard's plugin tells steps apart.
        self._mark = None if step is None else record_function(f"ProfilerStep#{step}")
        if self._mark is not None:
            self._mark.__enter__()  # type: ignore[no-untyped-call]

    def _write(self) -> Path | None:
        self._mark_step(None)
        stopped, self._profile, self.due_step = self._profile, None, math.inf
        assert stopped is not None  # noqa: S101 - the callers have asked
        file = self._directory / f"steps-{self._first}-{self._seen}-rank-{self._rank}.pt.trace.json.gz"
        # Ends in .gz as well, which tells torch to compress, and has no name that TensorBoard would read too early.
        part = self._directory / f"part-rank-{self._rank}.json.gz"
        try:
            stopped.stop()
            self._directory.mkdir(parents=True, exist_ok=True)
            stopped.export_chrome_trace(str(part))
            part.replace(file)
        except (OSError, RuntimeError) as error:
            _log.warning("profile_steps: the trace of steps %d to %d is lost: %s", self._first, self._seen, error)
            with contextlib.suppress(OSError):
                part.unlink()
            return None
        return file
