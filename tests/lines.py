"""A small trainer that tests of the loop share, and what makes one with a run directory of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Optimizer
from torch.utils.data import TensorDataset

import smkit

Batch = tuple[Tensor, Tensor]


class Settings(smkit.Hyperparameters):
    learning_rate: float = 0.1
    width: int = 1


class LineTrainer(smkit.Trainer[Settings]):
    """Fits a line to 38 points, in float64, so that sums can be compared to the last digits."""

    samples = 38

    def build_model(self) -> nn.Module:
        return nn.Linear(3, self.hp.width, dtype=torch.float64)

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return SGD(model.parameters(), lr=self.hp.learning_rate)

    def build_dataset(self, channel: smkit.Channel) -> TensorDataset:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(self.samples, 3, generator=generator, dtype=torch.float64)
        return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))

    def training_step(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        return mse_loss(self.model(inputs), targets)


class Run:
    """Makes trainers whose run directory is `directory`."""

    def __init__(self, directory: Path, data: Path) -> None:
        self.directory = directory
        self.data = data

    @classmethod
    def within(cls, folder: Path) -> "Run":
        """A run below `folder`, and a channel there that holds something."""
        data = folder / "data"
        data.mkdir()
        (data / "present").touch()
        return cls(folder / "run", data)

    def __call__(self, kind: type[Any], *arguments: str, channels: Sequence[str] = ("train",)) -> Any:
        places = [f"--channel={name}={self.data}" for name in channels]
        argv = [*arguments, *places, "--run-dir", str(self.directory)]
        return kind(smkit.TrainingContext.load(Settings, argv, env={}))


def weights(trainer: Any) -> list[float]:
    return [value for parameter in trainer.model.parameters() for value in parameter.flatten().tolist()]
