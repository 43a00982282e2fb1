"""RecordIO files of SageMaker's Record messages: the framing and the protobuf, read without a library of either.

Files whose records are alike, as all dense ones are, are read by arithmetic on all bytes of a block.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smkit.data.blocks import BLOCK_BYTES, FIRST_BYTES, Block, Blocks, read_failed
from smkit.data.columns import Array, Column, Values
from smkit.data.formats import MOST_WIDE, Format
from smkit.errors import DataError

_HEADER = struct.Struct("<II")
_MAGIC = 0xCED7230A
_TYPES: dict[int, Array | None] = {2: np.empty(0, "<f4"), 3: np.empty(0, "<f8"), 7: None}
"""Field of a Value: an array that is like its numbers; None where they are varints."""
_FIX = "write it with sagemaker's `write_numpy_to_dense_tensor`, and check that it has arrived whole"


class _Tensor(NamedTuple):
    """Numbers of a record; those of a dense one lie in it as they are, from `start` on."""

    values: Array
    keys: list[int]
    width: int | None
    start: int | None


class RecordIO(Format):
    """Files of records with one tensor of features each, dense or sparse, and one label or none.

    All records are read once when they are opened, to know how wide they are.

    Raises:
        DataError: A record is damaged, or has another number of features than the others.
    """

    kind = "recordio"
    unit = "record"
    first_is_label = True
    is_selectable = False
    is_matrix = True
    _width: int | None = None
    _has_label: bool | None = None

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        super().__init__(root, files, where)
        self.blocks = Blocks(part for file in range(len(files)) for part in self._parts(file))
        if not self.blocks.total:
            raise DataError("the files hold no records", where=where, fix="check that the channel has arrived whole")
        are_whole = True
        for number in range(len(self.blocks)):
            labels, _ = self._read(self.blocks[number])
            are_whole = are_whole and bool((np.trunc(labels) == labels).all())
        self.first_is_label = bool(self._has_label)
        features = Column("features", "real", self._width)
        label = Column("label", "whole" if are_whole else "real")
        self.columns = (label, features) if self._has_label else (features,)

    def parse(self, block: Block, columns: Sequence[Column]) -> list[Values]:
        """Return the values of a block's records for each of `columns`."""
        labels, features = self._read(block)
        kept = labels.astype(np.int64 if self.columns[0].kind == "whole" else np.float32)
        return [kept if column.name == "label" else features for column in columns]

    def _parts(self, file: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield the blocks of a file, found by going from header to header."""
        try:
            with (self.root / self.files[file]).open("rb") as opened:
                size = opened.seek(0, 2)
                if not size:
                    return
                data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise read_failed(self.files[file], error, self.where) from error
        with data:
            start, position, count, first, most = 0, 0, 0, 1, FIRST_BYTES
            while position < size:
                magic, length = _HEADER.unpack_from(data, position) if position + 8 <= size else (0, 0)
                following = position + 8 + (length + 3 & ~3)
                if magic != _MAGIC or following > size:
                    what = "the file ends within it" if following > size else "it does not begin as a record does"
                    block = Block(file, start, position, 0, count, first)
                    raise self.wrong(block, count, f"{what} (byte {position:,})", _FIX)
                position, count = following, count + 1
                if position - start >= most or position == size:
                    yield file, start, position, count, first
                    start, first, count, most = position, first + count, 0, BLOCK_BYTES

    def _read(self, block: Block) -> tuple[Array, Array]:
        """Return the labels (rows,) and the features (rows, width) of a block."""
        try:
            with (self.root / self.files[block.file]).open("rb") as opened:
                opened.seek(block.start)
                data = opened.read(block.stop - block.start)
        except OSError as error:
            raise read_failed(self.files[block.file], error, self.where) from error
        alike = self._read_alike(block, data)
        if alike is not None:
            return alike
        labels, rows, position = np.zeros(block.rows), None, 0
        for row in range(block.rows):
            length = _HEADER.unpack_from(data, position)[1]
            features, label = self._record(block, row, data[position + 8 : position + 8 + length])
            if rows is None:
                rows = np.zeros((block.rows, self._width or 0), np.float32)
            rows[row, features.keys or slice(None)] = features.values
            labels[row] = label.values[0] if label is not None else 0
            position += 8 + (length + 3 & ~3)
        return labels, np.zeros((0, 0)) if rows is None else rows

    def _read_alike(self, block: Block, data: bytes) -> tuple[Array, Array] | None:
        """Return what `_read` does if all records differ in nothing but their numbers, else None."""
        length = _HEADER.unpack_from(data, 0)[1]
        stride = 8 + (length + 3 & ~3)
        if stride * block.rows != len(data):
            return None
        features, label = self._record(block, 0, data[8 : 8 + length])
        if features.start is None or (label is not None and label.start is None):
            return None
        rows = np.frombuffer(data, np.uint8).reshape(block.rows, stride)
        is_structure = np.ones(stride, np.bool_)
        is_structure[8 + length :] = False
        numbers = []
        for tensor in (features, *([label] if label is not None else [])):
            begin = 8 + (tensor.start or 0)
            end = begin + tensor.values.nbytes
            is_structure[begin:end] = False
            numbers.append(np.ascontiguousarray(rows[:, begin:end]).view(tensor.values.dtype))
        if not (rows[:, is_structure] == rows[0, is_structure]).all():
            return None
        labels = numbers[1][:, 0] if label is not None else np.zeros(block.rows)
        return labels, np.asarray(numbers[0], np.float32)

    def _record(self, block: Block, row: int, record: bytes) -> tuple[_Tensor, _Tensor | None]:
        """Return the features and the label of a record, which must be like those before."""
        try:
            tensors: dict[int, list[_Tensor]] = {1: [], 2: []}
            for field, start, end in _messages(record, 0, len(record)):
                if field in tensors:
                    tensors[field].append(_entry(record, start, end))
        except (IndexError, ValueError, struct.error) as error:
            raise self.wrong(block, row, f"it is no Record message: {error}", _FIX) from error
        if len(tensors[1]) != 1 or len(tensors[2]) > 1 or any(len(label.values) != 1 for label in tensors[2]):
            what = f"it has {len(tensors[1])} tensors of features and {len(tensors[2])} labels, not one of each"
            raise self.wrong(block, row, what, "read the files in `build_dataset`")
        features, label = tensors[1][0], tensors[2][0] if tensors[2] else None
        width = features.width or len(features.values)
        if self._width is None:
            self._width, self._has_label = width, label is not None
            if not 0 < width <= MOST_WIDE and (features.keys or not width):
                what = f"a row would be {width:,} numbers, and smkit reads 1 to {MOST_WIDE:,} of sparse records"
                raise self.wrong(block, row, what, "read the files in `build_dataset`")
        if width != self._width or (label is not None) != self._has_label:
            what = (
                f"it has {width} features and {'a' if label else 'no'} label, unlike the first record ({self._width})"
            )
            raise self.wrong(block, row, what, _FIX)
        if features.keys and (len(features.keys) != len(features.values) or max(features.keys) >= width):
            raise self.wrong(block, row, "the keys of its sparse features do not fit their values and shape", _FIX)
        return features, label


# --- protobuf ---------------------------------------------------------------------------------------------------------


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number does not end")


def _messages(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each field that has a length, and where its content starts and ends; pass over others."""
    while position < end:
        tag, position = _varint(data, position)
        field, kind = tag >> 3, tag & 7
        if kind == 2:
            length, position = _varint(data, position)
            following = position + length
            if following > end:
                raise ValueError("a field is longer than its message")
            yield field, position, following
        elif kind in (1, 5):
            following = position + (8 if kind == 1 else 4)
            yield field, position, following
        elif kind == 0:
            _, following = _varint(data, position)
            yield field, position, following
        else:
            raise ValueError(f"a field of kind {kind} is unknown")
        position = following


def _entry(data: bytes, start: int, end: int) -> _Tensor:
    """Return the tensor of an entry of a map from names to values."""
    for field, begin, stop in _messages(data, start, end):
        if field == 2:
            for kind, first, last in _messages(data, begin, stop):
                if kind not in _TYPES:
                    raise ValueError(f"a value of kind {kind} is no tensor of numbers")
                return _tensor(data, first, last, _TYPES[kind])
    raise ValueError("an entry has no value")


def _tensor(data: bytes, start: int, end: int, like: Array | None) -> _Tensor:
    parts: dict[int, list[tuple[int, int]]] = {1: [], 2: [], 3: []}
    for field, begin, stop in _messages(data, start, end):
        if field in parts:
            parts[field].append((begin, stop))
    keys, shape = _varints(data, parts[2]), _varints(data, parts[3])
    if like is None:
        signed = [value - (1 << 64) if value >> 63 else value for value in _varints(data, parts[1])]
        values: Array = np.array(signed, np.float64)
    else:
        values = np.frombuffer(b"".join(data[begin:stop] for begin, stop in parts[1]), like.dtype)
    is_packed = like is not None and len(parts[1]) == 1 and not keys
    width = int(np.prod(shape)) if shape else max(keys) + 1 if keys else None
    if not keys and width is not None and width != len(values):
        raise ValueError(f"a tensor of shape {shape} has {len(values)} values")
    return _Tensor(values, keys, width, parts[1][0][0] if is_packed else None)


def _varints(data: bytes, parts: Sequence[tuple[int, int]]) -> list[int]:
    values = []
    for begin, stop in parts:
        position = begin
        while position < stop:
            value, position = _varint(data, position)
            values.append(value)
    return values
