"""From tar shards in webdataset's layout to a data set that reads any sample at once, and decodes a batch in threads.

How fields are decoded is the affair of `fields`, where they lie that of `index`; this room joins them into
batches. It knows neither channels nor who decides the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smkit.data.order import Windows
from smkit.data.pixels import Size, checked_size, reason
from smkit.data.shards.fields import COMPRESSED, IMAGES, PICKLES, Field, UnlikeError, open_field, raw
from smkit.data.shards.files import Descriptor, ShardFiles, read_at
from smkit.data.shards.index import LABEL, Index, Integers
from smkit.data.source import Allocate, SampleError, Source, allocate, fingerprint_of
from smkit.data.threads import in_threads
from smkit.errors import DataError

_WINDOW = 8
_PROBES = 16
_INPUTS = IMAGES | {"npy"}


def open_shards(
    root: Path,
    files: Sequence[str],
    *,
    image_size: int | Size | None = None,
    is_streamed: bool = False,
    cache_dir: Path | None = None,
    where: str,
) -> Shards:
    """Return the data set that these tar files hold; the arguments are those of `Shards`."""
    return Shards(root, files, image_size=image_size, is_streamed=is_streamed, cache_dir=cache_dir, where=where)


class Shards(Source):
    """Samples in tar shards, as webdataset writes them: files of one name are a sample, their extensions its fields.

    The name goes up to the first dot: of `a/7.jpg` and `a/7.seg.png` the fields are `jpg` and `seg.png`. All samples
    have the same fields. What follows the last dot says how a field is decoded:

    * bmp, jpeg, jpg, png, webp: uint8 (N, 3, H, W) in channels-last memory, as `Images` has them
    * cls: int64 (N,); an integer in text, or the name of a class, whose label is its place among the sorted `classes`
    * npy: tensors, stacked; pt, pth: the same, or a list where a file holds something else than one tensor
    * json: a list of Python values; txt: a list of str; any other: a list of bytes

    A batch is `(images, labels)` or `(arrays, labels)` where fields are one image or one npy, and cls; else a dict by
    field. Pickles are refused, as they run code, and so are compressed files.

    Samples are read by their place, so that any order is as fast. Where the folder is a mount that streams from S3,
    each shard is copied whole to a local disk before it is read, and shuffled in windows of 8 shards.

    Args:
        root: The folder that `files` are relative to.
        files: The shards.
        decode: Whether fields are decoded; else all are lists of bytes, labels included.
        image_size: Height and width of every image, or the side of a square; by default that of the files.
        is_streamed: Whether the folder is such a mount.
        cache_dir: Where copies of shards lie; by default the system's folder for temporary files.
        where: What an error names as their place.

    Raises:
        ConfigurationError: `image_size` is no size.
        DataError: A shard is no tar or damaged, its samples do not all have the same fields, a field cannot be read,
            or the disk is too small for copies.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        *,
        decode: bool = True,
        image_size: int | Size | None = None,
        is_streamed: bool = False,
        cache_dir: Path | None = None,
        where: str = "Shards",
    ) -> None:
        self._where = where
        self._size = None if image_size is None else checked_size(image_size)
        _check_names(files, where)
        self._index = Index(root, files, with_labels=decode, is_streamed=is_streamed, where=where)
        names = self._index.fields
        if decode:
            _check_fields(names, image_size, where)
        if is_streamed:
            self.windows = _windows(self._index.counts)
        copies = None if self.windows is None else _most_in_a_window(self._index.counts, self.windows.largest)
        self._files = ShardFiles(root, files, self._index.file_sizes, copies=copies, folder=cache_dir, where=where)
        self.classes = self._index.classes.get(LABEL, ())
        self._columns = [column for column, name in enumerate(names) if name not in self._index.labels]
        self._fields = [self._opened(column) if decode else raw() for column in self._columns]
        inputs = [name for name in names if name.rpartition(".")[2] in _INPUTS]
        self._is_pair = decode and len(names) == 2 and len(inputs) == 1 and LABEL in names
        self._works = any(field.in_threads for field in self._fields)
        if self._works and not is_streamed:
            # Whatever does not fit together is better said now than an hour later.
            self.read(torch.linspace(0, len(self) - 1, min(_PROBES, len(self)), dtype=torch.float64).long(), allocate)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: Tensor, allocate: Allocate) -> Any:
        """Return the batch of these samples; the decoders run in threads, as they do not need Python's lock."""
        samples = index.numpy()
        columns = [field.begin(len(samples), allocate) for field in self._fields]
        shards = self._index.shards_of(samples)
        for group in self._files.groups(np.unique(shards).tolist()):
            self._fill(columns, samples, shards, np.isin(shards, group).nonzero()[0], self._files.open(group))
        names = self._index.fields
        batch = {
            names[number]: field.finish(column)
            for number, field, column in zip(self._columns, self._fields, columns, strict=True)
        }
        batch |= {name: torch.from_numpy(labels[samples]) for name, labels in self._index.labels.items()}
        if self._is_pair:
            return next(value for name, value in batch.items() if name != LABEL), batch[LABEL]
        return {name: batch[name] for name in names}

    @property
    def fingerprint(self) -> int:
        """Of the shards' names and sizes, the samples' keys, places and labels, and the size of images."""
        return fingerprint_of([self._index.fingerprint(), self._size, *map(repr, self._fields)])

    def __repr__(self) -> str:
        names = self._index.fields
        kinds = {names[number]: field for number, field in zip(self._columns, self._fields, strict=True)}
        fields = ", ".join(f"{name} {kinds.get(name, 'int64')}" for name in names)
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        return f"Shards({len(self):,} samples{classes} in {len(self._index.files):,} shards: {fields})"

    def _fill(
        self,
        columns: Sequence[Any],
        samples: Integers,
        shards: Integers,
        places: Integers,
        opened: dict[int, Descriptor],
    ) -> None:
        """Read into these places of the columns; `opened` has the shards of their samples."""
        numbers, descriptors = places.tolist(), [opened[shard].number for shard in shards[places].tolist()]
        work = []
        for number, field, column in zip(self._columns, self._fields, columns, strict=True):
            offsets = self._index.offsets[samples[places], number].tolist()
            sizes = self._index.sizes[samples[places], number].tolist()
            self._files.announce(descriptors, offsets, sizes)
            work.append((number, field, column, offsets, sizes))

        def fill(position: int) -> None:
            place, descriptor = numbers[position], descriptors[position]
            for number, field, column, offsets, sizes in work:
                size = sizes[position]
                try:
                    content = read_at(descriptor, size, offsets[position])
                    if len(content) < size:
                        raise EOFError(f"the file ends after {len(content):,} of {size:,} bytes")  # noqa: TRY301
                    field.fill(column, place, content)
                except Exception as error:
                    raise self._failure(int(samples[place]), number, error) from error

        in_threads(fill, len(numbers), self.threads_of_read if self._works else 1)

    def _opened(self, column: int) -> Field:
        """Return how a field is decoded, with the shape of the first sample's."""
        size, offset = int(self._index.sizes[0, column]), int(self._index.offsets[0, column])
        original = self._files.open_itself(int(self._index.shards_of(np.zeros(1, np.int64))[0]))
        try:
            return open_field(self._index.fields[column], read_at(original.number, size, offset), self._size)
        except Exception as error:
            raise self._failure(0, column, error) from error

    def _failure(self, sample: int, column: int, error: Exception) -> DataError:
        """Return the error for a field that cannot be read, whatever a decoder has raised."""
        place = f"{self._name(sample, column)}, at byte {self._index.offsets[sample, column]:,}"
        if isinstance(error, UnlikeError):
            return DataError(
                f"the samples differ in .{self._index.fields[column]}: {self._name(0, column)} and {place} are {error}",
                where=self._where,
                fix="write them with one shape; for images, `return smkit.open_dataset(channel, image_size=224)` in "
                "`build_dataset` scales them",
            )
        return SampleError(
            f"{place} (sample {sample}) cannot be read: {reason(error)}",
            sample=sample,
            where=self._where,
            fix="mend the sample or leave it out, write the shard again, and check that the channel has arrived whole",
        )

    def _name(self, sample: int, column: int) -> str:
        shard = self._index.files[int(self._index.shards_of(np.array([sample]))[0])]
        return f"{self._index.keys[sample]}.{self._index.fields[column]} in {shard}"


