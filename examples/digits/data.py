"""Write scikit-learn's bundled digits, 1,797 scanned 8x8 images, as the channels `train` and `validation`."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def write_channels(directory: Path) -> dict[str, Path]:
    """Write the channels into `directory` and return the folder of each; every fifth image is for validation."""
    digits = load_digits()
    images, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    held_out = np.arange(len(labels)) % 5 == 4
    channels = {}
    for name, chosen in (("train", ~held_out), ("validation", held_out)):
        channels[name] = directory / name
        channels[name].mkdir(parents=True, exist_ok=True)
        np.savez(channels[name] / "digits.npz", images=images[chosen], labels=labels[chosen])
    return channels


if __name__ == "__main__":
    write_channels(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
