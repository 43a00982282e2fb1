"""Activation checkpointing: modules that compute their activations again instead of keeping them.

This room knows nothing of models but that they are made of modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import nn

from smkit.errors import ConfigurationError


def recompute(modules: Iterable[object]) -> int:
    """Let each of `modules` keep only its inputs for the backward pass, which then runs its forward once more.

    It costs about a third more computing, and saves the memory of all activations inside of the modules. Gradients are
    the same to the bit: dropout draws the same numbers again. It works in place: the modules stay the same objects
    with the same keys of state, and one that is given twice is treated once. Without gradients, and in evaluation,
    they run as before.

    Args:
        modules: The modules, usually the repeated blocks of a model.

    Returns:
        How many modules they are.

    Raises:
        ConfigurationError: A value is no module, or one that is never called.
    """
    if not isinstance(modules, Iterable):
        raise _refusal(modules, "is no list of modules")
    chosen = [_checked(module) for module in modules]
    if chosen:
        # Not above, for with torch 2.6 it takes a second.
        import torch.utils.checkpoint  # noqa: F401 - for `forward` below
    for module in chosen:
        if getattr(module.forward, "__func__", None) is not forward:
            # Bound methods, for a deep copy of the module binds them to the copy.
            vars(module)["kept_forward"] = module.forward
            vars(module)["forward"] = MethodType(forward, module)
    return len(set(chosen))


def forward(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    """Take the place of a module's forward, and of its name: by that one pickle finds a bound method."""
    kept: Any = module.kept_forward  # not by vars(): torch 2.6 compiles no call of it
    if not (module.training and torch.is_grad_enabled()):
        return kept(*args, **kwargs)
    return torch.utils.checkpoint.checkpoint(kept, *args, use_reentrant=False, **kwargs)


def _checked(module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise _refusal(module, "is no module")
    if type(module).forward is nn.Module.forward:
        raise _refusal(module, "is never called: it has no forward of its own")
    return module


def _refusal(value: object, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{type(value).__name__} {reason}",
        where="activation_checkpointing",
        fix="return the modules whose activations to compute again, such as the blocks of the model: model.blocks",
    )
