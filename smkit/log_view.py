"""What a person sees of a job's log: a colour per host, bars at their last state, the traceback that matters.

This room works on lines and knows neither jobs nor where the lines come from.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_BAR = re.compile(
    r"(?P<name>.*?)((?P<percent>\d{1,3})%\|.*\||\b(?P<count>\d+)(it|B|[a-z]+)? \[\d+:\d\d).*(/s|it|\?)[^\]]*\]"
)
"""tqdm: `train: 40%|████      | 4/10 [00:01<00:02,  2.5it/s]`, and `4it [00:01, 2.5it/s]` without a total."""
_LONGEST_BAR = 400
_BAR_SECONDS = 10.0
"""How long a bar that goes on is held back until its state is shown."""
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""Of ANSI terminals (ECMA-48, SGR), without red, which looks like an error."""
_TRACEBACK = "Traceback (most recent call last):"
_RANK = re.compile(r"^\[(default)?rank\d+\]: ?|^\[rank\d+\]:")
_NOT_THE_SCRIPTS = re.compile(r"\b(ChildFailedError|CalledProcessError|ExecuteUserScriptError|SignalException)\b")
"""What torchrun and the toolkit raise because a script has failed."""
_TRACEBACK_LINES = 30
_LINES_AFTER = 100
"""A traceback that was followed by more lines than this was not what ended the script."""


class LogLine(str):
    """A line of a log as it is shown: after the host's name in brackets, where the job has several hosts.

    Args:
        text: What the host wrote, without the newline.
        host: The host's name.
        shows_host: Whether the name stands before the text.
        seconds: When it was written, since 1970; None where the log does not tell.
    """

    __slots__ = ("host", "seconds", "text")
    host: str
    text: str
    seconds: float | None

    def __new__(cls, text: str, *, host: str, shows_host: bool, seconds: float | None = None) -> LogLine:
        line = super().__new__(cls, f"[{host}] {text}" if shows_host else text)
        line.host, line.text, line.seconds = host, text, seconds
        return line

    @property
    def shows_host(self) -> bool:
        return len(self) > len(self.text)

    def with_text(self, text: str) -> LogLine:
        return LogLine(text, host=self.host, shows_host=self.shows_host, seconds=self.seconds)


def collapse_bars(lines: Iterator[LogLine | None]) -> Iterator[LogLine | None]:
    """Yield `lines`, a progress bar only at its last state; None is passed on.

    A bar comes as one line with carriage returns, or, from the toolkit, as one line per refresh. A bar that goes on for
    long is shown now and then.
    """
    held: dict[str, _Bar] = {}
    for line in lines:
        if line is None:
            for waiting in held.values():
                if not waiting.is_shown and time.monotonic() - waiting.shown_at > _BAR_SECONDS:
                    waiting.is_shown, waiting.shown_at = True, time.monotonic()
                    yield waiting.line
            yield None
            continue
        if "\r" in line.text:
            line = line.with_text(_last_state(line.text))  # noqa: PLW2901
        match = _BAR.match(line.text) if len(line.text) <= _LONGEST_BAR else None
        former = held.pop(line.host, None)
        bar = _Bar(line, match["name"].strip(), int(match["percent"] or match["count"])) if match else None
        if bar is not None and former is not None and bar.goes_on_from(former):
            bar.shown_at = former.shown_at
        elif former is not None and not former.is_shown:
            yield former.line
        if bar is not None:
            held[line.host] = bar
        else:
            yield line
    yield from (bar.line for bar in held.values() if not bar.is_shown)


@dataclass
class _Bar:
    """A progress bar at one of its states."""

    line: LogLine
    name: str
    progress: int
    shown_at: float = field(default_factory=time.monotonic)
    is_shown: bool = False

    def goes_on_from(self, former: _Bar) -> bool:
        return self.name == former.name and self.progress >= former.progress


def _last_state(text: str) -> str:
    states = [state for state in text.split("\r") if state.strip()]
    return states[-1] if states else ""


class Paint:
    """Gives the names of a log's hosts a colour each, where the stream is a terminal and NO_COLOR is not set."""

    def __init__(self) -> None:
        stream = sys.stderr
        self._is_on = bool(stream and stream.isatty()) and not os.environ.get("NO_COLOR")
        self._hosts: dict[str, int] = {}

    def line(self, line: LogLine) -> str:
        """Return the line as it is written to the terminal."""
        if not self._is_on or not line.shows_host:
            return str(line)
        colour = _COLOURS[self._hosts.setdefault(line.host, len(self._hosts)) % len(_COLOURS)]
        return f"\x1b[{colour}m[{line.host}]\x1b[0m {line.text}"


def traceback_start(texts: Sequence[str]) -> int | None:
    """Return where the last traceback that is the script's own begins; None if there is none near the end."""
    starts = [number for number, text in enumerate(texts) if _TRACEBACK in text]
    for start in reversed(starts):
        if len(_traceback(texts[start:])) < 2 or len(texts) - start > _LINES_AFTER + _TRACEBACK_LINES:
            continue
        if not _NOT_THE_SCRIPTS.search(_traceback(texts[start:])[-1]):
            return start
    return None


def last_traceback(texts: Sequence[str]) -> list[str]:
    """Return the last traceback that is the script's own, at most 30 lines of it; nothing if there is none."""
    start = traceback_start(texts)
    if start is None:
        return []
    lines = _traceback(texts[start:])
    if len(lines) > _TRACEBACK_LINES:
        kept = _TRACEBACK_LINES // 2
        lines = [*lines[: kept - 1], f"  ... {len(lines) - 2 * kept + 1} lines ...", *lines[-kept:]]
    return lines


def _traceback(texts: Sequence[str]) -> list[str]:
    """Return the traceback at the beginning of `texts`: to the line of its exception, and the lines of its message."""
    lines = [_RANK.sub("", text) for text in texts]
    lines[0] = _TRACEBACK
    end = next((number for number, line in enumerate(lines) if number and line[:1] not in ("", " ", "\t")), len(lines))
    return lines[: end + 1]
