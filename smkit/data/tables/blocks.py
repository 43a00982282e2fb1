"""Files of rows cut into blocks that are parsed each on its own, and the count of their rows, at the speed of memory.

A block of text ends where a line ends. This room does not know what a line means.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from smkit.data.threads import usable_cores
from smkit.errors import DataError

FIRST_BYTES = 1 << 17
"""The first block of a file is small, so that the first batch is quick."""
BLOCK_BYTES = 1 << 20
MOST_UNPACKED_BYTES = 1 << 28
"""A compressed file is one block, for it can be entered at its start alone."""

_SEGMENT_PIECES = 16
_MARK = b"\xef\xbb\xbf"
_ARRIVED = "check that the file has arrived whole"

Integers = np.ndarray[Any, np.dtype[np.int64]]
Part = tuple[int, int, int, int]
"""Where a block starts and stops, its number of rows, and of line feeds."""


@dataclass(frozen=True)
class Block:
    """Rows of a file that are parsed together."""

    file: int
    start: int
    """Where it begins in its file: a byte of a text (unpacked), else what the format counts."""
    stop: int
    first: int
    """The row of the table that is its first."""
    rows: int
    line: int
    """The line or row of the file, from 1, that is its first."""


class Blocks:
    """The blocks of a table in the order of its rows: six numbers each, for a table can have many.

    Args:
        parts: For each block its file, start, stop, number of rows and first line; those without rows are left out.
    """

    def __init__(self, parts: Iterable[tuple[int, int, int, int, int]]) -> None:
        numbers = np.array([part for part in parts if part[3]], np.int64).reshape(-1, 5)
        self._numbers = numbers
        self.rows: Integers = numbers[:, 3]
        self.ends: Integers = np.cumsum(self.rows)
        self.total = int(self.ends[-1]) if len(numbers) else 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Block:
        file, start, stop, rows, line = self._numbers[number].tolist()
        return Block(file, start, stop, int(self.ends[number]) - rows, rows, line)

    def of_rows(self, rows: Integers) -> Integers:
        """Return the block that each of `rows` lies in."""
        return np.searchsorted(self.ends, rows, side="right")

    def rows_by_file(self) -> tuple[int, ...]:
        """Return the number of rows of each file that has rows."""
        files, place = np.unique(self._numbers[:, 0], return_inverse=True)
        rows = np.zeros(len(files), np.int64)
        np.add.at(rows, place, self.rows)
        return tuple(rows.tolist())


def read_failed(file: str, error: Exception, where: str) -> DataError:
    """Return what is said of a file that cannot be read."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"{file} cannot be read: {text or type(error).__name__}", where=where, fix=_ARRIVED)


def is_packed(file: str) -> bool:
    """Return whether a file is compressed by gzip, by its name."""
    return file.lower().endswith(".gz")


