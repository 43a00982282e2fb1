"""From a data set of any kind to the loader of its batches: what it is decides, and what cannot be is refused here.

How batches are made, `smkit.data.indexed` and `smkit.data.streams` know.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, Literal

from torch.utils.data import DataLoader, Dataset, IterableDataset

from smkit.data.batches import Loader
from smkit.data.draws import Transform
from smkit.data.epoch import EpochPlan, EpochSampler
from smkit.data.fetch import Collate, Skips
from smkit.data.indexed import IndexLoader, dataset_fingerprint
from smkit.data.source import Source
from smkit.data.streams import StreamLoader
from smkit.data.threads import usable_cores
from smkit.errors import ConfigurationError, DataError

Workers = Literal["auto", "none", "thread", "process"]
OnError = Literal["raise", "skip"]


def make_loader(
    dataset: Dataset[Any] | DataLoader[Any] | Sequence[Any],
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    gradient_accumulation_steps: int = 1,
    rank: int = 0,
    world_size: int = 1,
    local_world_size: int = 1,
    shards: Sequence[int] = (),
    fingerprint: int | None = None,
    workers: Workers = "auto",
    num_workers: int | None = None,
    transform: Transform | None = None,
    collate_fn: Collate | None = None,
    pin_memory: bool = False,
    on_error: OnError = "raise",
    skip_budget: int = 0,
) -> Loader:
    """Return a loader of `dataset` whose order is a pure function of `seed` and the epoch.

    A batch is one indexed read where the data set allows it: what `open_dataset` returns, torch's `TensorDataset`, and
    any data set with `__getitems__(indices)`. Others are read a sample at a time. What a data set of yours draws from
    the generators of Python, numpy or torch depends on the seed, the epoch and the sample alone, if it draws in one of
    its first 16 reads (one, where a thread reads): one that does not is taken for one that never draws.

    An iterable data set is read from front to end: `shuffle` has no say, every rank reads all of it, and a resume asks
    its `load_state_dict`, or reads again what was read. A DataLoader of your own decides its batches and their order:
    `batch_size` has no say, it is for one process, and unless it is a StatefulDataLoader, a resume reads again.

    Args:
        dataset: Anything with `__len__`, and `__getitem__` or `__getitems__`; an iterable data set; or a DataLoader.
            What `__getitems__` returns is a batch, unless it is a list, which is a list of samples.
        batch_size: Samples of one optimizer step, over all ranks and micro-batches; the same value is the same
            training on any number of processes.
        seed: Decides the order of samples, and random draws.
        shuffle: Whether each epoch has an order of its own; else the order of the data set. Data that must be read in
            sequence to be fast is shuffled within windows, see the description that it prints.
        gradient_accumulation_steps: Micro-batches of one optimizer step.
        rank: This process among `world_size`.
        world_size: Processes that train together on this data.
        local_world_size: Of these, the processes on this host; they share its cores.
        shards: Samples of each host, if each has other data than the others (ShardedByS3Key); `rank` and `world_size`
            then are those of this host alone.
        fingerprint: Of the data of all hosts, if `shards` are given; by default the data set's own.
        workers: Who reads. "auto": a thread, two batches ahead, where a batch of a data set of smkit's takes longer
            than handing it over, else the thread that asks. "none": always that. "thread": always a thread.
            "process": `num_workers` processes, for data sets and transforms that hold Python's lock.
        num_workers: Processes, if `workers` is "process"; by default one less than this process's share of the cores.
        transform: Makes a batch of a batch, given random numbers that belong to its samples; see `SampleRandom`.
        collate_fn: Makes a batch from what the data set returns: a list of samples, or what `__getitems__` returns.
        pin_memory: Whether batches lie in page-locked memory, if there is a GPU to copy them to.
        on_error: What happens with a sample that cannot be read. "skip" puts the next one that can in its place, and
            notes it in `loader.skipped` and the log.
        skip_budget: How many samples may be skipped; one more is an error.

    Raises:
        ConfigurationError: A number is out of range, `batch_size` does not divide, or two arguments contradict.
        DataError: The data set is empty.
    """
    _check_range("batch_size", batch_size, at_least=1)
    _check_range("gradient_accumulation_steps", gradient_accumulation_steps, at_least=1)
    _check_range("world_size", world_size, at_least=1)
    _check_range("rank", rank, at_least=0, below=world_size)
    _check_range("local_world_size", local_world_size, at_least=1)
    _check_range("skip_budget", skip_budget, at_least=0)
    _check_divides(batch_size, world_size, gradient_accumulation_steps)
    cores = max(1, usable_cores() // local_world_size)
    count = _processes(workers, num_workers, cores)
    _check_choice("on_error", on_error, OnError)
    if isinstance(dataset, (IterableDataset, DataLoader)):
        _check_stream(dataset, workers, on_error, shards, world_size)
        return StreamLoader(
            dataset,
            batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            rank=rank,
            world_size=world_size,
            seed=seed,
            collate_fn=collate_fn,
            transform=transform,
            pin_memory=pin_memory,
        )
    length = _length(dataset)
    if isinstance(dataset, Source) and dataset.threads is None:
        dataset.threads = max(1, cores // max(1, count))
    plan = EpochPlan(length, batch_size, gradient_accumulation_steps, rank, world_size, tuple(shards))
    sampler = EpochSampler(
        plan,
        seed=seed,
        shuffle=shuffle,
        windows=getattr(dataset, "windows", None) if isinstance(dataset, Source) else None,
        fingerprint=dataset_fingerprint(dataset) if fingerprint is None else fingerprint,
    )
    return IndexLoader(
        dataset,
        sampler,
        workers=workers,
        num_workers=count,
        collate_fn=collate_fn,
        transform=transform,
        pin_memory=pin_memory,
        skips=Skips(skip_budget) if on_error == "skip" else None,
    )


def _processes(workers: Workers, num_workers: int | None, cores: int) -> int:
    """Return how many worker processes there are to be.

    Raises:
        ConfigurationError: `workers` is none of its choices, or `num_workers` contradicts it.
    """
    _check_choice("workers", workers, Workers)
    if workers == "process":
        if num_workers is not None:
            _check_range("num_workers", num_workers, at_least=1)
        return max(1, cores - 1) if num_workers is None else num_workers
    if num_workers is not None:
        raise ConfigurationError(
            f"{num_workers} worker processes are asked for, and workers is {workers!r}",
            where="num_workers",
            fix="set workers='process', or leave num_workers out",
        )
    return 0


def _check_stream(
    stream: IterableDataset[Any] | DataLoader[Any],
    workers: Workers,
    on_error: OnError,
    shards: Sequence[int],
    world_size: int,
) -> None:
    """Refuse what a stream cannot give.

    Raises:
        ConfigurationError: All of it, with what to do instead.
    """
    is_loader = isinstance(stream, DataLoader)
    problems = [
        problem
        for is_wrong, problem in (
            (workers not in ("auto", "none"), f"workers={workers!r}: it reads itself; give it workers of its own"),
            (on_error == "skip", "on_error='skip': it has no samples by index; let it pass over the damaged ones"),
            (bool(shards), "shards: its samples are not known beforehand"),
            (
                is_loader and world_size > 1,
                "several processes: nothing says which samples its batches hold; pass the data set itself",
            ),
        )
        if is_wrong
    ]
    if problems:
        raise ConfigurationError.of(
            problems,
            subject=f"what is asked of {'a DataLoader of your own' if is_loader else 'an iterable data set'}",
            where=f"data set {type(stream).__name__}",
            fix="leave these out, or give a data set with `__len__` and `__getitem__`",
        )


def _length(dataset: Any) -> int:
    by_index = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    if not isinstance(dataset, Sized) or not by_index:
        raise DataError(
            "the data set can be read neither by index nor as a stream",
            where=f"data set {type(dataset).__name__}",
            fix="give it `__len__` and `__getitem__(index)` (a map-style data set), or make it an IterableDataset",
        )
    if not len(dataset):
        raise DataError(
            "the data set is empty",
            where=f"data set {type(dataset).__name__}",
            fix="check the channel, and what `build_dataset` selects",
        )
    return len(dataset)


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices.__args__:
        raise ConfigurationError(
            f"{value!r} is none of the choices", where=name, fix=f"choose {', '.join(map(repr, choices.__args__))}"
        )


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
