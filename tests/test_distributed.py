"""Several processes train one model: the same numbers as one, whatever is killed, and on any number of them."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import SECONDS
from safetensors.torch import load_file

pytestmark = pytest.mark.train

RANKS = Path(__file__).with_name("ranks.py")
SCRIPT = """
import os, sys, time
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset
import smkit
from pydantic import Field


class Settings(smkit.Hyperparameters):
    dropout: float = 0.0
    fail: str = ""
    pause: float = 0.0


class Net(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.first = nn.Linear(3, 5, dtype=torch.float64)
        self.blocks = nn.ModuleList(nn.Linear(5, 5, dtype=torch.float64) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(5, 1, dtype=torch.float64)

    def forward(self, inputs):
        hidden = torch.tanh(self.first(inputs))
        for block in self.blocks:
            hidden = hidden + self.dropout(torch.tanh(block(hidden)))
        return self.last(hidden)


class Trainer(smkit.Trainer[Settings]):
    timeout_seconds = 10.0

    def build_model(self):
        return Net(self.hp.dropout)

    def build_optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.05)

    def build_scheduler(self, optimizer):
        return OneCycleLR(optimizer, max_lr=0.05, total_steps=self.total_steps)

    def build_dataset(self, channel):
        n = {"train": 38, "validation": 101}[channel.name]
        inputs = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        numbers = torch.arange(n, dtype=torch.float64)
        return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True), numbers)

    def training_step(self, batch):
        inputs, targets, numbers = batch
        if self.hp.fail and self.step == 4:
            exec(self.hp.fail)
        time.sleep(self.hp.pause)
        self.log("number", numbers.mean())
        return mse_loss(self.model(inputs), targets)

    def validation_step(self, batch):
        inputs, targets, numbers = batch
        return {"loss": mse_loss(self.model(inputs), targets), "number": numbers}


if __name__ == "__main__":
    Trainer.main()
"""


class Runs:
    """Runs of the script above in folders below one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "train.py"
        self.script.write_text(SCRIPT)
        for name in ("train", "validation"):
            (folder / name).mkdir()
            (folder / name / "present").touch()

    def run(self, name: str, world_size: int, *arguments: str, signals: Any = ()) -> dict[str, Any]:
        channels = [f"--channel={channel}={self.folder / channel}" for channel in ("train", "validation")]
        return {
            "script": str(self.script),
            "world_size": world_size,
            "arguments": [
                *("--batch-size", "24", "--epochs", "4", "--log-every-steps", "1", "--max-grad-norm", "1"),
                *channels,
                *("--run-dir", str(self.folder / name)),
                *arguments,
            ],
            "log": str(self.folder / "logs" / name),
            "signals": list(signals),
        }

    def done(self, *runs: dict[str, Any]) -> list[dict[str, Any]]:
        command = [sys.executable, str(RANKS), json.dumps(runs)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert process.returncode == 0, process.stderr
        results: list[dict[str, Any]] = json.loads(process.stdout)
        return results

    def succeeded(self, *runs: dict[str, Any]) -> list[dict[str, Any]]:
        results = self.done(*runs)
        for result in results:
            assert set(result["statuses"]) == {0}, result["texts"]
        return results

    def records(self, name: str) -> list[dict[str, float]]:
        """The records of a run, but for what the clock says; the last one of each step, for one killed before its
        first checkpoint begins again.
        """
        lines = (self.folder / name / "output/data/metrics.jsonl").read_text().splitlines()
        timed = ("time", "train/samples_per_second", "train/data_wait_percent", "train/eta_seconds")
        rows = [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]
        return list({(row["step"], "train/loss" in row): row for row in rows}.values())

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model/model.safetensors")

    def failure(self, name: str) -> str:
        return (self.folder / name / "output/failure").read_text()

    def checkpoints(self, name: str) -> list[Path]:
        return sorted((self.folder / name / "checkpoints").iterdir())


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def assert_same_records(first: Any, second: Any) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-9), (one, other)


def test_the_numbers_are_the_same_on_one_two_and_four_processes(runs: Runs) -> None:
    kinds = {
        "two": (2, ()),
        "four": (4, ("--gradient-accumulation-steps", "2")),
        "parts": (2, ("--strategy", "fsdp", "--gradient-accumulation-steps", "4")),
        "averaged": (2, ("--ema-decay", "0.9", "--strategy", "fsdp")),
    }
    results = runs.succeeded(
        runs.run("one", 1),
        runs.run("average", 1, "--ema-decay", "0.9"),
        *(runs.run(name, size, *arguments) for name, (size, arguments) in kinds.items()),
    )
    one = runs.records("one")
    assert one[-1]["validation/number"] == 50.0
    for name in kinds:
        expected = "average" if name == "averaged" else "one"
        assert_same_records(runs.records(name), runs.records(expected))
        ours, theirs = runs.weights(name), runs.weights(expected)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12)
    texts = results[3]["texts"]
    assert "4 processes" in texts[0]
    assert texts[1:] == ["", "", ""], "one of them speaks for all"


