"""From arrays of pyarrow to the values of columns; the one place that loads pyarrow, when a table first needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from smkit.data.tables.blocks import Block
from smkit.data.tables.columns import Column, Kind, Texts, Values
from smkit.data.tables.formats import Format
from smkit.errors import DataError


def load(module: str, what: str, where: str) -> Any:
    """Return a module of pyarrow.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(f"{what} needs pyarrow: {error}", where=where, fix="pip install 'smkit[tabular]'") from error


def column_of(name: str, arrow_type: Any) -> Column:
    """Return the column that has a type of pyarrow; a list's length is not known from it."""
    import pyarrow.types as kinds

    kind: Kind = "other"
    if kinds.is_integer(arrow_type) or kinds.is_boolean(arrow_type):
        kind = "whole"
    elif kinds.is_floating(arrow_type) or kinds.is_decimal(arrow_type) or kinds.is_null(arrow_type):
        kind = "real"
    elif kinds.is_string(arrow_type) or kinds.is_large_string(arrow_type) or str(arrow_type) == "string_view":
        kind = "text"
    elif kinds.is_dictionary(arrow_type):
        return column_of(name, arrow_type.value_type)
    elif kinds.is_list(arrow_type) or kinds.is_large_list(arrow_type) or kinds.is_fixed_size_list(arrow_type):
        inner = column_of(name, arrow_type.value_type)
        kind = inner.kind if inner.kind in ("whole", "real") and inner.length is None else "other"
        return Column(name, kind, -1, description=f"of type {arrow_type}")
    return Column(name, kind, description=f"of type {arrow_type}")


def values_of(opened: Format, block: Block, column: Column, array: Any) -> Values:
    """Return the values of a column from an array or a chunked array of pyarrow.

    Raises:
        DataError: A whole number is missing, or a list is of another length.
    """
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
    if column.kind == "real" and isinstance(array, (pa.FloatArray, pa.DoubleArray)):
        return _float32(array)
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    if column.kind == "text":
        return _texts(opened, block, column, array)
    if column.length is not None:
        return _lists(opened, block, column, array)
    if column.kind == "whole":
        if array.null_count:
            row = array.is_null().to_numpy(zero_copy_only=False).argmax()
            raise opened.wrong(
                block,
                int(row),
                f"column '{column.name}' has no value",
                "add it, or remove the row: a whole number cannot be missing",
            )
        # A cast loads pyarrow's functions, which takes long.
        numbers = array if array.type == pa.int64() else array.cast(pa.int64())
        return np.asarray(numbers.to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_decimal(array.type) or pa.types.is_boolean(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.float64()) if not pa.types.is_boolean(array.type) else array.cast(pa.int8())
    return _float32(array)


def _float32(array: Any) -> Values:
    """Return numbers as float32; those beyond its range are infinite, as everywhere in torch."""
    with np.errstate(over="ignore"):
        return np.asarray(array.to_numpy(zero_copy_only=False), np.float32)


def _texts(opened: Format, block: Block, column: Column, array: Any) -> Texts:
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pc.fill_null(array.cast(pa.large_string()), "")
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        wrong = (row for row, text in enumerate(array.cast(pa.large_binary())) if not _is_utf8(text.as_py()))
        what = f"column '{column.name}' is no UTF-8"
        raise opened.wrong(block, next(wrong, 0), what, "write it as UTF-8 text") from error
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    text = bytes(memoryview(data)[offsets[0] : offsets[-1]]) if data is not None and len(offsets) else b""
    return Texts(np.diff(offsets), text)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lists(opened: Format, block: Block, column: Column, array: Any) -> Values:
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False))
    wrong = np.flatnonzero(lengths != column.length)
    if len(wrong):
        found = int(lengths[wrong[0]])
        raise opened.wrong(
            block,
            int(wrong[0]),
            f"the list in column '{column.name}' has {max(found, 0)} numbers, and {column.length} in the first row",
            "give all rows lists of one length, or leave the column out: columns=[...]",
        )
    flat = array.flatten()
    if column.kind == "whole" and flat.null_count:
        row = pc.index(flat.is_null(), pa.scalar(True)).as_py() // (column.length or 1)  # noqa: FBT003
        raise opened.wrong(block, row, f"the list in column '{column.name}' has no value at a place", "add it")
    flat = flat.cast(pa.int64() if column.kind == "whole" else pa.float32(), safe=column.kind == "whole")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), column.length or 0)


def with_lengths(columns: Sequence[Column], rows: Any) -> tuple[Column, ...]:
    """Return `columns` whose lists have the length of the first one in `rows`; without one, they cannot be held."""
    import pyarrow.compute as pc

    known = []
    for column in columns:
        if column.length is not None:
            lengths = pc.drop_null(pc.list_value_length(rows.column(column.name)))
            length = lengths[0].as_py() if len(lengths) else 0
            known.append(
                replace(column, length=length)
                if length and column.kind != "other"
                else replace(column, kind="other", length=None)
            )
        else:
            known.append(column)
    return tuple(known)
