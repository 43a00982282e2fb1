"""Launch a training script with the SageMaker Python SDK v3, whose environment runs this file.

    python v3_train.py '{...}'

What it is given and what it prints are those of v2_fit.py.
"""

import json
import os
import sys
import time

import boto3
import sagemaker.core.helper.session_helper as helper
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData, OutputDataConfig, SourceCode

# The one address that AWS_ENDPOINT_URL does not redirect.
helper.sts_regional_endpoint = lambda region: os.environ["AWS_ENDPOINT_URL"]


def main() -> None:
    given = json.loads(sys.argv[1])
    started = time.perf_counter()
    trainer = ModelTrainer(
        training_image=given["image"],
        source_code=SourceCode(source_dir=given["source_dir"], entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1),
        role=given["role"],
        base_job_name="digits",
        hyperparameters=given["hyperparameters"],
        output_data_config=OutputDataConfig(s3_output_path=given["output"]) if given["output"] else None,
        sagemaker_session=helper.Session(boto3.Session()),
    )
    inputs = [InputData(channel_name=name, data_source=uri) for name, uri in given["inputs"].items()]
    trainer.train(input_data_config=inputs, wait=given["wait"], logs=False)
    seconds = time.perf_counter() - started
    print(json.dumps({"name": trainer._latest_training_job.training_job_name, "seconds": seconds}))


if __name__ == "__main__":
    main()
