"""SageMaker's Pipe mode: a channel that is a named pipe for each epoch, read from its beginning to its end.

Only for jobs that have it already: FastFile mode streams as well, and its samples can be read by index. This room does
not know what the samples mean, nor who trains on them.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from smkit.data.record_message import dense, numbers_of
from smkit.errors import DataError

_PROTOBUF = "application/x-recordio-protobuf"
_MAGIC = 0xCED7230A
_MAGIC_BYTES = _MAGIC.to_bytes(4, "little")
_HEAD = struct.Struct("<II")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_LENGTH_BITS = 29
_PIECE = 1 << 20
_LOG_AFTER = 30.0
_APPEARS_WITHIN = 120.0
_LOOK_EVERY = 0.1
_INSTEAD = "; FastFile mode streams as well, and its samples can be read by index"
_SEND_ANEW = "check that the objects in S3 are whole, and start the job again"
_NUMBERS = "write rows of the same number of plain numbers, the label first, without a header"
_logger = logging.getLogger(__name__)

Reader = Callable[[BinaryIO, "Place"], Iterator[Any]]


def open_pipe(path: Path, *, record_wrapper: str, content_type: str | None, where: str) -> Pipe:
    """Return the samples of a channel in Pipe mode.

    Args:
        path: The channel's path, such as `/opt/ml/input/data/train`; the pipe of epoch 0 is `train_0` beside it.
        record_wrapper: The channel's RecordWrapperType, `RecordIO` or `None`.
        content_type: The channel's ContentType.
        where: What an error names as the place.

    Raises:
        DataError: The record wrapper or the content type is one that cannot be read from a pipe.
    """
    kind, _, parameters = (content_type or "").replace(" ", "").lower().partition(";")
    if record_wrapper not in ("RecordIO", "None"):
        raise DataError(
            f"the record wrapper is {record_wrapper!r}", where=where, fix="set RecordWrapperType to RecordIO or None"
        )
    if kind == _PROTOBUF:
        return Pipe(path, messages, "RecordIO-protobuf records", where=where)
    if record_wrapper == "RecordIO":
        return Pipe(path, records, "RecordIO records", where=where)
    if kind == "text/csv":
        return Pipe(path, partial(rows, labels=_label_size(parameters, where)), "rows of numbers", where=where)
    return Pipe(path, lines, "lines of text", where=where)


class Pipe(IterableDataset[Any]):
    """The samples of a channel in Pipe mode, in the order in which SageMaker sends them.

    Each `iter` reads the pipe of the next epoch, from 0 on. A pipe has no length and no random access: samples are not
    shuffled, going on within an epoch means reading again what comes before, and an epoch cannot be read twice, nor by
    two processes. Leaving an epoch early closes its pipe.

    Samples are `(features, label)`, float32 (d,) and (), for RecordIO-protobuf and for `text/csv`, whose label comes
    first (`(features,)` if there is none: `label_size=0` in the content type); else bytes, one for each record, where
    records are wrapped, or lines of text.
    """

    def __init__(self, path: Path, read: Reader, kind: str, *, where: str) -> None:
        self._path = path
        self._read = read
        self._kind = kind
        self._where = where
        self._epoch = 0

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise DataError(
                "a pipe can be read by one process only, and this is a worker of a DataLoader",
                where=self._where,
                fix=f"set num_workers=0{_INSTEAD}",
            )
        path = self._path.with_name(f"{self._path.name}_{self._epoch}")
        self._epoch += 1
        return self._samples(path)

    def __getitem__(self, index: int) -> Any:
        raise DataError(
            f"sample {index} cannot be read by its index: a pipe is read from its beginning to its end",
            where=self._where,
            fix=f"iterate over it{_INSTEAD}",
        )

    def __repr__(self) -> str:
        return f"Pipe({self._path.name}: {self._kind})"

    def _samples(self, path: Path) -> Iterator[Any]:
        place = Place(path.name, self._where)
        try:
            with _opened(path, place) as stream:
                yield from self._read(stream, place)
        except OSError as error:
            raise place.error(
                f"cannot be read: {error.strerror}", f"check that the channel is in Pipe mode{_INSTEAD}"
            ) from error


@dataclass(frozen=True)
class Place:
    """What an error names: the pipe of an epoch, and its channel."""

    pipe: str
    where: str

    def error(self, what: str, fix: str = _SEND_ANEW) -> DataError:
        return DataError(f"{self.pipe} {what}", where=self.where, fix=fix)


# --- what is read -----------------------------------------------------------------------------------------------------


def records(stream: BinaryIO, place: Place) -> Iterator[bytes]:
    """Yield the records of a RecordIO stream.

    One that holds the magic number itself is written in parts, without it, as MXNet does.

    Raises:
        DataError: The stream is truncated or no RecordIO.
    """
    offset = 0
    parts: list[bytes] = []
    while head := stream.read(_HEAD.size):
        if len(head) < _HEAD.size:
            raise place.error(f"is truncated: a record's head at byte {offset:,} has {len(head)} of 8 bytes")
        magic, word = _HEAD.unpack(head)
        flag, length = word >> _LENGTH_BITS, word & (1 << _LENGTH_BITS) - 1
        if magic != _MAGIC:
            raise place.error(
                f"is no RecordIO at byte {offset:,}: it has {magic:#010x} instead of {_MAGIC:#010x}",
                "check RecordWrapperType and ContentType of the channel, and that it has been written whole",
            )
        if flag > _LAST or (flag in (_WHOLE, _FIRST)) == bool(parts):
            raise place.error(f"is damaged: the record at byte {offset:,} has flag {flag}, which cannot stand there")
        padded = length + -length % 4
        content = _read_whole(stream, padded)
        if len(content) < padded:
            raise place.error(f"is truncated: the record at byte {offset:,} has {len(content):,} of {padded:,} bytes")
        offset += _HEAD.size + padded
        parts.append(content[:length])
        if flag in (_WHOLE, _LAST):
            yield _MAGIC_BYTES.join(parts)
            parts = []
    if parts:
        raise place.error(f"is truncated: the record's next part is missing at byte {offset:,}")


def messages(stream: BinaryIO, place: Place) -> Iterator[tuple[Tensor, ...]]:
    """Yield what SageMaker's Record messages hold, `(features, label)`, or `(features,)` if there is no label.

    Raises:
        DataError: A record is none, or has other than one tensor of features and at most one label.
    """
    for number, record in enumerate(records(stream, place)):
        try:
            features, labels = numbers_of(record)
            if len(features) != 1 or len(labels) > 1 or any(len(label.values) != 1 for label in labels):
                raise ValueError(f"{len(features)} tensors of features and {len(labels)} labels")  # noqa: TRY301
            row = torch.from_numpy(dense(features[0]))
        except ValueError as error:
            raise place.error(
                f"has no record that can be read, record {number:,}: {error}",
                "write one tensor of features and one label a record, as `write_numpy_to_dense_tensor` does",
            ) from error
        yield (row, torch.tensor(float(labels[0].values[0]))) if labels else (row,)


def lines(stream: BinaryIO, place: Place) -> Iterator[str]:
    """Yield lines of text, without their ends.

    Raises:
        DataError: A line is no UTF-8.
    """
    offset = 0
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise place.error(
                f"is no text in line {number:,}, at byte {offset + error.start:,}: {error.reason}",
                "write UTF-8, or set RecordWrapperType to RecordIO for files that are no text",
            ) from error
        offset += len(line)
        yield text.removesuffix("\n").removesuffix("\r")


def rows(stream: BinaryIO, place: Place, *, labels: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield rows of numbers, `(features, label)`, or `(features,)` if there are no labels.

    Raises:
        DataError: A row has something other than numbers, or another number of them than the first.
    """
    columns = None
    for number, line in enumerate(lines(stream, place), start=1):
        if not line:
            continue
        try:
            row = torch.from_numpy(np.array(line.split(","), np.float32))
        except ValueError as error:
            raise place.error(f"has no row of numbers in line {number:,}: {error}", _NUMBERS) from error
        columns = columns or len(row)
        if len(row) != columns:
            raise place.error(f"has {len(row)} columns in line {number:,}, and {columns} in the first", _NUMBERS)
        yield (row[1:], row[0]) if labels else (row,)


