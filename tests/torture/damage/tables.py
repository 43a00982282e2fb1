"""Damage of the parsed rows that a run leaves for the next one; what is then read is compared to the last bit."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from torture.damage.mutations import CONTENT, EXCHANGES, Mutation, Scene
from torture.tally import Campaign, Outcome

ROWS = 3000
_SECONDS = 60.0
_SHARE = 5
"""One round in so many of the campaign's."""


def attack(campaign: Campaign) -> None:
    folder = campaign.folder / "table"
    data, sound = folder / "data", folder / "sound"
    data.mkdir(parents=True)
    chance = campaign.draws("rows of a table")
    rows = [
        f"{chance.choice(('ant', 'bee', 'cat'))},{chance.random():.6f},{chance.randrange(99)},word {chance.random()}"
        for _ in range(ROWS)
    ]
    (data / "rows.csv").write_text("label,a,b,text\n" + "\n".join(rows) + "\n")
    with Reader(data) as reader:
        right = reader.read(sound)
        (cache,) = sound.iterdir()
        deck = [
            (attack, name, file.name, mutation)
            for attack, mutations in (CONTENT | EXCHANGES).items()
            if attack != "exchanged"
            for name, mutation in mutations.items()
            for file in (*sorted(cache.iterdir()), cache)
            if attack not in CONTENT or file != cache or name == "file"
        ]
        order = chance.sample(deck, len(deck))
        for number in range(campaign.rounds // _SHARE + 1):
            kind, name, file, mutation = order[number % len(order)]
            copy = folder / f"{number}"
            shutil.copytree(sound, copy)
            path = copy / cache.name if file == cache.name else copy / cache.name / file
            mutation_of(mutation, path, campaign, number)
            answer = reader.read(copy)
            outcome, why = judged(answer, right, path)
            campaign.tally.count(
                f"rows of a table: {kind}", "smkit", outcome, f"round {number}, {name} of {file}: {why}"
            )
            for used in (copy, folder / ".away"):
                shutil.rmtree(used, ignore_errors=True)


def mutation_of(mutation: Mutation, path: Path, campaign: Campaign, number: int) -> None:
    mutation(Scene(path, path, campaign.draws(f"rows {number}")))


def judged(answer: dict[str, Any], right: dict[str, Any], path: Path) -> tuple[Outcome, str]:
    if "hangs" in answer or "foreign" in answer:
        return Outcome.LOST, str(answer)
    if "error" in answer:
        return Outcome.REFUSED if path.parent.name in answer["error"] or path.name in answer[
            "error"
        ] else Outcome.LOST, answer["error"]
    if answer["rows"] != right["rows"]:
        return Outcome.SILENT, "other rows"
    return Outcome.SURVIVED, ""


class Reader:
    """A process that reads the table again and again."""

    def __init__(self, data: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("table_reader.py")), str(data)]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, caches: Path) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{caches}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            status = self._process.wait()
            self._process = self._started()
            return {"hangs" if not ready else "foreign": f"it ended with {status}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
