"""Which samples a step trains on: arithmetic on (seed, epoch, step), so that a resumed run costs and sees no more.

Neither the number of ranks nor of workers has a say in the order. This room reads no data and knows no data set.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from smkit.errors import DataError

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
        return Straight(n)
    if windows is not None and windows.rule(epoch):
        return Windowed(windows, seed=seed, epoch=epoch)
    return Permutation(n, seed, epoch) if n <= PERMUTED else Bijection(n, seed, epoch)


class Order(Protocol):
    """The samples of an epoch by their positions in it."""

    def __getitem__(self, positions: slice, /) -> Tensor:
        """Return the samples at these positions, int64; `positions` has a start and a stop within the epoch."""


class Straight:
    """The order of the data set itself."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __getitem__(self, positions: slice, /) -> Tensor:
        return torch.arange(*positions.indices(self._n))


class Permutation:
    """One of all permutations, each as likely as another: 8 bytes a sample."""

    def __init__(self, n: int, *key: int) -> None:
        self._samples = torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(*key)))

    def __getitem__(self, positions: slice, /) -> Tensor:
        return self._samples[positions]


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
        order = Permutation(len(sizes), seed, epoch, -1)[0 : len(sizes)].numpy()
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
            places = start + Permutation(self._ends[number] - start, *self._key, number)[0:].numpy()
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


@dataclass(frozen=True)
class EpochPlan:
    """How an epoch is cut: into optimizer steps, a step into micro-batches, a micro-batch into the ranks' shares.

    Every cut is contiguous in the order of samples and as even as can be. The last step of an epoch takes what is
    left, in as few micro-batches as hold it: 9 samples where a micro-batch holds 8 become 5 and 4, not 8 and 1. There,
    the shares of ranks can differ by one, and be empty where fewer samples than ranks are left.
    """

    samples: int
    batch_size: int
    """Samples of one optimizer step, over all ranks and micro-batches."""
    gradient_accumulation_steps: int = 1
    rank: int = 0
    world_size: int = 1

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of an epoch, the short last one included."""
        return -(-self.samples // self.batch_size)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an epoch, the same for every rank."""
        whole_steps, rest = divmod(self.samples, self.batch_size)
        return whole_steps * self.gradient_accumulation_steps + len(self._micro_batch_sizes(rest))

    def groups(self, first_step: int) -> Iterator[tuple[int, ...]]:
        """Return, for each step from `first_step` on, how many samples its micro-batches hold over all ranks."""
        whole_steps, rest = divmod(self.samples, self.batch_size)
        last = (self._micro_batch_sizes(rest),) if rest else ()
        return chain(repeat(self._micro_batch_sizes(self.batch_size), whole_steps - first_step), last)

    def shares(self, first_step: int) -> Iterator[slice]:
        """Yield this rank's part of the epoch's order, one slice a micro-batch, from `first_step` on."""
        start = first_step * self.batch_size
        for sizes in self.groups(first_step):
            for size in sizes:
                yield slice(
                    start + size * self.rank // self.world_size, start + size * (self.rank + 1) // self.world_size
                )
                start += size

    def _micro_batch_sizes(self, samples: int) -> tuple[int, ...]:
        parts = -(-samples * self.gradient_accumulation_steps // self.batch_size)
        return tuple(samples * (part + 1) // parts - samples * part // parts for part in range(parts))


class EpochSampler(Sampler[list[int]]):
    """The order of samples and the position in it, which is what has been trained on, not what has been fetched.

    Iterating gives this rank's micro-batches, as lists of indices, from the position to the end of the epoch. The
    position moves by `advance` alone, or, for a consumer that never calls it, by a whole epoch at each `end_pass`.
    """

    def __init__(self, plan: EpochPlan, *, seed: int, shuffle: bool) -> None:
        self.plan = plan
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = 0
        self._step = 0
        self._uncounted_epochs = 0

    @property
    def epoch(self) -> int:
        """Epochs that are finished."""
        return self._epoch + self._uncounted_epochs

    @property
    def step(self) -> int:
        """Optimizer steps that are finished in the current epoch."""
        return 0 if self._uncounted_epochs else self._step

    def __len__(self) -> int:
        return self.plan.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        return map(Tensor.tolist, self.indices())

    def indices(self) -> Iterator[Tensor]:
        """Return what iterating gives, as int64 tensors; the position is taken at the call."""
        self._epoch, self._step, self._uncounted_epochs = self.epoch, self.step, 0
        order = epoch_order(self.plan.samples, seed=self.seed, epoch=self._epoch, shuffle=self.shuffle)
        return map(order.__getitem__, self.plan.shares(self._step))

    def advance(self) -> None:
        """Count one optimizer step; after the last one of an epoch the position is the start of the next epoch."""
        self._uncounted_epochs = 0
        self._step += 1
        if self._step == self.plan.steps:
            self._epoch += 1
            self._step = 0

    def end_pass(self, began: tuple[int, int]) -> None:
        """Note that a consumer which began at `began` (epoch, step) has asked for more than the epoch holds.

        If the position is still there, nobody counts steps and the epoch is over. An `advance` that comes after all,
        from a consumer that reads ahead, takes this back.
        """
        if began == (self._epoch, self._step):
            self._uncounted_epochs = 1

    def state_dict(self) -> dict[str, int]:
        """Return the position, with all that the order depends on."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "step": self.step,
            "n": self.plan.samples,
            "batch_size": self.plan.batch_size,
            "shuffle": int(self.shuffle),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to the position of `state`; the next iterator begins there.

        Raises:
            DataError: The position is of another order: samples would be seen twice, and others never.
        """
        own = self.state_dict()
        where = "the data position of the checkpoint"
        if missing := sorted(own.keys() - state.keys()):
            raise DataError(
                f"no {', '.join(missing)} in {dict(state)}", where=where, fix="pass what `state_dict` has returned"
            )
        for name, (meaning, fix) in _SAME_ORDER.items():
            if state[name] != own[name]:
                raise DataError(
                    f"{meaning} was {state[name]} and is {own[name]} now, so that the position means other samples",
                    where=where,
                    fix=f"{fix.format(state[name])}, or start afresh without the checkpoint",
                )
        if state["epoch"] < 0 or not 0 <= state["step"] < self.plan.steps:
            raise DataError(
                f"epoch {state['epoch']}, step {state['step']} does not exist: an epoch has {self.plan.steps} steps",
                where=where,
                fix="use another checkpoint",
            )
        self._epoch, self._step, self._uncounted_epochs = state["epoch"], state["step"], 0


_SAME_ORDER = {
    "n": ("the number of samples", "bring back the {} samples"),
    "seed": ("seed", "set seed={}"),
    "batch_size": ("the global batch_size", "set batch_size={}"),
    "shuffle": ("shuffle", "set shuffle to {} again"),
}
