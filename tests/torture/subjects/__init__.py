"""Those who are attacked: smkit and its peers, each doing the same small training over and over in forked processes.

    with Subject("lightning", faulty_disk.compiled(folder)) as subject:
        running = subject.start(Order(folder / "run", folder / "notes"))
        running.wait_for("committed", count=3)
        running.kill()
        end = running.end()
        end = subject.start(Order(folder / "run", folder / "notes-2")).end()     # it goes on by its own means
        end.began.step, end.began.is_sound, end.committed, end.status, end.text

This module imports neither torch nor a subject: both are in the subject's server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.subjects.order import HUNG, SAMPLES, Order
from torture.tally import Outcome

__all__ = ["HUNG", "SAMPLES", "End", "Notes", "Order", "Running", "State", "Subject"]

SECONDS = 240.0
"""Longer than a run takes on a busy machine."""


@dataclass(frozen=True)
class State:
    """What a run found, or had, in memory.

    Attributes:
        step: What the framework says.
        weights: The least and the greatest of what counts in the model.
        memory: The same of the optimizer.
        learned: A digest of all that was learned.
    """

    step: int
    weights: tuple[float, float]
    memory: tuple[float, float]
    learned: str

    @property
    def is_sound(self) -> bool:
        """Whether every value that counts is the one of this step."""
        return {*self.weights, *self.memory} == {float(self.step)}


class Notes:
    """What a run has noted until now."""

    def __init__(self, file: Path) -> None:
        text = file.read_text() if file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        self.events = [line["event"] for line in lines]
        self.began = next((_state(line) for line in lines if line["event"] == "began"), None)
        """Where it went on, once the first step is begun."""
        self.ended = next((_state(line) for line in lines if line["event"] == "ended"), None)
        self.committed = [int(line["step"]) for line in lines if line["event"] == "committed"]
        """The steps that the framework has called saved."""
        self.saving = [int(line["step"]) for line in lines if line["event"] == "saving"]
        """The steps whose saves were begun; smkit's only."""
        steps = [line for line in lines if line["event"] == "step"]
        self.samples = [list(line["samples"]) for line in steps]
        """Of each step, in the order in which they were done."""
        self.learned = [line["learned"] for line in steps]
        """A digest of all that was learned before each step."""


def _state(line: Mapping[str, Any]) -> State:
    return State(line["step"], tuple(line["weights"]), tuple(line["memory"]), line["learned"])


@dataclass(frozen=True)
class End:
    """How a run came to its end: the statuses of its processes, and what it has left."""

    statuses: Sequence[int]
    notes: Notes
    text: str

    @property
    def status(self) -> int:
        """Of rank 0; negative: the signal that has ended it."""
        return self.statuses[0]

    def judged(self, committed: int) -> tuple[Outcome, str]:
        """Return what a run came to that was to go on from step `committed` or a later one, and what was amiss."""
        # One that was done trains no step; then its end tells where it was.
        began = self.notes.began or self.notes.ended
        if self.status != 0 or began is None:
            last = self.text.strip().splitlines()[-1:] or [""]
            return Outcome.LOST, f"status {self.status} after step {committed}: {last[0][:200]}"
        if began.step < committed or not began.is_sound:
            return Outcome.SILENT, f"went on after step {began.step} of {committed} with {began}"
        return Outcome.SURVIVED, ""


class Running:
    """A run that is under way."""

    def __init__(self, subject: Subject, order: Order, processes: list[int]) -> None:
        self.order, self.processes = order, processes
        self._subject = subject

    def notes(self) -> Notes:
        return Notes(self.order.notes)

    def is_alive(self) -> bool:
        """Whether rank 0 still runs."""
        try:
            stat = Path(f"/proc/{self.processes[0]}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X")

    def wait_for(self, event: str, count: int = 1, seconds: float = SECONDS) -> bool:
        """Return True once the run has noted so many events of a name, False if it ends before or takes too long."""
        deadline = time.monotonic() + seconds
        while self.notes().events.count(event) < count:
            if not self.is_alive() or time.monotonic() > deadline:
                return self.notes().events.count(event) >= count
            time.sleep(0.001)
        return True

    def kill(self, *ranks: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to some of the processes, by default to all, and to what they have started."""
        for rank in ranks or range(len(self.processes)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.processes[rank], number)

    def end(self, seconds: float = SECONDS) -> End:
        """Wait for the end of all processes; after `seconds` they are killed, and their status is `HUNG`."""
        statuses = self._subject.ask({"wait": seconds})
        log = self.order.log
        logs = [log, *(log.with_name(f"{log.name}.{rank}") for rank in range(1, len(self.processes)))]
        return End(statuses, self.notes(), "".join(file.read_text(errors="replace") for file in logs if file.exists()))


class Subject:
    """A server of one subject; its framework is imported once, and each run is forked.

    Args:
        name: `smkit`, `lightning`, `accelerate`, `huggingface` or `torch.save`.
        disk: The library of `torture.faulty_disk`, for runs with orders for it.
        through: A command that starts the server, such as one that takes rights away.
    """

    def __init__(self, name: str, disk: Path | None = None, through: Sequence[str] = ()) -> None:
        self.name = name
        here = Path(__file__).parent.parent.parent
        paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", "/root"),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        if disk is not None:
            environment["LD_PRELOAD"] = str(disk)
        self._server = subprocess.Popen(
            [*through, sys.executable, "-m", "torture.subjects.server", name],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def start(self, order: Order) -> Running:
        """Begin a run; one at a time."""
        ranks = [dataclasses.replace(order, rank=rank).to_json() for rank in range(order.world_size)]
        order.notes.parent.mkdir(parents=True, exist_ok=True)
        return Running(self, order, self.ask({"start": ranks, "log": str(order.log)}))

    def ask(self, order: Mapping[str, Any]) -> Any:
        """Give the server an order and return its answer."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of {self.name} has ended, with status {self._server.wait()}")
        return line

    def close(self) -> None:
        with self._server:
            assert self._server.stdin is not None
            self._server.stdin.close()

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
