"""A small training that notes where it is, and has a mistake of its own where it is told to.

Environment: TORTURE_PLACES is a folder for a file of each rank; TORTURE_TIMEOUT the trainer's `timeout_seconds`;
TORTURE_FAULT, if there, is "RANK PLACE COUNT raise|stick|late": what that rank does when it comes to a place so often.
"""

import os
import time
from pathlib import Path

RANK = int(os.environ.get("RANK", "0"))
PLACES = Path(os.environ["TORTURE_PLACES"]) / f"rank-{RANK}"
_FAULT = os.environ.get("TORTURE_FAULT", "-1 - 0 -").split()
_counts: dict[str, int] = {}


def at(place: str) -> None:
    """Note that this rank is here, for whoever watches it."""
    _counts[place] = _counts.get(place, 0) + 1
    with PLACES.open("a") as file:
        file.write(f"{place} {os.getpid()} {time.time()}\n")
    if [str(RANK), place, str(_counts[place])] == _FAULT[:3]:
        if _FAULT[3] == "raise":
            raise ValueError("the lights went out")
        time.sleep({"stick": 100_000, "late": 20}[_FAULT[3]])


at("import")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import mse_loss  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

import smkit  # noqa: E402


class Settings(smkit.Hyperparameters):
    pause: float = 0.05


class Trainer(smkit.Trainer[Settings]):
    timeout_seconds = float(os.environ["TORTURE_TIMEOUT"])

    def build_model(self) -> nn.Module:
        at("preparation")
        return nn.Sequential(
            nn.Linear(3, 5, dtype=torch.float64), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 1, dtype=torch.float64)
        )

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.05)

    def build_dataset(self, channel: smkit.Channel) -> TensorDataset:
        samples = 40
        inputs = torch.randn(samples, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        at("step")
        time.sleep(self.hp.pause)
        inputs, targets = batch
        return mse_loss(self.model(inputs), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        at("validation")
        time.sleep(self.hp.pause)
        inputs, targets = batch
        return {"loss": mse_loss(self.model(inputs), targets)}

    def state_dict(self) -> dict[str, int]:
        if self.step:
            at("save")
        return {"step": self.step}

    def export_model(self, directory: Path) -> None:
        at("export")
        time.sleep(10 * self.hp.pause)
        super().export_model(directory)


at("start")

if __name__ == "__main__":
    Trainer.main()
