"""libsvm: a label and `index:value` pairs on each line, to rows of numbers with zeros where there is no pair.

A block is read by arithmetic on all its bytes at once; a line that is damaged is then looked for, slowly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smkit.data.tables.blocks import Block, TextFiles
from smkit.data.tables.columns import Array, Column, Values
from smkit.data.tables.decimals import PADDING, decimals, digits
from smkit.data.tables.formats import MOST_WIDE, Format
from smkit.data.threads import usable_cores
from smkit.errors import DataError

_LEFT_OUT = re.compile(rb"#[^\n]*|qid:\S*")
_BLANKS = bytes.maketrans(b"\t\r", b"  ")
_MOST_DIGITS = 9
_FIX = "write it as `label index:value index:value`, with indices that grow"


class _Pairs(NamedTuple):
    """What the lines of a block say."""

    labels: Array
    rows: Array
    indices: Array
    values: Array


class LibSVM(Format):
    """libsvm files. Comments (`# ...`) and `qid:...` are left out; without an index 0 the first feature is index 1.

    All lines are read once when they are opened, to know the indices.

    Raises:
        DataError: A line is damaged, or a row would have more than 4,096 features.
    """

    kind = "libsvm"
    first_is_label = True
    is_selectable = False
    is_matrix = True

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        super().__init__(root, files, where)
        self._texts = TextFiles(root, files, where)
        self.blocks = self._texts.blocks_of_lines("rows")
        with ThreadPoolExecutor(usable_cores()) as pool:
            seen = list(pool.map(self._bounds, range(len(self.blocks))))
        self._base = 0 if any(least == 0 for least, _, _ in seen) else 1
        width = max(most for _, most, _ in seen) + 1 - self._base
        if not 0 < width <= MOST_WIDE:
            raise DataError(
                f"the features are {width:,} columns, and smkit reads 1 to {MOST_WIDE:,}, with all zeros in them",
                where=where,
                fix="read the files in `build_dataset`, as sparse rows",
            )
        are_whole = all(is_whole for _, _, is_whole in seen)
        self.columns = (Column("label", "whole" if are_whole else "real"), Column("features", "real", width))

    def parse(self, block: Block, columns: Sequence[Column]) -> list[Values]:
        """Return the values of a block's rows for each of `columns`."""
        pairs = self._pairs(block)
        label, features = self.columns
        matrix = np.zeros((block.rows, features.length or 0), np.float32)
        matrix[pairs.rows, pairs.indices - self._base] = pairs.values
        labels = pairs.labels.astype(np.int64 if label.kind == "whole" else np.float32)
        return [labels if column.name == label.name else matrix for column in columns]

    def _bounds(self, number: int) -> tuple[int, int, bool]:
        """Return the least and the greatest index of a block, and whether its labels are whole numbers."""
        pairs = self._pairs(self.blocks[number])
        are_whole = bool((np.abs(pairs.labels) < 2**53).all() and (np.trunc(pairs.labels) == pairs.labels).all())
        return int(pairs.indices.min(initial=1)), int(pairs.indices.max(initial=0)), are_whole

    def _pairs(self, block: Block) -> _Pairs:
        data = self._texts.read(block)
        pairs = _read(_LEFT_OUT.sub(b"", data) if b"#" in data or b"qid:" in data else data, block.rows)
        if pairs is None:
            raise self._explained(block, data)
        if (fallen := np.flatnonzero((np.diff(pairs.indices) <= 0) & (np.diff(pairs.rows) == 0))).size:
            row, index = int(pairs.rows[fallen[0]]), int(pairs.indices[fallen[0] + 1])
            raise self.wrong(block, row, f"index {index} comes after one that is not below it", _FIX)
        return pairs

    def _explained(self, block: Block, data: bytes) -> DataError:
        for row, line in enumerate(data.split(b"\n")[: block.rows]):
            text = _LEFT_OUT.sub(b"", line)
            if not text.strip():
                return self.wrong(block, row, "the line is blank", "remove it")
            for token in text.split()[1:]:
                index, colon, value = token.partition(b":")
                if not (colon and index.isdigit() and len(index) <= _MOST_DIGITS and _is_number(value)):
                    shown = token[:40].decode(errors="replace")
                    return self.wrong(block, row, f"'{shown}' is no `index:value`", _FIX)
            if not _is_number(text.split()[0]) or text[:1].isspace():
                shown = text[:40].decode(errors="replace")
                return self.wrong(block, row, f"the line does not begin with a label that is a number: '{shown}'", _FIX)
        return self.wrong(block, 0, f"this line or one of the {block.rows} from it on is damaged", _FIX)


def _read(data: bytes, lines: int) -> _Pairs | None:
    """Return what is on the lines; None if one of them is not as it should be."""
    end = b"" if data.endswith(b"\n") else b"\n"
    text = np.frombuffer(bytearray(PADDING - 1) + b"\n" + data.translate(_BLANKS) + end, np.uint8)
    is_mark = (text == 32) | (text == 10) | (text == 58) | (text == 46)
    is_mark[: PADDING - 1] = False
    marks = np.flatnonzero(is_mark)
    kinds = text[marks]
    is_blank = (kinds == 32) | (kinds == 10)
    line_ends = np.flatnonzero(kinds == 10)
    colons = np.flatnonzero(kinds == 58)
    words = np.count_nonzero(is_blank[1:] & ~_is_blank(text[marks[1:] - 1]))
    # Each word is the label at the start of its line or has one colon, so that there are no others.
    if len(line_ends) != lines + 1 or words != lines + len(colons) or not is_blank[colons - 1].all():
        return None
    labels = _numbers(text, marks, kinds, line_ends[:-1])
    values = _numbers(text, marks, kinds, colons)
    lengths = marks[colons] - marks[colons - 1] - 1
    if labels is None or values is None or ((lengths < 1) | (lengths > _MOST_DIGITS)).any():
        return None
    indices, are_digits = digits(text, marks[colons], lengths)
    if not are_digits.all():
        return None
    rows = np.searchsorted(line_ends, colons) - 1
    return _Pairs(labels, rows, indices.astype(np.int64), values)


def _is_blank(text: Array) -> Array:
    blank: Array = (text == 32) | (text == 10)
    return blank


def _numbers(text: Array, marks: Array, kinds: Array, before: Array) -> Array | None:
    """Return the numbers that follow the marks `before` and end at a blank, with at most one dot in between."""
    following = before + 1
    has_dot = kinds[following] == 46
    last = following + has_dot
    if not _is_blank(kinds[last]).all():
        return None
    ends = marks[last]
    return decimals(text, marks[before] + 1, np.where(has_dot, marks[following], ends), ends)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return b"_" not in text
