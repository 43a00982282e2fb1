"""Validation: metrics over all samples of a channel, exact whatever the batches.

The training does not notice it: no gradient, no change of mode, no random number that it would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smkit.data.batches import Loader
from smkit.device import Placement
from smkit.errors import SmkitError
from smkit.metrics import check_name
from smkit.randomness import random_state_kept


def validate(
    model: nn.Module,
    step: Callable[[Any], Mapping[str, Any]],
    loader: Loader,
    placement: Placement,
    *,
    is_stopped: Callable[[], bool],
    gather: Callable[[Any], Sequence[Any]],
) -> dict[str, float] | None:
    """Return the mean of each metric that `step` returns, over all samples of `loader`, those of all ranks.

    Args:
        model: In evaluation mode meanwhile.
        step: The user's.
        loader: This rank's share of the samples.
        placement: Where and how precisely.
        is_stopped: Asked before each batch; its answer is the same on all ranks, and a yes ends this with None.
        gather: Returns what each rank passes to it.
    """
    means = SampleMeans()
    position = loader.state_dict()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: what a model caches in it could never be trained with.
        with random_state_kept(), torch.no_grad():
            for (_, (samples,)), batch in zip(loader.groups(), loader, strict=False):
                if is_stopped():
                    return None
                with placement.autocast():
                    metrics: object = step(placement.move(batch))
                if not isinstance(metrics, Mapping):
                    fix = "return a dict: {'accuracy': value}"
                    raise SmkitError(f"returned {metrics!r:.60}", where="validation_step", fix=fix)
                # What stands in for an empty share keeps ranks in step, and does not count.
                for name, value in metrics.items() if samples else ():
                    means.add(f"validation/{name}", value, samples)
    finally:
        for module, was_training in modes:
            module.training = was_training
        # Each validation is the same pass, for whatever workers draw depends on the epoch.
        loader.load_state_dict(position)
    return means.result(gather)


class SampleMeans:
    """Means over samples: sums divided by counts, so that a short last batch weighs what it should."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, name: str, value: Any, samples: int) -> None:
        """Note a batch: a mean over its `samples`, a tensor `(samples,)` of values, or a pair `(sum, count)`."""
        check_name(name)
        total, count = _pair(name, value) if isinstance(value, tuple) else self._weighted(name, value, samples)
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0) + count

    def _weighted(self, name: str, value: Any, samples: int) -> tuple[Tensor | float, int]:
        if not isinstance(value, Tensor):
            try:
                return float(value) * samples, samples
            except (TypeError, ValueError) as error:
                raise _no_metric(name, value) from error
        if value.numel() == 1 and (value.dim() == 0 or samples == 1):
            return value.detach().reshape(()).double() * samples, samples
        if value.shape == (samples,):
            return value.detach().double().sum(), samples
        raise SmkitError(
            f"'{name}' has the shape {tuple(value.shape)} for a batch of {samples} samples",
            where="validation_step",
            fix="return a mean over the batch, one value per sample, or a pair (sum, count)",
        )

    def result(self, gather: Callable[[Any], Sequence[Any]]) -> dict[str, float]:
        """Return the mean of each name, over all ranks; NaN where nothing was counted."""
        own = {name: (float(total), float(self._counts[name])) for name, total in self._sums.items()}
        of_all: Sequence[dict[str, tuple[float, float]]] = gather(own)
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for of_one in of_all for name in of_one):
            parts = [of_one[name] for of_one in of_all if name in of_one]
            count = sum(count for _, count in parts)
            means[name] = sum(total for total, _ in parts) / count if count else math.nan
        return means


def _pair(name: str, value: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return sum and count as numbers that can be added up without loss."""
    if len(value) != 2:
        raise _no_metric(name, value)
    total, count = (part.detach().double().sum() if isinstance(part, Tensor) else part for part in value)
    return total, count


def _no_metric(name: str, value: object) -> SmkitError:
    return SmkitError(
        f"'{name}' is {value!r:.60}",
        where="validation_step",
        fix="return a number, a mean over the batch, one value per sample, or a pair (sum, count)",
    )
