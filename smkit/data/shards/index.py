"""From tar shards to where each sample's fields lie: files of one name, up to its first dot, are a sample.

The index is a few blocks of memory, whatever the number of samples. This room reads headers and labels, and does not
know how a field is decoded nor in which order samples are asked for.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from smkit.data.packed import PackedPaths
from smkit.data.shards.files import read_at
from smkit.data.shards.tar import Tar
from smkit.data.source import fingerprint_of
from smkit.errors import DataError

Integers = np.ndarray[Any, np.dtype[np.int64]]

LABEL = "cls"
"""The last part of the names of fields that are labels."""
_READ_AHEAD = 4096
_THREADS = 16
_SAME_FIELDS = "give all samples the same fields, or read the shards in `build_dataset`"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardIndex:
    """What one shard holds; row i is sample i, column j is field j."""

    size: int
    keys: PackedPaths
    fields: tuple[str, ...]
    offsets: Integers
    sizes: Integers
    labels: dict[str, tuple[str, ...]]
    """For each field of labels the texts of the samples, equal ones being one object."""


class Index:
    """Where the samples of all shards lie.

    Args:
        root: The folder that `files` are relative to.
        files: The shards.
        with_labels: Whether fields of labels are read.
        is_streamed: Whether reading waits for a network, which the log then says.
        where: What an error names as their place.

    Raises:
        DataError: A shard is damaged, or its samples do not all have the same fields.
    """

    def __init__(self, root: Path, files: Sequence[str], *, with_labels: bool, is_streamed: bool, where: str) -> None:
        if is_streamed:
            _logger.info("%s: indexing %s shards by the headers in them", where, f"{len(files):,}")
        # A disk, or a network, answers many at once; where all is in memory already, threads cost little.
        with ThreadPoolExecutor(_THREADS) as pool:
            shards = list(pool.map(partial(_index, root, with_labels, where), files))
        self.files = tuple(files)
        self.file_sizes = tuple(shard.size for shard in shards)
        self.fields = shards[0].fields
        for number, shard in enumerate(shards):
            if shard.fields != self.fields:
                raise _other_fields(files, shards, number, where)
        self.counts = tuple(len(shard.keys) for shard in shards)
        self.ends = np.cumsum(self.counts, dtype=np.int64)
        self.keys = PackedPaths.joined([shard.keys for shard in shards])
        self.offsets = np.concatenate([shard.offsets for shard in shards])
        self.sizes = np.concatenate([shard.sizes for shard in shards])
        self.classes: dict[str, tuple[str, ...]] = {}
        self.labels: dict[str, Integers] = {}
        for field in shards[0].labels:
            self.classes[field], self.labels[field] = _numbered([shard.labels[field] for shard in shards], field, where)

    def __len__(self) -> int:
        return len(self.keys)

    def shards_of(self, samples: Integers) -> Integers:
        """Return for each sample the number of its shard."""
        return np.searchsorted(self.ends, samples, side="right")

    def fingerprint(self) -> int:
        """Return a number that is another one for other shards, keys, sizes or labels."""
        blocks = (self.offsets, self.sizes, *self.labels.values())
        return fingerprint_of(
            [*self.files, *self.file_sizes, self.keys.digest(), *self.fields, *(block.tobytes() for block in blocks)]
        )


class _Buffered:
    """Reads a little more than is asked for: a small file and the header after it often lie in the same page."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._start = 0
        self._buffer = b""

    def read(self, offset: int, size: int) -> bytes:
        start = offset - self._start
        if start < 0 or start + size > len(self._buffer):
            self._buffer = read_at(self._descriptor, max(size, _READ_AHEAD), offset)
            self._start, start = offset, 0
        return self._buffer[start : start + size]


def _index(root: Path, with_labels: bool, where: str, file: str) -> ShardIndex:  # noqa: FBT001
    try:
        descriptor = os.open(root / file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if hasattr(os, "posix_fadvise"):
                # What lies behind a header is not read next.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            return _Sorter(file, where).sort(descriptor, with_labels=with_labels)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", where=where, fix="check that the channel has arrived whole"
        ) from error


