"""What the `smkit` command puts on the screen: tables, their colours, and JSON documents, on standard output.

Colours are for a terminal; `NO_COLOR` switches them off and `FORCE_COLOR` on. This room knows values and words only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

from smkit import report
from smkit.errors import ConfigurationError

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "bold": "1", "dim": "2"}
_COLOUR_OF_WORD = {
    "Completed": "green",
    "Failed": "red",
    "Stopped": "yellow",
    "Stopping": "yellow",
    "InProgress": "cyan",
    "ok": "green",
    "warning": "yellow",
    "problem": "red",
}


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Return `text` in a colour, where the stream takes one; a colour that there is none of leaves it plain."""
    if not text or colour not in _COLOURS or not report.uses_colour(stream):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def width() -> int:
    """Return how many columns a text may have to be read with ease."""
    return min(shutil.get_terminal_size().columns, 120)


def write(text: str) -> None:
    """Write a text to standard output."""
    with _standard_output():
        sys.stdout.write(report.for_terminal(text) + "\n")


def flush() -> None:
    """Hand on what has been written to standard output."""
    with _standard_output():
        sys.stdout.flush()


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """Say what standard output refuses; whose reader has gone is no error, and passes.

    Raises:
        ConfigurationError: It takes no more.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_output()
        raise ConfigurationError(
            f"standard output cannot be written: {error.strerror}", where="standard output", fix="write it elsewhere"
        ) from error


def forget_output() -> None:
    """Drop what has not been written yet: Python would try once more at its end, fail again, and say so."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(document: object) -> None:
    """Write one JSON document to standard output; times are ISO 8601 in UTC."""
    text = json.dumps(document, indent=2, default=_json_value, ensure_ascii=False)
    # JSON lets these stand as they are, and a terminal obeys them.
    write(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text))


def _json_value(value: object) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat(timespec="seconds")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return dict(value) if isinstance(value, Mapping) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a head as aligned columns, each word of state in its colour."""
    top, *lines = report.table([head, *rows]).split("\n")
    starts = _column_starts(head, rows)
    painted = [_paint_states(line, row, starts) for line, row in zip(lines, rows, strict=True)]
    return "\n".join([paint(top, "dim", sys.stdout), *painted])


def _column_starts(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [2 + sum(widths[:column]) + 2 * column for column in range(len(widths))]


def _paint_states(line: str, row: Sequence[str], starts: Sequence[int]) -> str:
    for cell, start in reversed(list(zip(row, starts, strict=True))):
        colour = _COLOUR_OF_WORD.get(cell)
        if colour is not None:
            line = line[:start] + paint(cell, colour, sys.stdout) + line[start + len(cell) :]
    return line


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return what is known of one thing: a word, and what it says; rows without a value are left out."""
    known = [(word, value) for word, value in rows if value]
    column = max(len(word) for word, _ in known) + 4
    lines = []
    for word, value in known:
        first, *others = value.split("\n")
        lead = f"  {word}".ljust(column)
        shown = paint(first, _COLOUR_OF_WORD.get(first, "plain"), sys.stdout)
        lines += [paint(lead, "dim", sys.stdout) + shown, *(" " * column + other for other in others)]
    return "\n".join(lines)


def finding(state: str, subject: str, what: str, fix: str) -> str:
    """Return one finding of several as lines: its state, what was looked at, what there is, what to do."""
    lead = " " * 28
    columns = max(width() - len(lead), 40)
    first, *others = textwrap.wrap(what, columns, break_long_words=False, break_on_hyphens=False)
    mark = paint(state, _COLOUR_OF_WORD.get(state, "dim"), sys.stdout) + " " * (8 - len(state))
    lines = [f"  {mark}{subject.ljust(18)}{first}", *(lead + other for other in others)]
    # A command stays in one piece, to be copied.
    remedies = [line.strip() for line in as_options(fix).split("\n") if line.strip()]
    lines += [f"{lead}{paint('fix:', 'bold', sys.stdout)} {line}" for line in remedies[:1]]
    lines += [f"{lead}     {line}" for line in remedies[1:]]
    return "\n".join(lines)


def count(number: int, word: str) -> str:
    """Return `1 file`, `2 files`, `no files`."""
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"


def as_options(text: str) -> str:
    """Return a text about arguments of `launch` as one about options: `launch(region='x')`, `role of launch`."""
    text = re.sub(
        r"(?<![\w.])(?:launch)?\((\w+)=([^()]*)\)", lambda found: f"{_flag(found[1])} {found[2].strip(chr(39))}", text
    )
    return re.sub(r"\b(\w+) of launch\b", lambda found: _flag(found[1]), text)


def _flag(argument: str) -> str:
    return "--" + argument.replace("_", "-")


def clock(moment: datetime | None) -> str:
    """Return a moment as the user's clock and calendar show it."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"


def duration(seconds: float | None) -> str:
    """Return a length of time as a person says it: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
