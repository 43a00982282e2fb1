"""What all ranks must do at the same step though only one of them knows that it is due: to stop, and to save.

A signal reaches a process at its own moment, and each has its own clock. So they ask each other about twice a second,
by one small exchange that is begun at one step and read at the next, when it has arrived: a step waits for nothing.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from smkit.distributed import Ranks

_SECONDS_BETWEEN = 0.5
_MOST_TICKS = 1000


class Decision(NamedTuple):
    """What is to be done now, on all ranks alike."""

    signal: int | None
    saves: bool


_NOTHING = Decision(None, saves=False)


class Agreement:
    """The exchange; its clock are the steps and validation batches, which all ranks count alike.

    Args:
        ranks: Who agrees.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._is_alone = ranks.world_size == 1
        self._tick = 0
        self._due = 0
        self._asked: torch.Tensor | None = None
        self._work: torch.distributed.Work | None = None
        self._read_at = (0, time.monotonic())
        self._most_ticks = 1

    @property
    def ticks_left(self) -> float:
        """Ticks until `poll` must be called next; it may be called before, on some ranks only."""
        return float("inf") if self._is_alone else self._due - self._tick

    def poll(self, ticks: int, *, signal: int | None, wants_save: bool) -> Decision:
        """Return what all have agreed on.

        Args:
            ticks: Steps and validation batches since the last call.
            signal: The signal that this process was sent.
            wants_save: Whether a save is due; only rank 0's word counts.
        """
        if self._is_alone:
            return Decision(signal, wants_save)
        self._tick += ticks
        if self._tick < self._due:
            return _NOTHING
        if self._asked is None:
            interval = self._interval() if self._ranks.is_first else 0
            self._asked = torch.tensor([signal or 0, int(wants_save and self._ranks.is_first), interval])
            self._work = self._ranks.begin_maximum(self._asked)
            self._due = self._tick + 1
            return _NOTHING
        return self._read()

    def change_pace(self) -> None:
        """Say, on all ranks, that a tick takes another time from now on: a step lasts as long as many batches."""
        self._most_ticks = 1
        self._due = min(self._due, self._tick)

    def _read(self) -> Decision:
        if self._work is not None:
            self._work.wait()
        agreed, saves, interval = [0, 0, 1] if self._asked is None else self._asked.tolist()
        self._asked = self._work = None
        # A pace that was measured over few ticks holds for not many more.
        interval = min(interval, self._most_ticks)
        self._most_ticks = min(_MOST_TICKS, 2 * interval)
        self._due = self._tick + interval
        self._read_at = (self._tick, time.monotonic())
        return Decision(agreed or None, saves=bool(saves))

    def _interval(self) -> int:
        """Return how many ticks take about half a second, by the pace since the last exchange."""
        tick, then = self._read_at
        seconds = (time.monotonic() - then) / max(1, self._tick - tick)
        return max(1, int(_SECONDS_BETWEEN / max(seconds, 1e-6)))

    def close(self) -> None:
        """Wait for an exchange that nobody will read."""
        if self._asked is not None:
            self._read()
