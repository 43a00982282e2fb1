"""A run that is killed, stopped or damaged ends with the weights of one that was left alone, bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import SECONDS

pytestmark = [pytest.mark.train, pytest.mark.endurance]

ROUNDS = Path(__file__).with_name("rounds.py")


def rounds(channels: Path, run_dir: Path, *, kills: int = 0, seconds: float = 0, seed: int = 0) -> dict[str, Any]:
    command = [sys.executable, str(ROUNDS), str(channels), str(run_dir), str(kills), str(seconds), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def weights(run_dir: Path) -> bytes:
    return (run_dir / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def left_alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("left-alone")
    assert rounds(digits, run_dir)["status"] == 0
    return run_dir / "0"


@pytest.fixture
def half_done(digits: Path, left_alone: Path, tmp_path: Path) -> Path:
    """A run with several whole checkpoints and no finished model."""
    run_dir = tmp_path / "0"
    shutil.copytree(left_alone, run_dir)
    shutil.rmtree(run_dir / "model")
    newest = max((run_dir / "checkpoints").iterdir(), key=lambda path: path.name)
    shutil.rmtree(newest)
    return run_dir


def test_an_example_that_is_killed_three_times_ends_with_the_same_weights(
    digits: Path, left_alone: Path, tmp_path: Path
) -> None:
    # `tests/torture/killing` does it more often, and to a training of which every value is known.
    result = rounds(digits, tmp_path, kills=3, seconds=0.6, seed=11)
    assert result["status"] == 0, result["stderr"]
    assert result["killed"] == 3
    assert result["resumed"] >= 1
    for run_dir in tmp_path.iterdir():
        assert weights(run_dir) == weights(left_alone)
        assert rows(run_dir) == rows(left_alone)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, but for what the clock says."""
    lines = (run_dir / "output" / "data" / "metrics.jsonl").read_text().splitlines()
    timed = ("time", "train/samples_per_second", "train/data_wait_percent", "train/eta_seconds")
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def test_when_all_checkpoints_are_damaged_it_does_not_start_anew(digits: Path, half_done: Path) -> None:
    for directory in (half_done / "checkpoints").iterdir():
        (directory / "tensors.safetensors").write_bytes(b"")
    result = rounds(digits, half_done.parent)
    assert result["status"] == 1
    assert "tensors.safetensors" in (half_done / "output/failure").read_text()
    assert not (half_done / "model").exists() or not any((half_done / "model").iterdir())
