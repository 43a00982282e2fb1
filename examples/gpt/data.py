"""Write the source text of Python's standard library, byte by byte, as the channels `train` and `validation`."""

import sys
import sysconfig
from pathlib import Path

import numpy as np


def write_channels(directory: Path) -> dict[str, Path]:
    """Write one long array of bytes for each channel, a few megabytes; every fiftieth module is for validation."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    channels = {}
    for name in ("train", "validation"):
        chosen = [file for number, file in enumerate(modules) if (number % 50 == 49) == (name == "validation")]
        channels[name] = directory / name
        channels[name].mkdir(parents=True, exist_ok=True)
        text = b"".join(file.read_bytes() for file in chosen)
        np.save(channels[name] / "text.npy", np.frombuffer(text, np.uint8))
    return channels


if __name__ == "__main__":
    write_channels(Path(sys.argv[1] if len(sys.argv) > 1 else "text"))
