"""Ranks that are not of one mind: one leaves, one has other data, settings or weights, one alone is asked to stop."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import SECONDS
from safetensors.torch import load_file

pytestmark = [pytest.mark.train, pytest.mark.endurance]

SCRIPT = """
import os, sys, time
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset
import smkit

SECOND = os.environ.get("RANK") == "1"


class Settings(smkit.Hyperparameters):
    fault: str = ""
    pause: float = 0.0


class Net(nn.Module):
    def __init__(self, width, *, is_tied, has_unused):
        super().__init__()
        self.first = nn.Linear(3, width, dtype=torch.float64)
        self.blocks = nn.ModuleList(nn.Linear(width, width, dtype=torch.float64) for _ in range(3))
        if is_tied:
            self.blocks[2].weight = self.blocks[0].weight
        if has_unused:
            self.unused = nn.Linear(2, 2)

    def forward(self, inputs):
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = torch.tanh(block(hidden))
        return hidden.mean(dim=1, keepdim=True)


class Trainer(smkit.Trainer[Settings]):
    timeout_seconds = 2.0 if "export" in sys.argv else 20.0

    def build_model(self):
        fault = self.hp.fault
        if fault == "patience":
            print("waits", flush=True)
            time.sleep(600 * SECOND)
        if SECOND and fault == "weights":
            torch.manual_seed(7)
        return Net(5 if SECOND and fault == "model" else 4, is_tied=fault == "weights", has_unused=fault == "gradient")

    def build_optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.05)

    def build_dataset(self, channel):
        number = {"train": 24, "validation": 4000 if self.hp.fault == "pace" else 24}[channel.name]
        if SECOND and channel.name == self.hp.fault:
            number += 8
        inputs = torch.randn(number, 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))

    def training_step(self, batch):
        inputs, targets = batch
        time.sleep(self.hp.pause)
        if SECOND and self.hp.fault == "exit" and self.step == 2:
            sys.exit(0)
        return mse_loss(self.model(inputs), targets)

    def validation_step(self, batch):
        inputs, targets = batch
        return {"loss": mse_loss(self.model(inputs), targets)}

    def export_model(self, directory):
        time.sleep(4.0 * (self.hp.fault == "export"))
        super().export_model(directory)


if __name__ == "__main__":
    if SECOND and "setting" in sys.argv:
        sys.argv += ["--seed", "7"]
    if SECOND and "channel" in sys.argv:
        sys.argv = [word for word in sys.argv if "--channel=validation" not in word]
    if "late" in sys.argv:
        print("comes", flush=True)
        time.sleep(600 * SECOND)
    Trainer.main()
