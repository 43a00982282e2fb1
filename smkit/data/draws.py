"""Random numbers that belong to a sample: the same in whichever batch, process or run the sample is read.

Either a transform asks for them, `SampleRandom`, or the process's generators, which data sets of the user's draw from,
are set for each sample. This room reads no data.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smkit.data.order import derive_seed, scrambled
from smkit.errors import ConfigurationError

Transform = Callable[[Any, "SampleRandom"], Any]
"""Makes a batch of a batch, and of random numbers that belong to its samples."""

_STRIDE = np.uint64(0x9E3779B97F4A7C15)


class SampleRandom:
    """Random numbers for a batch: row i of what a method returns belongs to the batch's sample i.

    They depend on the run's seed, the epoch, the sample and on what was drawn before for the same batch: not on the
    rank, the worker, the batch that the sample is in, nor on any other generator. So augmentation is the same after a
    resume and on another number of processes. Numbers are made for all samples at once:

        def flip(batch, random):
            images, labels = batch
            mirrored = random.uniform() < 0.5
            return torch.where(mirrored[:, None, None, None], images.flip(3), images), labels

    Args:
        seed: The run's.
        epoch: Counted from 0.
        index: The samples, int64 `(N,)`.
    """

    def __init__(self, seed: int, epoch: int, index: Tensor) -> None:
        self.index = index
        key = np.uint64(derive_seed(seed, epoch))
        self._keys = scrambled(index.numpy().astype(np.uint64) * _STRIDE ^ key)
        self._drawn = 0

    def __len__(self) -> int:
        return len(self.index)

    def uniform(self, *shape: int) -> Tensor:
        """Return float32 `(N, *shape)`, uniform in [0, 1)."""
        return torch.from_numpy((self._bits(shape) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))

    def normal(self, *shape: int) -> Tensor:
        """Return float32 `(N, *shape)`, of mean 0 and standard deviation 1."""
        radius = np.sqrt(-2 * np.log(1 - (self._bits(shape) >> np.uint64(11)).astype(np.float64) * 2**-53))
        angle = (self._bits(shape) >> np.uint64(11)).astype(np.float64) * (2 * math.pi * 2**-53)
        return torch.from_numpy((radius * np.cos(angle)).astype(np.float32))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return int64 `(N, *shape)` from 0 to below `high`, which is at most 2**31.

        Raises:
            ConfigurationError: `high` is out of range.
        """
        if not 1 <= high <= 2**31:
            raise ConfigurationError(f"{high} is out of range", where="integers", fix="choose 1 to 2**31")
        scaled = (self._bits(shape) >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)
        return torch.from_numpy(scaled.view(np.int64))

    def generators(self) -> Iterator[torch.Generator]:
        """Return a generator for each sample, for what draws in ways of its own; one object, seeded anew each time."""
        generator = torch.Generator()
        for seed in (self._bits(()) >> np.uint64(1)).tolist():
            yield generator.manual_seed(seed)

    def _bits(self, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        count = math.prod(shape)
        numbers = np.arange(self._drawn + 1, self._drawn + 1 + count, dtype=np.uint64) * _STRIDE
        self._drawn += count
        return scrambled(self._keys[:, None] + numbers).reshape(len(self.index), *shape)


class GlobalGenerators:
    """The generators of this process, which data sets draw from that know no other: Python's, numpy's and torch's."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = _numpy_state()
        self._torch = torch.get_rng_state()

    def have_moved(self) -> bool:
        """Return whether something has been drawn since."""
        then, now = self._numpy["state"], _numpy_state()["state"]
        return not (
            torch.equal(self._torch, torch.get_rng_state())
            and now["pos"] == then["pos"]
            and np.array_equal(now["key"], then["key"])
            and random.getstate() == self._python
        )

    def restore(self) -> None:
        """Put them back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)


def _numpy_state() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)
    return dict(state)


def seed_global_generators(seed: int) -> None:
    """Seed Python's, numpy's and torch's generator of the CPU, which takes some 15 µs."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # `torch.manual_seed` would seed those of all GPUs as well, 20 times as slow.
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_of_their_own() -> Iterator[None]:
    """Put the process's generators back at the end of a block."""
    generators = GlobalGenerators()
    try:
        yield
    finally:
        generators.restore()
