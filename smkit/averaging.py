"""A second copy of a model's weights that follows them slowly: their exponential moving average.

This room knows neither steps nor checkpoints; it holds numbers for parameters, sharded or whole, wherever they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smkit.errors import CheckpointError, ConfigurationError
from smkit.sharding import is_distributed, like


class WeightAverage:
    """The exponential moving average of a model's parameters.

        average = WeightAverage(model, decay=0.999)
        ...
        optimizer.step()
        average.update()
        ...
        with average.applied():
            validate(model)

    It starts from the model's initial weights, and at first follows faster than `decay` says, as is usual: update
    number n (from 0) keeps `min(decay, (1 + n) / (10 + n))` of the average. Buffers, such as the running statistics of
    a batch norm, are not averaged: the model keeps its own, and integer parameters as well. Averages of parameters in
    half precision are kept in fp32, for what one update adds would be lost in rounding.

    Args:
        model: The model, on its device and, where it is sharded, sharded already.
        decay: The share of the average that an update keeps, between 0 and 1; 0.999 looks back about 1,000 updates.

    Raises:
        ConfigurationError: `decay` is not between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigurationError(
                f"{decay} is not between 0 and 1",
                where="hyperparameter 'ema_decay'",
                fix="choose a share of the average to keep at each step, such as 0.999",
            )
        self._model = model
        self._decay = decay
        self._updates = 0
        # An average made in the caller's inference mode could not be updated outside of it.
        with torch.inference_mode(mode=False), torch.no_grad():
            self._parameters = {
                name: parameter
                for name, parameter in model.named_parameters()
                if parameter.is_floating_point() or parameter.is_complex()
            }
            self._averages = {name: _copy(parameter) for name, parameter in self._parameters.items()}
            self._is_sharded = any(map(is_distributed, self._averages.values()))
            self._groups = self._grouped()

    def _grouped(self) -> list[tuple[list[Tensor], list[Tensor], bool]]:
        """Return averages, their parameters, and whether these must be converted first, by device and dtype.

        One kernel updates the tensors of a group; lists of several dtypes would be taken tensor by tensor.
        """
        groups: dict[object, tuple[list[Tensor], list[Tensor], bool]] = {}
        for name, parameter in self._parameters.items():
            average = _local(self._averages[name])
            key = average.device, parameter.dtype
            is_other = self._is_sharded or parameter.dtype != average.dtype
            averages, parameters, _ = groups.setdefault(key, ([], [], is_other))
            averages.append(average)
            parameters.append(parameter)
        return list(groups.values())

    def update(self) -> None:
        """Move the averages towards the parameters; call it after each step of the optimizer. It does not wait."""
        share = 1 - min(self._decay, (1 + self._updates) / (10 + self._updates))
        with torch.no_grad():
            for averages, parameters, is_other in self._groups:
                current = [_local(value).to(averages[0].dtype) for value in parameters] if is_other else parameters
                torch._foreach_lerp_(averages, current, share)
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model hold the averages inside of a block, and its own weights again after it.

        The weights are written in place: the parameters stay the same objects in the same memory. Meanwhile their own
        values lie in a copy beside them.
        """
        with torch.no_grad():
            own = [_local(parameter).clone() for parameter in self._parameters.values()]
        try:
            self._write(map(_local, self._averages.values()))
            yield
        finally:
            self._write(own)

    def _write(self, values: Iterator[Tensor] | list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters.values(), values, strict=True):
                _local(parameter).copy_(value)
        if self._is_sharded:
            _forget_gathered(self._model)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages themselves, no copies, by the names of their parameters, and the number of updates.

        A parameter that two modules share is there once, under its first name. Where parameters are sharded, so are
        the averages.
        """
        return {"updates": self._updates, "weights": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state; whole tensors go to sharded averages as well.

        Raises:
            CheckpointError: The averages are of other parameters than the model has.
        """
        weights = state["weights"]
        shapes, saved = ({name: tuple(value.shape) for name, value in of.items()} for of in (self._averages, weights))
        if shapes != saved:
            differing = sorted(name for name, _ in shapes.items() ^ saved.items())
            raise CheckpointError(
                f"the saved averages are of another model; they differ in {', '.join(differing[:5])}",
                where="the averaged weights (ema_decay)",
                fix="resume with the model that the run started with, or start a new run",
            )
        with torch.no_grad():
            for name, average in self._averages.items():
                average.copy_(like(weights[name], average))
        self._updates = state["updates"]


def _copy(parameter: Tensor) -> Tensor:
    is_half = parameter.is_floating_point() and parameter.element_size() < 4
    return parameter.detach().to(torch.float32 if is_half else parameter.dtype, copy=True)


def _local(tensor: Tensor) -> Tensor:
    """Return the memory of this process: of a tensor that is in parts, its part."""
    return tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def _forget_gathered(model: nn.Module) -> None:
    """Drop whole parameters that FSDP keeps after a forward pass: they hold the values of before."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
