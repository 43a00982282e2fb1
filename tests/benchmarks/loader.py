"""What feeding tensors costs, against a bare gather and against the loaders of torch, tensordict and Hugging Face.

    python tests/benchmarks/loader.py [--rounds N]

Needs tensordict and datasets, which smkit does not. Every loader shuffles all samples, and its rate is that of the
batches after its first ones, so that a slow one may be timed on a part of its epoch: start-up is `loader_start.py`'s
affair. Times are noisy: every way is timed once in each round, all ways in turn in one process, and a ratio is that of
two ways in the same round. CPU is that of this process, its threads included, workers not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset as HuggingFaceDataset
from report import describe_machine, spread, table
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import smkit

WORKERS = 2
FIRST = 4
"""Batches that are not timed: as many as two workers have ready when the first one comes."""


@dataclass(frozen=True)
class Rate:
    """Samples a second, and seconds of CPU a sample."""

    samples: float
    cpu: float


@dataclass(frozen=True)
class Way:
    """A way to read an epoch; `batches` of it are timed, or all."""

    title: str
    read: Callable[[], Iterator[Any]]
    batches: int | None = None


class Data:
    """One channel of `.npy` files, and the same data as each of the loaders has it."""

    def __init__(self, folder: Path, samples: int, shape: tuple[int, ...], dtype: torch.dtype, batch_size: int) -> None:
        self.folder, self.samples, self.batch_size = folder, samples, batch_size
        write_channel(folder / "train", samples, shape, dtype)
        self.inputs = mapped(folder / "train" / "inputs.npy")
        self.labels = mapped(folder / "train" / "label.npy")
        argv = ["--channel", f"train={folder}/train", "--batch-size", str(batch_size), "--run-dir", f"{folder}/run"]
        self.context = smkit.TrainingContext.load(smkit.Hyperparameters, argv=argv, env={})
        self.smkit_loader = self.context.dataloader("train")
        self.epoch = 0

    def indices(self) -> Iterator[Tensor]:
        """Yield the samples of each batch, each time in another order."""
        self.epoch += 1
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.epoch))
        yield from order.split(self.batch_size)

    def gather(self) -> Iterator[Any]:
        for index in self.indices():
            yield self.inputs.index_select(0, index), self.labels.index_select(0, index)

    def gather_into_one(self) -> Iterator[Any]:
        memory = torch.empty((self.batch_size, *self.inputs.shape[1:]), dtype=self.inputs.dtype)
        for index in self.indices():
            yield (
                torch.index_select(self.inputs, 0, index, out=memory[: len(index)]),
                self.labels.index_select(0, index),
            )

    def smkit(self) -> Iterator[Any]:
        return iter(self.smkit_loader)

    def data_loader(self, num_workers: int) -> Callable[[], Iterator[Any]]:
        dataset = TensorDataset(self.inputs, self.labels)
        return lambda: iter(DataLoader(dataset, self.batch_size, shuffle=True, num_workers=num_workers))

    def tensordict(self) -> Callable[[], Iterator[Any]]:
        memory = TensorDict({"inputs": self.inputs, "label": self.labels}, batch_size=[self.samples])
        memory = memory.memmap(str(self.folder / "tensordict"))
        return lambda: (memory[index] for index in self.indices())

    def hugging_face(self) -> HuggingFaceDataset:
        width = self.inputs[0].numel()
        rows = pa.FixedSizeListArray.from_arrays(pa.array(self.inputs.numpy().reshape(-1)), width)
        columns = pa.table({"inputs": rows, "label": pa.array(self.labels.numpy())})
        return HuggingFaceDataset(columns).with_format("torch")


def write_channel(folder: Path, samples: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    inputs = np.lib.format.open_memmap(
        folder / "inputs.npy", "w+", torch.empty(0, dtype=dtype).numpy().dtype, (samples, *shape)
    )
    for rows in np.array_split(np.arange(samples), 10):
        values = torch.rand((len(rows), *shape), generator=generator)
        inputs[rows[0] : rows[-1] + 1] = (values * 255).to(dtype).numpy()
    np.save(folder / "label.npy", torch.randint(10, (samples,), generator=generator).numpy())


def mapped(file: Path) -> Tensor:
    return torch.from_numpy(np.lib.format.open_memmap(file, mode="c"))


def rows_of_numbers(folder: Path) -> tuple[Data, list[Way]]:
    data = Data(folder, 1_000_000, (30,), torch.float32, 1024)
    hugging_face = data.hugging_face()
    return data, [
        Way("bare gather, seeded permutation", data.gather),
        Way("**smkit**, `context.dataloader`", data.smkit),
        Way("tensordict, `memmap[index]`", data.tensordict()),
        Way("DataLoader(TensorDataset), no workers", data.data_loader(0), 100),
        Way(f"DataLoader(TensorDataset), {WORKERS} workers", data.data_loader(WORKERS), 100),
        Way(
            "Hugging Face, `ds[index]`, torch format",
            lambda: (hugging_face[index.tolist()] for index in data.indices()),
            40,
        ),
        Way(
            "Hugging Face in a DataLoader, no workers",
            lambda: iter(DataLoader(hugging_face, data.batch_size, shuffle=True)),
            40,
        ),
    ]


def rows_of_images(folder: Path) -> tuple[Data, list[Way]]:
    data = Data(folder, 3000, (3, 224, 224), torch.uint8, 64)
    return data, [
        Way("bare gather, seeded permutation", data.gather),
        Way("bare gather into one reused batch", data.gather_into_one),
        Way("**smkit**, `context.dataloader`", data.smkit),
        Way("tensordict, `memmap[index]`", data.tensordict()),
        Way("DataLoader(TensorDataset), no workers", data.data_loader(0)),
        Way(f"DataLoader(TensorDataset), {WORKERS} workers", data.data_loader(WORKERS)),
    ]


def timed(way: Way) -> Rate:
    batches = way.read()
    for _ in islice(batches, FIRST):
        pass
    cpu, began, samples = time.process_time(), time.perf_counter(), 0
    for batch in islice(batches, way.batches):
        samples += size_of(batch)
    rate = Rate(samples / (time.perf_counter() - began), (time.process_time() - cpu) / samples)
    # What is left of the epoch is not read, and its workers end here.
    del batches
    return rate


def size_of(batch: Any) -> int:
    return len(batch["label"] if hasattr(batch, "keys") else batch[1])


def measured(ways: list[Way], rounds: int) -> dict[str, list[Rate]]:
    rates: dict[str, list[Rate]] = {way.title: [] for way in ways}
    for turn in range(rounds + 1):
        for way in ways:
            rate = timed(way)
            if turn:  # the first round warms the page cache and the imports
                rates[way.title].append(rate)
    return rates


def rows(rates: dict[str, list[Rate]]) -> Iterator[list[str]]:
    """Yield for each way its rate, its ratio to the bare gather and how many times as fast smkit is."""
    gather, own = next(iter(rates.values())), next(rates[title] for title in rates if "smkit" in title)
    for title, results in rates.items():
        yield [
            title,
            spread([rate.samples / 1e3 for rate in results], digits=1),
            spread([rate.samples / bare.samples for rate, bare in zip(results, gather, strict=True)], digits=3),
            spread([ours.samples / rate.samples for rate, ours in zip(results, own, strict=True)], digits=1),
            spread([rate.cpu * 1e6 for rate in results]),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    header = ["1000 samples/s", "× bare gather", "smkit is × as fast", "CPU µs a sample"]
    for subject in (rows_of_numbers, rows_of_images):
        with tempfile.TemporaryDirectory() as folder:
            data, ways = subject(Path(folder))
            rates = measured(ways, options.rounds)
            inputs = f"{data.samples:,} × {'×'.join(map(str, data.inputs.shape[1:]))} {str(data.inputs.dtype)[6:]}"
            print(f"\n{inputs}, batches of {data.batch_size}; median (least–greatest) of {options.rounds} rounds.\n")
            print(table(["way", *header], rows(rates)), flush=True)


if __name__ == "__main__":
    main()
