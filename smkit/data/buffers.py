"""Memory for batches that is used again as soon as nobody holds a batch in it: new memory costs a fault for each page.

This room knows nothing of data sets. Page-locked memory it leaves to torch, which keeps and reuses what it once locked.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WORTH_KEEPING = 1 << 18
"""Bytes. Smaller pieces the allocator gives out of what it has."""
_KEPT = 8
"""Pieces of memory: those of the batches that are fetched ahead, trained on and still held."""


class Buffers:
    """Gives tensors of any content; those of about a megabyte lie in memory that is kept.

    A piece is given out again only when no tensor, view, numpy array or graph holds it any more: torch keeps a
    reference to the array that a tensor was made from as long as its storage lives.
    """

    def __init__(self) -> None:
        self._pieces: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []
        self._references = 0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if size < _WORTH_KEEPING:
            return torch.empty(tuple(shape), dtype=dtype)
        return torch.from_numpy(self._piece(size)).view(dtype).view(tuple(shape))

    def _piece(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        pieces = self._pieces
        free = [number for number in range(len(pieces)) if sys.getrefcount(pieces[number]) == self._references]
        for number in free:
            if pieces[number].nbytes == size:
                return pieces[number]
        if len(pieces) >= _KEPT:
            if not free:
                return np.empty(size, np.uint8)
            del pieces[free[0]]
        pieces.append(np.empty(size, np.uint8))
        # What a piece has when only the list holds it; the interpreters count differently.
        self._references = sys.getrefcount(pieces[-1])
        return pieces[-1]


def page_locked(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return page-locked memory; torch hands it out again when the copy to the GPU is done and nobody holds it."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
