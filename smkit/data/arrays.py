"""Tensors that belong together, sample by sample, and the files that hold them: npy, npz, safetensors, torch's own.

None of them may run code from a file. A file that can be mapped into memory is mapped, not read.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smkit.data.source import LABELS, Allocate, Source, fingerprint_of
from smkit.errors import DataError

_FINGERPRINTED = 16


class Arrays(Source):
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

    def read(self, index: Tensor, allocate: Allocate) -> tuple[Tensor, ...]:
        """Return the batch of these samples, one gather for each array."""
        return tuple([gather(tensor, index, allocate) for tensor in self.tensors])

    @property
    def fingerprint(self) -> int:
        """Of names, shapes and types, and of the bytes of a few samples, spread over all."""
        probes = torch.linspace(0, max(0, len(self) - 1), min(_FINGERPRINTED, len(self)), dtype=torch.float64).long()
        parts: list[object] = []
        for name, tensor in zip(self.names, self.tensors, strict=True):
            sampled = tensor[probes].contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            parts += [name, tuple(tensor.shape), tensor.dtype, sampled]
        return fingerprint_of(parts)

    def batch_bytes(self, samples: int) -> int:
        """Return the size of a batch of `samples`."""
        return sum(samples * tensor[:1].numel() * tensor.element_size() for tensor in self.tensors)

    def __repr__(self) -> str:
        arrays = (
            f"{name} {tuple(tensor.shape[1:])} {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in zip(self.names, self.tensors, strict=True)
        )
        return f"Arrays({len(self)} samples: {', '.join(arrays)})"


def gather(tensor: Tensor, index: Tensor, allocate: Allocate) -> Tensor:
    """Return the rows `index` of `tensor`, in memory that `allocate` gives; on a GPU, if it lies there."""
    if not tensor.is_cpu:
        return tensor.index_select(0, index.to(tensor.device))
    return torch.index_select(tensor, 0, index, out=allocate((len(index), *tensor.shape[1:]), tensor.dtype))


def read_arrays(files: Sequence[Path], where: str) -> Arrays:
    """Return the arrays of files of the kinds in `READERS`: inputs sorted by name, the label last.

    Raises:
        DataError: A file is damaged or holds what is no number, or the arrays do not fit together.
    """
    arrays: dict[str, Tensor] = {}
    for file in files:
        arrays.update(_read(file, READERS[file.suffix.lower()], where))
    return Arrays(_in_batch_order(arrays, where), where=where)


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
    names = [str(name) for name in content]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"two arrays of {file.name} are called '{twice[0]}'", where=where, fix="give each array a name of its own"
        )
    return {str(name): _tensor(value, f"'{name}' in {file.name}", where) for name, value in content.items()}


def _npy(file: Path) -> Mapping[Any, object]:
    # Copy-on-write, for torch warns of memory that it could not write to.
    return {file.stem: np.lib.format.open_memmap(file, mode="c")}


def _npz(file: Path) -> Mapping[Any, object]:
    # `np.load` leaves the file open when the archive is damaged.
    with file.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as archive:
        if len(set(archive.files)) < len(archive.files):
            raise ValueError("two arrays of it have one name")
        _require_memory(sum(member.file_size for member in archive.zip.infolist()))
        return dict(archive)


def _require_memory(size: int) -> None:
    """Refuse what would fill the machine when it is unpacked: the kernel would kill this process, or another one."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:  # There is none off Linux.
        return
    if found and size > (available := int(found[1]) << 10):
        raise ValueError(f"it is {size:,} bytes when unpacked, and {available:,} of memory are left; save .npy files")


def _safetensors(file: Path) -> Mapping[Any, object]:
    from safetensors.torch import load_file

    return load_file(file)


def _torch(file: Path) -> Mapping[Any, object]:
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if isinstance(content, Mapping):
        return content
    tensors = content if isinstance(content, (list, tuple)) else [content]
    return {f"tensor_{position}": tensor for position, tensor in enumerate(tensors)}


READERS = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".pt": _torch, ".pth": _torch}


def _tensor(value: object, what: str, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return _readable(value, what, where)
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        try:
            return _readable(torch.from_numpy(value), what, where)
        except (TypeError, ValueError):
            kind = f"an array of {value.dtype.str}"
    raise DataError(
        f"{what} is {kind}, which torch has no tensor for",
        where=where,
        fix="save numbers in the machine's own byte order, or read the files in `build_dataset`",
    )


def _in_batch_order(arrays: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    labels = [name for name in arrays if name.lower() in LABELS]
    if len(labels) > 1:
        raise DataError(
            f"more than one array could be the label: {', '.join(labels)}",
            where=where,
            fix=f"keep the name of one of {', '.join(LABELS)} for the label alone, or use `build_dataset`",
        )
    inputs = sorted((name for name in arrays if name not in labels), key=_numbers_by_value)
    return {name: arrays[name] for name in [*inputs, *labels]}


def _numbers_by_value(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _readable(tensor: Tensor, what: str, where: str) -> Tensor:
    """Return a tensor of which rows can be gathered.

    Raises:
        DataError: They cannot: torch has types and layouts that little can be done with.
    """
    kind = "sparse" if tensor.layout is not torch.strided else "without data" if tensor.is_meta else None
    if kind is None:
        try:
            if tensor.dim():
                tensor[:1].index_select(0, torch.arange(min(1, len(tensor))))
        except (NotImplementedError, RuntimeError):
            kind = str(tensor.dtype).removeprefix("torch.")
        else:
            return tensor
    raise DataError(
        f"{what} is a tensor that rows cannot be read from: {kind}",
        where=where,
        fix="save it dense, as integers of int8 to int64, uint8, or floating-point numbers",
    )
