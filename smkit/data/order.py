"""Which samples a step trains on: arithmetic on (seed, epoch, step), so that a resumed run costs and sees no more.

Neither the number of ranks nor of workers has a say in the order. This room reads no data and knows no data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat

import torch
from torch import Tensor
from torch.utils.data import Sampler

from smkit.errors import DataError


def derive_seed(*parts: int) -> int:
    """Return a seed below 2**63 that is well mixed from `parts`, such as a run's seed and its epoch."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(n: int, *, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Return the order of an epoch's samples, `(n,)` int64: the same for the same arguments, on every machine.

    The global random generator is neither read nor moved.
    """
    if not shuffle:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))


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