class TextFiles:
    """Text files below a folder: their heads, their blocks of whole lines, and the bytes of a block."""

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        self.root = root
        self.files = tuple(files)
        self.where = where

    def head(self, file: int, size: int) -> bytes:
        """Return the first `size` bytes of a file."""
        with self._reading(file) as opened:
            return bytes(opened.read(size) or b"")

    def after_mark(self, file: int) -> int:
        """Return where the text of a file begins: behind the mark that some programs write before UTF-8."""
        return len(_MARK) if self.head(file, len(_MARK)) == _MARK else 0

    def read(self, block: Block) -> bytes:
        """Return the bytes of a block, which are whole lines; the last one of a file can lack its line feed."""
        with self._reading(block.file) as opened:
            opened.seek(block.start)
            data = bytes(opened.read(block.stop - block.start) or b"")
        if len(data) != block.stop - block.start:
            raise DataError(
                f"{self.files[block.file]} is shorter than it was when it was opened",
                where=self.where,
                fix="let no other process write to the channel during a run",
            )
        return data

    def blocks_of_lines(self, unit: str) -> Blocks:
        """Return the blocks of files whose every line is a row, called `unit`.

        Raises:
            DataError: There is none.
        """
        files = range(len(self.files))
        blocks = self.blocks([self.after_mark(file) for file in files], [False] * len(files), [1] * len(files))
        if not blocks.total:
            raise DataError(
                f"the files hold no {unit}", where=self.where, fix="check that the channel has arrived whole"
            )
        return blocks

    def blocks(self, starts: Sequence[int], quoted: Sequence[bool], lines: Sequence[int]) -> Blocks:
        """Return the blocks of all files; blank lines at the end of a file are no rows.

        Args:
            starts: The byte of each file where its rows begin.
            quoted: For each file, whether a line feed between two `"` is part of a row.
            lines: The line of each file, from 1, where its rows begin.
        """
        spans = [(file, starts[file], self._end(file, starts[file])) for file in range(len(self.files))]
        scans = self._counted([span for span in spans if not quoted[span[0]] and not is_packed(self.files[span[0]])])
        parts: list[tuple[int, int, int, int, int]] = []
        for file, start, end in spans:
            line = lines[file]
            for begin, stop, rows, line_feeds in scans.get(file) or self._walked(file, start, end, quoted[file]):
                parts.append((file, begin, stop, rows, line))
                line += line_feeds
        return Blocks(parts)

    def has_row_over_lines(self, file: int, start: int) -> bool:
        """Return whether a line feed between two `"` is part of a row of a file."""
        end = self._end(file, start)
        rows = [sum(part[2] for part in self._walked(file, start, end, quoted)) for quoted in (False, True)]
        return rows[0] != rows[1]

    @contextmanager
    def _reading(self, file: int) -> Iterator[Any]:
        path = self.root / self.files[file]
        try:
            with gzip.open(path) if is_packed(path.name) else path.open("rb", buffering=0) as opened:
                yield opened
        except (OSError, EOFError, zlib.error) as error:
            raise read_failed(self.files[file], error, self.where) from error

    def _end(self, file: int, start: int) -> int:
        """Return where the last line that is not blank ends, without its line feed."""
        if is_packed(self.files[file]):
            return start + len(self._unpacked(file, start))
        with self._reading(file) as opened:
            end: int = opened.seek(0, os.SEEK_END)
            while end > start:
                begin = max(start, end - (1 << 16))
                opened.seek(begin)
                if tail := (opened.read(end - begin) or b"").rstrip(b"\r\n"):
                    return begin + len(tail)
                end = begin
        return start

    def _unpacked(self, file: int, start: int) -> bytes:
        with self._reading(file) as opened:
            opened.seek(start)
            data: bytes = opened.read(MOST_UNPACKED_BYTES + 1)
        if len(data) > MOST_UNPACKED_BYTES:
            raise DataError(
                f"{self.files[file]} is larger than {MOST_UNPACKED_BYTES >> 20} MiB when unpacked, and can be read "
                "only as a whole",
                where=self.where,
                fix="unpack it, or split it into smaller files",
            )
        return data.rstrip(b"\r\n")

    def _counted(self, spans: Sequence[tuple[int, int, int]]) -> dict[int, list[Part]]:
        """Return the parts of spans (file, start, end) of which every line is a row, counted in threads."""
        segments = [(file, cuts) for file, start, end in spans for cuts in _segments(start, end)]
        threads = min(len(segments), max(2, usable_cores()))
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                counts = list(pool.map(self._count, segments))
        else:
            counts = list(map(self._count, segments))
        found: dict[int, list[tuple[int, int]]] = {file: [] for file, _, _ in spans}
        for (file, _), pieces in zip(segments, counts, strict=True):
            found[file] += pieces
        return {file: _joined(start, end, found[file]) for file, start, end in spans}

    def _count(self, segment: tuple[int, list[int]]) -> list[tuple[int, int]]:
        """Return for each piece between two cuts how many line feeds it has, and the byte after the last of them."""
        file, cuts = segment
        buffer = bytearray(max(end - begin for begin, end in pairwise(cuts)))
        view, data, marks = memoryview(buffer), np.frombuffer(buffer, np.uint8), np.empty(len(buffer), np.bool_)
        pieces = []
        with self._reading(file) as opened:
            opened.seek(cuts[0])
            for begin, end in pairwise(cuts):
                size = opened.readinto(view[: end - begin]) or 0
                np.equal(data[:size], 10, out=marks[:size])
                count = int(np.count_nonzero(marks[:size]))
                pieces.append((count, begin + buffer.rfind(b"\n", 0, size) + 1))
        return pieces

    def _chunks(self, file: int, start: int, end: int) -> Iterator[bytes]:
        if is_packed(self.files[file]):
            yield self._unpacked(file, start)
            return
        with self._reading(file) as opened:
            opened.seek(start)
            size = FIRST_BYTES
            while start < end and (data := opened.read(min(size, end - start))):
                start += len(data)
                yield data
                size = BLOCK_BYTES

    def _walked(self, file: int, start: int, end: int, quoted: bool) -> list[Part]:  # noqa: FBT001
        """Return the parts of a file whose bytes have to be seen one after another."""
        parts: list[Part] = []
        begin, position, is_open, pending = start, start, False, 0
        for data in self._chunks(file, start, end):
            line_feeds = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
            row_ends = line_feeds
            if quoted:
                quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == 34)
                row_ends = line_feeds[(np.searchsorted(quotes, line_feeds) + is_open) % 2 == 0]
                is_open = bool((len(quotes) + is_open) % 2)
            pending += len(line_feeds)
            if len(row_ends):
                stop = position + int(row_ends[-1]) + 1
                after = int(np.count_nonzero(line_feeds > row_ends[-1]))
                parts.append((begin, stop, len(row_ends), pending - after))
                begin, pending = stop, after
            position += len(data)
        if is_open:
            raise DataError(
                f'{self.files[file]} has an odd number of `"`: a quoted field is never closed',
                where=self.where,
                fix='close it, and write a `"` that is part of a field twice',
            )
        return _with_rest(parts, begin, end, pending + 1)


def _segments(start: int, end: int) -> Iterator[list[int]]:
    """Yield the cuts of the pieces of a file, as many together as a thread takes at once."""
    if start == end:
        return
    first = min(end, start + FIRST_BYTES)
    cuts = [start, *range(first, end, BLOCK_BYTES), end]
    for place in range(0, len(cuts) - 1, _SEGMENT_PIECES):
        yield cuts[place : place + _SEGMENT_PIECES + 1]


def _joined(start: int, end: int, pieces: Sequence[tuple[int, int]]) -> list[Part]:
    parts: list[Part] = []
    for count, stop in pieces:
        if count:
            parts.append((start, stop, count, count))
            start = stop
    return _with_rest(parts, start, end, 1)


def _with_rest(parts: list[Part], begin: int, end: int, line_feeds: int) -> list[Part]:
    """Return `parts` with the last row of the file, which ends without a line feed."""
    if begin < end and parts:
        start, _, rows, before = parts.pop()
        return [*parts, (start, end, rows + 1, before + line_feeds)]
    return [(begin, end, 1, line_feeds)] if begin < end else parts
