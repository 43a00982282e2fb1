"""From the indices of a batch to the batch: read at once where the data set can, with random numbers of the samples.

This room knows neither why these indices are asked for nor in which thread or process.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from smkit.data.arrays import Arrays
from smkit.data.draws import GlobalGenerators, SampleRandom, Transform, generators_of_their_own, seed_global_generators
from smkit.data.order import derive_seed
from smkit.data.source import Allocate, SampleError, Source, allocate
from smkit.errors import DataError

logger = logging.getLogger(__name__)

Collate = Callable[[Any], Any]
Read = Callable[[Tensor, int], Any]
"""From the indices of a batch, one at least, and the epoch to the batch."""

_CHECKED_READS = 16
_AHEAD = 2
_SMALL_BATCH = 1 << 20


class Skips:
    """Samples that could not be read, each with the reason; others take their places.

    Args:
        budget: How many there may be; None is any number.
    """

    def __init__(self, budget: int | None) -> None:
        self.reasons: dict[int, str] = {}
        self._budget = budget

    def note(self, sample: int, reason: str) -> None:
        """Count a sample, once.

        Raises:
            DataError: It is one more than there may be.
        """
        if sample in self.reasons:
            return
        self.reasons[sample] = reason
        if self._budget is None:
            return
        if len(self.reasons) > self._budget:
            raise DataError(
                f"{len(self.reasons)} samples cannot be read, and {self._budget} may be skipped; the last: {reason}",
                where="skip_budget",
                fix="mend the data, or allow more with skip_budget",
            )
        logger.warning("skipped, %d of at most %d: %s", len(self.reasons), self._budget, reason)


class Reader:
    """Reads batches of one data set; it can be pickled if the data set and the functions can.

    What a data set or a transform of the user's draws from the process's generators is made the samples' own: they are
    seeded for each sample, or, by what reads or transforms whole batches, for each batch by its first one. To spare the
    others that, what has drawn in none of its first 16 reads is taken for something that never does.

    Args:
        dataset: What is read.
        seed: The run's.
        collate_fn: Makes a batch of what the data set returns.
        transform: Makes a batch of a batch.
        skips: Notes samples that cannot be read; None lets their errors pass.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        seed: int,
        collate_fn: Collate | None = None,
        transform: Transform | None = None,
        skips: Skips | None = None,
    ) -> None:
        self.dataset = dataset
        self.skips = skips
        self.allocate: Allocate = allocate
        self.draws = False
        """Whether the process's generators have been drawn from."""
        self._seed = seed
        self._collate = collate_fn
        self._transform = transform
        self._is_source = isinstance(dataset, Source)
        is_known = self._is_source and transform is None and collate_fn is None
        self._checks_left = 0 if is_known else _CHECKED_READS

    def __call__(self, index: Tensor, epoch: int) -> Any:
        if not self.draws:
            if not self._checks_left:
                return self._batch(index, epoch, is_seeded=False)
            generators = GlobalGenerators()
            batch = self._batch(index, epoch, is_seeded=False)
            self._checks_left -= 1
            if not generators.have_moved():
                return batch
            generators.restore()
            self.draws = True
        with generators_of_their_own():
            return self._batch(index, epoch, is_seeded=True)

    def stop_checking(self) -> None:
        """Stop looking at the process's generators: another thread is about to draw from them."""
        self._checks_left = 0

    def _batch(self, index: Tensor, epoch: int, *, is_seeded: bool) -> Any:
        if is_seeded:
            seed_global_generators(derive_seed(self._seed, epoch, int(index[0])))
        index, batch = self._read_around(index, epoch, is_seeded=is_seeded)
        return batch if self._transform is None else self._transform(batch, SampleRandom(self._seed, epoch, index))

    def _read_around(self, index: Tensor, epoch: int, *, is_seeded: bool) -> tuple[Tensor, Any]:
        """Return the samples that were read, others in the place of those that could not be, and their batch."""
        while True:
            try:
                return index, self._read(index, epoch, is_seeded=is_seeded)
            except SampleError as error:
                if self.skips is None:
                    raise
                self.skips.note(error.sample, error.what)
                index = self._without(error.sample, index, self.skips.reasons)

    def _without(self, sample: int, index: Tensor, skipped: Container[int]) -> Tensor:
        """Return `index` with the next readable sample in the place of `sample`: the same one on every machine."""
        n = len(self.dataset)
        others = (other % n for other in range(sample + 1, sample + n) if other % n not in skipped)
        other = next(others, None)
        if other is None:
            raise DataError("no sample can be read", where=_name(self.dataset), fix="check the data set")
        return torch.where(index == sample, other, index)

    def _read(self, index: Tensor, epoch: int, *, is_seeded: bool) -> Any:
        if self._is_source:
            batch = self.dataset.read(index, self.allocate)
            return batch if self._collate is None else self._collate(batch)
        samples = index.tolist()
        if not hasattr(self.dataset, "__getitems__"):
            return self._read_each(samples, epoch, is_seeded=is_seeded)
        try:
            return (self._collate or collate)(self.dataset.__getitems__(samples))
        except Exception as error:
            if self.skips is not None:
                self._find_unreadable(samples)
            _note_samples(error, self.dataset, samples)
            raise

    def _read_each(self, samples: list[int], epoch: int, *, is_seeded: bool) -> Any:
        dataset = self.dataset
        read: list[Any] = []
        try:
            if is_seeded:
                for sample in samples:
                    seed_global_generators(derive_seed(self._seed, epoch, sample))
                    read.append(dataset[sample])
            else:
                for sample in samples:
                    read.append(dataset[sample])  # noqa: PERF401  # what was read before a failure is needed below
            return (self._collate or collate)(read)
        except Exception as error:
            # Either the sample after those that were read is at fault, or, when all were read, their collation.
            failed = samples[len(read) : len(read) + 1]
            if failed and self.skips is not None:
                raise _unreadable(dataset, failed[0], error) from error
            _note_samples(error, dataset, failed or samples)
            raise

    def _find_unreadable(self, samples: list[int]) -> None:
        """Raise the SampleError of the first of `samples` that cannot be read alone."""
        for sample in samples:
            try:
                self.dataset.__getitems__([sample])
            except Exception as error:
                # Whatever the user's data set raises.
                raise _unreadable(self.dataset, sample, error) from error


