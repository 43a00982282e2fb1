"""RecordIO files of SageMaker's Record messages: the framing, and columns of what is in them.

Files whose records are alike, as all dense ones are, are read by arithmetic on all bytes of a block.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from smkit.data.record_message import Numbers, numbers_of
from smkit.data.tables.blocks import BLOCK_BYTES, FIRST_BYTES, Block, Blocks, read_failed
from smkit.data.tables.columns import Array, Column, Values
from smkit.data.tables.formats import MOST_WIDE, Format
from smkit.errors import DataError

_HEADER = struct.Struct("<II")
_MAGIC = 0xCED7230A
_FIX = "write it with sagemaker's `write_numpy_to_dense_tensor`, and check that it has arrived whole"


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

    def _record(self, block: Block, row: int, record: bytes) -> tuple[Numbers, Numbers | None]:
        """Return the features and the label of a record, which must be like those before."""
        try:
            tensors, labels = numbers_of(record)
        except ValueError as error:
            raise self.wrong(block, row, f"it is no Record message: {error}", _FIX) from error
        if len(tensors) != 1 or len(labels) > 1 or any(len(label.values) != 1 for label in labels):
            what = f"it has {len(tensors)} tensors of features and {len(labels)} labels, not one of each"
            raise self.wrong(block, row, what, "read the files in `build_dataset`")
        features, label = tensors[0], labels[0] if labels else None
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
