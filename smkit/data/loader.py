"""From a data set to this rank's batches, in an order that can be resumed.

What is read when is decided by `smkit.data.order`, and how by `smkit.data.fetch`; this room checks and joins the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from smkit.data.fetch import Collate, collate, from_workers, pin, reader
from smkit.data.order import EpochPlan, EpochSampler
from smkit.errors import ConfigurationError, DataError


def make_loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    gradient_accumulation_steps: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    collate_fn: Collate | None = None,
    pin_memory: bool = False,
) -> Loader:
    """Return a loader of `dataset` whose order is a pure function of `seed` and the epoch.

    A batch is one indexed read where the data set allows it: `Arrays`, torch's `TensorDataset` (both give tuples of
    tensors), and any data set with `__getitems__(indices)`. Others are read a sample at a time.

    Args:
        dataset: Anything with `__len__`, and `__getitem__` or `__getitems__`. What `__getitems__` returns is a batch,
            unless it is a list, which is a list of samples.
        batch_size: Samples of one optimizer step, over all ranks and micro-batches; the same value is the same
            training on any number of processes.
        seed: Decides the order of samples, and the random draws in worker processes.
        shuffle: Whether each epoch has an order of its own; else the order of the data set.
        gradient_accumulation_steps: Micro-batches of one optimizer step.
        rank: This process among `world_size`.
        world_size: Processes that train together.
        num_workers: Processes that fetch for this one; 0 is the fastest for data in memory or in a mapped file.
        collate_fn: Makes a batch from what the data set returns: a list of samples, or what `__getitems__` returns.
        pin_memory: Whether batches lie in page-locked memory, if there is a GPU to copy them to.

    Raises:
        ConfigurationError: A number is out of range, or `batch_size` does not divide.
        DataError: The data set is empty, or cannot be read by index.
    """
    _check_range("batch_size", batch_size, at_least=1)
    _check_range("gradient_accumulation_steps", gradient_accumulation_steps, at_least=1)
    _check_range("world_size", world_size, at_least=1)
    _check_range("rank", rank, at_least=0, below=world_size)
    _check_range("num_workers", num_workers, at_least=0)
    _check_divides(batch_size, world_size, gradient_accumulation_steps)
    plan = EpochPlan(_length(dataset), batch_size, gradient_accumulation_steps, rank, world_size)
    sampler = EpochSampler(plan, seed=seed, shuffle=shuffle)
    return Loader(dataset, sampler, num_workers=num_workers, collate_fn=collate_fn, pin_memory=pin_memory)


class Loader(DataLoader[Any]):
    """This rank's micro-batches of an epoch, from the position to the epoch's end; made by `make_loader`.

    A loop of one's own that accumulates gradients, or that is to resume within an epoch, counts its steps:

        batches = iter(loader)
        for sizes in loader.groups():            # one optimizer step
            for size in sizes:                   # one micro-batch; its loss weighs size / sum(sizes)
                loss = training_step(next(batches)) * (size / sum(sizes))
                loss.backward()
            optimizer.step()
            loader.advance()

    A plain `for batch in loader` works as well; each pass that it makes to the end counts as an epoch. With several
    ranks, a rank whose share of the epoch's last samples is empty gets None for it.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochSampler,
        *,
        num_workers: int,
        collate_fn: Collate | None,
        pin_memory: bool,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_fn or collate,
            # torch warns of a request for pinned memory where there is no GPU; a laptop is no mistake.
            pin_memory=pin_memory and torch.cuda.is_available(),
        )
        self._order = sampler
        self._read = reader(dataset, collate_fn)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; a short last one is used, never dropped."""
        return self._order.plan.steps

    @property
    def epoch(self) -> int:
        """Epochs that are finished."""
        return self._order.epoch

    @property
    def step(self) -> int:
        """Optimizer steps that are finished in the current epoch."""
        return self._order.step

    def describe(self) -> str:
        """Return the data set in one line: its own description if it has one, else its class and size."""
        text = repr(self.dataset)
        name = type(self.dataset).__name__
        return text if "object at 0x" not in text else f"{name}({self._order.plan.samples:,} samples)"

    def groups(self) -> Iterator[tuple[int, ...]]:
        """Return, for each optimizer step that is left of the epoch, its micro-batches' samples over all ranks."""
        return self._order.plan.groups(self._order.step)

    def advance(self) -> None:
        """Count one optimizer step as done. What has been fetched does not count: a batch can wait in a queue."""
        self._order.advance()

    def state_dict(self) -> dict[str, int]:
        """Return the position, to be saved with the model; the same on all ranks, whatever their number."""
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a saved position without a single read; the next `iter` begins there.

        Raises:
            DataError: The number of samples, the seed, the batch size or shuffling is another one.
        """
        self._order.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its private iterator class here
        indices = self._order.indices()
        return self._one_pass(indices, began=(self.epoch, self.step))

    def _one_pass(self, indices: Iterator[Tensor], began: tuple[int, int]) -> Iterator[Any]:
        if self.num_workers:
            seeds = (self._order.seed, began[0])
            yield from from_workers(self._read, indices, seeds, num_workers=self.num_workers, pinned=self.pin_memory)
        else:
            for index in indices:
                batch = self._read(index)
                yield pin(batch) if self.pin_memory else batch
        self._order.end_pass(began)


def _name(dataset: object) -> str:
    return f"data set {type(dataset).__name__}"


def _length(dataset: Any) -> int:
    by_index = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not by_index:
        raise DataError(
            "the data set cannot be read by index, so that neither its order nor a resume can be exact",
            where=_name(dataset),
            fix="give it `__len__` and `__getitem__(index)` (a map-style data set); `list` makes one of a short stream",
        )
    if not len(dataset):
        raise DataError(
            "the data set is empty", where=_name(dataset), fix="check the channel, and what `build_dataset` selects"
        )
    return len(dataset)


def _check_range(name: str, value: int, *, at_least: int, below: int | None = None) -> None:
    if value < at_least or (below is not None and value >= below):
        upper = "" if below is None else f" and below {below}"
        raise ConfigurationError(f"{value} is out of range", where=name, fix=f"choose at least {at_least}{upper}")


def _check_divides(batch_size: int, world_size: int, gradient_accumulation_steps: int) -> None:
    parts = world_size * gradient_accumulation_steps
    below = batch_size // parts * parts
    if below == batch_size:
        return
    nearest = f"{below} or {below + parts}" if below else f"{parts}"
    raise ConfigurationError(
        f"a global batch of {batch_size} samples does not divide into {parts} equal parts "
        f"(world size {world_size} x {gradient_accumulation_steps} accumulation steps)",
        where="batch_size",
        fix=f"choose {nearest}",
    )
