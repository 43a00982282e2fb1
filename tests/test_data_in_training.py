"""The loop with every kind of data: transforms, streams, a DataLoader, damaged samples, worker processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lines import Batch, LineTrainer, Run, weights
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import smkit

pytestmark = pytest.mark.train


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.within(tmp_path)


def point(number: int) -> Batch:
    return torch.full((3,), number / 12, dtype=torch.float64), torch.tensor([number / 4], dtype=torch.float64)


def noisy(batch: Batch, random: smkit.SampleRandom) -> Batch:
    x, y = batch
    return x + 0.1 * random.normal(1).to(x), y


class Augmented(LineTrainer):
    def build_transform(self) -> Any:
        return noisy


class InProcesses(Augmented):
    workers = "process"
    num_workers = 1


class Points(IterableDataset[Any]):
    """Twelve points on a line, in an order that the process's generator decides; no length."""

    def __iter__(self) -> Any:
        for number in torch.randperm(12).tolist():
            yield point(number)


class Streaming(LineTrainer):
    validation_channel = "train"

    def build_dataset(self, channel: smkit.Channel) -> Any:
        return Points()

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        self.__dict__.setdefault("validated", []).append(self.step)
        return {"error": (self.model(batch[0]) - batch[1]).abs().mean()}


class OwnLoader(LineTrainer):
    def build_dataset(self, channel: smkit.Channel) -> Any:
        return DataLoader(list(Points()), batch_size=5, shuffle=True)


class Damaged(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise OSError("truncated")
        return point(index)


class Skipping(LineTrainer):
    skip_budget = 1

    def build_dataset(self, channel: smkit.Channel) -> Any:
        return Damaged()


def stopped_and_resumed(run: Run, kind: type[LineTrainer], *options: str) -> tuple[int, Any]:
    """Train with a stop request after each step, as often as it takes; return how often, and the trainer."""
    for starts in range(100):
        trainer = run(kind, *options)
        before = trainer.training_step

        def asked_to_stop(batch: Batch, trainer: Any = trainer, before: Any = before) -> Tensor:
            trainer._stop.signal = 15
            return before(batch)

        trainer.training_step = asked_to_stop  # type: ignore[method-assign]
        try:
            trainer.fit()
        except SystemExit:
            continue
        return starts, trainer
    raise AssertionError("it never finished")


def test_a_transform_is_for_training_alone_and_the_same_whoever_reads(run: Run, tmp_path: Path) -> None:
    plain = run(LineTrainer, "--epochs", "2")
    plain.fit()
    results = []
    for number, kind in enumerate((Augmented, InProcesses)):
        run.directory = tmp_path / str(number)
        trainer = run(kind, "--epochs", "2")
        trainer.fit()
        results.append(weights(trainer))
    assert results[0] == results[1] != weights(plain)


@pytest.mark.parametrize("kind", [Augmented, Streaming, OwnLoader])
def test_stopped_after_every_step_it_ends_with_the_same_weights(kind: Any, run: Run, tmp_path: Path) -> None:
    options = ("--max-steps", "8", "--epochs", "9", "--batch-size", "6")
    alone = run(kind, *options)
    alone.fit()
    run.directory = tmp_path / "stopped"
    starts, again = stopped_and_resumed(run, kind, *options)
    assert starts == 8
    assert again.step == alone.step == 8
    assert weights(again) == weights(alone)


def test_the_epochs_of_a_stream_end_when_they_end(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run(Streaming, "--max-steps", "7", "--batch-size", "5", "--log-every-steps", "1")
    trainer.fit()
    assert sorted(set(trainer.validated)) == [3, 6, 7]
    rows = [json.loads(line) for line in (run.directory / "output/data/metrics.jsonl").read_text().splitlines()]
    epochs = {row["step"]: row["epoch"] for row in rows if "train/loss" in row}
    assert epochs == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2, 7: 3}
    said = capsys.readouterr().err
    assert "Points(no length), read again from its start on resume" in said
    assert "7 of 5 samples" in said


def test_a_stream_says_what_it_needs(run: Run) -> None:
    with pytest.raises(smkit.ConfigurationError, match=r"(?s)stream without a length.*--max-steps"):
        run(Streaming, "--epochs", "3").fit()


def test_an_unreadable_sample_is_skipped_if_it_may_be_and_said_at_the_end(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Skipping, "--epochs", "2").fit()
    assert "1 unreadable samples replaced" in capsys.readouterr().err
    Skipping.skip_budget = 0
    with pytest.raises(OSError, match="truncated"):
        run(Skipping, "--epochs", "3").fit()
