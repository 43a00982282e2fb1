"""From the indices of a batch to the batch: read at once where the data set can, here or in worker processes.

This room does not know why these indices are asked for; the order is `smkit.data.order`'s.
"""

from __future__ import annotations

import multiprocessing
import pickle
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from smkit.data.arrays import Arrays
from smkit.data.order import derive_seed
from smkit.errors import DataError, SmkitError

Collate = Callable[[Any], Any]
Read = Callable[[Tensor], Any]


def reader(dataset: Any, collate_fn: Collate | None) -> Read:
    """Return the function from a batch's indices to the batch; it can be pickled if the data set can."""
    # A subclass can have its own `__getitem__`, which must not be passed over.
    if collate_fn is None and type(dataset) in (Arrays, TensorDataset):
        return partial(_gather, dataset.tensors)
    read = _read_at_once if hasattr(dataset, "__getitems__") else _read_each
    return partial(read, dataset, collate_fn or collate)


def _gather(tensors: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...] | None:
    return tuple([tensor.index_select(0, index) for tensor in tensors]) if index.numel() else None


def _read_at_once(dataset: Any, collate_fn: Collate, index: Tensor) -> Any:
    samples = index.tolist()
    if not samples:
        return None
    try:
        return collate_fn(dataset.__getitems__(samples))
    except Exception as error:
        _note_samples(error, dataset, samples)
        raise


def _read_each(dataset: Any, collate_fn: Collate, index: Tensor) -> Any:
    samples = index.tolist()
    if not samples:
        return None
    read: list[Any] = []
    try:
        for sample in samples:
            read.append(dataset[sample])  # noqa: PERF401  # what was read before a failure is needed below
        return collate_fn(read)
    except Exception as error:
        # Either the sample after those that were read is at fault, or, when all were read, their collation.
        _note_samples(error, dataset, samples[len(read) : len(read) + 1] or samples)
        raise


def _note_samples(error: Exception, dataset: object, samples: Sequence[int]) -> None:
    """Add to the user's own error which samples it is about; Python 3.11 and newer print it with the traceback.

    Raises:
        DataError: The error is a StopIteration, which would look like the end of the epoch.
    """
    if isinstance(error, StopIteration):
        raise DataError(
            f"reading sample {samples[0]} has raised StopIteration",
            where=f"data set {type(dataset).__name__}",
            fix="let `__len__` count the samples that there are, and read each by its index",
        ) from error
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    note = f"while reading sample {', '.join(map(str, samples[:8]))}{more} of data set {type(dataset).__name__}"
    vars(error).setdefault("__notes__", []).append(note)


def collate(samples: Any) -> Any:
    """Return a batch: torch's default of a list of samples; anything else is a batch already."""
    return default_collate(samples) if isinstance(samples, list) else samples


def pin(batch: Any) -> Any:
    """Return `batch` in page-locked memory, from which a GPU copies without making the process wait."""
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


def from_workers(
    read: Read, indices: Iterator[Tensor], seeds: tuple[int, int], *, num_workers: int, pinned: bool
) -> Iterator[Any]:
    """Return the batches of `indices`, in order, each read in one of `num_workers` processes that start now.

    Args:
        read: What `reader` returns.
        indices: The samples of each batch.
        seeds: The run's seed and the epoch, which decide a batch's random draws.
        num_workers: At least 1.
        pinned: Whether the batches lie in page-locked memory.

    Raises:
        DataError: The data set cannot be pickled.
    """
    loader = DataLoader(
        _Requests(read),
        batch_size=None,
        sampler=_requests(indices, seeds),
        num_workers=num_workers,
        collate_fn=_Unpinned if pinned else _as_it_is,
        worker_init_fn=_leave_interrupts_to_the_parent,
        pin_memory=pinned,
        # torch draws the workers' first seed from the global generator unless it is given another one.
        generator=torch.Generator(),
        multiprocessing_context=_forkserver(),
    )
    try:
        with warnings.catch_warnings():
            # torch advises another start method, which is not what decides here.
            warnings.filterwarnings("ignore", message="Got pickle error")
            return map(_batch, iter(loader))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DataError(
            f"the data set cannot be sent to worker processes: {error}",
            where="num_workers",
            fix="keep lambdas, local classes and open files out of the data set, or set num_workers=0",
        ) from error


class _Requests(Dataset[Any]):
    """What a worker takes for a data set: an item of it is a whole batch."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def __getitem__(self, request: tuple[int, list[int]]) -> Any:
        seed, samples = request
        # Random draws depend on the batch, not on which worker has it nor on what that worker did before.
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            return self._read(torch.tensor(samples, dtype=torch.int64))
        except SmkitError as error:
            # torch would raise a RuntimeError in its place, with what it says at the end of a traceback.
            return error


def _requests(indices: Iterator[Tensor], seeds: tuple[int, int]) -> Iterator[tuple[int, list[int]]]:
    for index in indices:
        samples = index.tolist()
        yield derive_seed(*seeds, *samples[:1]), samples


def _forkserver() -> Any:
    """Return the start method that neither copies this process's threads and GPU nor imports torch in each worker."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _batch(answer: Any) -> Any:
    if isinstance(answer, SmkitError):
        raise answer
    return answer


def _leave_interrupts_to_the_parent(_: int) -> None:
    """Let Ctrl-C, which a terminal sends to workers as well, be the parent's affair: it saves first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Unpinned:
    """A batch on its way to torch's pinning thread, which in older versions makes lists of tuples."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def pin_memory(self) -> Any:
        return pin(self._batch)
