"""What can be checked before a run begins, and the errors of a step that is not what the loop needs.

Each check is a plain function of what it checks; the order of checks is the trainer's.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from smkit.errors import ConfigurationError, DataError, SmkitError
from smkit.space import is_full, room

logger = logging.getLogger(__name__)

L = TypeVar("L", bound=DataLoader[Any])

P = TypeVar("P")


def settings_of(trainer: type, base: type) -> Any:
    """Return the settings class that a subclass of the generic class `base` was given: `S` of `Trainer[S]`.

    It follows every way to inherit: through classes that are generic themselves, and through plain ones.
    """
    found = _argument_of(trainer, base)
    if isinstance(found, type):
        return found
    from smkit.hyperparameters import Hyperparameters

    return Hyperparameters


def _argument_of(trainer: type, base: type) -> Any:
    for parent in trainer.__dict__.get("__orig_bases__", trainer.__bases__):
        origin, arguments = get_origin(parent) or parent, get_args(parent)
        if origin is base:
            return arguments[0] if arguments else None
        if isinstance(origin, type) and issubclass(origin, base):
            inner = _argument_of(origin, base)
            if not isinstance(inner, TypeVar):
                return inner
            parameters = getattr(origin, "__parameters__", ())
            return arguments[parameters.index(inner)] if inner in parameters and arguments else None
    return None


def total_steps(steps_per_epoch: int | None, epochs: int, max_steps: int | None) -> int:
    """Return the optimizer steps of a run.

    Raises:
        ConfigurationError: Nothing says how many they are.
    """
    if steps_per_epoch is None:
        if max_steps is None:
            raise ConfigurationError(
                "the training data is a stream without a length, and so the number of steps is not known",
                where="max_steps",
                fix="set --max-steps, or give the data set a `__len__`",
            )
        return max_steps
    return epochs * steps_per_epoch if max_steps is None else min(epochs * steps_per_epoch, max_steps)


def warn_of_idle_gpus(device_type: str, gpus: int | None) -> None:
    """Say that a run computes on the CPU of a host whose GPUs are paid for."""
    if device_type == "cpu" and gpus:
        logger.warning(
            "this host has %s, and PyTorch %s sees none: it trains on the CPU; use an image for GPUs with a CUDA that "
            "the driver knows, or an instance type without GPUs",
            "1 GPU" if gpus == 1 else f"{gpus} GPUs",
            torch.__version__,
        )


def require_writable(*directories: Path) -> None:
    """Refuse folders that nothing can be written to, before hours of training lead there."""
    for directory in directories:
        # Of one name: what a killed process has left, the next one takes away; and ranks can share the folder.
        probe = directory / ".smkit-writes"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Whatever has that name: to write to a pipe would be to wait.
            probe.unlink(missing_ok=True)
            probe.write_bytes(b"smkit")
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(directory, error) from error


def forget(file: Path) -> None:
    """Take away what a run before this one has left.

    Raises:
        SmkitError: The disk does not let it go.
    """
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(file.parent, error) from error


def unwritable(directory: Path, error: OSError, kept: Path | None = None) -> SmkitError:
    """Return the error of a folder that cannot be written to; `kept` holds what is safe."""
    again = f", and start again: {kept} holds the finished run" if kept is not None else ", or choose another folder"
    free = ""
    if is_full(error):
        needs = "a few thousand bytes are needed" if kept is not None else "a model and checkpoints need more"
        free = f"; there are {room(directory)} free, and {needs}"
    return SmkitError(
        f"cannot be written to: {error.strerror or error}{free}",
        where=str(directory),
        fix=f"make room or give access{again}",
    )


def not_to_be_logged(name: str, *, is_validating: bool) -> SmkitError:
    """Return the error of a `log` call that would mix two things up."""
    if is_validating:
        return SmkitError(
            f"log('{name}') in a validation", where="validation_step", fix="return the metric by name instead"
        )
    return SmkitError(f"'{name}' is logged by the loop itself", where="log()", fix="drop the call, or use another name")


def step_scheduler(scheduler: Any) -> LRScheduler | None:
    """Return a scheduler that is stepped once per optimizer step, which is what the loop does."""
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigurationError(
            "ReduceLROnPlateau wants a metric at each step, and the loop has none to give",
            where="build_scheduler",
            fix="return a scheduler that counts steps, such as OneCycleLR or CosineAnnealingLR(T_max=self.total_steps)",
        )
    if scheduler is not None and not isinstance(scheduler, LRScheduler):
        raise ConfigurationError(
            f"{scheduler!r} is no scheduler", where="build_scheduler", fix="return a torch.optim.lr_scheduler, or None"
        )
    return scheduler


def with_same_classes(train: DataLoader[Any], validation: L) -> L:
    """Return the loader `validation`; refuse it if its data set names other classes than that of `train` does."""
    ours, theirs = (getattr(loader.dataset, "classes", None) for loader in (train, validation))
    if not isinstance(ours, Sequence) or not isinstance(theirs, Sequence) or list(ours) == list(theirs):
        return validation
    differences = [
        f"only {name} has {', '.join(map(str, names[:5]))}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for name, names in (
            ("training", [name for name in ours if name not in theirs]),
            ("validation", [name for name in theirs if name not in ours]),
        )
        if names
    ]
    raise DataError(
        f"training and validation do not have the same classes: {'; '.join(differences) or 'their order differs'}",
        where="the data sets of both channels",
        fix="give both the same classes, for a label is an index among them, or number them in `build_dataset`",
    )


def built(part: Any, kind: type[P], method: str) -> P:
    """Return what a `build_` method returned, if it is what it should be."""
    if not isinstance(part, kind):
        raise ConfigurationError(
            f"returned {part!r:.60}", where=method, fix=f"return a {kind.__module__}.{kind.__name__}"
        )
    return part


def require_own_parameters(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that trains what is no part of the model: it would neither be saved nor exported."""
    if isinstance(optimizer, LBFGS):
        raise ConfigurationError(
            "LBFGS evaluates the model several times in a step, which the loop does not do",
            where="build_optimizer",
            fix="return another optimizer, or write a loop of your own from smkit's parts",
        )
    own = {id(parameter) for parameter in model.parameters()}
    foreign = sum(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"])
    if foreign:
        raise ConfigurationError(
            f"{foreign} of the optimizer's parameters are not the model's, and would be neither saved nor exported",
            where="build_optimizer",
            fix="build it from the `model` that it is given, and make every trained module a part of that model",
        )


def require_no_near_miss(channels: Sequence[str], wanted: str) -> None:
    """Refuse a channel whose name is nearly the one that is looked for: a typo would cost the validation."""
    near = difflib.get_close_matches(wanted, channels, 1, 0.7) or [name for name in channels if name[:3] == wanted[:3]]
    if near:
        raise ConfigurationError(
            f"there is a channel '{near[0]}' and none '{wanted}', which validation_step is written for",
            where="the channels of this run",
            fix=f"call the channel '{wanted}', or set `validation_channel = '{near[0]}'` in the trainer's class",
        )


def nothing_to_monitor(metric: str, missing: str) -> ConfigurationError:
    """Return the error of a metric that no validation gives."""
    return ConfigurationError(
        f"the metric '{metric}' is to be monitored, and there is no {missing}",
        where="hyperparameter 'monitor_metric'",
        fix=f"add the {missing}, or do not set monitor_metric",
    )


def require_numbers(model: nn.Module) -> None:
    """Refuse to hand over a model with a weight that is no number, whatever its loss was."""
    for name, parameter in model.named_parameters():
        if parameter.isnan().any():
            raise SmkitError(
                f"the weight '{name}' holds NaN at the end of the run",
                where="the model",
                fix="lower the learning rate or set max_grad_norm; the checkpoints are older and hold none",
            )


def no_loss(loss: object, where: str) -> SmkitError:
    """Return the error of a training step whose result cannot be learned from."""
    if not isinstance(loss, Tensor):
        return SmkitError(f"returned {loss!r:.60} and no loss", where=where, fix="return the loss, a tensor")
    if loss.numel() != 1:
        return SmkitError(
            f"returned a loss of shape {tuple(loss.shape)}", where=where, fix="return its mean, a tensor of one element"
        )
    return SmkitError(
        "returned a loss that depends on no parameter",
        where=where,
        fix="compute it from self.model(...), without detach(), item() or torch.no_grad()",
    )
