"""Killed over and over, each time resumed on another number of ranks, a run sees each sample once an epoch."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import elastic
import pytest

pytestmark = [pytest.mark.train, pytest.mark.endurance]

SCRIPT = Path(__file__).with_name("elastic.py")
STEPS = -(-elastic.SAMPLES // elastic.BATCH_SIZE)
KILLS = {"arrays": 50, "segmented": 15, "drawing": 25, "stream": 12, "stream with state": 12}

Step = tuple[list[int], list[str]]
"""The samples of a step over all ranks, and the bytes of the random numbers of each."""


@dataclass
class Round:
    """What one number of ranks did until it was killed; positions are steps over all epochs."""

    settings: dict[str, Any]
    start: int
    end: int
    given: list[dict[int, dict[str, Any]]]
    """What each rank was given, by position."""

    def counted(self) -> Iterator[tuple[int, Step]]:
        """Yield the steps that were saved, each as all ranks together have seen it."""
        for position in range(self.start, self.end):
            ranks = [steps[position] for steps in self.given]
            yield position, (merged(ranks, "samples"), merged(ranks, "draws"))


def merged(ranks: list[dict[str, Any]], name: str) -> list[Any]:
    """Return what all ranks were given in one step: micro-batch by micro-batch, and rank by rank in each."""
    return [
        value for shares in zip(*(rank[name] for rank in ranks), strict=True) for share in shares for value in share
    ]


def position_of(state: dict[str, int]) -> int:
    return state["epoch"] * STEPS + -(-state["samples"] // elastic.BATCH_SIZE) if state else 0


def read_rounds(directory: Path) -> list[Round]:
    settings = [json.loads(line) for line in (directory / "rounds.jsonl").read_text().splitlines()]
    starts = [position_of(of_round["state"]) for of_round in settings]
    ends = [*starts[1:], position_of(elastic.saved_state(directory))]
    return [
        Round(
            of_round,
            start,
            end,
            [read_log(directory, of_round["round"], rank, start) for rank, _ in enumerate(of_round["workers"])],
        )
        for of_round, start, end in zip(settings, starts, ends, strict=True)
    ]


def read_log(directory: Path, number: int, rank: int, start: int) -> dict[int, dict[str, Any]]:
    file = directory / f"{number}-{rank}.log"
    # A kill can tear the last line; what is not whole was not saved.
    given = [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []
    by_position = {step["epoch"] * STEPS + step["step"]: step for step in given}
    # A step that counts already and is given again would be trained on twice.
    assert list(by_position) == list(range(start, start + len(given)))
    return by_position


def undisturbed(kind: str, positions: int) -> Iterator[Step]:
    """Yield the steps of a run of one rank that nobody kills."""
    data = elastic.loader(kind)
    while data.epoch * STEPS < positions:
        for step in elastic.steps(data):
            yield step["samples"][0], step["draws"][0]
            data.advance()


@pytest.mark.parametrize("kind", KILLS)
def test_killed_and_resumed_on_other_ranks_each_epoch_has_each_sample_once(kind: str, tmp_path: Path) -> None:
    kills = KILLS[kind]
    subprocess.run([sys.executable, str(SCRIPT), kind, str(tmp_path), str(kills), "1"], check=True, timeout=600)
    rounds = read_rounds(tmp_path)

    seen = [step for of_round in rounds for step in of_round.counted()]
    assert [position for position, _ in seen] == list(range(rounds[-1].end))
    steps = [step for _, step in seen]
    for epoch in range(rounds[-1].end // STEPS):
        times_seen = Counter(sample for samples, _ in steps[epoch * STEPS : (epoch + 1) * STEPS] for sample in samples)
        assert times_seen == dict.fromkeys(range(elastic.SAMPLES), 1)
    assert steps == list(undisturbed(kind, len(steps)))

    assert len(rounds) == kills + 1
    assert {len(of_round.given) for of_round in rounds} == {1, 2, 3, 4}
    workers = {mode for of_round in rounds for mode in of_round.settings["workers"]}
    assert workers >= {"auto", "none"} | (set() if kind.startswith("stream") else {"process"})
    assert sum(of_round.start % STEPS > 0 for of_round in rounds) > kills / 2
    # Given to a rank when it was killed, and not saved: these were given again.
    assert sum(position >= of_round.end for of_round in rounds for given in of_round.given for position in given) > 0
