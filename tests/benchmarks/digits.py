"""The task that every framework is given: a tiny classifier of handwritten digits, its data and its optimizer.

No framework is named here, and nothing here differs between them. Run as a script it writes the data:
`python digits.py FOLDER`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE = 32
TRAINING_SAMPLES = 1437  # of 1797: 45 steps an epoch, the last batch is ragged

Batch = tuple[Tensor, Tensor]  # pixels (N, 64) float32, labels (N,) int64


class Digits(Dataset[Batch]):
    """Digits that are read a whole batch at a time; repeated from the start to any `length`."""

    def __init__(self, folder: Path, length: int | None = None) -> None:
        self.pixels, self.labels = torch.load(folder / "digits.pt", weights_only=True)
        self.length = length or len(self.labels)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        place = index % len(self.labels)
        return self.pixels[place], self.labels[place]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        places = torch.as_tensor(indices) % len(self.labels)
        return self.pixels[places], self.labels[places]


class Classifier(nn.Module):
    """64-32-10; calls `tick` at the beginning of every training forward, by which a benchmark counts steps."""

    def __init__(self, tick: Callable[[], None] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.tick = tick

    def forward(self, pixels: Tensor) -> Tensor:
        if self.tick is not None and self.training:
            self.tick()
        return self.layers(pixels)


@dataclass(frozen=True)
class Job:
    """One training of the classifier for one epoch.

    `steps` makes the epoch that long, whatever the data. A `complete` job also validates at the end of the epoch and
    leaves a checkpoint or a model behind. `log_every_steps` 0 means no TensorBoard. With a `world_size` above 1 this
    process is one of several that train together, each on batches as large as those of one alone.
    """

    data: Path
    output: Path
    steps: int | None = None
    log_every_steps: int = 50
    complete: bool = False
    tick: Callable[[], None] | None = None
    world_size: int = 1
    rank: int = 0

    def model(self) -> Classifier:
        return Classifier(self.tick)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def training_set(self) -> Digits:
        return Digits(self.data / "train", self.steps and self.steps * BATCH_SIZE * self.world_size)

    def validation_set(self) -> Digits:
        return Digits(self.data / "validation")

    def training_loader(self) -> DataLoader[Batch]:
        return DataLoader(self.training_set(), batch_size=BATCH_SIZE, shuffle=True, collate_fn=as_it_is)

    def validation_loader(self) -> DataLoader[Batch]:
        return DataLoader(self.validation_set(), batch_size=BATCH_SIZE, collate_fn=as_it_is)


def as_it_is(batch: Batch) -> Batch:
    """Return a batch that needs no collation."""
    return batch


def write(folder: Path) -> None:
    """Write `train/digits.pt` and `validation/digits.pt` below `folder`, from scikit-learn's digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target).long()
    for name, part in ("train", slice(TRAINING_SAMPLES)), ("validation", slice(TRAINING_SAMPLES, None)):
        (folder / name).mkdir(parents=True)
        torch.save((pixels[part].clone(), labels[part].clone()), folder / name / "digits.pt")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
