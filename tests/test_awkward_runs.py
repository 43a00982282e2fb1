"""Runs that are not as they should be: what once went wrong without a word, or would in a plain loop."""

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lines import Batch, LineTrainer, Run, weights
from patience import SECONDS, patient_with
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

import smkit
from smkit.checkpoint import CheckpointStore

pytestmark = pytest.mark.train


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.within(tmp_path)


def with_scheduler(build: Any) -> type[LineTrainer]:
    return type("Scheduled", (LineTrainer,), {"build_scheduler": build})


class Stopping(LineTrainer):
    """Asks itself to stop after a step, as SIGTERM does."""

    stop_at = 3

    def training_step(self, batch: Batch) -> Tensor:
        if self.step == self.stop_at - 1:
            self._stop.signal = 15
        return super().training_step(batch)


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda self, optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2),
        lambda self, optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, self.total_steps - 1)],
            milestones=[1],
        ),
        lambda self, optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 4]),
    ],
)
def test_a_schedule_goes_on_where_it_was_and_only_at_its_own_length(build: Any, run: Run) -> None:
    # torch's own SequentialLR steps before the optimizer has, and warns itself of it.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    warnings.filterwarnings("ignore", message="The epoch parameter in")
    kind = with_scheduler(build)
    whole = run(kind, "--epochs", "3", "--batch-size", "16")
    whole.fit()
    run.directory = run.directory.with_name("stopped")
    stopped = run(type("Both", (Stopping, kind), {}), "--epochs", "3", "--batch-size", "16")
    with pytest.raises(SystemExit) as caught:
        stopped.fit()
    assert caught.value.code == 143
    again = run(kind, "--epochs", "3", "--batch-size", "16")
    again.fit()
    assert weights(again) == weights(whole)
    if "T_max" in str(whole.scheduler.state_dict()):
        with pytest.raises(smkit.CheckpointError, match=r"T_max: 8, now 17"):
            run(kind, "--epochs", "6", "--batch-size", "16").fit()


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ({}, {"build_optimizer": lambda self, model: AdamW(model.parameters())}, "optimizer: SGD, now AdamW"),
        (
            {},
            {"build_scheduler": lambda self, optimizer: lr_scheduler.StepLR(optimizer, 2)},
            "scheduler: None, now StepLR",
        ),
    ],
)
def test_another_optimizer_or_scheduler_is_refused(first: Any, second: Any, text: str, run: Run) -> None:
    run(type("First", (LineTrainer,), first), "--epochs", "1").fit()
    with pytest.raises(smkit.CheckpointError, match=text):
        run(type("Second", (LineTrainer,), second), "--epochs", "2").fit()


def test_another_monitored_metric_is_refused_for_scores_would_be_mixed_up(run: Run) -> None:
    kind = type("Scored", (LineTrainer,), {"validation_step": lambda self, batch: {"a": 1.0, "b": 2.0}})
    channels = ("train", "validation")
    run(kind, "--epochs", "1", "--monitor-metric", "a", channels=channels).fit()
    with pytest.raises(smkit.CheckpointError, match="monitor_metric: a, now b"):
        run(kind, "--epochs", "2", "--monitor-metric", "b", channels=channels).fit()


def test_options_of_the_optimizer_that_were_changed_are_named(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    def decayed(self: Any, model: nn.Module) -> Optimizer:
        return SGD(model.parameters(), lr=0.1, weight_decay=0.5)

    run(LineTrainer, "--epochs", "1").fit()
    run(type("Decayed", (LineTrainer,), {"build_optimizer": decayed}), "--epochs", "2").fit()
    assert "goes on with another optimizer.0.weight_decay: 0, now 0.5" in capfd.readouterr().err


def test_what_the_trainer_remembers_besides_is_found_again(run: Run) -> None:
    class Remembering(Stopping):
        seen = 0

        def training_step(self, batch: Batch) -> Tensor:
            self.seen += len(batch[0])
            return super().training_step(batch)

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: Any) -> None:
            self.seen = state["seen"]

    with pytest.raises(SystemExit):
        run(Remembering, "--epochs", "2", "--batch-size", "8").fit()
    again = run(Remembering, "--epochs", "2", "--batch-size", "8")
    again.stop_at = -1
    again.fit()
    assert again.seen == 2 * 38


