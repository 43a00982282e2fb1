"""What reading JPEG images from tar shards costs, against webdataset over the same shards and against litdata.

    python tests/benchmarks/shards.py [--rounds N] [--images N]

Needs webdataset and litdata, which smkit does not. All decode with simplejpeg and cut the centre out of each image.
smkit and litdata shuffle all samples, webdataset its shards and a buffer of 500. Times are noisy: every way is timed
once in each round, all ways in turn in one process, and a ratio is that of two ways in the same round. Images a second
and CPU (of the process and its workers) are those of an epoch. smkit reads the headers of all shards when they are
opened, which litdata has done when it wrote its own format, and webdataset never does; it is in the time to the first
batch, which begins with opening the data set, all imports done.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import simplejpeg
import torch
import webdataset
from images import SIDE, write_images
from litdata.streaming.writer import BinaryWriter
from report import describe_machine, spread, table
from torch import Tensor

from smkit import make_loader
from smkit.data.shards.shards import Shards

SHARDS = 8
BATCH_SIZE = 64
CROP = 224
MARGIN = (SIDE - CROP) // 2
BUFFER = 500
WORKERS = 2


@dataclass
class Times:
    """Seconds an image of wall and of CPU, and seconds to open the data and to have the first batch."""

    wall: float
    cpu: float
    opening: float
    first: float


def write_shards(folder: Path, files: list[Path]) -> None:
    """Write the images as webdataset's own writer does, and as litdata's."""
    per_shard = -(-len(files) // SHARDS)
    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=per_shard, verbose=0) as writer:
        for number, file in enumerate(files):
            writer.write({"__key__": f"{number:08}", "jpg": file.read_bytes(), "cls": "ab".index(file.parent.name)})
    chunks = BinaryWriter(str(folder / "litdata"), chunk_size=per_shard)
    for number, file in enumerate(files):
        chunks[number] = {"jpg": file.read_bytes(), "cls": "ab".index(file.parent.name)}
    chunks.done()
    chunks.merge(1)


def cropped(jpeg: bytes) -> Tensor:
    return torch.from_numpy(simplejpeg.decode_jpeg(jpeg)[MARGIN : MARGIN + CROP, MARGIN : MARGIN + CROP])


def stacked(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return a batch in channels-last memory, which costs one copy of each image."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images).permute(0, 3, 1, 2), torch.tensor(labels)


def as_it_is(samples: Any) -> Any:
    return samples


def decoded_pair(sample: dict[str, Any]) -> tuple[Tensor, int]:
    return cropped(sample["jpg"]), int(sample["cls"])


@dataclass
class Cut:
    """Batches of the centres of images: views of the batches, or copies, as collating samples makes."""

    loader: Iterable[Any]
    is_copy: bool

    def __iter__(self) -> Iterator[Any]:
        for images, labels in self.loader:
            part = images[..., MARGIN : MARGIN + CROP, MARGIN : MARGIN + CROP]
            yield part.contiguous(memory_format=torch.channels_last) if self.is_copy else part, labels


class Ways:
    """Each of the ways that are compared: opens the data and returns the batches of an epoch."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.files = sorted(path.name for path in folder.glob("*.tar"))

    def smkit_raw(self) -> Iterable[Any]:
        return make_loader(Shards(self.root, self.files, decode=False), batch_size=BATCH_SIZE)

    def webdataset_raw(self) -> Iterable[Any]:
        return self.webdataset(as_it_is, None, 0)

    def litdata_raw(self) -> Iterable[Any]:
        return self.litdata(as_it_is, None, 0)

    def smkit_one(self) -> Iterable[Any]:
        return Cut(self.smkit(1), is_copy=False)

    def smkit_one_copied(self) -> Iterable[Any]:
        return Cut(self.smkit(1), is_copy=True)

    def webdataset_one(self) -> Iterable[Any]:
        return self.webdataset(stacked, decoded_pair, 0)

    def litdata_one(self) -> Iterable[Any]:
        return self.litdata(stacked, decoded_pair, 0)

    def smkit_two(self) -> Iterable[Any]:
        return Cut(self.smkit(WORKERS), is_copy=False)

    def smkit_two_copied(self) -> Iterable[Any]:
        return Cut(self.smkit(WORKERS), is_copy=True)

    def webdataset_two(self) -> Iterable[Any]:
        return self.webdataset(stacked, decoded_pair, WORKERS)

    def litdata_two(self) -> Iterable[Any]:
        return self.litdata(stacked, decoded_pair, WORKERS)

    def smkit_scaled(self) -> Iterable[Any]:
        return self.smkit(WORKERS, image_size=CROP)

    def smkit(self, threads: int, image_size: int | None = None) -> Iterable[Any]:
        dataset = Shards(self.root, self.files, image_size=image_size)
        dataset.threads = threads
        return make_loader(dataset, batch_size=BATCH_SIZE, workers="none" if threads == 1 else "auto")

    def webdataset(self, collate: Callable[..., Any], decode: Callable[..., Any] | None, workers: int) -> Iterable[Any]:
        shards = [str(self.root / file) for file in self.files]
        dataset = webdataset.WebDataset(shards, shardshuffle=SHARDS, seed=0).shuffle(BUFFER)
        dataset = dataset.map(decode) if decode else dataset
        dataset = dataset.batched(BATCH_SIZE, collation_fn=collate)
        return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, collate_fn=as_it_is)

    def litdata(self, collate: Callable[..., Any], decode: Callable[..., Any] | None, workers: int) -> Iterable[Any]:
        dataset = litdata.StreamingDataset(str(self.root / "litdata"), shuffle=True, drop_last=False, transform=decode)
        return litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=collate)