@pytest.mark.endurance
def test_a_run_goes_on_in_another_number_of_processes_and_another_strategy(runs: Runs) -> None:
    """Asked to stop, by a signal to one of them, and resumed as others: in parts, or each holding all of it."""
    # Not every step is recorded, so that some losses wait in a checkpoint.
    steady = ("--ema-decay", "0.9", "--epochs", "40", "--log-every-steps", "3")
    moves = [(4, "fsdp"), (2, "fsdp"), (1, "ddp"), (2, "ddp"), (3, "fsdp")]
    stop = {"signal": signal.SIGTERM, "when": "[metrics]", "rank": 0}
    results = runs.done(
        runs.run("left", 1, *steady),
        *(
            runs.run("moved", size, *steady, "--pause", "0.05", "--strategy", strategy, signals=[stop])
            for size, strategy in moves
        ),
        runs.run("moved", 1, *steady),
    )
    for (size, _), result in zip(moves, results[1:], strict=False):
        assert result["statuses"] == [143] * size, result["texts"]
        assert "stopped by SIGTERM: step" in result["texts"][0]
    assert "goes on after step" in results[-1]["texts"][0]
    assert_same_records(runs.records("moved"), runs.records("left"))
    for key, value in runs.weights("left").items():
        torch.testing.assert_close(runs.weights("moved")[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.endurance
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_whoever_is_killed_and_whenever_it_ends_with_the_same_weights_bit_for_bit(strategy: str, runs: Runs) -> None:
    """With dropout, drawn by each rank from generators of its own, and a moving average of the weights."""
    steady = ("--dropout", "0.3", "--epochs", "50", "--strategy", strategy, "--ema-decay", "0.9")
    slowly = (*steady, "--pause", "0.03", "--checkpoint-every-seconds", "0")
    kills = [
        [
            {
                "signal": signal.SIGKILL,
                "rank": rank,
                "watched": 0,
                "when": f"[metrics] step={step} ",
                "after_seconds": after,
            }
        ]
        for rank, step, after in ((0, 12, 0.1), (1, 24, 0.0), (0, 36, 0.05))
    ]
    results = runs.done(
        runs.run("left", 2, *steady),
        *(runs.run("killed", 2, *slowly, signals=orders) for orders in kills),
        runs.run("killed", 2, *steady),
    )
    for [order], result in zip(kills, results[1:], strict=False):
        assert result["statuses"][order["rank"]] == -signal.SIGKILL
        assert result["statuses"][1 - order["rank"]] == 1, "the other one does not wait for ever"
        gone = f"rank {order['rank']} on host localhost gave no more sign of life"
        assert gone in result["texts"][1 - order["rank"]]
    assert results[-1]["statuses"] == [0, 0], results[-1]["texts"]
    assert "goes on after step" in results[-1]["texts"][0]
    assert runs.records("killed") == runs.records("left")
    assert [torch.equal(value, runs.weights("killed")[key]) for key, value in runs.weights("left").items()] == [
        True
    ] * 8


OWN_LOOP = """
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
import smkit

context = smkit.TrainingContext.load(smkit.Hyperparameters)
numbers = torch.arange(10, dtype=torch.float64).reshape(10, 1)
with context.join() as ranks:
    loader = context.dataloader("train", dataset=TensorDataset(numbers))
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    wrapped = DistributedDataParallel(model) if ranks.world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    store = smkit.CheckpointStore(context.checkpoint_dir, ranks=ranks)
    log = smkit.MetricLog(prints=ranks.rank == 0, gather=ranks.gathered)
    found = store.latest()
    if found is not None:
        model.load_state_dict(found.state["model"])
        loader.load_state_dict(found.state["data"])
    batches = iter(loader)
    for group in loader.groups():
        for share in group.shares:
            (batch,) = next(batches)
            loss = wrapped(batch).square().mean()
            (loss * (share * ranks.world_size / group.samples)).backward()
            log.add("train/loss", loss, weight=share)
        optimizer.step()
        optimizer.zero_grad()
        loader.advance()
    log.write(loader.epoch, loader.epoch)
    directory = store.save(loader.epoch, {"model": model.state_dict(), "data": loader.state_dict()})
    print("saved", directory.name)
"""


@pytest.mark.endurance
def test_a_loop_of_ones_own_runs_in_several_processes_too(runs: Runs) -> None:
    script = runs.folder / "own.py"
    script.write_text(OWN_LOOP)
    arguments = ["--batch-size", "4", f"--channel=train={runs.folder / 'train'}", "--run-dir"]
    own = {"script": str(script), "log": str(runs.folder / "logs")}
    results = runs.succeeded(
        own | {"world_size": 1, "arguments": [*arguments, str(runs.folder / "one")]},
        *[own | {"world_size": 4, "arguments": [*arguments, str(runs.folder / "four")]}] * 2,
        own | {"world_size": 1, "arguments": [*arguments, str(runs.folder / "one")]},
    )
    lines = [result["texts"][0].splitlines() for result in results]
    assert (lines[0][0], lines[3][0]) == (lines[1][0], lines[2][0])
    assert lines[0][0].startswith("[metrics] step=1 epoch=1 train/loss=")
    assert [text for text in results[1]["texts"][1:] if "metrics" in text] == []


@pytest.mark.endurance
def test_a_store_that_does_not_know_the_ranks_saves_in_the_first_one_only(runs: Runs) -> None:
    script = runs.folder / "own.py"
    script.write_text(OWN_LOOP.replace(", ranks=ranks)", ")"))
    arguments = ["--batch-size", "4", f"--channel=train={runs.folder / 'train'}", "--run-dir", str(runs.folder / "two")]
    own = {"script": str(script), "log": str(runs.folder / "logs"), "world_size": 2, "arguments": arguments}
    [result] = runs.done(own)
    assert result["statuses"][1] == 1
    assert "this is rank 1 of 2, and its CheckpointStore does not know of the others" in result["texts"][1]
    assert len(runs.checkpoints("two")) == 1


NORMALISED = SCRIPT.replace(
    "self.first = nn.Linear(3, 5, dtype=torch.float64)",
    """self.first = nn.Sequential(nn.Linear(3, 5, dtype=torch.float64), nn.BatchNorm1d(5, dtype=torch.float64))
        self.register_buffer("table", torch.arange(10.0).reshape(2, 5).T.contiguous())""",
)


@pytest.mark.endurance
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_rank_validates_with_the_statistics_that_are_exported(strategy: str, runs: Runs) -> None:
    runs.script.write_text(NORMALISED)
    runs.succeeded(
        runs.run("trained", 2, "--strategy", strategy, "--monitor-metric", "loss"),
    )
    best = min(record["validation/loss"] for record in runs.records("trained") if "validation/loss" in record)
    namespace: dict[str, Any] = {"__name__": "trainer"}
    exec(NORMALISED, namespace)
    model = namespace["Net"](0.0)
    model.load_state_dict(runs.weights("trained"))
    inputs = torch.randn(101, 3, generator=torch.Generator().manual_seed(101), dtype=torch.float64)
    with torch.no_grad():
        loss = (model.eval()(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
    assert float(loss) == pytest.approx(best, rel=1e-9)


@pytest.mark.endurance
def test_one_process_fits_twice_and_the_first_cause_reaches_the_others_without_an_agent(runs: Runs) -> None:
    runs.script.write_text(
        SCRIPT.replace(
            "    Trainer.main()",
            """    context = smkit.TrainingContext.load(Settings)
    first = Trainer(context).fit()
    assert Trainer(context).fit() == {}, "the second one finds a finished run"
    print("twice")""",
        )
    )
    [result] = runs.succeeded(runs.run("twice", 2))
    assert all("twice" in text for text in result["texts"])
    runs.script.write_text(SCRIPT)
    fails = "if self.context.rank == 0: raise OSError('the lights went out')"
    [result] = runs.done(runs.run("failed", 2, "--fail", fails))
    assert result["statuses"] == [1, 1]
    assert runs.failure("failed").startswith("OSError: the lights went out")
    assert "another process of this run has failed first: rank 0 on host" in result["texts"][1]
    assert "the lights went out" in result["texts"][1]
    assert "Traceback" not in result["texts"][1]


@pytest.mark.endurance
def test_a_stop_that_reaches_the_processes_that_read_too_is_agreed_on_and_saved(runs: Runs) -> None:
    runs.script.write_text(
        SCRIPT.replace(
            "    timeout_seconds = 10.0", '    timeout_seconds = 30.0\n    workers = "process"\n    num_workers = 1'
        )
    )
    stop = {"signal": signal.SIGTERM, "when": "[metrics]", "watched": 0}
    stops = [stop | {"rank": rank} for rank in range(2)]
    steady = ("--epochs", "40")
    results = runs.done(
        runs.run("left", 1, *steady),
        runs.run("stopped", 2, *steady, "--pause", "0.05", signals=stops),
        runs.run("stopped", 2, *steady),
    )
    assert [result["statuses"] for result in results] == [[0], [143, 143], [0, 0]], results[1]["texts"]
    assert "goes on after step" in results[2]["texts"][0]
    assert_same_records(runs.records("stopped"), runs.records("left"))
