"""From a checked plan to a job: what goes where before there is one, and what is known of it when the reply is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import patient_with
from sagemaker.fixture import SageMaker

import smkit

pytestmark = pytest.mark.aws

Launch = Callable[..., smkit.Job]


@pytest.fixture
def launch(sagemaker: SageMaker, tmp_path: Path) -> Launch:
    sagemaker.hide("torch")
    (tmp_path / "train.py").write_text("import time; time.sleep(60)\n")

    def launch(**arguments: Any) -> Any:
        given = {"role": sagemaker.role, "bucket": sagemaker.bucket, "instance_type": "ml.m5.large"} | arguments
        return smkit.launch("train.py", source_dir=tmp_path, **given)

    return launch


def test_the_role_of_another_account_gets_no_byte_and_no_bucket(sagemaker: SageMaker, launch: Launch) -> None:
    sagemaker.make_foreign_bucket(f"sagemaker-{sagemaker.region}-999999999999")
    for account in ("999999999999", "888888888888"):
        with pytest.raises(smkit.ConfigurationError, match=f"one of account {account}, and you are in account"):
            launch(role=f"arn:aws:iam::{account}:role/X", bucket=None)
    assert set(sagemaker.actions()) == {"HeadObject", "GetCallerIdentity"}


@pytest.mark.parametrize("request_", [{}, {"Tags": [{"Key": "team", "Value": "vision"}]}, {"Tags": None}])
@pytest.mark.parametrize("losses", [1, 30])
@pytest.mark.usefixtures("unpaused")
def test_lost_replies_make_one_job(request_: dict[str, Any], losses: int, sagemaker: SageMaker, launch: Launch) -> None:
    sagemaker.settings(lost_replies={"CreateTrainingJob": losses})
    assert launch(name="once", request=request_).status == "InProgress"
    sagemaker.settings(lost_replies={})
    with pytest.raises(smkit.ConfigurationError, match="job 'once' already exists") as caught:
        launch(name="once", request=request_)
    assert caught.value.fix == "give another name, or 'smkit attach once' if that is the job you mean"
    found = sagemaker.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]
    assert [job["TrainingJobName"] for job in found] == ["once"]


@pytest.mark.usefixtures("unpaused")
def test_what_is_not_known_of_a_job_is_said(sagemaker: SageMaker, launch: Launch) -> None:
    sagemaker.settings(lost_replies={"CreateTrainingJob": 30, "DescribeTrainingJob": 30})
    with pytest.raises(smkit.ConfigurationError, match="whether job 'perhaps' was made is not known") as caught:
        launch(name="perhaps")
    assert "'smkit attach perhaps' tells" in caught.value.fix


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("HeadObject", "no job has been made"),
        ("CreateTrainingJob", "smkit attach interrupted\n  smkit stop interrupted\n"),
    ],
)
@pytest.mark.usefixtures("unmeasured")
def test_ctrl_c_before_there_is_a_job_says_whether_there_is_one(
    action: str, said: str, sagemaker: SageMaker, tmp_path: Path, launch: Launch
) -> None:
    del launch  # it has written the script
    sagemaker.settings(latency=1.0)
    command = [sys.executable, "-m", "smkit", "launch", "--instance-type", "ml.m5.large", "--role", sagemaker.role]
    command += ["--bucket", sagemaker.bucket, "--name", "interrupted", "train.py"]
    pipe: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipe) as launching, patient_with(launching):
        while action not in sagemaker.actions():
            assert launching.poll() is None
            time.sleep(0.02)
        launching.send_signal(signal.SIGINT)
        assert said in launching.communicate()[1]
    assert launching.returncode == 130


def test_what_is_uploaded_is_encrypted_with_the_key_of_the_results(
    sagemaker: SageMaker, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smkit.cloud.storage.PART_BYTES", 5 * 2**20)
    (tmp_path / "data").mkdir()
    for name, size in (("small", 1), ("big", 5 * 2**20 + 1)):
        (tmp_path / "data" / name).write_bytes(bytes(size))
    key = "arn:aws:kms:us-east-1:123456789012:key/12345678-1234-1234-1234-123456789012"
    (tmp_path / ".smkitignore").write_text("data\n")
    launch(inputs={"train": tmp_path / "data"}, request={"OutputDataConfig": {"KmsKeyId": key}})
    put = [call for call in sagemaker.requests() if call.action in ("PutObject", "CreateMultipartUpload")]
    # The source, the record of its origin, and data in one and in several parts.
    assert len(put) == 4
    assert {call.headers.get("x-amz-server-side-encryption-aws-kms-key-id") for call in put} == {key}
    assert {call.headers.get("x-amz-server-side-encryption") for call in put} == {"aws:kms"}


def test_a_job_without_network_gets_no_requirements_that_smkit_brings(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import smkit\n")
    with pytest.raises(smkit.ConfigurationError, match="cannot reach an index to install"):
        launch(request={"EnableNetworkIsolation": True}, dry_run=True)


def test_an_archive_of_something_else_than_the_plan_is_not_uploaded(
    sagemaker: SageMaker, launch: Launch, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    plan: Any = launch(dry_run=True)
    before = script.stat()
    script.write_text(script.read_text().replace("60", "61"))
    os.utime(script, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(smkit.ConfigurationError, match="has changed since the plan was made"):
        plan.start()
    assert sagemaker.objects() == {}


def test_a_plan_shows_what_the_users_own_request_says(launch: Launch) -> None:
    files = {
        "FileSystemId": "fs-0123456789abcdef0",
        "FileSystemType": "FSxLustre",
        "FileSystemAccessMode": "ro",
        "DirectoryPath": "/fsx/digits",
    }
    channel = {"ChannelName": "train", "DataSource": {"FileSystemDataSource": files}}
    shorter = {"StoppingCondition": {"MaxRuntimeInSeconds": 5400}}
    plan: Any = launch(request={"InputDataConfig": [channel], **shorter}, dry_run=True)
    assert ("time", "at most 1.5 h", "max_hours") in plan.rows
    assert ("input train", "fs-0123456789abcdef0:/fsx/digits", "File, as it is") in plan.rows


def test_wheels_are_chosen_for_the_torch_of_the_image(launch: Launch, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "vision-1.0-py3-none-any.whl", "w") as wheel:
        about = "vision-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: vision\nVersion: 1.0\nRequires-Dist: torch\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    (tmp_path / "requirements.txt").write_text(f"--no-index\n--find-links {tmp_path}\nvision\n")
    plan: Any = launch(vendor="wheels", request={"EnableNetworkIsolation": True}, dry_run=True)
    assert "wheels/vision-1.0-py3-none-any.whl" in dict(plan.files)
