"""Processes that read batches for this one: for transforms that hold Python's lock, which threads would queue up for.

They are forked from a clean server, stay from one epoch to the next, and are checked for before they start: shared
memory, open files, the weight of the data set. This room does not know what is read.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import warnings
from collections.abc import Iterator
from copy import copy
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from smkit.data.fetch import Reader, Skips, pin
from smkit.errors import ConfigurationError, DataError, SmkitError

logger = logging.getLogger(__name__)

_AHEAD = 2
_HEAVY_PICKLE = 50_000_000
_FORK_SERVER = "smkit.data.fork_server"
"""By name, for only the server is to import it."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where torch's tensors travel, not a file of ours


class WorkerPool:
    """`count` worker processes, started by the first pass and kept for the next ones.

    Args:
        reader: What reads; it is sent to each worker.
        count: At least 1.
        pinned: Whether the batches lie in page-locked memory.
    """

    def __init__(self, reader: Reader, count: int, *, pinned: bool) -> None:
        self._reader = reader
        self._count = count
        self._requests = _Requests()
        self._pinned = pinned
        self._loader: DataLoader[Any] | None = None
        self._pass = 0

    def batches(self, indices: Iterator[Tensor], epoch: int, samples: int) -> Iterator[Any]:
        """Return the batches of `indices`, in order.

        Args:
            indices: The samples of each batch.
            epoch: Counted from 0; decides the batches' random draws.
            samples: How many a batch holds at most.

        Raises:
            ConfigurationError: There is not enough shared memory, or too few files may be open.
            DataError: The data set cannot be sent to the workers.
        """
        self._requests.of_pass = ((epoch, index.tolist()) for index in indices)
        try:
            if self._loader is None:
                self._loader = self._started(samples)
            with warnings.catch_warnings():
                # torch advises another start method, which is not what decides here.
                warnings.filterwarnings("ignore", message="Got pickle error")
                answers = iter(self._loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self._loader = None
            raise DataError(
                f"the data set cannot be sent to worker processes: {error}",
                where="workers",
                fix="keep lambdas, local classes and open files out of the data set, or do without workers='process'",
            ) from error
        self._pass += 1
        return self._answered(answers, self._pass)

    def _answered(self, answers: Iterator[Any], number: int) -> Iterator[Any]:
        """Yield the batches of a pass, unless another one has begun: the workers answer one at a time."""
        while True:
            if number != self._pass:
                raise DataError(
                    "another pass over the same loader has begun, and its worker processes serve one at a time",
                    where="workers",
                    fix="finish one pass before the next, or make a loader for each",
                )
            answer = next(answers, None)
            if answer is None:
                return
            yield self._opened(answer)

    def _started(self, samples: int) -> DataLoader[Any]:
        sent = pickle.dumps(self._reader)
        if len(sent) > _HEAVY_PICKLE:
            _warn_of_weight(self._reader.dataset, len(sent))
        # A copy is tried: reading can open files, and what has an open file cannot be sent.
        _require_room(pickle.loads(sent), self._count, samples)  # noqa: S301 - made two lines above
        return DataLoader(
            _Answers(self._reader),
            batch_size=None,
            sampler=self._requests,
            num_workers=self._count,
            prefetch_factor=_AHEAD,
            persistent_workers=True,
            collate_fn=_Unpinned if self._pinned else _as_it_is,
            worker_init_fn=_depend_on_the_parent,
            pin_memory=self._pinned,
            # torch draws the workers' first seed from the global generator unless it is given another one.
            generator=torch.Generator(),
            multiprocessing_context=_forkserver(type(self._reader.dataset).__module__),
        )

    def _opened(self, answer: Any) -> Any:
        if isinstance(answer, SmkitError):
            raise answer
        batch, skipped = answer
        for sample, reason in skipped.items():
            if self._reader.skips is not None:
                self._reader.skips.note(sample, reason)
        return batch


def _require_room(reader: Reader, count: int, samples: int) -> None:
    """Refuse to start workers that would die of a full /dev/shm, or of too many open files, hours later.

    Raises:
        ConfigurationError: What is missing, with both numbers.
    """
    tensors = list(_tensors(reader(torch.zeros(1, dtype=torch.int64), 0)))
    under_way = count * (_AHEAD + 1)
    needed = under_way * samples * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if SHARED_MEMORY.is_dir():
        state = os.statvfs(SHARED_MEMORY)
        free = state.f_bavail * state.f_frsize
        if needed > free:
            raise ConfigurationError(
                f"{count} worker processes need about {needed / 1e6:,.0f} MB of shared memory for the batches under "
                f"way, and {SHARED_MEMORY} has {free / 1e6:,.0f} MB free",
                where="workers",
                fix="use workers='thread', which needs none, fewer workers or a smaller batch; of a container of your "
                "own, raise --shm-size",
            )
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = under_way * len(tensors) + 64
    if files > limit != resource.RLIM_INFINITY:
        raise ConfigurationError(
            f"{count} worker processes need about {files:,} open files, and this process may have {limit:,}",
            where="workers",
            fix="raise the limit with `ulimit -n`, return fewer tensors a batch, or use workers='thread'",
        )


def _warn_of_weight(dataset: Any, weight: int) -> None:
    sizes = {name: len(pickle.dumps(value)) for name, value in getattr(dataset, "__dict__", {}).items()}
    heaviest = max(sizes, key=lambda name: sizes[name], default="?")
    logger.warning(
        "each worker process gets its own copy of the data set, %d MB, most of it in %s.%s: keep large tables in numpy "
        "arrays or mapped files, not in Python objects",
        weight // 1_000_000,
        type(dataset).__name__,
        heaviest,
    )


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)


