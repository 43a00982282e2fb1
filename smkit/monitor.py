"""What is watched during a run: the metric that decides which model is best, and whether the loss is a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from smkit.errors import ConfigurationError, SmkitError

_OVERFLOWS_IN_A_ROW = 20
"""What a gradient scaler may take to find its scale: it halves 65,536 to 1 in 16 steps."""
_SMALLEST_SCALE = 2.0**-24
"""fp16 holds no smaller number: a gradient that overflows at this scale is none, and each step is skipped."""


class Monitor:
    """Watches one validation metric.

    Args:
        metric: Its name, `accuracy` or `validation/accuracy`; None watches nothing.
        mode: Whether a smaller ("min") or a larger ("max") value is better.
        patience: Validations without a better value after which a run is stuck; None for any number.
    """

    def __init__(self, metric: str | None, mode: Literal["min", "max"], patience: int | None) -> None:
        if patience is not None and metric is None:
            raise ConfigurationError(
                "early stopping does not know which metric to watch",
                where="hyperparameter 'early_stopping_patience'",
                fix="set monitor_metric to the name of a validation metric, and monitor_mode",
            )
        self.metric = metric
        self.mode = mode
        self._patience = patience
        self.best_score: float | None = None
        """Score of the best validation so far: the metric, or its negative if smaller is better."""
        self.judged_step = 0
        """Step of the last validation."""
        self._without_progress = 0

    @property
    def is_stuck(self) -> bool:
        """Whether patience has run out."""
        return self._patience is not None and self._without_progress >= self._patience

    def judge(self, values: Mapping[str, float], step: int) -> bool:
        """Note the validation at `step`; return whether it is the best so far. NaN never is.

        Raises:
            ConfigurationError: The monitored metric is not among `values`.
        """
        self.judged_step = step
        if self.metric is None:
            return False
        name = self.metric if "/" in self.metric else f"validation/{self.metric}"
        if name not in values:
            raise ConfigurationError(
                f"the monitored metric '{self.metric}' is none of: {', '.join(values)}",
                where="hyperparameter 'monitor_metric'",
                fix="use one of these names, or return it from validation_step",
            )
        score = values[name] if self.mode == "max" else -values[name]
        is_best = math.isfinite(score) and (self.best_score is None or score > self.best_score)
        if is_best:
            self.best_score = score
        self._without_progress = 0 if is_best else self._without_progress + 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, how long ago it was, and the last step that was judged."""
        return {
            "best_score": self.best_score,
            "without_progress": self._without_progress,
            "judged_step": self.judged_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self.best_score = state["best_score"]
        self._without_progress = int(state["without_progress"])
        self.judged_step = int(state["judged_step"])


class LossGuard:
    """Stops a run whose loss is no number any more.

    Args:
        scale: Returns the scale of a gradient scaler, which skips steps that overflow, and may skip 20 in a row; None
            where gradients are not scaled.
    """

    def __init__(self, scale: Callable[[], float] | None) -> None:
        self._scale = scale
        self._allowed = 0 if scale is None else _OVERFLOWS_IN_A_ROW
        self._in_a_row = 0

    def check(self, losses: Sequence[float], *, last_step: int, are_final: bool) -> None:
        """Look at the losses of the steps up to `last_step`.

        Args:
            losses: One for each step.
            last_step: The step of the last one.
            are_final: Whether the next call is about later steps only; else it repeats these.

        Raises:
            SmkitError: One is NaN or infinite, or gradients are; it names the step.
        """
        scale = math.inf if self._scale is None else self._scale()
        if scale < _SMALLEST_SCALE:
            raise SmkitError(
                f"the gradients are not finite whatever they are scaled by, and step after step is skipped: the scale "
                f"has fallen to {scale:.2g} by step {last_step}",
                where="training_step",
                fix="look for what has no derivative where it is used, as sqrt, norm or log of 0, or train with "
                "--precision fp32 to see where NaN begins; the model is that of the last step that was not skipped",
            )
        in_a_row = self._in_a_row
        for step, loss in enumerate(losses, last_step - len(losses) + 1):
            in_a_row = 0 if math.isfinite(loss) else in_a_row + 1
            if in_a_row > self._allowed:
                raise SmkitError(
                    f"train/loss is {loss} at step {step}",
                    where="training_step",
                    fix="lower the learning rate, set max_grad_norm or look at the data; the checkpoints are older",
                )
        if are_final:
            self._in_a_row = in_a_row

    def state_dict(self) -> dict[str, int]:
        """Return how many losses in a row were no numbers."""
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up a saved state."""
        self._in_a_row = int(state["in_a_row"])
