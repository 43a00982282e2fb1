"""From the bytes of a sample's field to its place in a batch, by the extension of the field's name.

Nothing is decoded by running code: pickles are refused. This room knows neither shards nor whose fields they are.
"""

from __future__ import annotations

import io
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from smkit.data.pixels import Size, by, centre, decode
from smkit.data.source import Allocate

IMAGES = frozenset({"bmp", "jpeg", "jpg", "png", "webp"})
PICKLES = frozenset({"pickle", "pkl", "pyd"})
COMPRESSED = frozenset({"bz2", "gz", "xz", "zst"})


class UnlikeError(ValueError):
    """A value that fits together with no other one: of another shape or type than the first."""


class Field(ABC):
    """How the values of one field become a column of a batch; `fill` may be called by several threads."""

    in_threads = True
    """Whether `fill` is work that goes on without Python's lock."""

    @abstractmethod
    def begin(self, count: int, allocate: Allocate) -> Any:
        """Return a column without values, of `count` places."""

    @abstractmethod
    def fill(self, column: Any, place: int, content: bytes) -> None:
        """Put the value that `content` stands for into its place."""

    def finish(self, column: Any) -> Any:
        """Return the column as the batch has it."""
        return column


class Pictures(Field):
    """Images, uint8 (N, 3, H, W) in channels-last memory; `scales` says whether they are brought to `size`."""

    def __init__(self, size: Size, *, scales: bool) -> None:
        self.size = size
        self._scales = scales

    def begin(self, count: int, allocate: Allocate) -> Tensor:
        return allocate((count, *self.size, 3), torch.uint8)

    def fill(self, column: Tensor, place: int, content: bytes) -> None:
        out = column[place].numpy()
        decoded = decode(content, self.size if self._scales else None, out)
        if self._scales:
            decoded = centre(decoded, self.size)
        elif decoded.shape != out.shape:
            raise UnlikeError(f"{by(self.size)} (height x width), {by(decoded.shape)}")
        if not np.may_share_memory(decoded, out):
            out[...] = decoded

    def finish(self, column: Tensor) -> Tensor:
        return column.permute(0, 3, 1, 2)

    def __repr__(self) -> str:
        return f"{by(self.size)} uint8"


class Stacked(Field):
    """Tensors of one shape and type."""

    def __init__(self, load: Callable[[bytes], Any], first: Tensor) -> None:
        self._load = load
        self._shape = first.shape
        self._dtype = first.dtype

    def begin(self, count: int, allocate: Allocate) -> Tensor:
        return allocate((count, *self._shape), self._dtype)

    def fill(self, column: Tensor, place: int, content: bytes) -> None:
        value = self._load(content)
        if not isinstance(value, Tensor) or value.shape != self._shape or value.dtype != self._dtype:
            raise UnlikeError(f"{describe(self._shape, self._dtype)}, {_described(value)}")
        column[place] = value

    def __repr__(self) -> str:
        return describe(self._shape, self._dtype)


class Values(Field):
    """A list of what `load` makes of each file."""

    in_threads = False

    def __init__(self, load: Callable[[bytes], Any], name: str) -> None:
        self._load = load
        self._name = name

    def begin(self, count: int, allocate: Allocate) -> list[Any]:  # noqa: ARG002  # a list has no such memory
        return [None] * count

    def fill(self, column: list[Any], place: int, content: bytes) -> None:
        column[place] = self._load(content)

    def __repr__(self) -> str:
        return self._name


def open_field(name: str, first: bytes, size: Size | None) -> Field:
    """Return how the field of this name is decoded.

    Args:
        name: The name; its part after the last dot decides.
        first: The field of one sample, whose shape is that of all.
        size: What images are scaled to; None leaves them as they are.

    Raises:
        Exception: What decoders raise of a damaged file has no common class.
    """
    suffix = name.rpartition(".")[2]
    if suffix in IMAGES:
        pixels = decode(first, size, None)
        return Pictures(size or (pixels.shape[0], pixels.shape[1]), scales=size is not None)
    if suffix in ("npy", "pt", "pth"):
        load = NumpyLoader(first) if suffix == "npy" else _torch
        value = load(first)
        return Stacked(load, value) if isinstance(value, Tensor) else Values(load, "values")
    if suffix in _TEXTS:
        parse, kind = _TEXTS[suffix]
        parse(first)
        return Values(parse, kind)
    return raw()


def raw() -> Field:
    """Return how a field stays as it is."""
    return Values(_same, "bytes")


def describe(shape: Sequence[int], dtype: torch.dtype) -> str:
    """Return shape and type in words."""
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"


def _described(value: Any) -> str:
    return describe(value.shape, value.dtype) if isinstance(value, Tensor) else type(value).__name__


class NumpyLoader:
    """Reads arrays, those with the header of the first one without parsing it again.

    numpy parses a header as Python, which CPython 3.11 cannot do in several threads at once: "AST constructor recursion
    depth mismatch" (python/cpython#106905).
    """

    def __init__(self, first: bytes) -> None:
        file = io.BytesIO(first)
        array = np.lib.format.read_array(file, allow_pickle=False)
        self._size = file.tell()
        self._header = first[: self._size - array.nbytes]
        self._shape, self._dtype = array.shape, array.dtype
        self._order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"

    def __call__(self, content: bytes) -> Tensor:
        if len(content) == self._size and content.startswith(self._header):
            numbers = np.frombuffer(bytearray(content), self._dtype, offset=len(self._header))
            return torch.from_numpy(numbers.reshape(self._shape, order=self._order))
        with _ONE_HEADER_AT_A_TIME:
            return torch.from_numpy(np.lib.format.read_array(io.BytesIO(content), allow_pickle=False))


_ONE_HEADER_AT_A_TIME = threading.Lock()


def _torch(content: bytes) -> Any:
    value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return value.detach() if isinstance(value, Tensor) else value


def _text(content: bytes) -> str:
    return content.decode()


def _same(content: bytes) -> bytes:
    return content


_TEXTS: dict[str, tuple[Callable[[bytes], Any], str]] = {"json": (json.loads, "values"), "txt": (_text, "str")}