class _Requests(Sampler[tuple[int, list[int]]]):
    """What is asked of the workers in the current pass."""

    def __init__(self) -> None:
        self.of_pass: Iterator[tuple[int, list[int]]] = iter(())

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return self.of_pass


class _Answers(Dataset[Any]):
    """What a worker takes for a data set: an item of it is a whole batch, and what was skipped for it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = copy(reader)
        if reader.skips is not None:
            # Only the process that asks knows how many all workers have skipped.
            self._reader.skips = Skips(None)

    def __getitem__(self, request: tuple[int, list[int]]) -> Any:
        epoch, samples = request
        skips = self._reader.skips
        known = set() if skips is None else set(skips.reasons)
        try:
            batch = self._reader(torch.tensor(samples, dtype=torch.int64), epoch)
        except SmkitError as error:
            # torch would raise a RuntimeError in its place, with what it says at the end of a traceback.
            return error
        reasons = {} if skips is None else skips.reasons
        return batch, {sample: reasons[sample] for sample in reasons.keys() - known}


def _forkserver(module: str) -> Any:
    """Return the start method that neither copies this process's threads and GPU nor imports torch in each worker."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_FORK_SERVER, __name__, module])
    # It hears no SIGTERM until it has left this process's group. Starting the tracker unblocks it, so it comes first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _depend_on_the_parent(_: int) -> None:
    """Let Ctrl-C, which a terminal sends to workers as well, be the parent's affair: it saves first. End when it ends.

    A worker is a child of the fork server, which outlives a parent that is killed for as long as it has children:
    torch's own watch on the worker's parent sees nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A server that the user's own code has started before is still in the group to which torchrun sends SIGTERM.
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_the_parent, name="smkit-parent", daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_it_is(answer: Any) -> Any:
    return answer


class _Unpinned:
    """An answer on its way to torch's pinning thread, which in older versions makes lists of tuples."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def pin_memory(self) -> Any:
        if isinstance(self._answer, SmkitError):
            return self._answer
        batch, skipped = self._answer
        return pin(batch), skipped
