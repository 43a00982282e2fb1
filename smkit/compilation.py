"""A model compiled by `torch.compile` where that works, and as it was where it does not.

This room knows neither the trainer nor the device.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_COMPILER = ("torch._dynamo.", "torch._inductor.", "torch._functorch.", "triton.")
"""Where the exceptions of torch's compiler are defined: most derive from one class, those of Triton do not."""


def compile_model(model: nn.Module, note: Callable[[str], None]) -> None:
    """Let calls of `model` run compiled code, in place: it stays the same module, and so do the keys of its state.

    Compiling begins with the first call, and again where a call is of another kind: training or not, gradients or not,
    other shapes. If it fails, because there is no C++ compiler, no Triton or a flaw in torch, the model computes that
    call and all later ones as if it had never been compiled. What the model's own forward raises goes through. Only
    what fails in the backward pass, which torch compiles when it first runs, is not caught here.

    A deep copy of the model is not compiled; another call of this function compiles it.

    Args:
        model: The model, sharded already if it is to be; DDP goes around it later.
        note: Called once with one line if compiling fails.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        # What nn.Module.compile() compiles, but from a function of ours: torch passes its own by, nn.Sequential's too.
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # noqa: SLF001 - see above

    def give_up(error: Exception) -> None:
        model._compiled_call_impl = None  # noqa: SLF001 - as nn.Module.compile() sets it, which catches no failure
        note(f"torch.compile failed ({_reason(error)}); the model runs eagerly")

    def call_compiled(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            if not _is_of_the_compiler(error):
                raise
            failure = error
        # An error of the model's own, which the compiler met first, comes up here as it is.
        result = call(*args, **kwargs)
        give_up(failure)
        return result

    try:
        compiled = torch.compile(call)
    except RuntimeError as error:  # as for a Python that is newer than this torch
        give_up(error)
    else:
        model._compiled_call_impl = call_compiled  # noqa: SLF001 - see above


def compiler_failure(error: Exception) -> str | None:
    """Return in one line why torch's compiler has failed; None for an error that is not the compiler's."""
    return _reason(error) if _is_of_the_compiler(error) else None


def _is_of_the_compiler(error: Exception) -> bool:
    if any(f"{kind.__module__}.".startswith(_COMPILER) for kind in type(error).__mro__):
        return True
    # A failed assertion of its own it lets out as it is (torch 2.11, where a model raises what it was given).
    frames = traceback.walk_tb(error.__traceback__) if isinstance(error, AssertionError) else ()
    return any(f"{frame.f_globals.get('__name__', '')}.".startswith(_COMPILER) for frame, _ in list(frames)[-1:])


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong; the compiler wraps it in an error that says only where."""
    cause = getattr(error, "inner_exception", error)
    return " ".join(f"{type(cause).__name__}: {cause}".splitlines()[0].split())
