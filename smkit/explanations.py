"""What torch's errors of a training mean in a person's words: a full GPU, a value out of range, ranks that disagree.

This room looks at errors, and at nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from smkit import report
from smkit.compilation import compiler_failure
from smkit.errors import SmkitError

_FULL = re.compile(r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")
_NO_CLASS = re.compile(r"Target (-?\d+) is out of bounds")
_GO_ON = "start again with the same folders to go on from the last checkpoint"


class LostGPUError(SmkitError):
    """This process can use its GPU no more: whatever it still holds there cannot even be given back."""


@contextmanager
def explaining() -> Iterator[None]:
    """Raise, in place of an error within the block, what it means, if torch's words do not say it."""
    try:
        yield
    except SmkitError:
        raise
    except Exception as error:
        meaning = explained(error)
        if meaning is not None:
            raise meaning from error
        raise


def explained(error: Exception) -> SmkitError | None:
    """Return what an error of torch's means and how to mend it; None for any other error."""
    failure = compiler_failure(error)
    if failure is not None:
        return SmkitError(
            f"torch.compile failed in the backward pass ({failure})",
            where="the compiled model",
            fix="train without --compile",
        )
    if isinstance(error, IndexError) and (label := _NO_CLASS.match(str(error))):
        return SmkitError(
            f"a label is {label[1]}, and the model has no output of that number: its classes are numbered from 0",
            where=report.own_line(error) or "the training",
            fix="look for a label that is negative, or not below the number of the model's outputs; names of classes "
            "in place of numbers are numbered by smkit",
        )
    if isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel"):
        return SmkitError(
            "a batch normalization was given one sample, of which there is no variance",
            where=report.own_line(error) or "the training",
            fix="the last batch of an epoch holds what is left over, and each process and each part of an accumulation "
            "gets its share: choose a batch_size that leaves more than one for each, or LayerNorm or GroupNorm",
        )
    if not isinstance(error, RuntimeError):
        return None
    return _of_the_gpu(error) or _of_the_ranks(str(error))


def _of_the_gpu(error: RuntimeError) -> SmkitError | None:
    text = str(error)
    if _FULL.search(text):
        return SmkitError(
            f"the memory of the GPU is full: {text.partition(' Of the allocated')[0].splitlines()[0]}",
            where=report.own_line(error) or "the training",
            fix="use more --gradient-accumulation-steps, which compute the same with less memory at once; or a smaller "
            "batch_size, --precision bf16, or activation_checkpointing in the trainer's class",
        )
    if "device-side assert" in text:
        return LostGPUError(
            "a kernel on the GPU has met a value out of its range (device-side assert)",
            where="a step before this one was noticed; 'Assertion ... failed' above says what was checked",
            fix="look for a label, or an index of an embedding, that is not below the number of classes or rows; with "
            "CUDA_LAUNCH_BLOCKING=1, or on the CPU with CUDA_VISIBLE_DEVICES=, the traceback shows the line",
        )
    if text.startswith("CUDA error"):
        return LostGPUError(
            f"the GPU has failed: {text.splitlines()[0]}",
            where=report.own_line(error) or "the training",
            fix=f"set CUDA_LAUNCH_BLOCKING=1 to see which line it comes from; if no kernel is your own, {_GO_ON}, "
            "on another machine if it comes back",
        )
    return None


def _of_the_ranks(text: str) -> SmkitError | None:
    if "Expected to have finished reduction in the prior iteration" in text:
        return SmkitError(
            "some of the model's parameters have had no gradient in a step, and the ranks wait for it",
            where="training_step",
            fix="let every parameter that requires a gradient take part in the loss, "
            "or set `find_unused_parameters = True` in the trainer's class",
        )
    if "mixed torch.Tensor and DTensor" in text:
        return SmkitError(
            "a parameter of which each rank holds a part was used without calling the module that it belongs to",
            where="training_step",
            fix="call the module, whose forward puts the parameter together, or use --strategy ddp",
        )
    return None
