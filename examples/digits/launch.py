"""Run the digits example as a job: here through the real sagemaker-training toolkit, or on the instance type given."""

import sys
from pathlib import Path

from data import write_channels
from settings import DigitsSettings

import smkit

HERE = Path(__file__).parent

if __name__ == "__main__":
    job = smkit.launch(
        "train.py",
        source_dir=HERE,
        instance_type=sys.argv[1] if len(sys.argv) > 1 else "local",
        inputs=write_channels(Path("runs") / "digits-data"),
        hyperparameters=DigitsSettings(epochs=30, monitor_metric="accuracy", monitor_mode="max"),
    )
    job.wait()
