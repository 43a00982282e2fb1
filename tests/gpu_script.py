"""A training that draws, convolves, schedules and averages, for the processes that tests/test_gpu.py starts.

The hyperparameter `event` says what happens in the step `at`: a kill, a wait for a signal while kernels run, a fault.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import TensorDataset

import smkit

Batch = tuple[Tensor, Tensor]
CLASSES = 10


class Settings(smkit.Hyperparameters):
    event: str = ""
    at: int = 0
    fused: bool = True
    group: str = ""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            # No pooling: the backward pass of the adaptive one has no deterministic kernel.
            *(nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(64, 64, 4, stride=4)),
        )
        self.last = nn.Linear(64 * 16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.convolutions(images).flatten(1))


class Trainer(smkit.Trainer[Settings]):
    channels_last = True
    timeout_seconds = 60.0

    def build_model(self) -> nn.Module:
        return Net()

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=3e-3, fused=self.hp.fused)

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return OneCycleLR(optimizer, max_lr=3e-3, total_steps=self.total_steps)

    def build_dataset(self, channel: smkit.Channel) -> TensorDataset:
        generator = torch.Generator().manual_seed(1)
        return TensorDataset(
            torch.randn(600, 3, 16, 16, generator=generator), torch.randint(0, CLASSES, (600,), generator=generator)
        )

    def training_step(self, batch: Batch) -> Tensor:
        images, labels = batch
        if self.hp.event and self.step == self.hp.at:
            labels = EVENTS[self.hp.event](self, labels)
        self.log("noise", torch.rand((), device=images.device))
        return cross_entropy(self.model(images + 0.1 * torch.randn_like(images)), labels)

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        return {"loss": cross_entropy(self.model(images), labels)}


def kill(trainer: Trainer, labels: Tensor) -> Tensor:
    """Die, once a checkpoint is on the disk, in the middle of a step whose kernels run."""
    while not list(trainer.context.checkpoint_dir.glob("*/manifest.json")):
        time.sleep(0.01)
    busy(labels.device, 50)
    os.kill(os.getpid(), signal.SIGKILL)
    return labels


def stop(trainer: Trainer, labels: Tensor) -> Tensor:
    """Be asked to stop while kernels of a second or so are queued."""
    busy(labels.device, 400)
    os.kill(os.getpid(), signal.SIGTERM)
    return labels


def busy(device: torch.device, products: int) -> None:
    matrix = torch.zeros(8192, 8192, device=device)
    for _ in range(products):
        matrix @ matrix


def out_of_range(trainer: Trainer, labels: Tensor) -> Tensor:
    """A label that is no class."""
    return torch.full_like(labels, CLASSES)


def exhaust(trainer: Trainer, labels: Tensor) -> Tensor:
    return labels + torch.zeros(2**44, device=labels.device, dtype=torch.uint8)[0]


EVENTS = {"kill": kill, "stop": stop, "out of range": out_of_range, "exhaust": exhaust}


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    if "--group" in sys.argv:
        # A group of the script's own, for NCCL wants a GPU for each rank.
        torch.distributed.init_process_group(sys.argv[sys.argv.index("--group") + 1])
    Trainer.main()