def _read_whole(stream: BinaryIO, size: int) -> bytes:
    """Return `size` bytes, fewer where the stream ends: memory is taken as they come, not as a damaged length says."""
    if size <= _PIECE:
        return stream.read(size)
    pieces = []
    while size and (piece := stream.read(min(size, _PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _label_size(parameters: str, where: str) -> int:
    """Return how many labels a row begins with, as `text/csv;label_size=0` says."""
    sizes = [
        value for name, _, value in (part.partition("=") for part in parameters.split(";")) if name == "label_size"
    ]
    size = sizes[0] if sizes else "1"
    if size not in ("0", "1"):
        raise DataError(
            f"label_size={size} in the content type", where=where, fix="write label_size=1, or label_size=0 for none"
        )
    return int(size)


# --- waiting for it ---------------------------------------------------------------------------------------------------


def _opened(path: Path, place: Place) -> BinaryIO:
    """Return the pipe once somebody writes into it; a signal interrupts the waiting."""
    began = time.monotonic()
    while not path.exists():
        if time.monotonic() - began > _APPEARS_WITHIN:
            raise place.error(
                f"does not exist after {_APPEARS_WITHIN:.0f} s",
                f"check that {path.parent} is the job's folder of inputs",
            )
        time.sleep(_LOOK_EVERY)
    # So opened it does not wait for a writer, which could not be interrupted by a log line.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(_LOG_AFTER * 1000):
            _logger.warning(
                "%s: waiting for somebody to write into %s, for %.0f s now",
                place.where,
                path,
                time.monotonic() - began,
            )
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb", buffering=_PIECE)
    except BaseException:
        os.close(descriptor)
        raise
