"""How an epoch is cut into steps, micro-batches and the ranks' shares, and where a run stands in it.

Neither the number of ranks nor of workers has a say in which samples a step trains on. This room reads no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat

from torch import Tensor
from torch.utils.data import Sampler

from smkit.data.batches import Group
from smkit.data.order import Windows, epoch_order
from smkit.errors import DataError


def cut(samples: int, parts: int, part: int) -> slice:
    """Return one of `parts` contiguous parts of `samples` things, which are as equal as can be."""
    return slice(samples * part // parts, samples * (part + 1) // parts)


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def micro_batch_sizes(samples: int, batch_size: int, gradient_accumulation_steps: int) -> tuple[int, ...]:
    """Return the sizes of as few micro-batches as hold `samples`, even: 9 where one holds 8 become 5 and 4."""
    parts = -(-samples * gradient_accumulation_steps // batch_size)
    return tuple(samples * (part + 1) // parts - samples * part // parts for part in range(parts))


@dataclass(frozen=True)
class EpochPlan:
    """How an epoch is cut: into optimizer steps, a step into micro-batches, a micro-batch into the ranks' shares.

    Every cut is contiguous in the order of samples and as even as can be. The last step of an epoch takes what is
    left, in as few micro-batches as hold it: 9 samples where a micro-batch holds 8 become 5 and 4, not 8 and 1. There,
    the shares of ranks can differ by one, and be empty where fewer samples than ranks are left: the whole micro-batch
    stands in for an empty share.

    Where each host holds a part of the data (`shards`), a step takes of each host its share, so that all hosts end an
    epoch with the same step, each of their samples seen once.
    """

    samples: int
    """Of the data that this process sees."""
    batch_size: int
    """Samples of one optimizer step, over all ranks and micro-batches."""
    gradient_accumulation_steps: int = 1
    rank: int = 0
    world_size: int = 1
    """Processes that see the same data."""
    shards: tuple[int, ...] = ()
    """Samples of each host, where each has other data; empty where all have the same."""

    @property
    def all_samples(self) -> int:
        """Samples of an epoch, over all hosts."""
        return sum(self.shards) or self.samples

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of an epoch, the short last one included."""
        return -(-self.all_samples // self.batch_size)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an epoch, the same for every rank."""
        if self.shards:
            return sum(len(self._group_of_shards(step)) for step in range(self.steps))
        whole_steps, rest = divmod(self.samples, self.batch_size)
        return whole_steps * self.gradient_accumulation_steps + len(self._cut_sizes(rest))

    def groups(self, first_step: int) -> Iterator[Group]:
        """Return the micro-batches of each step from `first_step` on."""
        if self.shards:
            return map(self._group_of_part, range(first_step, self.steps))
        whole_steps, rest = divmod(self.samples, self.batch_size)
        last = (self._group(rest),) if rest else ()
        return chain(repeat(self._group(self.batch_size), whole_steps - first_step), last)

    def _group(self, samples: int) -> Group:
        sizes = self._cut_sizes(samples)
        return Group(samples, tuple(_size(cut(size, self.world_size, self.rank)) for size in sizes))

    def _group_of_part(self, step: int) -> Group:
        shares = tuple(_size(own) for own, _ in self._own_parts(step))
        return Group(sum(self._group_of_shards(step)), shares)

    def shares(self, first_step: int) -> Iterator[slice]:
        """Yield this rank's part of the epoch's order, one slice a micro-batch, from `first_step` on; none is empty."""
        if self.shards:
            for step in range(first_step, self.steps):
                for own, part in self._own_parts(step):
                    first = min(own.start, self.samples - 1)
                    yield own if _size(own) else part if _size(part) else slice(first, first + 1)
            return
        start = first_step * self.batch_size
        rank, world_size = self.rank, self.world_size
        whole_steps, rest = divmod(self.samples, self.batch_size)
        sizes = self._cut_sizes(self.batch_size)
        for step in range(first_step, self.steps):
            for size in sizes if step < whole_steps else self._cut_sizes(rest):
                # As `cut` has it, without a call for each batch.
                first, last = start + size * rank // world_size, start + size * (rank + 1) // world_size
                yield slice(first, last) if last > first else slice(start, start + size)
                start += size

    def samples_before(self, step: int) -> int:
        """Return how many samples of an epoch, over all ranks, come before `step`."""
        return min(step * self.batch_size, self.all_samples)

    def _own_parts(self, step: int) -> Iterator[tuple[slice, slice]]:
        """Yield this rank's share, and its host's, of each micro-batch of a step, within the data of its host."""
        of_step = cut(self.samples, self.steps, step)
        parts = len(self._group_of_shards(step))
        for number in range(parts):
            part = cut(of_step.stop - of_step.start, parts, number)
            own = cut(part.stop - part.start, self.world_size, self.rank)
            start = of_step.start + part.start
            yield slice(start + own.start, start + own.stop), slice(start, start + _size(part))

    def _group_of_shards(self, step: int) -> tuple[int, ...]:
        hosts = [_size(cut(samples, self.steps, step)) for samples in self.shards]
        parts = max(1, -(-sum(hosts) * self.gradient_accumulation_steps // self.batch_size))
        return tuple(sum(_size(cut(samples, parts, number)) for samples in hosts) for number in range(parts))

    def _cut_sizes(self, samples: int) -> tuple[int, ...]:
        return micro_batch_sizes(samples, self.batch_size, self.gradient_accumulation_steps)


class EpochSampler(Sampler[list[int]]):
    """The order of samples and the position in it, which is what has been trained on, not what has been fetched.

    Iterating gives this rank's micro-batches, as lists of indices, from the position to the end of the epoch. The
    position moves by `advance` alone, or, for a consumer that never calls it, by a whole epoch at each `end_pass`.

    Args:
        plan: How an epoch is cut.
        seed: Decides the order.
        shuffle: Whether each epoch has an order of its own.
        windows: How a data set is shuffled that must be read in sequence.
        fingerprint: Of the data; the same on every rank.
    """

    def __init__(
        self, plan: EpochPlan, *, seed: int, shuffle: bool, windows: Windows | None = None, fingerprint: int = 0
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.shuffle = shuffle
        self.windows = windows
        self._fingerprint = fingerprint
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
        order = epoch_order(
            self.plan.samples, seed=self.seed, epoch=self._epoch, shuffle=self.shuffle, windows=self.windows
        )
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
        """Return the position, with all that the order depends on: a few numbers, the same on every rank."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "samples": self.plan.samples_before(self.step),
            "n": self.plan.all_samples,
            "batch_size": self.plan.batch_size,
            "shuffle": int(self.shuffle),
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to the position of `state`; the next iterator begins there.

        Raises:
            DataError: The position is of another order: samples would be seen twice, and others never.
        """
        own = self.state_dict()
        if missing := sorted(own.keys() - state.keys()):
            raise DataError(
                f"no {', '.join(missing)} in {dict(state)}", where=POSITION, fix="pass what `state_dict` has returned"
            )
        for name, (meaning, fix) in _SAME_ORDER.items():
            if state[name] != own[name]:
                raise DataError(
                    f"{meaning} was {state[name]} and is {own[name]} now, so that the position means other samples",
                    where=POSITION,
                    fix=f"{fix.format(state[name])}, or start afresh without the checkpoint",
                )
        step, rest = divmod(state["samples"], self.plan.batch_size)
        if state["epoch"] < 0 or rest or not 0 <= step < self.plan.steps:
            raise DataError(
                f"sample {state['samples']} of epoch {state['epoch']} is no place between two steps: an epoch has "
                f"{self.plan.steps} of {self.plan.batch_size} samples",
                where=POSITION,
                fix="use another checkpoint",
            )
        self._epoch, self._step, self._uncounted_epochs = state["epoch"], step, 0


POSITION = "the data position of the checkpoint"
_SAME_ORDER = {
    "n": ("the number of samples", "bring back the {} samples"),
    "seed": ("seed", "set seed={}"),
    "batch_size": ("the global batch_size", "set batch_size={}"),
    "shuffle": ("shuffle", "set shuffle to {} again"),
    "fingerprint": ("the fingerprint of the data", "bring back the data whose fingerprint is {}"),
}
