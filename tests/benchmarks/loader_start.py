"""How long a loader takes to its first batch: afresh, resumed at 99 % of an epoch, and of a thousand million samples.

    python tests/benchmarks/loader_start.py [--rounds N]

Needs torchdata, which smkit does not. A resume is timed from `load_state_dict` to the next batch, a fresh start from
`iter` to the first one, each with a loader of its own. The place at 99 % is one that the loader itself has saved there.
Memory is the peak of a process of its own (VmHWM), less what it was when all was imported and nothing read.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from report import describe_machine, spread, table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import smkit

SAMPLES = 1_000_000
BATCH_SIZE = 1024
STEPS = -(-SAMPLES // BATCH_SIZE) * 99 // 100
WORKERS = 2
SIZES = {"smkit": (10**9, 10**8, 10**7, 10**6), "DataLoader": (10**7, 10**6)}

Times = tuple[float, float]
"""Seconds to the first batch, afresh and resumed."""


class Numbers(Dataset[Tensor]):
    """A data set of any size that takes no memory."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index)

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Rows of a tensor, one after another, each worker its share; it has no state of its own."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = torch.utils.data.get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        return ((self._rows[index], index) for index in range(first, len(self._rows), every))


@dataclass(frozen=True)
class Loading:
    """A kind of loader, and the state that one of it has saved at 99 % of an epoch."""

    title: str
    make: Callable[[], Any]
    state: Any


def state_after(loader: Any, batches: int) -> Any:
    """Return what a StatefulDataLoader says of its place after that many batches."""
    for _ in islice(iterator := iter(loader), batches):
        pass
    state = loader.state_dict()
    del iterator
    return state


def smkit_loading(title: str, dataset: Any) -> Loading:
    def make() -> Any:
        return smkit.make_loader(dataset, batch_size=BATCH_SIZE)

    loader = make()
    batches = iter(loader) if isinstance(dataset, IterableDataset) else None
    for _ in islice(loader.groups(), STEPS):
        if batches is not None:
            next(batches)
        loader.advance()
    return Loading(title, make, loader.state_dict())


def stateful_loading(title: str, dataset: Any, num_workers: int) -> Loading:
    from torchdata.stateful_dataloader import StatefulDataLoader
    from torchdata.stateful_dataloader.sampler import RandomSampler

    def make() -> StatefulDataLoader[Any]:
        is_stream = isinstance(dataset, IterableDataset)
        sampler = None if is_stream else RandomSampler(dataset, generator=torch.Generator().manual_seed(0))
        return StatefulDataLoader(dataset, BATCH_SIZE, sampler=sampler, num_workers=num_workers)

    return Loading(title, make, state_after(make(), STEPS))


def loadings() -> list[Loading]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand((SAMPLES, 30), generator=generator)
    arrays = TensorDataset(rows, torch.arange(SAMPLES))
    return [
        smkit_loading("**smkit**, tensors", arrays),
        smkit_loading("**smkit**, a data set with `__getitems__`", Numbers(SAMPLES)),
        smkit_loading("**smkit**, iterable without a state", Stream(rows)),
        stateful_loading("StatefulDataLoader, tensors, no workers", arrays, 0),
        stateful_loading(f"StatefulDataLoader, tensors, {WORKERS} workers", arrays, WORKERS),
        stateful_loading("StatefulDataLoader, iterable without a state, no workers", Stream(rows), 0),
    ]


def timed(loading: Loading) -> Times:
    """Return the seconds to the first batch of a fresh loader, and of a resumed one."""
    fresh, resumed = loading.make(), loading.make()
    began = time.perf_counter()
    next(iter(fresh))
    middle = time.perf_counter()
    resumed.load_state_dict(loading.state)
    next(iter(resumed))
    return middle - began, time.perf_counter() - middle


def resume_rows(rounds: int) -> Iterator[list[str]]:
    ways = loadings()
    times: dict[str, list[Times]] = {loading.title: [] for loading in ways}
    for turn in range(rounds + 1):
        for loading in ways:
            result = timed(loading)
            if turn:
                times[loading.title].append(result)
    for title, results in times.items():
        yield [
            title,
            spread([fresh * 1e3 for fresh, _ in results], digits=1),
            spread([resumed * 1e3 for _, resumed in results], digits=1),
            spread([resumed / fresh for fresh, resumed in results]),
        ]


def first_batch(kind: str, samples: int) -> None:
    """Print the seconds from making a loader to its first batch, and the bytes that this takes at their peak."""
    dataset = Numbers(samples)
    before, began = peak_memory(), time.perf_counter()
    loader = (
        smkit.make_loader(dataset, batch_size=BATCH_SIZE)
        if kind == "smkit"
        else DataLoader(dataset, BATCH_SIZE, shuffle=True, collate_fn=torch.Tensor.clone)
    )
    next(iter(loader))
    print(time.perf_counter() - began, peak_memory() - before)


def peak_memory() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_a_process(kind: str, samples: int) -> tuple[float, int]:
    command = [sys.executable, __file__, "--kind", kind, "--samples", str(samples)]
    seconds, size = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(size)


def size_rows(rounds: int) -> Iterator[list[str]]:
    kinds = [(kind, samples) for kind, sizes in SIZES.items() for samples in sizes]
    results: dict[tuple[str, int], list[tuple[float, int]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            results[kind].append(in_a_process(*kind))
    for (kind, samples), measured in results.items():
        yield [
            "**smkit**" if kind == "smkit" else f"{kind}, shuffle=True",
            f"{samples:,}",
            spread([seconds * 1e3 for seconds, _ in measured], digits=1),
            spread([size / 1e6 for _, size in measured], digits=1),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kind:
        first_batch(options.kind, options.samples)
        return
    print(describe_machine(), end="\n\n")
    print(f"{SAMPLES:,} samples, batches of {BATCH_SIZE}, resumed after batch {STEPS}; {options.rounds} rounds.\n")
    print(table(["loader", "fresh ms", "resumed ms", "resumed / fresh"], resume_rows(options.rounds)), end="\n\n")
    print(table(["loader", "samples", "first batch ms", "memory MB"], size_rows(options.rounds)))


if __name__ == "__main__":
    main()
