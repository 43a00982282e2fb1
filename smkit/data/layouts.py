"""From the files of a channel to a data set: the layout is inferred from what lies there, and said aloud.

Each format is read by the library that its field uses; none may run code from a file. What this room does not
understand, or could understand in two ways, is an error that names what was seen: `build_dataset` then decides.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from smkit.data.images import Images
from smkit.data.labels import SUFFIXES, TABLES, is_image, label_images, list_files
from smkit.errors import DataError

_NOT_DATA = (".*", "_SUCCESS", "*.manifest", "Thumbs.db", "README*", "LICENSE*")
_LABELS = ("label", "labels", "y", "target", "targets")
_UNDERSTOOD = (
    "one .npz, one .safetensors, one .pt or .pth, .npy files with one array each, one folder of images for each class, "
    f"or images and {' or '.join(TABLES)}"
)


class ChannelFolder(Protocol):
    """What is asked of a channel: its name and its folder."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...


class Arrays(Dataset[tuple[Tensor, ...]]):
    """Tensors that belong together: sample i is row i of each.

    Args:
        arrays: The tensors by name, in the order in which a batch has them; the first dimension is the samples'.
        where: What an error names as their place.

    Raises:
        DataError: There is no tensor, or they do not have the same number of samples.
    """

    def __init__(self, arrays: Mapping[str, Tensor], *, where: str = "Arrays") -> None:
        lengths = {name: len(tensor) if tensor.dim() else None for name, tensor in arrays.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            seen = ", ".join(f"{name} has {'none' if length is None else length}" for name, length in lengths.items())
            raise DataError(
                f"the arrays do not have the same number of samples: {seen or 'there are none'}",
                where=where,
                fix="give all arrays the same first dimension, one entry for each sample",
            )
        self.names = tuple(arrays)
        self.tensors = tuple(tensor.detach() for tensor in arrays.values())

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, ...]:
        """Return the batch of these samples, one gather for each array."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return tuple(tensor.index_select(0, index) for tensor in self.tensors)

    def __repr__(self) -> str:
        arrays = (
            f"{name} {tuple(tensor.shape[1:])} {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in zip(self.names, self.tensors, strict=True)
        )
        return f"Arrays({len(self)} samples: {', '.join(arrays)})"


def open_dataset(channel: ChannelFolder, *, image_size: int | tuple[int, int] | None = None) -> Arrays | Images:
    """Return the data set that a channel holds, its batches being tuples `(inputs..., label)`.

    Arrays: the label is the array named label, labels, y, target or targets; the inputs are the others, sorted by name.
    The tensors of a list or tuple keep its order. `.npy` files are mapped into memory, not read.

    Images (.bmp, .jpeg, .jpg, .png, .webp): either each lies below the folder of its class, whose label is its index
    among the sorted folders, or anywhere beside one table: `labels.csv`, with the columns file, file_name, filename or
    image, and label; or `metadata.jsonl`, with `file_name` and `label`. Labels that are text become indices of the
    sorted `classes`, integers stay. A batch is `(images, labels)`, uint8 (N, 3, H, W) and int64 (N,).

    Args:
        channel: What holds the files.
        image_size: Height and width that images are scaled and cropped to, or the side of a square. By default they
            stay as they are, and must have one size.

    Raises:
        ConfigurationError: `image_size` is no size.
        DataError: The folder is missing, empty or of no layout that is understood, or a file of it is damaged.
    """
    where = f"channel '{channel.name}' ({channel.path})"
    entries = _entries(channel.path, where)
    kinds = {entry.suffix.lower() if entry.is_file() else "folder" for entry in entries}
    if kinds & {"folder", *SUFFIXES}:
        files = list_files(channel.path, _is_data, where)
        if any(map(is_image, files)):
            return Images(channel.path, *label_images(channel.path, files, where), size=image_size, where=where)
    reader = _READERS.get(min(kinds)) if len(kinds) == 1 else None
    if reader is None or (len(entries) > 1 and kinds != {".npy"}):
        more = f" and {len(entries) - 10} more" if len(entries) > 10 else ""
        seen = ", ".join(entry.name + "/" * entry.is_dir() for entry in entries[:10])
        raise DataError(
            f"no known layout fits what is there: {seen}{more}",
            where=where,
            fix=f"keep either {_UNDERSTOOD}; or read the files in `build_dataset`",
        )
    if image_size is not None:
        raise DataError(
            f"image_size is {image_size}, and there are arrays, not images", where=where, fix="leave image_size out"
        )
    arrays: dict[str, Tensor] = {}
    for file in entries:
        arrays.update(_read(file, reader, where))
    return Arrays(_in_batch_order(arrays, where), where=where)


def _entries(folder: Path, where: str) -> list[Path]:
    fix = "check the channel's S3 prefix, or on this machine the folder that it was given"
    try:
        entries = [entry for entry in folder.iterdir() if _is_data(entry.name)]
    except OSError as error:
        raise DataError(f"the folder cannot be read: {error.strerror}", where=where, fix=fix) from error
    if not entries:
        raise DataError("the folder holds no data", where=where, fix=fix)
    return sorted(entries)


def _is_data(name: str) -> bool:
    return not any(fnmatchcase(name, pattern) for pattern in _NOT_DATA)


def _read(file: Path, reader: Callable[[Path], Mapping[Any, object]], where: str) -> dict[str, Tensor]:
    try:
        content = reader(file)
    except Exception as error:
        # What a damaged file makes numpy, zipfile, safetensors and torch raise has no common class.
        first_sentence = re.split(r"\. |\n", str(error))[0]
        raise DataError(
            f"{file.name} cannot be read: {type(error).__name__}: {first_sentence}".removesuffix(": "),
            where=where,
            fix="write it again as plain arrays of numbers, never pickled objects, and check that it arrived whole",
        ) from error
    return {str(name): _tensor(value, f"'{name}' in {file.name}", where) for name, value in content.items()}


def _npy(file: Path) -> Mapping[Any, object]:
    # Copy-on-write, for torch warns of memory that it could not write to.
    return {file.stem: np.lib.format.open_memmap(file, mode="c")}


def _npz(file: Path) -> Mapping[Any, object]:
    # `np.load` leaves the file open when the archive is damaged.
    with file.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as archive:
        return dict(archive)


def _safetensors(file: Path) -> Mapping[Any, object]:
    from safetensors.torch import load_file

    return load_file(file)


def _torch(file: Path) -> Mapping[Any, object]:
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if isinstance(content, Mapping):
        return content
    tensors = content if isinstance(content, (list, tuple)) else [content]
    return {f"tensor_{position}": tensor for position, tensor in enumerate(tensors)}


_READERS = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".pt": _torch, ".pth": _torch}


def _tensor(value: object, what: str, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value)
        except (TypeError, ValueError):
            kind = f"an array of {value.dtype.str}"
    raise DataError(
        f"{what} is {kind}, which torch has no tensor for",
        where=where,
        fix="save numbers in the machine's own byte order, or read the files in `build_dataset`",
    )


def _in_batch_order(arrays: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    labels = [name for name in arrays if name.lower() in _LABELS]
    if len(labels) > 1:
        raise DataError(
            f"more than one array could be the label: {', '.join(labels)}",
            where=where,
            fix=f"keep the name of one of {', '.join(_LABELS)} for the label alone, or use `build_dataset`",
        )
    inputs = sorted((name for name in arrays if name not in labels), key=_numbers_by_value)
    return {name: arrays[name] for name in [*inputs, *labels]}


def _numbers_by_value(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
