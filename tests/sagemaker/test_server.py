"""The SageMaker of the tests behaves as the real one is known to, seen through boto3."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from sagemaker.fixture import SageMaker

pytestmark = [pytest.mark.aws, pytest.mark.toolkit]


def source(sagemaker: SageMaker, script: str) -> str:
    """Upload a source with this script, and return its address."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("train.py")
        member.size = len(script.encode())
        archive.addfile(member, io.BytesIO(script.encode()))
    sagemaker.put({"source.tar.gz": packed.getvalue()})
    return f"s3://{sagemaker.bucket}/source.tar.gz"


def request(sagemaker: SageMaker, script: str = "", *, name: str = "job-1", **changes: Any) -> dict[str, Any]:
    """Return a request for a job that runs this script through the toolkit."""
    job: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "RoleArn": sagemaker.role,
        "OutputDataConfig": {"S3OutputPath": f"s3://{sagemaker.bucket}/jobs"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }
    if script:
        job["HyperParameters"] = {
            "sagemaker_program": '"train.py"',
            "sagemaker_submit_directory": json.dumps(source(sagemaker, script)),
        }
    return job | changes


def shell(text: str) -> dict[str, Any]:
    """Return the algorithm of a container that runs a shell, which starts sooner than the toolkit."""
    return {
        "TrainingImage": "image",
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["sh", "-c"],
        "ContainerArguments": [text],
    }


def channel(sagemaker: SageMaker, name: str, prefix: str, **changes: Any) -> dict[str, Any]:
    uri = f"s3://{sagemaker.bucket}/{prefix}"
    sharding = changes.pop("S3DataDistributionType", "FullyReplicated")
    data = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": sharding}
    return {"ChannelName": name, "DataSource": {"S3DataSource": data}} | changes


def create(sagemaker: SageMaker, **job: Any) -> None:
    sagemaker.client("sagemaker").create_training_job(**job)


GOOD = """
import json, os, pathlib
train = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "a.txt").read_text()
test = sorted(path.name for path in pathlib.Path(os.environ["SM_CHANNEL_TEST"]).iterdir())
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text(train)
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "out.txt").write_text(os.environ["GREETING"])
print("loss=0.75")
print("loss=0.25")
print(test)
print(pathlib.Path("/opt/ml/input/config/inputdataconfig.json").read_text())
try:
    pathlib.Path(os.environ["SM_CHANNEL_TEST"], "new").touch()
except OSError as error:
    print(error)
"""


def test_a_good_job(sagemaker: SageMaker) -> None:
    sagemaker.put({"data/train/a.txt": "from S3", "data/test/b": "", "data/test/c": ""})
    job = request(sagemaker, GOOD, Environment={"GREETING": "hello"})
    job["AlgorithmSpecification"]["MetricDefinitions"] = [{"Name": "loss", "Regex": "loss=([0-9.]+)"}]
    test = channel(sagemaker, "test", "data/test/", InputMode="FastFile", ContentType="text/plain")
    job["InputDataConfig"] = [channel(sagemaker, "train", "data/train"), test]
    create(sagemaker, **job, Tags=[{"Key": "who", "Value": "me"}])
    assert "ModelArtifacts" not in sagemaker.job("job-1")

    done = sagemaker.ended("job-1")
    assert done["TrainingJobStatus"] == "Completed", (done, sagemaker.lines("job-1"))
    print(done, sagemaker.lines("job-1"))
