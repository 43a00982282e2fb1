"""What a person sees of a job's log: a colour per host, bars at their last state, the traceback that matters.

This room works on lines and knows neither jobs nor where the lines come from.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from smkit.report import uses_colour

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
_CHAIN = ("The above exception was the direct cause", "During handling of the above exception")
_EXCEPTION = re.compile(r"([\w.]+\.)?[A-Z]\w*(:|$)")
_TRACEBACK_LINES = 30
_LAST_LINES = 10
_ENVIRONMENT_BEGINS = "Training Env:"
_SCRIPT_BEGINS = "Invoking script with the following command:"
_TOOLKITS_OWN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} sagemaker[\w-]* +[A-Z]+ ")
_TOOLKITS_VIEW = re.compile(r"ExecuteUserScriptError:|Reporting training FAILURE")
"""From here on the toolkit says what it thinks of the script, in lines that look like anybody's."""
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

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]:
        # For pickle, which would make a line of its text alone.
        return (self.text,), {"host": self.host, "shows_host": self.shows_host, "seconds": self.seconds}

    @property
    def shows_host(self) -> bool:
        return len(self) > len(self.text)

    def with_text(self, text: str) -> LogLine:
        return LogLine(text, host=self.host, shows_host=self.shows_host, seconds=self.seconds)


def fold_environment(lines: Iterator[LogLine | None]) -> Iterator[LogLine | None]:
    """Yield `lines` without those, about a hundred for each host, in which the toolkit shows the job's environment.

    What the script says stays as it is, even these words: they count only before the toolkit has begun with it.
    """
    shown: dict[str, int] = {}
    begun: set[str] = set()
    for line in lines:
        if line is None or line.host in begun:
            yield line
        elif _SCRIPT_BEGINS in line.text:
            begun.add(line.host)
            if count := shown.pop(line.host, 0):
                yield line.with_text(f"(the job's environment: {count} lines in the log)")
            yield line
        elif line.text.strip() == _ENVIRONMENT_BEGINS or line.host in shown:
            shown[line.host] = shown.get(line.host, 0) + 1
        else:
            yield line


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
    """Gives the names of a log's hosts a colour each, where the stream that they are written to takes colours."""

    def __init__(self, stream: TextIO | None) -> None:
        # A program without a console has no standard streams.
        self._is_on = stream is not None and uses_colour(stream)
        self._hosts: dict[str, int] = {}

    def line(self, line: LogLine) -> str:
        """Return the line as it is written to the terminal."""
        if not self._is_on or not line.shows_host:
            return str(line)
        colour = _COLOURS[self._hosts.setdefault(line.host, len(self._hosts)) % len(_COLOURS)]
        return f"\x1b[{colour}m[{line.host}]\x1b[0m {line.text}"


def traceback_start(texts: Sequence[str]) -> int | None:
    """Return where the last traceback that is the script's own begins; None if there is none near the end."""
    nearest = max(0, len(texts) - _LINES_AFTER - _TRACEBACK_LINES)
    for start in range(len(texts) - 1, nearest - 1, -1):
        if _plain(texts[start]) == _TRACEBACK:
            lines = _traceback(texts[start:])
            if lines and not _NOT_THE_SCRIPTS.search(lines[-1]):
                return start
    return None


def last_traceback(texts: Sequence[str]) -> list[str]:
    """Return the last traceback that is the script's own, at most 30 lines of it; nothing if there is none.

    The toolkit takes a script's output in pieces, strips them and makes a line of each, so that indentation is lost and
    an exception's name, its colon and its message are three lines. Here they are put together again.
    """
    start = traceback_start(texts)
    if start is None:
        return []
    lines = _traceback(texts[start:])
    while cause := _cause_of(texts, start):
        start, words = cause
        lines = [*_traceback(texts[start:]), "", words, "", *lines]
    if len(lines) > _TRACEBACK_LINES:
        kept = _TRACEBACK_LINES // 2
        lines = [*lines[: kept - 1], f"  ... {len(lines) - 2 * kept + 1} lines ...", *lines[-kept:]]
    return lines


def last_lines(texts: Sequence[str]) -> list[str]:
    """Return the last ten lines that a script has written, without what the toolkit says before, between and after."""
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    # The line after these words is the command.
    begin = max((number + 2 for number, line in enumerate(lines) if _SCRIPT_BEGINS in line), default=0)
    own: list[str] = []
    for line in lines[begin:]:
        if _TOOLKITS_VIEW.search(line):
            break
        if not _TOOLKITS_OWN.match(line):
            own.append(_last_state(line).rstrip() if "\r" in line else line.rstrip())
    return own[-_LAST_LINES:]


def _cause_of(texts: Sequence[str], start: int) -> tuple[int, str] | None:
    """Return where the traceback begins that led to the one at `start`, and Python's words between the two."""
    before = [number for number in range(max(0, start - _TRACEBACK_LINES), start) if _plain(texts[number])]
    if not before or not _plain(texts[before[-1]]).startswith(_CHAIN):
        return None
    starts = [number for number in before if _plain(texts[number]) == _TRACEBACK]
    return (starts[-1], _plain(texts[before[-1]])) if starts else None


def _traceback(texts: Sequence[str]) -> list[str]:
    """Return the traceback at the beginning of `texts`, to the line of its exception; nothing if that is missing."""
    found = [_TRACEBACK]
    lines = [text for text in texts[1:] if _plain(text)]
    is_after_frame = False
    for number, text in enumerate(lines):
        line = _plain(text)
        if line.startswith(('File "', "[Previous line repeated")):
            found.append(f"  {line}")
            is_after_frame = True
        elif not line.strip("^~ ") or (number and _RANK.sub("", text).startswith("    ")):
            # Marks below a line of code point nowhere once that line has been stripped.
            found += [f"    {line}"] if line.strip("^~ ") else []
            is_after_frame = False
        elif is_after_frame and not _EXCEPTION.match(line):
            found.append(f"    {line}")
            is_after_frame = False
        else:
            return [*found, _exception([_plain(text) for text in lines[number : number + 3]])]
    return []


def _exception(lines: Sequence[str]) -> str:
    """Return the line of an exception: its name and the first line of its message, which can be in pieces."""
    first, second, third = [*lines, "", ""][:3]
    if second.startswith(":"):
        return f"{first}: {second[1:].strip() or third}".rstrip(": ")
    return f"{first} {second}".strip() if re.fullmatch(r"[\w.]+:", first) else first


def _plain(text: str) -> str:
    return _RANK.sub("", text).strip()
