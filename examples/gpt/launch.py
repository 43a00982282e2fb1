"""Train the GPT on two hosts: two that this machine plays, or two instances of SageMaker of the type given."""

import sys
from pathlib import Path

from data import write_channels

import smkit

if __name__ == "__main__":
    instance_type = sys.argv[1] if len(sys.argv) > 1 else "local"
    job = smkit.launch(
        "train.py",
        source_dir=Path(__file__).parent,
        instance_type=instance_type,
        instance_count=2,
        processes_per_host=2 if instance_type == "local" else None,  # none: one for each GPU
        inputs=write_channels(Path("runs") / "gpt-text"),
        hyperparameters={"max_steps": 40},
    )
    job.wait()
