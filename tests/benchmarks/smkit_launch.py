"""Launch a training script with smkit: what tests/interop/v2_fit.py does with SDK v2, told and telling the same."""

import json
import sys
import time

from smkit import launch


def main() -> None:
    given = json.loads(sys.argv[1])
    started = time.perf_counter()
    job = launch(
        "train.py",
        source_dir=given["source_dir"],
        image_uri=given["image"],
        role=given["role"],
        instance_type="ml.m5.large",
        inputs=given["inputs"],
        hyperparameters=given["hyperparameters"],
        wait=given["wait"],
    )
    seconds = time.perf_counter() - started
    print(json.dumps({"name": job.name, "seconds": seconds}))


if __name__ == "__main__":
    main()
