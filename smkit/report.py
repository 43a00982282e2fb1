"""What a process says at its edge: the table at start, the text of a failure, the exit status.

Everything here goes to stderr or to the job's failure file. This room knows no torch and decides nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from smkit import contract
from smkit.errors import SmkitError
from smkit.redaction import redacted

_OTHER_PEOPLES_CODE = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")} | {str(Path(__file__).parent), "<"}
)

_LAST_LINE = re.compile(r"^[\w.]*(Error|Exception|Exit|Interrupt|Iteration|Warning)\b", re.MULTILINE)


_CONTROLS = re.compile(r"(\x1b\[[0-9;:]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal obeys (ECMA-48), but for tabulators and ends of lines; and, as a group, what only sets colours."""


def say(text: str) -> None:
    """Write `text` to stderr in one piece; a reader that has gone away is no reason to fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(for_terminal(redacted(text)) + "\n")
        sys.stderr.flush()


def for_terminal(text: str) -> str:
    """Return `text` without what moves a terminal's cursor, renames its window or writes to its clipboard.

    A job's log and the names in its archive are not of who reads them; colours are left.
    """
    return _CONTROLS.sub(lambda found: found[1] or f"\\x{ord(found[0][0]):02x}", text)


def uses_colour(stream: TextIO) -> bool:
    """Whether colours are wanted there (no-color.org, force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def failure_text(error: BaseException) -> str:
    """Return what went wrong: the error first, then what caused it, then the user's own line nearest to it."""
    if isinstance(error, SmkitError):
        return str(error)
    parts = [_one_line(error)]
    cause = error.__cause__
    while cause is not None:
        parts.append(f"  caused by: {_one_line(cause)}")
        cause = cause.__cause__
    own = own_line(error)
    return "\n".join([*parts, f"  where: {own}"] if own else parts)


def own_line(error: BaseException) -> str:
    """Return the line of the user's own code that is nearest to an error; nothing if there is none."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_foreign(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}: {own[-1].line}" if own else ""


def _one_line(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    # torch puts the whole traceback of a worker process into the message; what happened stands at its end.
    first, _, rest = text.partition("Original Traceback (most recent call last):")
    ends = list(_LAST_LINE.finditer(rest))
    return f"{rest[ends[-1].start() :].strip()} ({first.strip()})" if ends else text


def _is_foreign(filename: str) -> bool:
    return filename.startswith(_OTHER_PEOPLES_CODE)


def write_failure(output_dir: Path, text: str) -> None:
    """Write the job's failure file, if no other process has: the first one has seen the cause.

    Both runtimes keep a file that is there, and SageMaker shows its first 1,024 characters as FailureReason.
    """
    with contextlib.suppress(OSError):
        output_dir.mkdir(parents=True, exist_ok=True)
        with contract.failure_file(output_dir).open("x", encoding="utf-8", errors="replace") as file:
            file.write(_shortened(redacted(text), contract.MAX_FAILURE_CHARACTERS))


def _shortened(text: str, most: int) -> str:
    """Return `text` in at most so many characters; what an error says of where and how to mend it stays."""
    if len(text) <= most:
        return text
    what, _, rest = text.rpartition("\n  where: ")
    # A place can be long as well, and must not take the room of what to do.
    lines = [line[: most // 5] for line in text[len(what) :].splitlines()] if what else []
    rest = "\n".join(lines)[: most // 2]
    return f"{text[: most - len(rest) - 4]} ...{rest}"


def end(error: BaseException, *, program: str, output_dir: Path | None) -> int:
    """Say why the process ends, note it in the failure file, and return the exit status."""
    text = failure_text(error)
    if output_dir is not None:
        write_failure(output_dir, text)
    if not isinstance(error, SmkitError):
        say("".join(traceback.format_exception(error)).rstrip())
    else:
        say(f"{program}: {text}")
    return error.exit_status if isinstance(error, SmkitError) else 1


def end_at_once(status: int) -> NoReturn:
    """End the process as it is, with this status: what the interpreter would tidy up fails, and aborts it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def table(rows: Iterable[Sequence[str]], *, title: str = "") -> str:
    """Return `rows` as aligned columns under an optional title; the last column is not padded."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([title, *body] if title else body)


def settings_rows(settings: object, origins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return a row per setting, under a head: its dotted name, its value, where that came from."""
    rows = [("hyperparameter", "value", "from")]
    for name, origin in origins.items():
        value = functools.reduce(lambda owner, part: getattr(owner, part, None), name.split("."), settings)
        rows.append((name, str(getattr(value, "value", value)), origin))
    return rows


def amount(size: float) -> str:
    """Return a number of bytes as a person reads it."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def count(number: int, noun: str) -> str:
    """Return a number of things as a person reads it."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
