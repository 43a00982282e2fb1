"""What is interrupted by the trace of `goodput`: a model whose checkpoint has a hundred megabytes, in steps of 20 ms.

Each step writes its number and the time to the file of this life.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW, Optimizer
from torch.utils.data import TensorDataset

import smkit

Batch = tuple[Tensor, Tensor]
STEP_SECONDS = 0.02


class Interrupted(smkit.Trainer[smkit.Hyperparameters]):
    def build_model(self) -> nn.Module:
        model = nn.Linear(16, 1)
        # It has a gradient and is saved with both moments of Adam, and costs a step next to nothing.
        model.register_parameter("ballast", nn.Parameter(torch.zeros(8_000_000)))
        return model

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=1e-3)

    def build_dataset(self, channel: smkit.Channel) -> TensorDataset:
        inputs = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
        return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))

    def training_step(self, batch: Batch) -> Tensor:
        with Path(os.environ["TORTURE_STEPS"]).open("a") as steps:
            steps.write(f"{self.step} {time.time()}\n")
        time.sleep(STEP_SECONDS)
        inputs, targets = batch
        return mse_loss(self.model(inputs), targets)


if __name__ == "__main__":
    Interrupted.main()