def test_fit_can_be_called_again_after_an_error(run: Run) -> None:
    class Failing(LineTrainer):
        fails = True

        def training_step(self, batch: Batch) -> Tensor:
            if self.step == 3 and self.fails:
                raise ValueError("broken")
            return super().training_step(batch)

    trainer = run(Failing, "--epochs", "4")
    with pytest.raises(ValueError, match="broken"):
        trainer.fit()
    trainer.fails = False
    trainer.fit()
    run.directory = run.directory.with_name("at-once")
    at_once = run(LineTrainer, "--epochs", "4")
    at_once.fit()
    assert weights(trainer) == weights(at_once)


@pytest.mark.parametrize("part", ["model", "metrics", "monitor", "loss_guard", "random", "data", "built"])
@pytest.mark.parametrize("value", [None, 7, [], {}])
def test_a_state_that_is_whole_and_not_a_runs_is_a_clear_error(part: str, value: Any, run: Run) -> None:
    run(LineTrainer).fit()
    store = CheckpointStore(run.directory / "checkpoints")
    checkpoint = store.latest()
    assert checkpoint is not None
    store.save(checkpoint.step + 1, checkpoint.state | {part: value})
    with pytest.raises(smkit.CheckpointError) as caught:
        run(LineTrainer, "--epochs", "9").fit()
    assert f"step-{checkpoint.step + 1:09d}" in caught.value.where


def test_a_best_checkpoint_that_is_damaged_costs_only_the_best(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    kind = type("Scored", (LineTrainer,), {"validation_step": lambda self, batch: {"score": float(self.epoch == 1)}})
    arguments = ("--monitor-metric", "score", "--monitor-mode", "max")
    run(kind, "--epochs", "2", *arguments, channels=("train", "validation")).fit()
    (scored,) = run.directory.glob("checkpoints/step-000000002-*")
    (scored / "tensors.safetensors").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        trainer = run(kind, "--epochs", "3", *arguments, channels=("train", "validation"))
        trainer.fit()
    assert "the best checkpoint is damaged or gone; the model is that of step 6" in caplog.text
    assert (run.directory / "model" / "model.safetensors").is_file()


def test_a_validation_that_was_cut_off_is_made_up_once(run: Run) -> None:
    stopped = run.directory.with_name("stopped")

    class Interrupted(LineTrainer):
        def validation_step(self, batch: Batch) -> dict[str, float]:
            if self.step == 2 and not stopped.exists():
                stopped.touch()
                self._stop.signal = 15
            return {"score": 1.0}

    arguments = ("--epochs", "2", "--batch-size", "19")
    with pytest.raises(SystemExit):
        run(Interrupted, *arguments, channels=("train", "validation")).fit()
    for _ in range(2):
        run(Interrupted, *arguments, channels=("train", "validation")).fit()
    rows = [json.loads(line) for line in (run.directory / "output/data/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation/score" in row] == [2, 4]


# --- what is trained and logged ---------------------------------------------------------------------------------------


def test_an_optimizer_must_train_the_model_and_nothing_else(run: Run) -> None:
    head = nn.Linear(3, 1, dtype=torch.float64)
    both = {"build_optimizer": lambda self, model: SGD([*model.parameters(), *head.parameters()], lr=0.1)}
    with pytest.raises(smkit.ConfigurationError, match="2 of the optimizer's parameters are not the model's"):
        run(type("Both", (LineTrainer,), both)).fit()


def test_clipping_counts_only_what_the_optimizer_trains(run: Run) -> None:
    class Partial(LineTrainer):
        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), nn.Linear(3, 1, dtype=torch.float64))

        def build_optimizer(self, model: nn.Module) -> Optimizer:
            assert isinstance(model, nn.Sequential)
            model[0].requires_grad_(self.hp.width == 2)
            return SGD(model[1].parameters(), lr=self.hp.learning_rate)

    arguments = ("--epochs", "5", "--max-grad-norm", "1")
    open_ = run(Partial, *arguments, "--width", "2")
    open_.fit()
    run.directory = run.directory.with_name("frozen")
    frozen = run(Partial, *arguments)
    frozen.fit()
    assert weights(open_) == weights(frozen)


