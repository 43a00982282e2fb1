"""Which columns of a table make a batch, as what numbers, and how rows of them are laid out in a file.

This room knows neither the format that the columns come from nor where the rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import numpy as np

from smkit.data.source import LABELS
from smkit.errors import DataError

"""Names that mark the label among named columns."""

Kind = Literal["whole", "real", "text", "other"]
Array = np.ndarray[Any, np.dtype[Any]]

_SHOWN = 20


@dataclass(frozen=True)
class Column:
    """A column of a table: whole numbers, real ones, texts, or what no batch can hold."""

    name: str
    kind: Kind
    length: int | None = None
    """Numbers in each row, where a row has a list of them."""
    description: str = ""
    """What the format calls it, where its kind is other."""


class Texts(NamedTuple):
    """The texts of some rows: all bytes one after another, and how many are each row's."""

    lengths: Array
    data: bytes


Values = Array | Texts
"""The rows of a column: numbers (rows,) or (rows, length), or texts."""


class Field(NamedTuple):
    """What is kept of each row under one name: numbers of a shape, or the place of a text (start, length)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_text: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Selection:
    """The columns of a batch."""

    features: tuple[Column, ...]
    label: Column | None
    is_matrix: bool
    """Whether the features of a row are one row of numbers; else each column stands for itself, by its name."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Features, then the label."""
        return (*self.features, *([] if self.label is None else [self.label]))

    @property
    def fields(self) -> tuple[Field, ...]:
        """What is kept of each row, in the order of `pack`."""
        label = [] if self.label is None else [_field(self.label, is_label=True)]
        if self.is_matrix:
            width = sum(column.length or 1 for column in self.features)
            return (Field("features", "<f4", (width,)), *label)
        return (*map(_field, self.features), *label)

    def pack(self, values: Sequence[Values], rows: int) -> list[Values]:
        """Return what is kept of rows, one for each field, from the values of each column."""
        if not self.is_matrix:
            return list(values)
        features = values[: len(self.features)]
        if len(features) == 1 and self.features[0].length is not None:
            return list(values)
        matrix = np.empty((rows, len(features)), np.float32)
        for place, column in enumerate(features):
            matrix[:, place] = column
        return [matrix, *values[len(self.features) :]]


def _field(column: Column, is_label: bool = False) -> Field:  # noqa: FBT001, FBT002
    if column.kind == "text":
        # The label's texts become numbers of classes before they are kept.
        return Field(column.name, "<i8", ()) if is_label else Field(column.name, "<i8", (2,), is_text=True)
    dtype = "<i8" if column.kind == "whole" else "<f4"
    return Field(column.name, dtype, () if column.length is None else (column.length,))


def select(
    available: Sequence[Column],
    *,
    label: str | None,
    columns: Sequence[str] | None,
    first_is_label: bool,
    is_matrix: bool = False,
    where: str,
) -> Selection:
    """Return the columns of a batch.

    Args:
        available: What the table has.
        label: The label's name; "" is none, and None takes the only one that bears a name of `LABELS`.
        columns: Names of the features in their order; None is all but the label.
        first_is_label: Whether None as `label` takes the first column, as tables without names have it.
        is_matrix: Whether the features are one row of numbers, held by one column.
        where: What an error names as its place.

    Raises:
        DataError: A column does not exist, there is no label or several could be it, or a batch cannot hold one.
    """
    names = [column.name for column in available]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise DataError(f"two columns are called '{twice[0]}'", where=where, fix="give each column a name of its own")
    by_name = dict(zip(names, available, strict=True))
    if not names:
        raise DataError("the rows have no columns", where=where, fix="check what has written the files")
    name = _label(names, label, where, first_is_label=first_is_label)
    for asked in [*([name] if name else []), *(columns or [])]:
        if asked not in by_name:
            raise _unknown(asked, names, where)
    wanted = [asked for asked in (names if columns is None else columns) if asked != name]
    if not wanted or len(set(wanted)) < len(wanted):
        what = "no column is left for the features" if not wanted else f"columns={list(columns or ())} names one twice"
        raise DataError(what, where=where, fix=f"choose among the columns {_listed(names)}")
    for asked in [*wanted, *([name] if name else [])]:
        _check_can_be_held(by_name[asked], where, is_label=asked == name)
    features = tuple(by_name[asked] for asked in wanted)
    is_matrix = is_matrix or all(column.kind != "text" and column.length is None for column in features)
    if is_matrix:
        # What are whole numbers so far can have a fraction or be missing later, which a float32 can be.
        features = tuple(replace(column, kind="real") for column in features)
    return Selection(features, by_name[name] if name else None, is_matrix)


def _label(names: Sequence[str], label: str | None, where: str, *, first_is_label: bool) -> str:
    if label is not None:
        return label
    if first_is_label:
        return names[0]
    found = [name for name in names if name.lower() in LABELS]
    if len(found) == 1:
        return found[0]
    what = "no column is called like a label" if not found else f"several columns could be the label: {_listed(found)}"
    raise DataError(
        f"{what}; the columns are {_listed(names)}",
        where=where,
        fix=f'say which one it is: label="{names[-1]}", or label="" if there is none',
    )


def _unknown(asked: str, names: Sequence[str], where: str) -> DataError:
    near = get_close_matches(asked, names, 1) or [name for name in names if name.lower() == asked.lower()]
    meant = f"did you mean '{near[0]}'?" if near else "choose one that is there"
    return DataError(f"there is no column '{asked}'; the columns are {_listed(names)}", where=where, fix=meant)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_can_be_held(column: Column, where: str, *, is_label: bool) -> None:
    if column.kind == "other":
        raise DataError(
            f"column '{column.name}' is {column.description}, which no batch can hold",
            where=where,
            fix="name the columns that you need: columns=[...], or write it as numbers or text",
        )
    if is_label and column.length is not None:
        raise DataError(
            f"the label '{column.name}' is a list of {column.length} numbers",
            where=where,
            fix='choose a label of one value for each row, or label="" to have the list among the columns',
        )
