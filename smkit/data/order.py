"""Which samples a step trains on: arithmetic on (seed, epoch, step), so that a resumed run costs and sees no more.

This room reads no data and knows neither data sets nor ranks.
"""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Integers = np.ndarray[Any, np.dtype[np.uint64]]

PERMUTED = 10_000_000
"""Up to this number of samples the order is a permutation in memory, which takes 80 MB and a second."""


def scrambled(values: Integers) -> Integers:
    """Return 64-bit numbers that are well mixed from `values`, one for each: the finalizer of splitmix64."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: Integers = values ^ values >> np.uint64(31)
    return mixed


def derive_seed(*parts: int) -> int:
    """Return a seed below 2**63 that is well mixed from `parts`, such as a run's seed and its epoch."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(n: int, *, seed: int, epoch: int, shuffle: bool, windows: Windows | None = None) -> Order:
    """Return the order of an epoch's samples: the same for the same arguments, on every machine.

    Up to `PERMUTED` samples it is one of all permutations, held in memory; above, a keyed bijection, which costs
    neither memory nor time for the samples that are not asked for. With `windows` it is one of both within windows.
    The global random generator is neither read nor moved.
    """
    if not shuffle:
        return torch.arange(n) if n <= PERMUTED else Straight(n)
    if windows is not None and windows.rule(epoch):
        return Windowed(windows, seed=seed, epoch=epoch)
    return permutation(n, seed, epoch) if n <= PERMUTED else Bijection(n, seed, epoch)


class Order(Protocol):
    """The samples of an epoch by their positions in it; a tensor is one."""

    def __getitem__(self, positions: slice, /) -> Tensor:
        """Return the samples at these positions, int64; `positions` has a start and a stop within the epoch."""


class Straight:
    """The order of the data set itself."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __getitem__(self, positions: slice, /) -> Tensor:
        return torch.arange(*positions.indices(self._n))


def permutation(n: int, *key: int) -> Tensor:
    """Return one of all permutations of n numbers, each as likely as another: 8 bytes a number."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(*key)))


class Bijection:
    """A Feistel network over the numbers below the next power of two, walked until it comes out below `n`.

    Of a few thousand samples its orders are measurably not all equally likely, hence `PERMUTED`.
    """

    _ROUNDS = 8

    def __init__(self, n: int, *key: int) -> None:
        self._n = n
        bits = max(2, (n - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << bits // 2) - 1)
        self._high_mask = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = [np.uint64(derive_seed(*key, number)) for number in range(self._ROUNDS)]

    def __getitem__(self, positions: slice, /) -> Tensor:
        values = self._mixed(np.arange(*positions.indices(self._n), dtype=np.uint64))
        beyond = np.flatnonzero(values >= self._n)
        while beyond.size:
            values[beyond] = self._mixed(values[beyond])
            beyond = beyond[values[beyond] >= self._n]
        return torch.from_numpy(values.view(np.int64))

    def _mixed(self, values: Integers) -> Integers:
        high, low = values >> self._low_bits, values & self._low_mask
        for number, key in enumerate(self._keys):
            if number % 2:
                high ^= scrambled(low ^ key) & self._high_mask
            else:
                low ^= scrambled(high ^ key) & self._low_mask
        mixed: Integers = high << self._low_bits | low
        return mixed


@dataclass(frozen=True)
class Windows:
    """How a data set is shuffled that can be read fast only in its own sequence.

    Its segments, which are files or shards, come in a random order, and samples are shuffled within a window that goes
    along this sequence. Windows grow from `first` by doubling, for the first batch waits for the first window.
    """

    segments: tuple[int, ...]
    """Samples of each segment, in the data set's own order."""
    largest: int
    """Samples of a window at most."""
    first: int
    epochs: int | None = None
    """How many epochs must be read in sequence, from the first; None is all."""

    def rule(self, epoch: int) -> bool:
        """Return whether `epoch`, counted from 0, is read in windows."""
        return self.epochs is None or epoch < self.epochs

    def describe(self) -> str:
        """Return the quality of the shuffle in words."""
        when = (
            "" if self.epochs is None else f" in the first {'epoch' if self.epochs == 1 else f'{self.epochs} epochs'}"
        )
        files = f"{len(self.segments):,} files in random order, then " if len(self.segments) > 1 else ""
        return f"shuffled{when} by {files}windows of up to {min(self.largest, sum(self.segments)):,} samples"


class Windowed:
    """Segments in random order, samples in random order within each window of that sequence."""

    def __init__(self, windows: Windows, *, seed: int, epoch: int) -> None:
        self._key = (seed, epoch)
        sizes = np.array(windows.segments, np.int64)
        order = permutation(len(sizes), seed, epoch, -1).numpy()
        self._segment_starts = (np.cumsum(sizes) - sizes)[order]
        self._segment_ends = np.cumsum(sizes[order])
        self._sequence_starts = self._segment_ends - sizes[order]
        self._ends = _window_ends(int(sizes.sum()), windows.first, windows.largest)
        self._window: tuple[int, Tensor] | None = None

    def __getitem__(self, positions: slice, /) -> Tensor:
        parts: list[Tensor] = []
        position = positions.start
        while position < positions.stop:
            number = bisect.bisect_right(self._ends, position)
            start = self._ends[number - 1] if number else 0
            end = min(positions.stop, self._ends[number])
            parts.append(self._samples(number)[position - start : end - start])
            position = end
        return parts[0] if len(parts) == 1 else torch.cat([*parts, torch.empty(0, dtype=torch.int64)])

    def _samples(self, number: int) -> Tensor:
        """Return the samples of a window in their order; the last one that was asked for is kept."""
        if self._window is None or self._window[0] != number:
            start = self._ends[number - 1] if number else 0
            places = start + permutation(self._ends[number] - start, *self._key, number).numpy()
            segments = np.searchsorted(self._segment_ends, places, side="right")
            samples = places - self._sequence_starts[segments] + self._segment_starts[segments]
            self._window = number, torch.from_numpy(samples)
        return self._window[1]


def _window_ends(n: int, first: int, largest: int) -> list[int]:
    ends: list[int] = []
    size, end = first, 0
    while end < n:
        end = min(n, end + size)
        ends.append(end)
        if len(ends) > 1:
            size = min(2 * size, largest)
    return ends
