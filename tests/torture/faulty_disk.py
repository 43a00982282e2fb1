"""The disk of `faulty_disk.c` and the clock of `wrong_clock.c`: their library, their orders, and what the log says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCES = [Path(__file__).with_name(name) for name in ("faulty_disk.c", "wrong_clock.c")]


def is_available() -> bool:
    """Whether there is a compiler to make it with."""
    return shutil.which("gcc") is not None


def compiled(folder: Path) -> Path:
    """Compile it into a folder, once; return the library for LD_PRELOAD."""
    library = folder / "faulty_disk.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        sources = [str(source) for source in SOURCES]
        command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), *sources, "-ldl"]
        subprocess.run(command, check=True)
    return library


def orders(
    folder: Path,
    *,
    log: Path | None = None,
    data: bool = False,
    at: int = 0,
    do: str = "",
    times: int = 1,
    only: str = "",
) -> str:
    """Return the text of orders; see `faulty_disk.c` for what they mean."""
    words = {"folder": folder, "log": log, "data": int(data), "at": at, "do": do, "times": times, "only": only}
    return ";".join(f"{name}={value}" for name, value in words.items() if value not in (None, ""))


@dataclass(frozen=True)
class Call:
    """A call that changed something, or a mark.

    Attributes:
        kind: `open`, `write`, ..., or `fired`: at this call something was done; or `mark`.
        number: Its number among the calls that are counted.
        handle: Of the open file; 0 for an `fsync` of a directory.
        offset: Where a write began; the flags of `open`; the size after `truncate`.
        size: How many bytes were written.
        path: Of the file; the text of a mark.
        target: The second path of `rename` and `link`; the kind of the call at which something was done.
        data: What was written, if the log keeps that.
    """

    kind: str
    number: int
    handle: int
    offset: int
    size: int
    path: str
    target: str
    data: bytes = b""


def read_log(file: Path) -> list[Call]:
    """Return the calls of a log, in their order; one that a kill has cut short is left out."""
    return list(_calls(file.read_bytes())) if file.exists() else []


def _calls(text: bytes) -> Iterator[Call]:
    place = 0
    while (end := text.find(b"\n", place)) >= 0:
        head = text[place:end].decode()
        _, kind, number, handle, offset, size, kept, paths = head.split(" ", 7)
        path, _, target = paths.partition("\t")
        place = end + 1 + int(kept)
        if place > len(text):
            return
        yield Call(kind, int(number), int(handle), int(offset), int(size), path, target, text[end + 1 : place])
