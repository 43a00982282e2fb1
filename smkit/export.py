"""The finished model on the disk: its weights in the safetensors format, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from smkit.errors import SmkitError


def write_weights(model: nn.Module, file: Path) -> None:
    """Write the weights and buffers of `model`; tensors that share memory are written once.

    Raises:
        SmkitError: The disk does not take them, or a part of the model's state is no tensor.
    """
    # A folder of its own, for the library writes under a name of its own first, and a killed process leaves it.
    unfinished = file.with_name(file.name + ".part")
    part = unfinished / file.name
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        part.touch()
        mode = part.stat().st_mode
        save_model(model, str(part))
        # The library lets nobody but the owner read what it writes.
        part.chmod(mode)
        part.replace(file)
        unfinished.rmdir()
    except (SafetensorError, OSError, RuntimeError, KeyError, AttributeError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise SmkitError(
            f"the weights cannot be written as safetensors: {error}",
            where=str(file),
            fix="make room there or override export_model, and start again: the checkpoints hold the finished run",
        ) from error
