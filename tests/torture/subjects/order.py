"""The order of a run: written by who attacks, read by each of its processes. It imports neither torch nor a subject."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HUNG = 1000
"""The status of a process that had to be ended because it took too long."""
SAMPLES = 42
STEPS_PER_EPOCH = 11
"""The last batch of an epoch is a short one."""


@dataclass(frozen=True)
class Order:
    """One process's order: what to train, and where.

    Attributes:
        folder: All that the run writes is below it; a run that finds another's checkpoints there goes on.
        notes: The file of the notes; rank 1 appends `.1` to it.
        epochs: Of eleven steps each.
        values: Numbers in the parameter `counted`, four bytes each; the optimizer holds as many. A checkpoint has about
            `8 * values` bytes.
        seconds_per_step: A pause in each step.
        every_seconds: Between two saves of smkit; the peers save after each step.
        settings: More words for smkit's command line.
        disk: Orders for `faulty_disk.c`, obeyed from the start of the training; empty: none.
        faulty_rank: The one rank that obeys them; None: all do.
        rank: Of this process.
        world_size: How many processes there are; more than one for smkit alone.
        workers: Processes that load the data, where a framework has such.
        clock: Seconds by which the clock is wrong, and in each step is wrong anew, up to that much either way.
        port: Where they meet.
        environment: More environment variables.
    """

    folder: Path
    notes: Path
    epochs: int = 4
    values: int = 2000
    seconds_per_step: float = 0.0
    every_seconds: float = 0.0
    settings: tuple[str, ...] = ()
    disk: str = ""
    faulty_rank: int | None = None
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    clock: float = 0.0
    port: int = 0
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What the run writes to stdout and stderr."""
        return self.notes.with_name(self.notes.name + ".log")

    @property
    def total_steps(self) -> int:
        return self.epochs * STEPS_PER_EPOCH

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Order:
        read = json.loads(text)
        paths = {name: Path(read[name]) for name in ("folder", "notes")}
        return cls(**read | paths | {"settings": tuple(read["settings"])})
