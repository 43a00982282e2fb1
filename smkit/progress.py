"""The line a person watches on a terminal: how far, how fast, how long still.

Drawn on stderr, and only if that is a terminal: a log gets whole lines and no carriage returns.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque

_REDRAW_SECONDS = 0.1
_RATE_DRAWS = 50
"""Draws that the rate is taken over: five seconds, so that a slow start is soon forgotten."""
_BAR_WIDTH = 16


class Progress:
    """One progress line.

    Args:
        total_steps: Optimizer steps of the whole run.
        is_shown: Whether it is shown at all, if stderr is a terminal.
    """

    def __init__(self, total_steps: int, *, is_shown: bool = True) -> None:
        self._total = total_steps
        self._recent = deque([(time.monotonic(), 0)], maxlen=_RATE_DRAWS)
        self._note = ""
        self._is_drawn = False
        is_watched = is_shown and sys.stderr is not None and sys.stderr.isatty()
        self.due = 0.0 if is_watched else float("inf")
        """Time, by `time.monotonic()`, from which the line wants to be drawn again."""

    def begin(self, step: int) -> None:
        """Take the rate from here on, after `step` steps."""
        self._recent.clear()
        self._recent.append((time.monotonic(), step))

    def draw(self, step: int, samples_per_step: int) -> None:
        """Draw the line for a run that has done `step` steps."""
        now = time.monotonic()
        self.due = now + _REDRAW_SECONDS
        then, step_then = self._recent[0]
        rate = (step - step_then) / max(now - then, 1e-9)
        self._recent.append((now, step))
        left = duration((self._total - step) / rate) if rate > 0 else "-"
        filled = _BAR_WIDTH * step // max(self._total, 1)
        bar = "━" * filled + "─" * (_BAR_WIDTH - filled)
        speed = f"{rate * samples_per_step:,.0f} samples/s"
        line = f"{bar} {step:,}/{self._total:,} steps · {speed} · {left} left{self._note}"
        width = shutil.get_terminal_size().columns - 1
        self._is_drawn = self._write("\r" + line[:width] + "\x1b[K")

    def clear(self) -> None:
        """Take the line away, so that something else can be written."""
        if self._is_drawn:
            self._write("\r\x1b[K")
            self._is_drawn = False

    def _write(self, text: str) -> bool:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            # The terminal has gone away; the training goes on without it.
            self.due = float("inf")
            return False
        return True

    def note(self, text: str) -> None:
        """Show `text` at the end of the line from now on."""
        self._note = f" · {text}" if text else ""


def duration(seconds: float) -> str:
    """Return a duration as people read it: `8 s`, `2:05`, `1:02:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
