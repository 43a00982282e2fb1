"""Write scikit-learn's bundled breast cancer data as CSV, as the channels `train` and `validation`."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer


def write_channels(directory: Path) -> dict[str, Path]:
    """Write 569 rows as SageMaker's own algorithms read them: no header, the label first; every fifth validates."""
    data = load_breast_cancer()
    rows = np.column_stack([data.target, data.data])
    held_out = np.arange(len(rows)) % 5 == 4
    channels = {}
    for name, chosen in (("train", ~held_out), ("validation", held_out)):
        channels[name] = directory / name
        channels[name].mkdir(parents=True, exist_ok=True)
        np.savetxt(channels[name] / "tumours.csv", rows[chosen], fmt="%.8g", delimiter=",")
    return channels


if __name__ == "__main__":
    write_channels(Path(sys.argv[1] if len(sys.argv) > 1 else "tables"))
