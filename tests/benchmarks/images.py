"""What reading a channel of JPEG images costs, against the bare decoder and against a DataLoader over Pillow.

    python tests/benchmarks/images.py [--rounds N] [--images N]

Times are noisy: every row is timed once in each round, all rounds in turn in one process, and a ratio is that of two
rows of the same round. CPU is that of the process and of its own workers. smkit's worker processes stay for the next
pass and are children of another process: their CPU is not counted, nor is their start timed.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from report import describe_machine, spread, table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smkit import make_loader, open_dataset

SIDE = 256
BATCH_SIZE = 64
WORKERS = 2

Times = tuple[float, float]


@dataclass(frozen=True)
class Channel:
    name: str
    path: Path


def write_images(folder: Path, count: int) -> None:
    """Write smooth noise with some grain, two classes, about 24 KB an image."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        grain = generator.integers(-8, 8, (SIDE, SIDE, 3))
        pixels = (np.asarray(coarse, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8)
        path = folder / "ab"[number % 2] / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


class PillowImages(Dataset[tuple[Tensor, int]]):
    """The data set that most people write: Pillow, one image at a time, as torchvision's ImageFolder."""

    def __init__(self, folder: Path) -> None:
        self.files = [(str(file), "ab".index(file.parent.name)) for file in sorted(folder.glob("*/*.jpg"))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), label


def smkit_loader(folder: Path, image_size: int | None, threads: int | None = None, **options: Any) -> DataLoader[Any]:
    dataset = open_dataset(Channel("train", folder), image_size=image_size)
    dataset.threads = threads
    return make_loader(dataset, batch_size=BATCH_SIZE, **options)


class Passes:
    """One pass over all images, in each of the ways that are compared."""

    def __init__(self, folder: Path) -> None:
        self.files = [str(file) for file in sorted(folder.glob("*/*.jpg"))]
        self.pillow = PillowImages(folder)
        self.one = smkit_loader(folder, None, threads=1)
        self.full = smkit_loader(folder, None)
        self.half = smkit_loader(folder, SIDE // 2)
        self.resized = smkit_loader(folder, SIDE * 7 // 8)
        self.processes = smkit_loader(folder, None, workers="process", num_workers=WORKERS)

    def bare(self) -> None:
        for path in self.files:
            with io.FileIO(path) as file:
                simplejpeg.decode_jpeg(file.read())

    def bare_batches(self) -> None:
        for start in range(0, len(self.files), BATCH_SIZE):
            paths = self.files[start : start + BATCH_SIZE]
            self.decode(paths, np.empty((len(paths), SIDE, SIDE, 3), dtype=np.uint8))

    def bare_reused(self) -> None:
        batch = np.empty((BATCH_SIZE, SIDE, SIDE, 3), dtype=np.uint8)
        for start in range(0, len(self.files), BATCH_SIZE):
            self.decode(self.files[start : start + BATCH_SIZE], batch)

    def one_thread(self) -> None:
        self.read(self.one)

    def threads(self) -> None:
        self.read(self.full)

    def threads_half(self) -> None:
        self.read(self.half)

    def threads_resized(self) -> None:
        self.read(self.resized)

    def workers(self) -> None:
        self.read(self.processes)

    def pillow_here(self) -> None:
        for _ in DataLoader(self.pillow, BATCH_SIZE, shuffle=True):
            pass

    def pillow_workers(self) -> None:
        for _ in DataLoader(self.pillow, BATCH_SIZE, shuffle=True, num_workers=WORKERS):
            pass

    @staticmethod
    def decode(paths: list[str], batch: np.ndarray) -> None:
        for path, pixels in zip(paths, batch, strict=False):
            with io.FileIO(path) as file:
                simplejpeg.decode_jpeg(file.read(), buffer=pixels)

    @staticmethod
    def read(loader: DataLoader[Any]) -> None:
        for _ in loader:
            pass


TITLES = {
    "bare": "bare simplejpeg, image by image",
    "bare_batches": "bare simplejpeg, into new batches",
    "bare_reused": "bare simplejpeg, into one reused batch",
    "one_thread": "**smkit**, one thread",
    "threads": "**smkit**, a thread for each core",
    "threads_half": f"**smkit**, the same, image_size={SIDE // 2}",
    "threads_resized": f"**smkit**, the same, image_size={SIDE * 7 // 8}",
    "workers": f"**smkit**, {WORKERS} worker processes",
    "pillow_here": "DataLoader over Pillow, no workers",
    "pillow_workers": f"DataLoader over Pillow, {WORKERS} workers",
}


def timed(function: Callable[[], None], images: int) -> Times:
    """Return seconds of wall and of CPU, an image."""
    before, began = os.times(), time.perf_counter()
    function()
    wall, after = time.perf_counter() - began, os.times()
    return wall / images, (sum(after[:4]) - sum(before[:4])) / images


def cpu_cells(results: list[Times], *references: list[Times]) -> list[str]:
    """Return the CPU of an image, and its ratio to each of `references`."""
    ratios = ([own[1] / other[1] for own, other in zip(results, each, strict=True)] for each in references)
    return [spread([cpu * 1e3 for _, cpu in results]), *map(spread, ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images)
        passes = Passes(Path(folder))
        times: dict[str, list[Times]] = {name: [] for name in TITLES}
        for turn in range(options.rounds + 1):
            for name, results in times.items():
                result = timed(getattr(passes, name), options.images)
                if turn:  # the first round warms the page cache and the imports
                    results.append(result)
        size = sum(Path(file).stat().st_size for file in passes.files) / len(passes.files)
    print(describe_machine(), end="\n\n")
    print(f"{options.images:,} JPEGs of {SIDE}x{SIDE}, {size / 1e3:.0f} KB each; median (least–greatest) of rounds.\n")
    rows: list[list[str]] = []
    for name, results in times.items():
        bare, reused, peer = times["bare"], times["bare_reused"], times["pillow_workers"]
        rows.append(
            [
                TITLES[name],
                spread([1 / wall for wall, _ in results], digits=0),
                spread([other[0] / own[0] for own, other in zip(results, peer, strict=True)]),
                *(["–"] * 3 if name == "workers" else cpu_cells(results, bare, reused)),
            ]
        )
    header = ["way", "images/s", f"× Pillow, {WORKERS} workers", "CPU ms an image", "CPU × bare", "CPU × bare, reused"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
