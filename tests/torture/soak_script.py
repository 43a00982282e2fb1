"""What the soak trains: a small network that uses all that can grow, namely data processes, averages, curves, saves."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW, Optimizer
from torch.utils.data import TensorDataset

import smkit

Batch = tuple[Tensor, Tensor]


class SoakTrainer(smkit.Trainer[smkit.Hyperparameters]):
    workers = "process"
    num_workers = 1

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 64))

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=1e-3)

    def build_dataset(self, channel: smkit.Channel) -> TensorDataset:
        inputs = torch.randn(1000 if channel.name == "train" else 100, 64, generator=torch.Generator().manual_seed(0))
        return TensorDataset(inputs, inputs.flip(1))

    def training_step(self, batch: Batch) -> Tensor:
        # Not as fast as it can: an hour of it is to leave the machine to others, too.
        time.sleep(0.002)
        inputs, targets = batch
        loss = mse_loss(self.model(inputs), targets)
        self.log("own", loss)
        return loss

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        inputs, targets = batch
        return {"error": mse_loss(self.model(inputs), targets)}

    def state_dict(self) -> dict[str, Any]:
        return {"remembered": torch.zeros(10)}


if __name__ == "__main__":
    SoakTrainer.main()
