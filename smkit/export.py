"""The finished model on the disk: its weights in the safetensors format, whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import Tensor, nn

from smkit.disk import put_in_place
from smkit.errors import SmkitError
from smkit.space import shortage


def write_weights(model: nn.Module, file: Path) -> None:
    """Write the weights and buffers of `model`; tensors that share memory are written once.

    Raises:
        SmkitError: The disk does not take them, or a part of the model's state is no tensor.
    """
    # A folder of its own, for the library writes under a name of its own first, and a killed process leaves it.
    unfinished = file.with_name(file.name + ".part")
    part = unfinished / file.name
    try:
        _clear(unfinished)
        unfinished.mkdir()
        part.touch()
        mode = part.stat().st_mode
        save_model(model, str(part))
        # The library lets nobody but the owner read what it writes.
        part.chmod(mode)
        put_in_place(part, file)
        unfinished.rmdir()
    except (SafetensorError, OSError, RuntimeError, KeyError, AttributeError) as error:
        with contextlib.suppress(OSError):
            _clear(unfinished)
        raise SmkitError(
            f"the weights cannot be written as safetensors: {error}; {shortage(file.parent, _bytes_of(model))}",
            where=str(file),
            fix="make room there or override export_model, and start again: the checkpoints hold the finished run",
        ) from error


def _clear(place: Path) -> None:
    """Remove what an earlier process has left there, or somebody has put there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _bytes_of(model: nn.Module) -> int:
    memories = {
        tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values() if isinstance(tensor, Tensor)
    }
    return sum(memories.values())
