"""Rows of a table as batches: each block of them is parsed once, when one of its rows is first asked for.

What was parsed lies in a cache of fixed-width rows, from which a batch is gathered. This room knows no format.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smkit.data.order import Windows
from smkit.data.source import Allocate, Source, stray_text
from smkit.data.tables.blocks import Block
from smkit.data.tables.cache import TableCache
from smkit.data.tables.columns import Array, Selection, Texts, Values
from smkit.data.tables.formats import Format
from smkit.data.threads import in_threads
from smkit.errors import DataError

_log = logging.getLogger(__name__)

SMALL = 1 << 16
"""Up to this number of rows a table is parsed whole at its first batch, and every epoch is shuffled as a whole."""
_FIRST_WINDOW = 1 << 11
_LARGEST_WINDOW = 1 << 18
_AHEAD = 2
_AT_ONCE = 4
"""Blocks for each thread that are parsed ahead together."""
_FORGET_BYTES = 24 << 20
_MOST_CLASSES = 1 << 16
_REMAPPED_ROWS = 1 << 20


class Table(Source):
    """The rows of some files of one format; made by `open_table`.

    If every feature is one number a batch is `(features, label)`: float32 (N, D), a missing number being NaN, and the
    label int64 (N,) if it is of whole numbers, float32 (N,) if of real ones, or the index of its class in `classes` if
    of texts. Else a batch is a dict by column: numbers likewise, int64 or float32 (N,), lists (N, L), texts list[str];
    a text that is missing is "".

    Rows are parsed as they are needed, and some ahead, in the threads of a read, so that the first epoch costs no more
    than it uses; when all are there they are kept for later runs. Memory is a few blocks and what a window holds.

    Args:
        opened: The files.
        selection: The columns of a batch.
        cache_folder: Where parsed rows are kept.
        key: The name of this table in it.
        identity: The number that `fingerprint` is.
        where: What an error names as its place.
    """

    def __init__(
        self, opened: Format, selection: Selection, *, cache_folder: Path, key: str, identity: int, where: str
    ) -> None:
        self._format = opened
        self._selection = selection
        self._fields = selection.fields
        self._row_bytes = sum(field.row_bytes for field in self._fields)
        self._place = cache_folder, key
        self._fingerprint = identity
        self._where = where
        if len(self) > SMALL:
            self.windows = Windows(opened.blocks.rows_by_file(), _LARGEST_WINDOW, _FIRST_WINDOW, epochs=1)
        self._forget_all()
        if self._has_text_label:
            self._learn_classes()

    def __len__(self) -> int:
        return self._format.blocks.total

    @property
    def fingerprint(self) -> int:
        """Of names and sizes of the files, the format, the columns and the label."""
        return self._fingerprint

    def batch_bytes(self, samples: int) -> int | None:
        """Return the size of a batch of `samples` once all rows are parsed, unless it has texts."""
        is_copy = self._cache is not None and self._cache.is_whole and not any(field.is_text for field in self._fields)
        return samples * self._row_bytes if is_copy else None

    def read(self, index: Tensor, allocate: Allocate) -> tuple[Any, ...] | dict[str, Any]:
        """Return the batch of these rows; what of them is not parsed yet is parsed first."""
        rows = index.numpy()
        cache = self._with(rows)
        values: list[Tensor | list[str]] = [
            cache.texts(cache.array(place)[rows]) if field.is_text else _gathered(cache.array(place), rows, allocate)
            for place, field in enumerate(self._fields)
        ]
        self._note_read(cache, len(rows))
        if self._selection.is_matrix:
            return tuple(values)
        return {field.name: value for field, value in zip(self._fields, values, strict=True)}

    def __repr__(self) -> str:
        files = len(self._format.blocks.rows_by_file())
        kind = self._format.kind
        held = ", ".join(self._held())
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        return f"Table({len(self):,} rows of {files} {kind} file{'s' * (files != 1)}: {held}{classes})"

    def _held(self) -> Iterator[str]:
        """Yield the parts of a batch in words."""
        label = self._selection.label
        for place, field in enumerate(self._fields):
            kind = "text" if field.is_text else np.dtype(field.dtype).name
            if field.name == "features" and place == 0:
                yield f"{len(self._selection.features)} features {kind}"
            elif label is not None and field.name == label.name and field.name.isdecimal():
                # The name of a column without a header is its number.
                yield f"label {kind}"
            else:
                yield f"{field.name} {kind}"

    def __getstate__(self) -> dict[str, Any]:
        # Another process has files and threads of its own.
        own = ("_cache", "_parsed", "_lock")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_all()

    # --- parsing ------------------------------------------------------------------------------------------------------

    def _forget_all(self) -> None:
        self._cache: TableCache | None = None
        self._parsed = np.zeros(len(self._format.blocks), np.bool_)
        self._lock = Lock()
        self._numbers: dict[str, int] = {}
        self._owed, self._rows_read, self._bytes_mapped = 0, 0, 0

    def _note_read(self, cache: TableCache, rows: int) -> None:
        """Give memory back now and then: in windows a page is not needed again for long, at random it is at once."""
        if self._rows_read < len(self):
            self._rows_read += rows
            self._bytes_mapped += rows * self._row_bytes
            if self._bytes_mapped >= _FORGET_BYTES:
                self._bytes_mapped = 0
                cache.forget()

    def _opened(self) -> TableCache:
        """Return the cache that this process reads from: an earlier one, or its own, which it writes."""
        if self._cache is None or not self._cache.is_mine:
            self._forget_all()
            cache = TableCache(*self._place, self._fields, len(self), self._where)
            if not cache.is_whole:
                has_texts = any(field.is_text for field in self._fields)
                cache.create(self._format.bytes_of_files if has_texts else 0)
                self._numbers = {name: number for number, name in enumerate(self.classes)}
            self._cache = cache
        return self._cache

    def _with(self, rows: Array) -> TableCache:
        """Return the cache with at least these rows parsed."""
        cache = self._opened()
        if not cache.is_whole:
            blocks = self._format.blocks
            asked = np.unique(blocks.of_rows(rows)) if len(self) > SMALL else np.arange(len(blocks))
            missing = asked[~self._parsed[asked]]
            self._owed = min(self._owed + _AHEAD * len(rows), _LARGEST_WINDOW)
            if not len(missing):
                missing = self._ahead(int(asked[-1]) + 1)
            if len(missing):
                self._parse(cache, missing.tolist())
        return cache

    def _ahead(self, number: int) -> Array:
        """Return the next blocks to parse from `number` on, if enough rows are owed to make all threads busy."""
        left = np.flatnonzero(~self._parsed)
        left = np.roll(left, -int(np.searchsorted(left, number)))[: _AT_ONCE * self.threads_of_read]
        rows = self._format.blocks.rows[left]
        if not len(left) or self._owed < rows.sum():
            return left[:0]
        self._owed -= int(rows.sum())
        return left

    def _parse(self, cache: TableCache, numbers: Sequence[int]) -> None:
        chains: dict[int, list[int]] = {}
        for number in numbers:
            chain = self._format.chain(number)
            blocks = chains.setdefault(chain.start, [])
            blocks += [each for each in chain if not self._parsed[each] and each not in blocks]
        waiting = list(chains.values())

        def parse(position: int) -> None:
            for number in waiting[position]:
                self._parse_block(cache, number)

        in_threads(parse, len(waiting), self.threads_of_read)
        if self._parsed.all():
            self._finish(cache)

    def _parse_block(self, cache: TableCache, number: int) -> None:
        block = self._format.blocks[number]
        selection = self._selection
        values = self._format.parse(block, selection.columns)
        if selection.label is not None:
            values[-1] = self._checked_label(block, selection.label.name, values[-1])
        cache.write(block.first, selection.pack(values, block.rows))
        self._parsed[number] = True

    def _checked_label(self, block: Block, name: str, label: Values) -> Values:
        if isinstance(label, Texts):
            label = self._class_numbers(label)
            missing = np.flatnonzero(label < 0)
        elif label.dtype.kind == "f":
            missing = np.flatnonzero(~np.isfinite(label))
        else:
            return label
        if len(missing):
            known = f" or none of the classes {', '.join(self.classes[:8])}" if self.classes else ""
            is_infinite = label.dtype.kind == "f" and np.isinf(label[missing[0]])
            what = f"the label '{name}' is {'infinite' if is_infinite else 'missing'}{known}"
            raise self._format.wrong(block, int(missing[0]), what, "add it, or remove the row")
        return label

    def _finish(self, cache: TableCache) -> None:
        """Publish the cache; numbers of classes, which are in order of appearance, become those of sorted classes."""
        if self._has_text_label and not self.classes:
            names = list(self._numbers)
            self._refuse_stray_text(cache, names)
            self.classes = tuple(sorted(names))
            ranks = np.argsort(np.argsort(np.array(names, dtype=object)))
            field = len(self._fields) - 1
            for first in range(0, len(self), _REMAPPED_ROWS):
                part = cache.array(field)[first : first + _REMAPPED_ROWS]
                cache.write_field(field, first, ranks[part])
        cache.publish(self.classes)

    def _refuse_stray_text(self, cache: TableCache, names: Sequence[str]) -> None:
        stray = stray_text(names)
        if stray is not None:
            row = int(np.argmax(cache.array(len(self._fields) - 1) == names.index(stray)))
            block = self._format.blocks[int(self._format.blocks.of_rows(np.array([row]))[0])]
            raise self._format.wrong(
                block,
                row - block.first,
                f"the label is {stray[:40]!r}, and a whole number in most other rows",
                "mend the row; if all labels are names, write none of them as a bare number",
            )

    # --- classes ------------------------------------------------------------------------------------------------------

    @property
    def _has_text_label(self) -> bool:
        return self._selection.label is not None and self._selection.label.kind == "text"

    def _learn_classes(self) -> None:
        cache = self._opened()
        if cache.is_whole:
            self.classes = cache.classes
            return
        _log.info("%s: all rows are parsed first, for the label is text and its classes must be known", self._where)
        self._parse(cache, range(len(self._format.blocks)))

    def _class_numbers(self, label: Texts) -> Array:
        ends = np.cumsum(label.lengths)
        spans = zip((ends - label.lengths).tolist(), ends.tolist(), strict=True)
        names = [label.data[start:end].decode() for start, end in spans]
        with self._lock:
            if not self.classes:
                for name in names:
                    if name:
                        self._numbers.setdefault(name, len(self._numbers))
                if len(self._numbers) > _MOST_CLASSES:
                    raise DataError(
                        f"the label has more than {_MOST_CLASSES:,} different texts, such as '{names[0][:40]}'",
                        where=self._where,
                        fix='choose the column of the classes: label="...", or label="" if there is none',
                    )
            return np.array([self._numbers.get(name, -1) for name in names], np.int64)


def _gathered(array: Array, rows: Array, allocate: Allocate) -> Tensor:
    batch = allocate((len(rows), *array.shape[1:]), torch.int64 if array.dtype.kind == "i" else torch.float32)
    # "clip" writes into the batch itself; "raise" would make a copy first. The rows are known to exist.
    np.take(array, rows, axis=0, out=batch.numpy(), mode="clip")
    return batch
