"""smkit, as a user runs it: a script with `Trainer.main`, started again by the same command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Imported here, once, for all of the runs that are forked afterwards.
import tensorboard.summary.writer.event_file_writer  # noqa: F401
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.data import Dataset

import smkit
import smkit.context
import smkit.contract
import smkit.trainer
from smkit.checkpoint import CheckpointStore
from torture.subjects.training import BATCH_SIZE, SEED, Batch, Counting, Network, Notes, Samples

DEADLINE_VARIABLE = "TORTURE_STOP_DEADLINE_SECONDS"
"""How long a run may take to stop, where 100 s are too long to wait."""
VALIDATING = "--monitor-metric"
"""With this word among its settings a run validates, and its best model is exported."""


class Settings(smkit.Hyperparameters):
    pass


class NotedStore(CheckpointStore):
    """It notes when a save begins, the one before being done, and at once when the store says that a step is saved."""

    notes: Notes

    def save(self, step: int, *arguments: Any, **more: Any) -> Any:
        self.wait()
        self.notes.saving(step)
        return super().save(step, *arguments, **more)

    def start(self, step: int, *arguments: Any, **more: Any) -> float:
        self.wait()
        self.notes.saving(step)
        return super().start(step, *arguments, **more)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "saved_step" and value is not None and self.notes.order.rank == 0:
            self.notes.committed(value)


class Trained(smkit.Trainer[Settings]):
    notes: Notes

    def build_model(self) -> nn.Module:
        return Network(self.notes)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return Counting(model)

    def build_dataset(self, channel: smkit.Channel) -> Dataset[Any]:
        return Samples()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # By now model and optimizer have what they had, and a run that was at its end trains no step.
        self.notes.began(state["step"], self.model, self.optimizer)

    def training_step(self, batch: Batch) -> Tensor:
        if not self.notes.has_begun:
            self.notes.began(self.step, self.model, self.optimizer)
        loss: Tensor = self.model(**batch)["loss"]
        return loss

    def validation_step(self, batch: Batch) -> dict[str, Any]:
        return {"loss": self.model(**batch)["loss"]}

    def export_model(self, directory: Path) -> None:
        super().export_model(directory)
        self.notes.ended(self.step, self.model, self.optimizer)


def run(notes: Notes) -> None:
    """Train as a script does; the process ends by SystemExit."""
    order = notes.order
    Trained.notes = NotedStore.notes = notes
    smkit.trainer.CheckpointStore = NotedStore  # type: ignore[misc]
    if order.workers:
        Trained.workers, Trained.num_workers = "process", order.workers
    data = order.notes.parent
    sys.argv = ["train.py", "--run-dir", str(order.folder), "--channel", f"train={data}", "--seed", str(SEED)]
    sys.argv += ["--epochs", str(order.epochs), "--batch-size", str(BATCH_SIZE)]
    sys.argv += ["--checkpoint-every-seconds", str(order.every_seconds), "--log-every-steps", "3", *order.settings]
    if VALIDATING in order.settings:
        sys.argv += ["--channel", f"validation={data}"]
    smkit.contract.STOP_DEADLINE_SECONDS = float(
        os.environ.get(DEADLINE_VARIABLE, smkit.contract.STOP_DEADLINE_SECONDS)
    )
    Trained.main()
