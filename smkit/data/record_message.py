"""SageMaker's Record message: the protobuf in its RecordIO files and pipes, read without a protobuf library.

A Record maps names to tensors of features (field 1) and of labels (field 2); a tensor has values, and, if it is sparse,
keys and a shape (sagemaker SDK: amazon/record_pb2). This room knows neither files nor what numbers are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_TYPES: dict[int, Array | None] = {2: np.empty(0, "<f4"), 3: np.empty(0, "<f8"), 7: None}
"""Field of a Value: an array that is like its numbers; None where they are varints."""


class Numbers(NamedTuple):
    """Numbers of a record; those of a dense one lie in it as they are, from `start` on."""

    values: Array
    keys: list[int]
    width: int | None
    start: int | None


def numbers_of(record: bytes) -> tuple[list[Numbers], list[Numbers]]:
    """Return the tensors of features and those of labels.

    Raises:
        ValueError: It is no Record message.
    """
    tensors: dict[int, list[Numbers]] = {1: [], 2: []}
    try:
        for field, start, end in _messages(record, 0, len(record)):
            if field in tensors:
                tensors[field].append(_entry(record, start, end))
    except IndexError as error:
        raise ValueError("it ends within a number") from error
    return tensors[1], tensors[2]


def dense(numbers: Numbers) -> Array:
    """Return a tensor's numbers as float32 `(width,)`, zeros in the gaps of a sparse one.

    Raises:
        ValueError: Its keys do not fit its values and shape.
    """
    if not numbers.keys:
        return numbers.values.astype(np.float32)
    width = numbers.width or 0
    if len(numbers.keys) != len(numbers.values) or max(numbers.keys) >= width:
        raise ValueError("the keys of sparse features do not fit their values and shape")
    row = np.zeros(width, np.float32)
    row[numbers.keys] = numbers.values
    return row


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


def _entry(data: bytes, start: int, end: int) -> Numbers:
    """Return the tensor of an entry of a map from names to values."""
    for field, begin, stop in _messages(data, start, end):
        if field == 2:
            for kind, first, last in _messages(data, begin, stop):
                if kind not in _TYPES:
                    raise ValueError(f"a value of kind {kind} is no tensor of numbers")
                return _tensor(data, first, last, _TYPES[kind])
    raise ValueError("an entry has no value")


def _tensor(data: bytes, start: int, end: int, like: Array | None) -> Numbers:
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
    return Numbers(values, keys, width, parts[1][0][0] if is_packed else None)


def _varints(data: bytes, parts: Sequence[tuple[int, int]]) -> list[int]:
    values = []
    for begin, stop in parts:
        position = begin
        while position < stop:
            value, position = _varint(data, position)
            values.append(value)
    return values
