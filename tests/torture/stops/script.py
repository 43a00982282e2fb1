"""A user's training script that notes what it is doing, so that a signal can be sent while it does it.

STOPS_NOTES is the file of the notes; STOPS_PAUSES, in JSON, says how long what lasts, and how many workers read.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

RANK = int(os.environ.get("RANK", "0"))
PAUSES: dict[str, float] = json.loads(os.environ.get("STOPS_PAUSES", "{}"))
_notes = os.open(f"{os.environ['STOPS_NOTES']}.{RANK}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(word: str, **more: Any) -> None:
    """Note what is done from now on, and let it last."""
    os.write(_notes, json.dumps({"word": word, **more}).encode() + b"\n")
    if PAUSES.get(word):
        time.sleep(PAUSES[word])


if __name__ == "__main__":
    note("importing", process=os.getpid())

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torch.optim import SGD  # noqa: E402

import smkit  # noqa: E402
from torture.subjects.training import Batch, Samples  # noqa: E402

torch.set_num_threads(1)


class Settings(smkit.Hyperparameters):
    pass


class NotingSGD(SGD):
    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        note("done")
        return result


class NotingTrainer(smkit.Trainer[Settings]):
    num_workers = int(PAUSES.get("workers", 0)) or None
    workers = "process" if num_workers else "none"

    def build_dataset(self, channel: smkit.Channel) -> Samples:
        note("loading")
        return Samples()

    def build_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 4))
        model.register_buffer("ballast", torch.zeros(50_000))
        return model

    def build_optimizer(self, model: nn.Module) -> SGD:
        return NotingSGD(model.parameters(), lr=0.05, momentum=0.9)

    def training_step(self, batch: Batch) -> Tensor:
        note("step", step=self.step)
        return cross_entropy(self.model(batch["pixels"]), batch["labels"])

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        note("validating")
        return {"loss": cross_entropy(self.model(batch["pixels"]), batch["labels"])}

    def state_dict(self) -> dict[str, Any]:
        note("saving")
        return {}

    def load_state_dict(self, state: Any) -> None:
        note("restoring")

    def export_model(self, directory: Path) -> None:
        note("exporting")
        super().export_model(directory)
        note("exported")


if __name__ == "__main__":
    note("joining")
    NotingTrainer.main()
