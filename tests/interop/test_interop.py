"""One training script, started in three ways: by smkit.launch and by both SageMaker SDKs, with the same outcome.

`nox -s interop` runs this file: it installs each SDK into an environment of its own (they cannot share one) and names
their interpreters in SMKIT_SDK_V2 and SMKIT_SDK_V3.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import DIGITS
from safetensors.numpy import load_file
from sagemaker.fixture import SageMaker

import smkit

HERE = Path(__file__).parent
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"
HYPERPARAMETERS = {
    "epochs": 3,
    "learning_rate": 0.004,
    "monitor_metric": "accuracy",
    "monitor_mode": "max",
    "hidden": 48,
}
SDKS = {"SMKIT_SDK_V2": "v2_fit.py", "SMKIT_SDK_V3": "v3_train.py"}


@pytest.fixture
def inputs(sagemaker: SageMaker, digits: Path) -> dict[str, str]:
    """The digits in S3."""
    files = {path.relative_to(digits).as_posix(): path.read_bytes() for path in digits.rglob("*.npz")}
    sagemaker.put({f"digits/{name}": content for name, content in files.items()})
    return {name: f"s3://{sagemaker.bucket}/digits/{name}" for name in ("train", "validation")}


def launch_with_sdk(python: str, program: str, sagemaker: SageMaker, **given: Any) -> str:
    """Launch as a program of its own, which sees nothing of these tests (their `sagemaker` is no SDK)."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= sagemaker.environment | {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(HERE / "sdk_config.yaml")}
    command = [python, str(HERE / program), json.dumps(given)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return str(json.loads(ended.stdout.splitlines()[-1])["name"])


def test_the_same_script_the_same_weights(sagemaker: SageMaker, inputs: dict[str, str], tmp_path: Path) -> None:
    """The example, unchanged, under the toolkit and under the drivers of SDK v3: all jobs complete with one model.

    The jobs of the SDKs find smkit in the image, as they would with a line in requirements.txt.
    """
    code = tmp_path / "code"
    shutil.copytree(DIGITS, code, ignore=shutil.ignore_patterns("__pycache__"))
    job = smkit.launch(
        "train.py",
        source_dir=code,
        image_uri=IMAGE,
        role=sagemaker.role,
        bucket=sagemaker.bucket,
        instance_type="ml.m5.large",
        inputs=inputs,
        hyperparameters=HYPERPARAMETERS,
    )
    jobs = {"smkit": job.wait()}
    for variable, program in SDKS.items():
        name = launch_with_sdk(
            os.environ[variable],
            program,
            sagemaker,
            source_dir=str(code),
            image=IMAGE,
            role=sagemaker.role,
            inputs=inputs,
            hyperparameters=HYPERPARAMETERS,
            output=f"s3://{sagemaker.bucket}/output",
            wait=True,
        )
        jobs[program] = smkit.attach(name)

    starts = {way: sagemaker.job(job.name)["AlgorithmSpecification"] for way, job in jobs.items()}
    assert "sm_train.sh" in " ".join(starts["v3_train.py"]["ContainerArguments"])
    assert all("ContainerEntrypoint" not in starts[way] for way in ("smkit", "v2_fit.py"))
    weights = {}
    for way, job in jobs.items():
        assert job.status == "Completed", (way, sagemaker.all_lines(job.name))
        model = job.download(tmp_path / way)
        files = sorted(model.rglob("*.safetensors"))
        assert files, sorted(model.rglob("*"))
        weights[way] = {file.relative_to(model).as_posix(): file.read_bytes() for file in files}
    assert weights["v2_fit.py"] == weights["smkit"]
    assert weights["v3_train.py"] == weights["smkit"]
    [file] = sorted((tmp_path / "smkit").rglob("*.safetensors"))
    assert load_file(file)["0.weight"].shape == (HYPERPARAMETERS["hidden"], 64)
    metrics = [job.metrics().rows[-1]["validation/accuracy"] for job in jobs.values()]
    assert len(set(metrics)) == 1
    assert metrics[0] > 0.8
