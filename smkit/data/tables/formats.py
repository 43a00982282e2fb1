"""What a format of tables has to say: its columns, its blocks of rows, and the values of a block.

This room knows no format, neither who asks nor what becomes of the values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smkit.data.tables.blocks import Block, Blocks
from smkit.data.tables.columns import Array, Column, Texts, Values
from smkit.errors import DataError

MOST_WIDE = 4096
"""Numbers of a row at most, where a format leaves out those that are zero."""


MOST_COLUMNS = 1 << 16
"""Of a table whose columns have names; each of them costs time of its own with every block."""


def require_narrow(columns: int, where: str) -> None:
    """Refuse a table that has too many columns.

    Raises:
        DataError: It has.
    """
    if columns > MOST_COLUMNS:
        raise DataError(
            f"the table has {columns:,} columns, and smkit reads up to {MOST_COLUMNS:,}",
            where=where,
            fix="write each row as one list of numbers (Parquet, Arrow), or all of them as one .npy",
        )


class Format(ABC):
    """Files of one format, opened: they are read anew for each block, and the object can be pickled.

    Args:
        root: The folder of the files.
        files: Their paths relative to `root`.
        where: What an error names as their place.
    """

    kind: str
    """Its name, in lower case."""
    columns: tuple[Column, ...]
    """All columns that there are."""
    blocks: Blocks
    first_is_label = False
    """Whether the label is the first column unless it is named."""
    is_selectable = True
    """Whether columns have names that can be asked for."""
    is_matrix = False
    """Whether one column holds all features, as one row of numbers."""
    unit = "line"
    """What an error counts in a file."""

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        self.root = root
        self.files = tuple(files)
        self.where = where

    @property
    def bytes_of_files(self) -> int:
        """Return the size of all files."""
        return sum((self.root / file).stat().st_size for file in self.files)

    @abstractmethod
    def parse(self, block: Block, columns: Sequence[Column]) -> list[Values]:
        """Return the values of a block's rows for each of `columns`; threads call it at once for several blocks.

        Raises:
            DataError: A row is not what the columns say.
        """

    def chain(self, number: int) -> range:
        """Return the blocks that are parsed one after another to get to block `number`, which is the last of them."""
        return range(number, number + 1)

    def wrong(self, block: Block, row: int, what: str, fix: str) -> DataError:
        """Return what is said of a row of a block, counted from 0."""
        return DataError(f"{self.files[block.file]}, {self.unit} {block.line + row}: {what}", where=self.where, fix=fix)


def whole(format_: Format, block: Block, column: Column, values: Array) -> Array:
    """Return `values` as whole numbers.

    Raises:
        DataError: One is missing or has a fraction.
    """
    with np.errstate(invalid="ignore"):
        numbers: Array = values.astype(np.int64)
    wrong = np.flatnonzero(numbers != values)
    if len(wrong):
        value = float(values[wrong[0]])
        what = f"column '{column.name}' has no value" if math.isnan(value) else f"column '{column.name}' is {value}"
        raise format_.wrong(
            block,
            int(wrong[0]),
            f"{what}, where the rows before had whole numbers",
            "mend the row; if the column is of real numbers, write them so from the first row on: 1.0, not 1",
        )
    return numbers


def texts_of(texts: Sequence[bytes]) -> Texts:
    """Return texts as they are kept."""
    return Texts(np.array([len(text) for text in texts], np.int32), b"".join(texts))
