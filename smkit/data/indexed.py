"""Batches of a data set that is read by index: in an order that can be resumed, ahead of the step where that pays.

Which samples a batch has is `smkit.data.epoch`'s affair, how they are read `smkit.data.fetch`'s; this room joins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smkit.data.batches import Group, Loader, describe
from smkit.data.buffers import Buffers, page_locked
from smkit.data.draws import Transform
from smkit.data.epoch import EpochSampler
from smkit.data.fetch import Collate, Reader, Skips, ahead, collate, is_worth_a_thread, pin, reader
from smkit.data.source import Source
from smkit.data.workers import WorkerPool
from smkit.errors import DataError


class IndexLoader(Loader):
    """See `Loader`.

    Args:
        dataset: What is read.
        sampler: The order and the position.
        workers: "auto", "none", "thread" or "process", as in `make_loader`.
        num_workers: Processes; 0 unless `workers` is "process".
        collate_fn: Makes a batch of what the data set returns.
        transform: Makes a batch of a batch.
        pin_memory: Whether batches lie in page-locked memory, if there is a GPU.
        skips: Notes samples that cannot be read; None lets their errors pass.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: EpochSampler,
        *,
        workers: str,
        num_workers: int,
        collate_fn: Collate | None,
        transform: Transform | None,
        pin_memory: bool,
        skips: Skips | None,
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
        self._workers = workers
        self._skips = skips
        plan = sampler.plan
        self._share = max(1, plan.batch_size // plan.gradient_accumulation_steps // plan.world_size)
        self._read = reader(
            dataset,
            samples=self._share,
            seed=sampler.seed,
            collate_fn=collate_fn,
            transform=transform,
            skips=skips,
            for_workers=num_workers > 0,
        )
        self._pool: WorkerPool | None = None
        if isinstance(self._read, Reader):
            if num_workers:
                self._pool = WorkerPool(self._read, num_workers, pinned=self.pin_memory)
            else:
                self._read.allocate = page_locked if self.pin_memory else Buffers()

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

    @property
    def skipped(self) -> Mapping[int, str]:
        """Samples that could not be read and were replaced by others, each with the reason."""
        return {} if self._skips is None else dict(self._skips.reasons)

    def describe(self) -> str:
        """Return the data set in one line, and how far it is shuffled if not as a whole."""
        text = describe(self.dataset, f"{self._order.plan.samples:,} samples")
        return f"{text}, {self._order.windows.describe()}" if self._order.windows and self._order.shuffle else text

    def groups(self) -> Iterator[Group]:
        """Return the micro-batches of each optimizer step that is left of the epoch."""
        return self._order.plan.groups(self._order.step)

    def advance(self) -> None:
        """Count one optimizer step as done."""
        self._order.advance()

    def state_dict(self) -> dict[str, int]:
        """Return the position: a few numbers, the same on all ranks, whatever their number."""
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a saved position without a single read; the next `iter` begins there.

        Raises:
            DataError: The number of samples, the seed, the batch size, shuffling or the data is another one.
        """
        self._order.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its private iterator class here
        indices = self._order.indices()
        return self._one_pass(indices, began=(self.epoch, self.step))

    def _one_pass(self, indices: Iterator[Tensor], began: tuple[int, int]) -> Iterator[Any]:
        epoch = began[0]
        if self._pool is not None:
            yield from self._pool.batches(indices, epoch, self._share)
        elif self._workers == "thread" or (self._workers == "auto" and is_worth_a_thread(self.dataset, self._share)):
            yield from self._read_ahead(indices, epoch)
        elif self.pin_memory:
            for index in indices:
                yield self._batch(index, epoch)
        else:
            read = self._read
            for index in indices:
                yield read(index, epoch)
        self._order.end_pass(began)

    def _batch(self, index: Tensor, epoch: int) -> Any:
        batch = self._read(index, epoch)
        return pin(batch) if self.pin_memory else batch

    def _read_ahead(self, indices: Iterator[Tensor], epoch: int) -> Iterator[Any]:
        """Read the first batch here, to see whether a thread may read: it must draw nothing that the model draws.

        Raises:
            DataError: A thread was asked for, and may not.
        """
        read = partial(self._batch, epoch=epoch)
        index = next(indices, None)
        if index is None:
            return
        first = read(index)
        draws = isinstance(self._read, Reader) and self._read.draws
        if draws and self._workers == "thread":
            raise DataError(
                "the data set or its transform draws from the process's random generators, which a thread would share "
                "with the model: no run could be repeated or resumed",
                where=f"data set {type(self.dataset).__name__}, workers='thread'",
                fix="draw from what a `transform` is given, or use workers='process'",
            )
        if draws:
            yield first
            del first
            yield from map(read, indices)
            return
        if isinstance(self._read, Reader):
            self._read.stop_checking()
        yield from ahead(first, read, indices)


def dataset_fingerprint(dataset: object) -> int:
    """Return the fingerprint of a data set of smkit's, or what a data set of the user's says is its own; else 0.

    Raises:
        DataError: It says something that is none.
    """
    fingerprint = getattr(dataset, "fingerprint", 0)
    if isinstance(dataset, Source) or (type(fingerprint) is int and 0 <= fingerprint < 2**63):
        return int(fingerprint)
    raise DataError(
        f"its fingerprint is {fingerprint!r:.60}",
        where=f"data set {type(dataset).__name__}",
        fix="make `fingerprint` an integer from 0 to below 2**63, or give it another name",
    )