def _check_names(files: Sequence[str], where: str) -> None:
    if not files:
        raise DataError("there is no shard", where=where, fix="give at least one .tar file")
    for file in files:
        suffix = file.lower().rpartition(".")[2]
        if suffix in COMPRESSED | {"tgz"}:
            raise DataError(
                f"{file} is compressed, so that a sample can only be reached by reading all before it",
                where=where,
                fix="unpack the compression: gzip has no random access, and images gain nothing by it",
            )


def _check_fields(names: Sequence[str], image_size: int | Size | None, where: str) -> None:
    suffixes = {name.rpartition(".")[2]: name for name in names}
    if pickled := suffixes.keys() & PICKLES:
        raise DataError(
            f"the samples have .{suffixes[min(pickled)]}, a pickle, which runs code when it is read",
            where=where,
            fix="write arrays as .npy, tensors as .pth and other values as .json",
        )
    if compressed := suffixes.keys() & COMPRESSED:
        raise DataError(
            f"the samples have .{suffixes[min(compressed)]}, which is compressed",
            where=where,
            fix="write the field without compression, or read the shards in `build_dataset`",
        )
    if image_size is not None and not suffixes.keys() & IMAGES:
        raise DataError(
            f"image_size is {image_size}, and no field is an image: {', '.join(names)}",
            where=where,
            fix="leave image_size out",
        )


def _windows(counts: Sequence[int]) -> Windows:
    mean = -(-sum(counts) // len(counts))
    return Windows(segments=tuple(counts), largest=min(_WINDOW, len(counts)) * mean, first=mean)


def _most_in_a_window(counts: Sequence[int], largest: int) -> int:
    """Return how many shards a window of `largest` samples can touch: whole small ones, and one at each end."""
    whole = int(np.searchsorted(np.cumsum(sorted(counts)), largest - 2, side="right"))
    return min(len(counts), whole + 2)
