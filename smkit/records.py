"""What a run says of itself while it trains: metric records every so many steps, and the line that a person watches.

This room decides no step; it counts the time between two records and what was waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.optim import Optimizer

from smkit.metrics import MetricLog
from smkit.monitor import LossGuard
from smkit.progress import Progress

OWN_METRICS = frozenset({"train/loss", "train/grad_norm", "train/learning_rate"})
"""What the loop itself notes."""


class Records:
    """The records of one run.

    Args:
        log: Where they are written.
        guard: Looks at each loss before it is written.
        total_steps: Of the whole run.
        samples_per_step: Of an optimizer step, over all ranks.
        hardware: Returns what is known of the hardware at a rate of samples per second, by name.
        is_shown: Whether this process shows a progress line.

    Attributes:
        latest: The latest value of every metric.
        waited_seconds: For data, since the last record; the loop adds to it.
        share: Samples of the batch that is trained on, which is what the user's metrics of it weigh.
    """

    def __init__(
        self,
        log: MetricLog,
        guard: LossGuard,
        *,
        total_steps: int,
        samples_per_step: int,
        hardware: Callable[[float], Mapping[str, float]],
        is_shown: bool,
    ) -> None:
        self.log = log
        self.latest: dict[str, float] = {}
        self.waited_seconds = 0.0
        self.share = 0
        self._guard = guard
        self._total_steps = total_steps
        self._samples_per_step = samples_per_step
        self._hardware = hardware
        self._progress = Progress(total_steps, is_shown=is_shown)
        self._recorded_step = 0
        self._began = (0, time.monotonic())

    def begin(self, step: int) -> None:
        """Go on after `step`; losses that are noted already belong to the steps before it."""
        self._recorded_step = step - len(self.log.read().get("train/loss", []))
        self._progress.begin(step)
        self._begin_interval(step)

    def _begin_interval(self, step: int) -> None:
        self._began = (step, time.monotonic())
        self.waited_seconds = 0.0

    def note(self, name: str, value: Tensor | float) -> None:
        """Note a mean over the batch that is trained on."""
        # A copy: a parameter or a buffer would have changed by the time it is read.
        self.log.add(name, value.detach().clone() if isinstance(value, Tensor) else value, self.share)

    @property
    def due_time(self) -> float:
        """Time, by `time.monotonic()`, from which the progress line wants to be drawn again."""
        return self._progress.due

    def write(self, step: int, epoch: int, optimizer: Optimizer) -> None:
        """Write the record of the steps since the last one, if there are any.

        Raises:
            SmkitError: A loss among them is no number.
        """
        if step <= self._recorded_step:
            return
        losses = self.log.read().get("train/loss", [])
        self._guard.check(losses, last_step=step, are_final=True)
        values = {"train/learning_rate": float(optimizer.param_groups[0]["lr"])}
        first, then = self._began
        if step > first:
            seconds = max(time.monotonic() - then, 1e-9)
            rate = (step - first) * self._samples_per_step / seconds
            values["train/samples_per_second"] = rate
            values["train/data_wait_percent"] = 100 * self.waited_seconds / seconds
            values["train/eta_seconds"] = (self._total_steps - step) * seconds / (step - first)
            values |= self._hardware(rate)
        self._progress.clear()
        self.latest |= self.log.write(step, epoch, values)
        self._progress.note(f"loss {self.latest.get('train/loss', float('nan')):.4g}")
        self._recorded_step = step
        self._begin_interval(step)

    def write_validation(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write what a validation has given."""
        self._progress.clear()
        self.log.write_values(step, epoch, values)
        self.latest |= values

    def draw_if_due(self, step: int) -> None:
        """Draw the progress line, if somebody watches and it is old."""
        if time.monotonic() >= self._progress.due:
            self._progress.draw(step, self._samples_per_step)

    def clear(self) -> None:
        """Take the progress line away, so that something else can be said."""
        self._progress.clear()

    def close(self) -> None:
        """Finish the files."""
        self.log.close()
        self._progress.clear()