RAW = {
    "smkit_raw": "**smkit**, decode=False",
    "litdata_raw": "litdata",
    "webdataset_raw": "webdataset",
}
ONE = {
    "smkit_one": "**smkit**, one thread",
    "smkit_one_copied": "**smkit**, one thread, the cut copied",
    "litdata_one": "litdata, no workers",
    "webdataset_one": "webdataset, no workers",
}
TWO = {
    "smkit_two": f"**smkit**, {WORKERS} threads",
    "smkit_two_copied": f"**smkit**, {WORKERS} threads, the cut copied",
    "smkit_scaled": f"**smkit**, {WORKERS} threads, image_size={CROP}: scaled, not cut",
    "litdata_two": f"litdata, {WORKERS} workers",
    "webdataset_two": f"webdataset, {WORKERS} workers",
}


def timed(way: Callable[[], Iterable[Any]], images: int) -> Times:
    """Time one pass over all images, which must be all of them."""
    began = time.perf_counter()
    loader = way()
    opened, before = time.perf_counter(), os.times()
    batches = iter(loader)
    seen = samples_of(next(batches))
    first = time.perf_counter()
    seen += sum(map(samples_of, batches))
    del batches, loader
    ended, after = time.perf_counter(), os.times()
    if seen != images:
        raise RuntimeError(f"{way} has read {seen} of {images} images")
    cpu = sum(after[:4]) - sum(before[:4])
    return Times((ended - opened) / images, cpu / images, opened - began, first - began)


def samples_of(batch: Any) -> int:
    return len(batch["jpg"] if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple) else batch)


def rows(titles: dict[str, str], times: dict[str, list[Times]]) -> Iterator[list[str]]:
    """Yield for each way its rates, and its ratios to litdata and webdataset as they are in the same table."""
    litdata_name, webdataset_name = list(titles)[-2:]
    for name, title in titles.items():
        own = times[name]
        ratios = [
            spread([other.wall / result.wall for result, other in zip(own, times[peer], strict=True)])
            for peer in (litdata_name, webdataset_name)
        ]
        yield [
            title,
            spread([1 / result.wall for result in own], digits=0),
            *ratios,
            spread([result.cpu * 1e6 for result in own], digits=0),
            spread([result.opening * 1e3 for result in own], digits=0),
            spread([result.first * 1e3 for result in own], digits=0),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_images(folder, options.images)
        files = sorted(folder.glob("*/*.jpg"))
        np.random.default_rng(0).shuffle(files)
        write_shards(folder, files)
        ways = Ways(folder)
        times: dict[str, list[Times]] = {name: [] for name in (*RAW, *ONE, *TWO)}
        for turn in range(options.rounds + 1):
            for name, results in times.items():
                result = timed(getattr(ways, name), options.images)
                if turn:  # the first round warms the page cache and the imports
                    results.append(result)
        size = sum(file.stat().st_size for file in files) / len(files)
    print(describe_machine(), end="\n\n")
    print(
        f"{options.images:,} JPEGs of {SIDE}x{SIDE}, {size / 1e3:.0f} KB each, in {SHARDS} shards, batches of "
        f"{BATCH_SIZE}; median (least–greatest) of {options.rounds} rounds.\n"
    )
    header = ["images/s", "× litdata", "× webdataset", "CPU µs an image", "opening ms", "first batch ms"]
    print(table(["bytes as they are", *header], rows(RAW, times)), end="\n\n")
    print(table([f"decoded, centre of {CROP}x{CROP}", *header], [*rows(ONE, times), *rows(TWO, times)]))


if __name__ == "__main__":
    main()
