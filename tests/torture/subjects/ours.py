"""smkit, as a user runs it: a script with `Trainer.main`, started again by the same command."""

from __future__ import annotations

import sys
from typing import Any

# Imported here, once, for all of the runs that are forked afterwards.
import tensorboard.summary.writer.event_file_writer  # noqa: F401
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.data import Dataset

import smkit
import smkit.context
import smkit.trainer
from smkit.checkpoint import CheckpointStore
from torture.subjects.training import BATCH_SIZE, SEED, Batch, Counting, Network, Notes, Samples


class Settings(smkit.Hyperparameters):
    pass


def run(notes: Notes) -> None:
    """Train as a script does; the process ends by SystemExit."""
    order = notes.order

    class NotedStore(CheckpointStore):
        """It notes at once when the store says of a step that it is saved."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "saved_step" and value is not None and order.rank == 0:
                notes.committed(value)

    smkit.trainer.CheckpointStore = NotedStore  # type: ignore[attr-defined]

    class Trained(smkit.Trainer[Settings]):
        def build_model(self) -> nn.Module:
            return Network(notes)

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return Counting(model)

        def build_dataset(self, channel: smkit.Channel) -> Dataset[Any]:
            return Samples()

        def training_step(self, batch: Batch) -> Tensor:
            if not notes.has_begun:
                notes.began(self.step, self.model, self.optimizer)
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def export_model(self, directory: Any) -> None:
            super().export_model(directory)
            if not notes.has_begun:
                notes.began(self.step, self.model, self.optimizer)
            notes.ended(self.step, self.model, self.optimizer)

    data = order.notes.parent
    sys.argv = ["train.py", "--run-dir", str(order.folder), "--channel", f"train={data}", "--seed", str(SEED)]
    sys.argv += ["--epochs", str(order.epochs), "--batch-size", str(BATCH_SIZE)]
    sys.argv += ["--checkpoint-every-seconds", str(order.every_seconds), "--log-every-steps", "3", *order.settings]
    Trained.main()
