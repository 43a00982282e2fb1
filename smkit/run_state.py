"""The state of a run: every part that has a memory, taken together and put back together, and when that is saved.

Model, optimizer, scheduler, gradient scaler, random generators, position in the data, metrics not yet written, the
monitor: leave one out, and a resumed run is another run.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from smkit.averaging import WeightAverage
from smkit.cadence import checkpoint_interval
from smkit.checkpoint import CheckpointStore
from smkit.data.batches import Loader
from smkit.device import Placement
from smkit.distributed import Ranks
from smkit.errors import CheckpointError, DataError
from smkit.metrics import MetricLog
from smkit.monitor import LossGuard, Monitor
from smkit.randomness import random_state, rank_seed, restore_random_state, seed_all
from smkit.restoring import Checkpoint
from smkit.sharding import like
from smkit.state import flatten


class Stateful(Protocol):
    """What has a state of its own that a resumed run must find again."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class RunState:
    """The parts of one run.

    Args:
        model: Its weights and buffers.
        optimizer: As it was built; its state is loaded later.
        scheduler: As it was built, or None.
        average: The moving average of the weights, if there is one.
        placement: For the gradient scaler.
        loader: For the position in the data.
        log: For what is noted and not yet written.
        monitor: For the best score so far.
        loss_guard: For the losses that overflowed.
        own: What the user's trainer remembers besides.
        ranks: Each has random generators of its own; the rest is rank 0's, or the same on all.
        hyperparameters: Saved to name what was changed since.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        average: WeightAverage | None,
        placement: Placement,
        loader: Loader,
        log: MetricLog,
        monitor: Monitor,
        loss_guard: LossGuard,
        own: Stateful,
        ranks: Ranks,
        hyperparameters: Mapping[str, Any],
    ) -> None:
        self.model = model
        self.monitor = monitor
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._loader = loader
        self._log = log
        self._loss_guard = loss_guard
        self._average = average
        self._ranks = ranks
        self._parts: dict[str, Stateful] = {
            "placement": placement,
            "monitor": monitor,
            "loss_guard": loss_guard,
        }
        self._own = own
        self._hyperparameters = dict(hyperparameters)
        self._built = _as_built(optimizer, scheduler, monitor)

    def capture(self, step: int) -> dict[str, Any]:
        """Return the state of every part; tensors are the live ones, for a CheckpointStore copies them.

        All ranks call it at the same step.

        Raises:
            SmkitError: A loss up to `step` is no number; such a state is not worth keeping.
        """
        self._loss_guard.check(self._log.read().get("train/loss", []), last_step=step, are_final=False)
        return {
            **self.heavy_parts(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "random": self._ranks.gathered(random_state()),
            "data": self._loader.state_dict(),
            "metrics": self._log.state_dict(),
            "hyperparameters": self._hyperparameters,
            "built": self._built,
            "own": dict(self._own.state_dict()),
            **{name: dict(part.state_dict()) for name, part in self._parts.items()},
        }

    def heavy_parts(self) -> dict[str, Any]:
        """Return those parts of the state that a copy takes time and memory for."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
        }

    def begin(self) -> None:
        """Begin anew: nothing that a run before has left outside of checkpoints belongs to this one."""
        self._log.begin()

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Put every part back, and return the settings that are others now: `learning_rate: 0.1, now 0.01`.

        Raises:
            CheckpointError: The checkpoint belongs to another model, optimizer, schedule or data set.
        """
        state = checkpoint.state
        with _understood(checkpoint):
            changed = self._restore(checkpoint, state)
            own = dict(state["own"])
        # Outside, for what goes wrong in it is the user's own.
        self._own.load_state_dict(own)
        with _understood(checkpoint):
            self._restore_random(state["random"], checkpoint.step)
        return changed

    def _restore(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> list[str]:
        differences = _differences(state["hyperparameters"], self._hyperparameters)
        changed = [difference for difference in differences if not difference.startswith(_FREE)]
        other = _differences(state["built"]["fixed"], self._built["fixed"])
        if other:
            raise _does_not_fit(checkpoint, f"it was built with another {'; '.join(other)}", changed)
        try:
            self._loader.load_state_dict(state["data"])
        except DataError as error:
            raise _does_not_fit(checkpoint, error.what, changed) from error
        if (state["average"] is None) != (self._average is None):
            raise _does_not_fit(checkpoint, "it was built with another ema_decay", changed)
        try:
            self._load_weights(state)
            self._optimizer.load_state_dict(self._in_parts(state["optimizer"]))
        except (RuntimeError, ValueError, KeyError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Error(s) in" not in line]
            raise _does_not_fit(checkpoint, " ".join(lines[:5]), changed) from error
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        self._log.load_state_dict(state["metrics"], checkpoint.step)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return [*changed, *_differences(state["built"]["options"], self._built["options"], "optimizer")]

    def _restore_random(self, of_ranks: Sequence[Any], step: int) -> None:
        if not of_ranks:
            raise ValueError("there are no random generators")
        if self._ranks.rank < len(of_ranks):
            restore_random_state(of_ranks[self._ranks.rank])
        else:
            seed_all(rank_seed(self._hyperparameters["seed"], self._ranks.rank, step))

    def use_weights(self, checkpoint: Checkpoint) -> None:
        """Put the weights of a checkpoint back, and nothing else."""
        self._load_weights(checkpoint.state)

    def _load_weights(self, state: Mapping[str, Any]) -> None:
        own = self.model.state_dict()
        weights = {name: like(value, own[name]) if name in own else value for name, value in state["model"].items()}
        self.model.load_state_dict(weights)
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    def _in_parts(self, optimizer: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state with what has a parameter's shape in parts, if the parameter is."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
        own = dict(zip(numbers, parameters, strict=False))
        states = {
            number: {
                name: like(value, own[number]) if isinstance(value, Tensor) and number in own else value
                for name, value in entries.items()
            }
            for number, entries in optimizer["state"].items()
        }
        return {**optimizer, "state": states}


_RATES = frozenset({"base_lrs", "_last_lr", "max_lrs"})
"""Parts of a schedule that follow from the learning rate, which a run may be given anew."""


def _as_built(optimizer: Optimizer, scheduler: LRScheduler | None, monitor: Monitor) -> dict[str, Any]:
    """Return what the parts were built with, before a step or a checkpoint has changed them.

    `fixed` must be the same when a run is resumed: a schedule made for another length would end at a wrong step.
    """
    schedule = {} if scheduler is None else copy.deepcopy(scheduler.state_dict())
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return {
        "fixed": {
            "optimizer": type(optimizer).__name__,
            "scheduler": None if scheduler is None else type(scheduler).__name__,
            "schedule": {name: value for name, value in schedule.items() if name not in _RATES},
            "monitor_metric": monitor.metric,
            "monitor_mode": monitor.mode,
        },
        "options": copy.deepcopy(groups),
    }


_SECONDS_TO_CLOSE = 60.0


class Saves:
    """Saves a run in the background when it is time, and finds what was saved; all ranks call it at the same steps.

    Args:
        run: The parts of the run.
        store: Where they are saved.
        every_seconds: What the user chose; None chooses a pace that costs less than 1 % of the run.
        is_mirrored: Whether the store is a job's, which SageMaker mirrors to S3.
    """

    def __init__(
        self, run: RunState, store: CheckpointStore, every_seconds: float | None, *, is_mirrored: bool
    ) -> None:
        self._run = run
        self._store = store
        self._every_seconds = every_seconds
        self._is_mirrored = is_mirrored
        # Adam's state and the weights; only the order of magnitude matters.
        self._size_bytes = 3 * sum(parameter.nbytes for parameter in run.model.parameters())
        self._durable: tuple[int, int] | None = None
        self._begun = (0, 0)
        self._is_prepared = False
        self._note(0, stall_seconds=0.0)

    def _note(self, step: int, stall_seconds: float) -> None:
        """Note which state was handed to the store: its step, and the last validation that it knows of."""
        is_first = self._begun[0] == 0 < step and self._durable is None
        self._begun = (step, self._run.monitor.judged_step)
        self.due_time = time.monotonic() + checkpoint_interval(
            self._every_seconds, stall_seconds, self._size_bytes, uploads_first=is_first and self._is_mirrored
        )
        """When the next save is due, by `time.monotonic()`."""

    def resume(self) -> tuple[int, list[str]] | None:
        """Put the newest whole checkpoint back; return its step and what was changed since, None if there is none."""
        checkpoint = self._store.latest()
        if checkpoint is None:
            self._run.begin()
            return None
        changed = self._run.restore(checkpoint)
        self._durable = (checkpoint.step, self._run.monitor.judged_step)
        self._note(checkpoint.step, stall_seconds=0.0)
        return checkpoint.step, changed

    def prepare(self, step: int) -> None:
        """Begin, once, to make room for the copies of a save: after a step, when an optimizer has all of its state."""
        if step > self._begun[0] and not self._is_prepared:
            self._is_prepared = True
            self._store.reserve(self._run.heavy_parts())

    def are_due(self, step: int) -> bool:
        """Whether it is time for a save, there is something new, and none is in flight."""
        return time.monotonic() >= self.due_time and step > self._begun[0] and not self._store.is_saving

    def save(self, step: int, score: float | None = None) -> None:
        """Begin a save; `score` is how good the model is, if that is known."""
        self._note(step, self._store.start(step, self._run.capture(step), score=score))

    def finish(self, step: int) -> None:
        """Return when the run, as it is after `step`, is on the disk.

        Raises:
            CheckpointError: It could not be saved.
        """
        self._store.wait()
        if self._store.saved_step == self._begun[0]:
            self._durable = self._begun
        if step and self._durable != (step, self._run.monitor.judged_step):
            self._store.save(step, self._run.capture(step))
            self._note(step, stall_seconds=0.0)
            self._durable = self._begun

    def check(self) -> None:
        """Refuse, before any training, a run whose state no checkpoint could hold.

        Raises:
            CheckpointError: It names the value.
        """
        flatten(self._run.capture(0))

    def close(self) -> None:
        """Let a save that is in flight come to its end, even if the run has failed; a disk that hangs is left alone."""
        # Whatever comes of it, it must not take the place of the error that has ended the run.
        with contextlib.suppress(Exception):
            self._store.wait(_SECONDS_TO_CLOSE)

    def use_best_model(self, score: float) -> int | None:
        """Put the weights with this score back; return their step, None if they are damaged or gone."""
        try:
            best = self._store.best()
        except CheckpointError:
            return None
        if best is None or best.score != score:
            return None
        self._run.use_weights(best)
        return best.step


_FREE = (
    *("epochs:", "max_steps:", "log_every_", "validate_every_", "checkpoint_every_", "early_stopping_"),
    *("profile_steps:", "strategy:"),
)
"""Hyperparameters that say how long and how closely, and change nothing of what is trained."""


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return what differs, at any depth, as `name: before, now after`; what only one side has is passed over."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        pairs = [(key, before[key], now[key]) for key in now if key in before and key not in _RATES]
    elif isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)) and len(before) == len(now):
        pairs = list(zip(range(len(now)), before, now, strict=True))
    else:
        # A rate that is a tensor lies on the GPU now, and was read into CPU memory.
        before, now = (value.tolist() if isinstance(value, Tensor) else value for value in (before, now))
        is_same = before is now or repr(before) == repr(now)
        return [] if is_same else [f"{name}: {before}, now {now}"]
    prefix = f"{name}." if name else ""
    return [text for key, old, new in pairs for text in _differences(old, new, f"{prefix}{key}")]


@contextlib.contextmanager
def _understood(checkpoint: Checkpoint) -> Iterator[None]:
    """Make a clear error of a state that is not built as a run's: its hashes prove its bytes, and not its sense."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} does not hold the state of a run: {error!r:.200}",
            where=str(checkpoint.directory),
            fix="go on with the version of smkit that wrote it, or remove the directory to go on from the one before",
        ) from error


def _does_not_fit(checkpoint: Checkpoint, why: str, changed: list[str]) -> CheckpointError:
    hint = f"; changed since: {'; '.join(changed)}" if changed else ""
    return CheckpointError(
        f"the checkpoint of step {checkpoint.step} is of another run: {why}{hint}",
        where=str(checkpoint.directory),
        fix="start with the settings of that run, or with another --run-dir (in a job: another checkpoint S3 URI)",
    )