def reader(
    dataset: Any,
    *,
    samples: int,
    seed: int,
    collate_fn: Collate | None,
    transform: Transform | None,
    skips: Skips | None,
    for_workers: bool,
) -> Reader | Read:
    """Return what reads batches of about `samples` samples of `dataset`, here or in worker processes."""
    # A subclass can have its own `__getitem__`, which must not be passed over.
    is_in_memory = type(dataset) in (Arrays, TensorDataset) and collate_fn is None and _is_on_cpu(dataset.tensors)
    if is_in_memory and transform is None and not for_workers and Arrays.batch_bytes(dataset, samples) <= _SMALL_BATCH:
        return Gather(dataset.tensors)
    if type(dataset) is TensorDataset and collate_fn is None:
        dataset = Arrays({str(number): tensor for number, tensor in enumerate(dataset.tensors)})
    return Reader(dataset, seed=seed, collate_fn=collate_fn, transform=transform, skips=skips)


def _is_on_cpu(tensors: tuple[Tensor, ...]) -> bool:
    return all(tensor.is_cpu for tensor in tensors)


class Gather:
    """Reads small batches of tensors, with as little besides as can be."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def __call__(self, index: Tensor, epoch: int) -> tuple[Tensor, ...]:  # noqa: ARG002 - nothing is random here
        return tuple([tensor.index_select(0, index) for tensor in self._tensors])


def is_worth_a_thread(dataset: Any, samples: int) -> bool:
    """Return whether reading a batch takes longer than handing it over from another thread, and may be done there.

    A data set of the user's may draw from the process's generators, as the model does: only one of them can at a time.
    """
    if not isinstance(dataset, Source):
        return False
    size = dataset.batch_bytes(samples)
    return size is None or size > _SMALL_BATCH


def ahead(first: Any, read: Callable[[Tensor], Any], indices: Iterator[Tensor]) -> Iterator[Any]:
    """Return `first`, and the batches of `indices`, read in order by a thread that is two batches ahead."""
    with ThreadPoolExecutor(1, "smkit-data") as pool:
        waiting = deque(pool.submit(read, index) for index in islice(indices, _AHEAD))
        try:
            yield first
            del first
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(read, index) for index in islice(indices, 1))
                yield batch
                # Else it would be held, and its memory with it, while the next one is waited for.
                del batch
        finally:
            for future in waiting:
                future.cancel()


def collate(samples: Any) -> Any:
    """Return a batch: torch's default of a list of samples; anything else is a batch already."""
    return default_collate(samples) if isinstance(samples, list) else samples


def pin(batch: Any) -> Any:
    """Return `batch` in page-locked memory, from which a GPU copies without making the process wait."""
    if isinstance(batch, Tensor) and not batch.is_cpu:
        return batch
    if hasattr(batch, "pin_memory"):
        return batch.pin_memory()
    if isinstance(batch, tuple):
        values = map(pin, batch)
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, list):
        return [pin(value) for value in batch]
    if isinstance(batch, dict):
        pinned = copy(batch)
        pinned.update((key, pin(value)) for key, value in batch.items())
        return pinned
    return batch


def _name(dataset: object) -> str:
    return f"data set {type(dataset).__name__}"


def _unreadable(dataset: object, sample: int, error: Exception) -> SampleError:
    text = str(error).partition("\n")[0]
    return SampleError(
        f"sample {sample} cannot be read: {type(error).__name__}: {text}".removesuffix(": "),
        sample=sample,
        where=_name(dataset),
        fix="mend the sample",
    )


def _note_samples(error: Exception, dataset: object, samples: Sequence[int]) -> None:
    """Add to the user's own error which samples it is about; Python 3.11 and newer print it with the traceback.

    Raises:
        DataError: The error is a StopIteration, which would look like the end of the epoch.
    """
    if isinstance(error, StopIteration):
        raise DataError(
            f"reading sample {samples[0]} has raised StopIteration",
            where=_name(dataset),
            fix="let `__len__` count the samples that there are, and read each by its index",
        ) from error
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    note = f"while reading sample {', '.join(map(str, samples[:8]))}{more} of {_name(dataset)}"
    vars(error).setdefault("__notes__", []).append(note)
