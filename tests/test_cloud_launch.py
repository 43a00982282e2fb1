"""From launch to a finished job on SageMaker: real boto3, real requests, real jobs; and what the server received."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

import smkit
from sagemaker.fixture import SageMaker

pytestmark = pytest.mark.aws

Launch = Callable[..., smkit.Job]

ARGPARSE_SCRIPT = """
    import argparse, json, os, pathlib

    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
    parser.add_argument("--output-data-dir", default=os.environ["SM_OUTPUT_DATA_DIR"])
    parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
    parser.add_argument("--test", default=os.environ["SM_CHANNEL_TEST"])
    args = parser.parse_args()
    rows = {name: sorted(path.name for path in pathlib.Path(name).iterdir()) for name in (args.train, args.test)}
    pathlib.Path(args.model_dir, "model.json").write_text(json.dumps([args.epochs, args.learning_rate, *rows.values()]))
    pathlib.Path(args.output_data_dir, "plot.txt").write_text("a plot")
    for epoch in range(args.epochs):
        print(f"[metrics] step={epoch + 1} epoch={epoch + 1} train/loss={1 / (epoch + 1)}", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def launch(sagemaker: SageMaker, folder: Path) -> Launch:
    """Launch a script that is given as a text, on a SageMaker that hides torch, whose import takes the longest."""
    sagemaker.hide("torch")

    def launch(text: str, **arguments: Any) -> Any:
        script = folder / "code" / arguments.pop("entry", "train.py")
        script.parent.mkdir(exist_ok=True)
        script.write_text(textwrap.dedent(text))
        given = {"role": sagemaker.role, "bucket": sagemaker.bucket, "instance_type": "ml.m5.large"} | arguments
        return smkit.launch(script.name, source_dir="code", **given)

    return launch


def write(file: Path, text: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.toolkit
def test_the_document_step_by_step(sagemaker: SageMaker, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profile, session, default bucket, role, the estimator's arguments, channels of both kinds, model and output."""
    sagemaker.hide("torch")
    write(folder / "aws", f"[profile research]\nregion = {sagemaker.region}\n")
    write(folder / "keys", "[research]\naws_access_key_id = client\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "aws"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "keys"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    write(folder / "code/train.py", textwrap.dedent(ARGPARSE_SCRIPT))
    write(folder / "data/train/a b.csv", "1,2")
    sagemaker.put({"digits/test/1.csv": "1", "digits/test/2.csv": "2"})

    session = boto3.Session(profile_name="research")
    job = smkit.launch(
        entry="train.py",
        source_dir="code",
        session=session,
        role="SmkitTests",
        instance_type="ml.m5.xlarge",
        instance_count=1,
        framework_version="2.10",
        hyperparameters={"epochs": 3, "learning-rate": 1e-05},
        inputs={
            "train": (folder / "data/train").as_uri(),
            "test": f"s3://{sagemaker.bucket}/digits/test",
        },
    )
    assert job.wait() is job

    bucket = f"sagemaker-{sagemaker.region}-{sagemaker.account}"
    assert job.model_uri == f"s3://{bucket}/smkit/jobs/{job.name}/output/model.tar.gz"
    model = job.download("model")
    assert json.loads((model / "model.json").read_text()) == [3, 1e-05, ["a b.csv"], ["1.csv", "2.csv"]]
    assert (job.download("output", what="output") / "plot.txt").read_text() == "a plot"
    assert [row["train/loss"] for row in job.metrics().rows] == [1, 0.5, pytest.approx(1 / 3)]
    request = sagemaker.job(job.name)
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"
    assert request["AlgorithmSpecification"]["TrainingImage"] == image
    assert request["RoleArn"] == sagemaker.role
    again = smkit.attach(job.name, session=session)
    assert again.status == "Completed"
    record = json.loads(
        sagemaker.objects(f"smkit/jobs/{job.name}/code.json", bucket)[f"smkit/jobs/{job.name}/code.json"]
    )
    assert record == {"code_sha256": record["code_sha256"], "git": None}