"""

REFUSED = {
    "exit": (1, r"rank 1 on host localhost: sys\.exit\(0\) before the training was done"),
    "train": (2, r"rank 1 is not of the same run as rank 0: the training data is \{.*'n': 24.*'n': 32"),
    "validation": (2, r"rank 1 is not of the same run as rank 0: the validation data is \{.*'n': 24.*'n': 32"),
    "channel": (2, r"rank 1 is not of the same run as rank 0: the validation data is \{.*there \{\}"),
    "setting": (2, r"rank 1 is not of the same run as rank 0: hyperparameter 'seed' is 0, there 7"),
    "model": (2, r"rank 1 is not of the same run as rank 0: the model is '76 parameters.*there '110 parameters"),
    "gradient": (1, r"have had no gradient in a step(?s:.)*find_unused_parameters = True"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "train.py").write_text(SCRIPT)
    for name in ("train", "validation"):
        (folder / name).mkdir()
        (folder / name / "present").touch()
    return folder


def run(folder: Path, name: str, world_size: int, *arguments: str, signals: Any = ()) -> dict[str, Any]:
    channels = [f"--channel={channel}={folder / channel}" for channel in ("train", "validation")]
    return {
        "script": str(folder / "train.py"),
        "world_size": world_size,
        "arguments": [*channels, "--run-dir", str(folder / name), "--batch-size", "8", *arguments],
        "log": str(folder / "logs" / name),
        "signals": list(signals),
    }


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of the ranks of each run; in most of them the second one has a fault."""
    impatient: list[dict[str, Any]] = [
        {"rank": 0, "signal": signal.SIGINT, "when": "waits", "after_seconds": seconds} for seconds in (0.5, 1.0)
    ]
    impatient.append({"rank": 1, "watched": 0, "signal": signal.SIGKILL, "when": "interrupted"})
    alone = [
        {"rank": 0, "signal": signal.SIGTERM, "when": "comes", "after_seconds": 1.0},
        {"rank": 1, "signal": signal.SIGKILL, "when": "comes", "after_seconds": 3.0},
    ]
    told = {"rank": 1, "watched": 0, "signal": signal.SIGTERM, "when": "step=21 epoch"}
    paced = ("--pause", "0.05", "--log-every-steps", "1", "--validate-every-steps", "20", "--epochs", "100")
    runs = {
        **{name: run(folder, name, 2, "--fault", name) for name in REFUSED},
        "one": run(folder, "one", 1, "--fault", "weights", "--epochs", "2"),
        "parts": run(folder, "parts", 2, "--fault", "weights", "--epochs", "2", "--strategy", "fsdp"),
        "pace": run(folder, "pace", 2, "--fault", "pace", *paced, signals=[told]),
        "export": run(folder, "export", 2, "--fault", "export"),
        "patience": run(folder, "patience", 2, "--fault", "patience", signals=impatient),
        "late": run(folder, "late", 2, "--fault", "late", signals=alone),
    }
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), json.dumps(list(runs.values()))]
    process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert process.returncode == 0, process.stderr
    return dict(zip(runs, json.loads(process.stdout), strict=True))


@pytest.mark.parametrize("fault", REFUSED)
def test_both_ranks_end_and_say_what_is_wrong_with_one_of_them(
    fault: str, results: dict[str, dict[str, Any]], folder: Path
) -> None:
    result, (status, said) = results[fault], REFUSED[fault]
    assert result["statuses"] == [status, status], result["texts"]
    assert re.search(said, (folder / fault / "output/failure").read_text())
    assert re.search(said, result["texts"][0])
    assert not (folder / fault / "model/model.safetensors").exists()


def test_parts_are_cut_from_rank_0s_weights_and_tied_blocks_stay_tied(
    results: dict[str, dict[str, Any]], folder: Path
) -> None:
    for name in ("one", "parts"):
        assert set(results[name]["statuses"]) == {0}, results[name]["texts"]
    expected, found = (load_file(folder / name / "model/model.safetensors") for name in ("one", "parts"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_all_hear_of_a_stop_within_a_few_steps_also_after_a_validation_of_many_quick_batches(
    results: dict[str, dict[str, Any]], folder: Path
) -> None:
    """The pace of the exchange is measured in steps and validation batches, and these last a hundred times less."""
    assert results["pace"]["statuses"] == [143, 143], results["pace"]["texts"]
    (saved,) = (folder / "pace/checkpoints").iterdir()
    assert 21 <= int(saved.name.split("-")[1]) < 35


def test_a_second_ctrl_c_is_heard_while_a_rank_waits_for_another(results: dict[str, dict[str, Any]]) -> None:
    assert results["patience"]["statuses"] == [130, -signal.SIGKILL], results["patience"]["texts"]


def test_one_that_is_stopped_before_it_has_met_the_others_does_not_wait_for_them(
    results: dict[str, dict[str, Any]], folder: Path
) -> None:
    assert results["late"]["statuses"] == [143, -signal.SIGKILL], results["late"]["texts"]
    assert not (folder / "late/output/failure").exists()


def test_an_export_may_take_longer_than_a_step(results: dict[str, dict[str, Any]], folder: Path) -> None:
    assert results["export"]["statuses"] == [0, 0], results["export"]["texts"]
    assert (folder / "export/model/model.safetensors").exists()
