"""Launch a training script with the SageMaker Python SDK v2, whose environment runs this file.

    python v2_fit.py '{"source_dir": ..., "image": ..., "role": ..., "inputs": {...}, "hyperparameters": {...},
                       "output": "s3://..." or null, "wait": true}'

The last line printed is a JSON object: the job's name, and the seconds of the launch without the import.
"""

import json
import os
import sys
import time

import boto3
import sagemaker.session
from sagemaker.inputs import TrainingInput
from sagemaker.pytorch import PyTorch

# The one address that AWS_ENDPOINT_URL does not redirect.
sagemaker.session.sts_regional_endpoint = lambda region: os.environ["AWS_ENDPOINT_URL"]


def main() -> None:
    given = json.loads(sys.argv[1])
    started = time.perf_counter()
    estimator = PyTorch(
        entry_point="train.py",
        source_dir=given["source_dir"],
        image_uri=given["image"],
        role=given["role"],
        instance_type="ml.m5.large",
        instance_count=1,
        hyperparameters=given["hyperparameters"],
        output_path=given["output"],
        sagemaker_session=sagemaker.session.Session(boto3.Session()),
    )
    inputs = {name: TrainingInput(uri) for name, uri in given["inputs"].items()}
    estimator.fit(inputs or None, wait=given["wait"])
    seconds = time.perf_counter() - started
    print(json.dumps({"name": estimator.latest_training_job.name, "seconds": seconds}))


if __name__ == "__main__":
    main()