class _Column:
    """The files of one field, in the order in which they lie in the shard."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_label = name.rpartition(".")[2] == LABEL
        self.rows = array("q")
        self.offsets = array("q")
        self.sizes = array("q")
        self.labels: list[str] = []


class _Sorter:
    """Sorts the members of one shard into samples and fields."""

    def __init__(self, file: str, where: str) -> None:
        self._file = file
        self._where = where
        self._rows: dict[bytes, int] = {}
        self._columns: dict[bytes, _Column] = {}
        self._texts: dict[str, str] = {}

    def sort(self, descriptor: int, *, with_labels: bool) -> ShardIndex:
        size = os.fstat(descriptor).st_size
        read = _Buffered(descriptor).read
        rows = self._rows
        for name, offset, length in Tar(read, size, name=self._file, where=self._where).members():
            path = posixpath.normpath(name) if b"./" in name else name
            folder, slash, base = path.rpartition(b"/")
            stem, _, extension = base.partition(b".")
            if not stem or folder.startswith(b".") or b"/." in folder:
                continue
            column = self._columns.get(extension) or self._new_column(extension, name)
            column.rows.append(rows.setdefault(folder + slash + stem, len(rows)))
            column.offsets.append(offset)
            column.sizes.append(length)
            if with_labels and column.is_label:
                column.labels.append(self._label(read(offset, min(length, _READ_AHEAD)), name))
        return self._packed(size, with_labels=with_labels)

    def _new_column(self, extension: bytes, name: bytes) -> _Column:
        field = extension.decode("utf-8", "backslashreplace").lower()
        if not field or b"\0" in name:
            raise self._error(
                f"holds {_text(name)}, which has no extension and so is no field of a sample",
                "pack it without that file",
            )
        same = (column for column in self._columns.values() if column.name == field)
        column = self._columns[extension] = next(same, None) or _Column(field)
        return column

    def _label(self, content: bytes, name: bytes) -> str:
        try:
            text = content.decode().strip()
        except UnicodeDecodeError:
            text = ""
        if not text or not text.isprintable() or len(content) == _READ_AHEAD:
            raise self._error(
                f"has a label that is neither a number nor a name: {_text(name)} holds {content[:20]!r}",
                f"write one integer or the name of a class into each .{LABEL}",
            )
        return self._texts.setdefault(text, text)

    def _packed(self, size: int, *, with_labels: bool) -> ShardIndex:
        columns = sorted(set(self._columns.values()), key=lambda column: column.name)
        if not columns:
            raise self._error("holds no sample", "remove the shard, or write it again")
        keys = PackedPaths(list(self._rows))
        offsets = np.empty((len(keys), len(columns)), np.int64)
        sizes = np.empty_like(offsets)
        labels: dict[str, tuple[str, ...]] = {}
        for number, column in enumerate(columns):
            rows = np.frombuffer(column.rows, np.int64)
            self._check(column.name, np.bincount(rows, minlength=len(keys)), keys)
            offsets[rows, number] = column.offsets
            sizes[rows, number] = column.sizes
            if with_labels and column.is_label:
                labels[column.name] = tuple([column.labels[place] for place in np.argsort(rows).tolist()])
        return ShardIndex(size, keys, tuple(column.name for column in columns), offsets, sizes, labels)

    def _check(self, field: str, files: Integers, keys: PackedPaths) -> None:
        """Check that each sample has one file of a field."""
        if files[row := int(files.argmax())] > 1:
            raise self._error(
                f"has {files[row]} files for .{field} of sample {keys[row]}", "give each sample a key of its own"
            )
        if files[row := int(files.argmin())] < 1:
            lacking = int((files < 1).sum())
            raise self._error(
                f"has no .{field} for sample {keys[row]} ({lacking:,} of its {len(keys):,} samples lack it)",
                _SAME_FIELDS,
            )

    def _error(self, what: str, fix: str) -> DataError:
        return DataError(f"{self._file} {what}", where=self._where, fix=fix)


def _other_fields(files: Sequence[str], shards: Sequence[ShardIndex], number: int, where: str) -> DataError:
    first, other = set(shards[0].fields), set(shards[number].fields)
    lacking, having = (files[number], files[0]) if first - other else (files[0], files[number])
    field = min(first - other or other - first)
    key = shards[number if first - other else 0].keys[0]
    return DataError(
        f"{lacking} has no .{field} for any sample, as for {key}, and {having} has", where=where, fix=_SAME_FIELDS
    )


def _numbered(texts: Sequence[Sequence[str]], field: str, where: str) -> tuple[tuple[str, ...], Integers]:
    """Return the names of the classes and the samples' labels; no names where labels are integers already."""
    vocabulary = sorted({text for shard in texts for text in shard})
    names = [text for text in vocabulary if not re.fullmatch(r"[+-]?[0-9]{1,18}", text)]
    if names and len(names) < len(vocabulary):
        number = next(text for text in vocabulary if text not in names)
        raise DataError(
            f"labels are integers and names at once: .{field} holds {number} as well as {names[0]}",
            where=where,
            fix="write only integers, or only names of classes",
        )
    numbers = {text: number if names else int(text) for number, text in enumerate(vocabulary)}
    labels = np.fromiter((numbers[text] for shard in texts for text in shard), np.int64)
    return tuple(names), labels


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
