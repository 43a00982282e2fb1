"""Write scikit-learn's bundled digits as PNG files in class folders, as the channels `train` and `validation`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_channels(directory: Path) -> dict[str, Path]:
    """Write 1,797 images of 8x8 pixels, `train/7/0007.png`; every fifth one is for validation."""
    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)
    channels = {name: directory / name for name in ("train", "validation")}
    for number, (pixels, label) in enumerate(zip(images, digits.target, strict=True)):
        folder = channels["validation" if number % 5 == 4 else "train"] / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return channels


if __name__ == "__main__":
    write_channels(Path(sys.argv[1] if len(sys.argv) > 1 else "images"))