def test_a_logged_parameter_is_logged_as_it_was_and_weighs_its_samples(run: Run) -> None:
    class Logging(LineTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            bias = self.model.bias
            assert isinstance(bias, Tensor)
            self.log("train/bias", bias)
            self.__dict__.setdefault("seen", []).extend([float(bias.detach())] * len(batch[0]))
            return super().training_step(batch)

    trainer = run(Logging, "--epochs", "4")
    record = trainer.fit()
    assert record["train/bias"] == pytest.approx(sum(trainer.seen) / len(trainer.seen))


@pytest.mark.parametrize(
    ("method", "call", "text"),
    [
        ("training_step", lambda self: self.log("train/loss", 1.0), "'train/loss' is logged by the loop itself"),
        ("training_step", lambda self: self.log("x", "text"), "'x' is 'text'"),
        ("validation_step", lambda self: self.log("x", 1.0), r"log\('x'\) in a validation"),
    ],
)
def test_a_log_call_that_would_mix_things_up_is_refused(method: str, call: Any, text: str, run: Run) -> None:
    def step(self: Any, batch: Batch) -> Any:
        call(self)
        return LineTrainer.training_step(self, batch) if method == "training_step" else {}

    with pytest.raises(smkit.SmkitError, match=text):
        run(type("Logging", (LineTrainer,), {method: step}), channels=("train", "validation")).fit()


def test_a_part_in_evaluation_mode_stays_so_and_a_cache_made_in_validation_can_be_trained_with(run: Run) -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Dropout(0.5)).eval()
            self.factor: Tensor | None = None

        def forward(self, inputs: Tensor) -> Tensor:
            if self.factor is None:
                self.factor = torch.full((1,), 2.0, dtype=torch.float64, device=inputs.device)
            return self.inner(inputs) * self.factor  # type: ignore[no-any-return]

    class Watching(LineTrainer):
        def build_model(self) -> nn.Module:
            return Caching()

        def training_step(self, batch: Batch) -> Tensor:
            modes = (self.model.training, self.model.inner.training)  # type: ignore[union-attr]
            self.__dict__.setdefault("modes", set()).add(modes)
            return super().training_step(batch)

        def validation_step(self, batch: Batch) -> dict[str, Tensor]:
            self.model.factor = None  # type: ignore[assignment]
            return {"loss": mse_loss(self.model(batch[0]), batch[1])}

    trainer = run(Watching, "--epochs", "3", channels=("train", "validation"))
    trainer.fit()
    assert trainer.modes == {(True, False)}


def test_sums_of_validation_are_added_up_exactly_whatever_their_type(run: Run) -> None:
    class Halves(LineTrainer):
        samples = 500

        def validation_step(self, batch: Batch) -> dict[str, Any]:
            return {"ones": (torch.tensor(1.0, dtype=torch.bfloat16), 1), "none": (0.0, 0)}

    record = run(
        Halves, "--max-steps=1", "--batch-size=1", "--log-every-steps=1", channels=("train", "validation")
    ).fit()
    assert record["validation/ones"] == 1.0
    assert record["validation/none"] != record["validation/none"]


# --- places and processes ---------------------------------------------------------------------------------------------


def test_a_misspelt_validation_channel_is_not_passed_over(run: Run) -> None:
    kind = type("Validating", (LineTrainer,), {"validation_step": lambda self, batch: {}})
    with pytest.raises(smkit.ConfigurationError, match="there is a channel 'valdation' and none 'validation'"):
        run(kind, channels=("train", "valdation")).fit()


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.part", "settings.json", "settings.json.part"])
def test_a_pipe_where_the_model_goes_is_not_waited_for(name: str, run: Run) -> None:
    (run.directory / "model").mkdir(parents=True)
    os.mkfifo(run.directory / "model" / name)
    run(LineTrainer).fit()
    assert sorted(path.name for path in (run.directory / "model").iterdir()) == ["model.safetensors", "settings.json"]
    assert (run.directory / "model" / "settings.json").is_file()


