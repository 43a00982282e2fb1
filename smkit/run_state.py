"""The state of a run: every part that has a memory, taken together and put back together, and when that is saved.

Model, optimizer, scheduler, gradient scaler, random generators, position in the data, metrics not yet written, the
monitor: leave one out, and a resumed run is another run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from smkit.cadence import checkpoint_interval
from smkit.checkpoint import Checkpoint, CheckpointStore
from smkit.data.loader import Loader
from smkit.device import Placement
from smkit.errors import CheckpointError, DataError
from smkit.metrics import MetricLog
from smkit.monitor import LossGuard, Monitor
from smkit.randomness import random_state, restore_random_state


@dataclass(frozen=True)
class RunState:
    """The parts of one run; `hyperparameters` are saved to name what was changed when a resume does not fit."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    placement: Placement
    loader: Loader
    log: MetricLog
    monitor: Monitor
    loss_guard: LossGuard
    hyperparameters: Mapping[str, Any]

    def capture(self, step: int) -> dict[str, Any]:
        """Return the state of every part; tensors are the live ones, for a CheckpointStore copies them.

        Raises:
            SmkitError: A loss up to `step` is no number; such a state is not worth keeping.
        """
        self.loss_guard.check(self.log.read().get("train/loss", []), last_step=step, are_final=False)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "placement": self.placement.state_dict(),
            "random": random_state(),
            "data": self.loader.state_dict(),
            "metrics": self.log.state_dict(),
            "monitor": self.monitor.state_dict(),
            "loss_guard": self.loss_guard.state_dict(),
            "hyperparameters": dict(self.hyperparameters),
        }

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Put every part back, and return the hyperparameters that are others now: `learning_rate: 0.1, now 0.01`.

        Raises:
            CheckpointError: The checkpoint belongs to another model, optimizer or data set.
        """
        state = checkpoint.state
        differences = _differences(state["hyperparameters"], self.hyperparameters)
        changed = [difference for difference in differences if not difference.startswith(_FREE)]
        try:
            self.loader.load_state_dict(state["data"])
        except DataError as error:
            raise _does_not_fit(checkpoint, error.what, changed) from error
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Error(s) in" not in line]
            raise _does_not_fit(checkpoint, " ".join(lines[:5]), changed) from error
        self._restore_scheduler(checkpoint, changed)
        self.placement.load_state_dict(state["placement"])
        self.log.load_state_dict(state["metrics"], checkpoint.step)
        self.monitor.load_state_dict(state["monitor"])
        self.loss_guard.load_state_dict(state["loss_guard"])
        restore_random_state(state["random"])
        return changed

    def _restore_scheduler(self, checkpoint: Checkpoint, changed: list[str]) -> None:
        """Put the schedule back; refuse one made for another length, whose end would come at a wrong step."""
        saved = checkpoint.state["scheduler"]
        name = type(self.scheduler).__name__
        if self.scheduler is None or saved is None:
            if self.scheduler is not None or saved is not None:
                raise _does_not_fit(checkpoint, "only one of the two runs has a scheduler", changed)
            return
        other = [text for text in _differences(saved, self.scheduler.state_dict()) if not text.startswith(_MOVING)]
        if other:
            raise _does_not_fit(checkpoint, f"its {name} has {'; '.join(other)}", changed)
        self.scheduler.load_state_dict(saved)


_SECONDS_TO_CLOSE = 60.0


class Saves:
    """Saves a run in the background when it is time, and finds what was saved.

    Args:
        run: The parts of the run.
        store: Where they are saved.
        every_seconds: What the user chose; None chooses a pace that costs less than 1 % of the run.
    """

    def __init__(self, run: RunState, store: CheckpointStore, every_seconds: float | None) -> None:
        self._run = run
        self._store = store
        self._every_seconds = every_seconds
        # Adam's state and the weights; only the order of magnitude matters.
        self._size_bytes = 3 * sum(parameter.nbytes for parameter in run.model.parameters())
        self._note_saved(0, stall_seconds=0.0)

    def _note_saved(self, step: int, stall_seconds: float) -> None:
        self._saved_step = step
        self.due_time = time.monotonic() + checkpoint_interval(self._every_seconds, stall_seconds, self._size_bytes)
        """When the next save is due, by `time.monotonic()`."""

    def resume(self) -> tuple[int, list[str]] | None:
        """Put the newest whole checkpoint back; return its step and what was changed since, None if there is none."""
        checkpoint = self._store.latest()
        if checkpoint is None:
            return None
        changed = self._run.restore(checkpoint)
        self._note_saved(checkpoint.step, stall_seconds=0.0)
        return checkpoint.step, changed

    def save_if_due(self, step: int) -> None:
        """Begin a save if it is time for one, there is something new, and none is in flight."""
        if time.monotonic() >= self.due_time and step > self._saved_step and not self._store.is_saving:
            self.save(step)

    def save(self, step: int, score: float | None = None) -> None:
        """Begin a save; `score` is how good the model is, if that is known."""
        self._note_saved(step, self._store.start(step, self._run.capture(step), score=score))

    def finish(self, step: int) -> None:
        """Return when `step` is saved.

        Raises:
            CheckpointError: It could not be saved.
        """
        self._store.wait()
        if step > self._saved_step:
            self._store.save(step, self._run.capture(step))
            self._note_saved(step, stall_seconds=0.0)

    def close(self) -> None:
        """Let a save that is in flight come to its end, even if the run has failed; a disk that hangs is left alone."""
        with contextlib.suppress(CheckpointError):
            self._store.wait(_SECONDS_TO_CLOSE)

    def use_best_model(self, score: float) -> int | None:
        """Put the weights with this score back; return their step, None if they are damaged or gone."""
        best = self._store.best()
        if best is None or best.score != score:
            return None
        self._run.model.load_state_dict(best.state["model"])
        return best.step


_FREE = ("epochs:", "max_steps:", "log_every_", "validate_every_", "checkpoint_every_", "early_stopping_")
"""Hyperparameters that say how long and how closely, and change nothing of what is trained."""

_MOVING = ("_", "last_epoch", "base_lrs", "verbose")
"""Parts of a scheduler's state that change as it steps, or with the learning rate."""


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [name for name in now if before.get(name, now[name]) != now[name]]
    return [f"{name}: {before[name]}, now {now[name]}" for name in names]


def _does_not_fit(checkpoint: Checkpoint, why: str, changed: list[str]) -> CheckpointError:
    hint = f"; changed since: {'; '.join(changed)}" if changed else ""
    return CheckpointError(
        f"the checkpoint of step {checkpoint.step} is of another run: {why}{hint}",
        where=str(checkpoint.directory),
        fix="start with the settings of that run, or with another --run-dir (in a job: another checkpoint S3 URI)",
    )