@pytest.mark.parametrize(("left", "missing"), [(0, "settings"), (4096, "weights")])
def test_a_model_on_a_full_disk_says_how_much_there_is(left: int, missing: str, run: Run) -> None:
    disk = run.directory / "model"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("only root can mount a small file system")

    class Filling(LineTrainer):
        def export_model(self, directory: Path) -> None:
            if missing == "settings":
                super().export_model(directory)
            (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - left))
            if missing == "weights":
                self.model.more = nn.Linear(100, 100)
                super().export_model(directory)

    try:
        with pytest.raises(smkit.SmkitError, match="No space left on device") as caught:
            run(Filling).fit()
        expected = {"settings": "there are 0 bytes", "weights": "it needs about 40,"}
        assert expected[missing] in caught.value.what
        assert str(run.directory / "checkpoints") in caught.value.fix or "the checkpoints hold" in caught.value.fix
        assert not list(disk.glob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_metrics_that_cannot_be_written_do_not_end_the_run(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    output = run.directory / "output"
    output.mkdir(parents=True)
    (output / "tensorboard").write_text("a file where a folder should be")
    (output / "data" / "metrics.jsonl").mkdir(parents=True)
    trainer = run(LineTrainer, "--epochs", "2", "--log-every-steps", "1")
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert trainer.step == 4
    assert caplog.text.count("are not written to") == 2


SCRIPT = """
import sys, torch, smkit
from torch import nn
class Mine(smkit.Trainer):
    workers, num_workers = {workers}
    def build_model(self): return nn.Linear(1, 1)
    def build_optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.1)
    def training_step(self, batch): {step}
    def build_dataset(self, channel): return Numbers()
class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, index): {item}
if __name__ == "__main__":
    Mine.main()
"""
STEP = "return self.model(batch.float()[:, None]).pow(2).mean()"


def script(tmp_path: Path, *, workers: int = 0, step: str = STEP, item: str = "return index") -> list[str]:
    file = tmp_path / "train.py"
    file.write_text(SCRIPT.format(workers=("process", workers) if workers else ("auto", None), step=step, item=item))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "present").touch()
    places = [f"--channel=train={tmp_path / 'data'}", f"--run-dir={tmp_path / 'run'}"]
    return [sys.executable, str(file), *places]


@pytest.mark.endurance
def test_a_script_that_leaves_in_mid_training_has_not_succeeded(tmp_path: Path) -> None:
    done = subprocess.run(
        script(tmp_path, step="sys.exit(0)"), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "something called sys.exit() before the training was done" in done.stderr


@pytest.mark.endurance
def test_an_error_in_a_worker_is_named_first_in_the_failure_file(tmp_path: Path) -> None:
    command = script(tmp_path, workers=1, item="raise ValueError(f'sample {index} is bad')")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    failure = (tmp_path / "run" / "output" / "failure").read_text()
    assert failure.startswith("ValueError: sample ")


@pytest.mark.endurance
@pytest.mark.parametrize("closing", ["1", "2"])
def test_a_process_without_stdout_or_stderr_trains_and_reports_all_the_same(closing: str, tmp_path: Path) -> None:
    command = " ".join(script(tmp_path)) + f" --epochs 2 {closing}>&-"
    done = subprocess.run(
        ["sh", "-c", command],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        timeout=SECONDS,
    )
    assert done.returncode == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.endurance
def test_a_stop_that_reaches_the_workers_too_saves_all_the_same(tmp_path: Path) -> None:
    item = "import time; time.sleep(0.02); return index"
    command = [*script(tmp_path, workers=2, item=item), "--epochs", "50", "--batch-size", "4", "--log-every-steps", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process,
        patient_with(process),
    ):
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143, said
    assert "is saved in" in said
