"""The SageMaker of the tests behaves as the real one is known to, seen through boto3."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, FlexibleChecksumError

from sagemaker.fixture import SageMaker, start_server

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


def program(sagemaker: SageMaker, interpreter: str, text: str) -> dict[str, Any]:
    """Return the fields of a job that runs a program from a channel (an argument cannot hold several lines)."""
    sagemaker.put({"program/run": text})
    entry = {"ContainerEntrypoint": [interpreter], "ContainerArguments": ["/opt/ml/input/data/program/run"]}
    return {
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"} | entry,
        "InputDataConfig": [channel(sagemaker, "program", "program/")],
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
print(pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"], "inputdataconfig.json").read_text())
try:
    pathlib.Path(os.environ["SM_CHANNEL_TEST"], "new").touch()
except OSError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def without_torch(sagemaker: SageMaker) -> None:
    """The toolkit imports torch if it can, which takes seconds."""
    sagemaker.hide("torch")


def test_a_good_job(sagemaker: SageMaker) -> None:
    sagemaker.put({"data/train/a.txt": "from S3", "data/test/b": "", "data/test/c": ""})
    job = request(sagemaker, GOOD, Environment={"GREETING": "hello"})
    job["AlgorithmSpecification"]["MetricDefinitions"] = [{"Name": "loss", "Regex": "loss=([0-9.]+)"}]
    test = channel(sagemaker, "test", "data/test/", InputMode="FastFile", ContentType="text/plain")
    job["InputDataConfig"] = [channel(sagemaker, "train", "data/train"), test]
    create(sagemaker, **job, Tags=[{"Key": "who", "Value": "me"}])
    assert "ModelArtifacts" not in sagemaker.job("job-1")

    done = sagemaker.ended("job-1")
    lines = sagemaker.all_lines("job-1")
    assert done["TrainingJobStatus"] == "Completed", lines
    transitions = [step["Status"] for step in done["SecondaryStatusTransitions"]]
    assert transitions == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert [(metric["MetricName"], metric["Value"]) for metric in done["FinalMetricDataList"]] == [("loss", 0.25)]
    assert {name: done[name] for name in ("Environment", "HyperParameters")} == {
        name: job[name] for name in ("Environment", "HyperParameters")
    }
    assert "['b', 'c']" in lines
    inputs = json.loads(next(line for line in lines if line.startswith('{"train"')))
    assert inputs["test"] == {
        "TrainingInputMode": "File",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
        "ContentType": "text/plain",
    }
    assert ("[Errno 30] Read-only file system: '/opt/ml/input/data/test/new'" in lines) == sagemaker.isolated

    model = f"s3://{sagemaker.bucket}/jobs/job-1/output/model.tar.gz"
    assert done["ModelArtifacts"] == {"S3ModelArtifacts": model}
    assert sagemaker.archive("jobs/job-1/output/model.tar.gz") == {"model.txt": b"from S3"}
    assert sagemaker.archive("jobs/job-1/output/output.tar.gz") == {"out.txt": b"hello"}
    tags = sagemaker.client("sagemaker").list_tags(ResourceArn=done["TrainingJobArn"])["Tags"]
    assert tags == [{"Key": "who", "Value": "me"}]
    assert "GetObject" in sagemaker.actions("job")
    assert sagemaker.requests() == []


CONTAINER = """
cd "$(dirname "$0")"
echo $$ $(pwd) $(ls -d /opt/*)
python -c 'import torch'
echo x > $(python -c 'import sys; print(sys.prefix)')/of-the-job || true
python -c 'import os, urllib.request; urllib.request.urlopen(os.environ.get("AWS_ENDPOINT_URL", "SERVER"), timeout=1)'
echo "$AWS_REGION $TRAINING_JOB_NAME"
mkdir -p /opt/ml/output/tensorboard && echo event > /opt/ml/output/tensorboard/events
echo model > /opt/ml/model/model.txt
"""


def test_the_container(sagemaker: SageMaker) -> None:
    if not sagemaker.isolated:
        pytest.skip("needs namespaces")
    job = request(sagemaker, **program(sagemaker, "sh", CONTAINER.replace("SERVER", sagemaker.endpoint)))
    job["TensorBoardOutputConfig"] = {"S3OutputPath": f"s3://{sagemaker.bucket}/board"}
    job["OutputDataConfig"]["CompressionType"] = "NONE"
    create(sagemaker, **job, EnableNetworkIsolation=True)
    lines = sagemaker.all_lines("job-1")
    mine = [str(path) for path in Path("/opt").glob("*/") if path.name != "ml"]
    assert lines[0].split() == ["1", "/opt/ml/input/data/program", *sorted([*mine, "/opt/ml"])]
    assert "ModuleNotFoundError: No module named 'torch'" in lines
    assert any("Connection refused" in line for line in lines)
    assert lines[-1] == "us-east-1 job-1"
    assert not Path(sys.prefix, "of-the-job").exists()
    assert sagemaker.objects("board") == {"board/job-1/tensorboard-output/events": b"event\n"}
    assert sagemaker.objects("jobs") == {"jobs/job-1/output/model/model.txt": b"model\n"}
    model = sagemaker.job("job-1")["ModelArtifacts"]["S3ModelArtifacts"]
    assert model == f"s3://{sagemaker.bucket}/jobs/job-1/output/model/"


def test_without_namespaces(tmp_path: Path) -> None:
    process, account = start_server(tmp_path, "--without-namespaces")
    account.start_afresh("without-namespaces")
    assert not account.isolated
    account.settings(grace=0.2)
    text = "cd $SAGEMAKER_BASE_DIR; cat input/config/hyperparameters.json; echo; echo x > model/m; sleep 60 & wait"
    create(account, **request(account, AlgorithmSpecification=shell(text), HyperParameters={"a": "1"}))
    account.until_line("job-1", '{"a": "1"}')
    account.client("sagemaker").stop_training_job(TrainingJobName="job-1")
    assert account.ended("job-1")["TrainingJobStatus"] == "Stopped"
    assert account.archive("jobs/job-1/output/model.tar.gz") == {"m": b"x\n"}
    process.communicate(timeout=60)
    assert list(tmp_path.iterdir()) == []


TWO_HOSTS = """
set -e
cd /opt/ml
host=$(grep -o '"current_host": "[^"]*"' input/config/resourceconfig.json | cut -d'"' -f4)
ls input/data/shards > model/$host.txt
echo same > model/same.txt
getent hosts algo-1 algo-2 | tr -s ' '
echo $host 1
sleep 0.3
echo $host 2
"""


def test_two_hosts(sagemaker: SageMaker) -> None:
    if not sagemaker.isolated:
        pytest.skip("hosts have names in namespaces only")
    sagemaker.put({f"shards/{number}": "" for number in range(3)})
    job = request(sagemaker, **program(sagemaker, "sh", TWO_HOSTS))
    job["ResourceConfig"]["InstanceCount"] = 2
    job["InputDataConfig"] += [channel(sagemaker, "shards", "shards", S3DataDistributionType="ShardedByS3Key")]
    create(sagemaker, **job)
    sagemaker.all_lines("job-1")
    model = sagemaker.archive("jobs/job-1/output/model.tar.gz")
    assert model == {"algo-1.txt": b"0\n2\n", "algo-2.txt": b"1\n", "same.txt": b"same\n"}
    streams = sagemaker.streams("job-1")
    assert [name.rpartition("-")[0] for name in streams] == ["job-1/algo-1", "job-1/algo-2"]
    names = ["127.0.0.1 algo-1", "127.0.0.2 algo-2"]
    assert list(streams.values()) == [[*names, f"{host} 1", f"{host} 2"] for host in ("algo-1", "algo-2")]


def test_lines_can_be_read_late_and_after_the_end(sagemaker: SageMaker) -> None:
    sagemaker.settings(log_delay=1.0)
    create(sagemaker, **request(sagemaker, AlgorithmSpecification=shell("echo one; echo; printf 'a\\rb\\377'")))
    assert sagemaker.ended("job-1")["TrainingJobStatus"] == "Completed"
    assert sagemaker.lines("job-1") == []
    assert sagemaker.all_lines("job-1") == ["one", " ", "a\rb\ufffd"]


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ("echo 'it broke' > /opt/ml/output/failure; exit 3", "AlgorithmError: it broke\n, exit code: 3"),
        ("yes x | head -c 5000 > /opt/ml/output/failure; exit 1", None),
    ],
)
def test_a_failure(commands: str, reason: str | None, sagemaker: SageMaker) -> None:
    create(sagemaker, **request(sagemaker, AlgorithmSpecification=shell(commands)))
    done = sagemaker.ended("job-1")
    assert done["TrainingJobStatus"] == done["SecondaryStatus"] == "Failed"
    assert done["FailureReason"] == reason or reason is None
    assert len(done["FailureReason"]) <= 1024
    assert "ModelArtifacts" not in done


def test_a_failing_script_and_missing_data(sagemaker: SageMaker) -> None:
    create(sagemaker, **request(sagemaker, "raise ValueError('my own words')"))
    missing = request(sagemaker, AlgorithmSpecification=shell("true"), name="job-2")
    create(sagemaker, **missing, InputDataConfig=[channel(sagemaker, "train", "nothing/here")])
    assert sagemaker.ended("job-2")["FailureReason"].startswith(
        f'ClientError: Data download failed:No S3 objects found under S3 URL "s3://{sagemaker.bucket}/nothing/here"'
    )
    reason = sagemaker.ended("job-1")["FailureReason"]
    assert reason.startswith("AlgorithmError: ExecuteUserScriptError:\nExitCode 1\n")
    assert "my own words" in reason
    assert reason.endswith(", exit code: 1")


WAITS = """
import os, pathlib, signal, sys, time
base = pathlib.Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
def save(*_):
    (base / "model/saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("waiting")
time.sleep(60)
"""


def test_sigterm_reaches_pid_1_only(sagemaker: SageMaker) -> None:
    sagemaker.settings(grace=0.5)
    create(sagemaker, **request(sagemaker, WAITS))
    create(sagemaker, **request(sagemaker, name="job-2", **program(sagemaker, "python", WAITS)))
    for name in ("job-1", "job-2"):
        sagemaker.until_line(name, "waiting")
        sagemaker.client("sagemaker").stop_training_job(TrainingJobName=name)
    # `train` is PID 1, has no handler and passes nothing on: the script never hears of it.
    ignored = sagemaker.ended("job-1")
    assert (ignored["TrainingJobStatus"], ignored["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert "ModelArtifacts" not in ignored
    assert "ModelArtifacts" in sagemaker.ended("job-2")
    with pytest.raises(ClientError, match=r"ValidationException.* is in status Stopped"):
        sagemaker.client("sagemaker").stop_training_job(TrainingJobName="job-1")


def test_the_longest_time(sagemaker: SageMaker) -> None:
    sagemaker.settings(grace=0.1)
    stopping = {"MaxRuntimeInSeconds": 1}
    job = request(sagemaker, AlgorithmSpecification=shell("sleep 60"), StoppingCondition=stopping)
    create(sagemaker, **job)
    done = sagemaker.ended("job-1")
    assert (done["TrainingJobStatus"], done["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


SPOT = """
cd ${SAGEMAKER_BASE_DIR:-/opt/ml}/checkpoints
cat state config 2>/dev/null
if [ -e state ]; then rm old; echo resumed > ../model/how; exit; fi
echo first > state; touch old; cat ../input/config/checkpointconfig.json; echo
sleep 1
echo ready; sleep 60
"""


def spot(sagemaker: SageMaker, commands: str, wait: int = 60) -> dict[str, Any]:
    return request(
        sagemaker,
        **program(sagemaker, "sh", commands),
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": min(60, wait), "MaxWaitTimeInSeconds": wait},
        CheckpointConfig={"S3Uri": f"s3://{sagemaker.bucket}/checkpoints/job-1"},
    )


def test_an_interrupted_spot_job_starts_again_with_its_checkpoints(sagemaker: SageMaker) -> None:
    sagemaker.settings(grace=0.1, interrupt_at="ready")
    create(sagemaker, **spot(sagemaker, SPOT))
    done = sagemaker.ended("job-1")
    assert done["TrainingJobStatus"] == "Completed"
    attempt = ["Starting", "Downloading", "Training"]
    transitions = [step["Status"] for step in done["SecondaryStatusTransitions"]]
    assert transitions == [*attempt, "Interrupted", *attempt, "Uploading", "Completed"]
    assert done["BillableTimeInSeconds"] < done["TrainingTimeInSeconds"]
    sagemaker.all_lines("job-1")
    first, second = sagemaker.streams("job-1").values()
    assert first == ['{"LocalPath": "/opt/ml/checkpoints"}', "ready"]
    assert second == ["first"]
    assert sagemaker.archive("jobs/job-1/output/model.tar.gz") == {"how": b"resumed\n"}
    assert sagemaker.objects("checkpoints/") == {"checkpoints/job-1/state": b"first\n"}
    assert not sagemaker.interrupt("job-1")


def test_capacity(sagemaker: SageMaker) -> None:
    sagemaker.settings(without_capacity=["ml.m5.large"], log_delay=0)
    create(sagemaker, **request(sagemaker, AlgorithmSpecification=shell("true")))
    reason = sagemaker.ended("job-1")["FailureReason"]
    assert reason.startswith("CapacityError: Unable to provision requested ML compute capacity.")

    preferences = [{"InstanceType": name, "InstanceCount": 1} for name in ("ml.m5.large", "ml.m5.xlarge")]
    job = request(sagemaker, AlgorithmSpecification=shell("true"), name="job-2")
    job["ResourceConfig"] = {"InstancePreferences": preferences, "VolumeSizeInGB": 30}
    create(sagemaker, **job)
    assert sagemaker.ended("job-2")["ResourceConfig"]["SelectedInstanceType"] == "ml.m5.xlarge"

    create(sagemaker, **spot(sagemaker, "true", wait=1) | {"TrainingJobName": "job-3"})
    assert sagemaker.ended("job-3")["SecondaryStatus"] == "MaxWaitTimeExceeded"


def test_requests_are_validated(sagemaker: SageMaker) -> None:
    job = request(sagemaker, name="two words", HyperParameters={"a": "x" * 2501}, RoleArn="arn:aws:iam::role/too-short")
    job["ResourceConfig"]["InstanceType"] = "ml.p3.2xlarg"
    job["Environment"] = {"A-B": "c"}
    with pytest.raises(ClientError, match="5 validation errors detected") as caught:
        create(sagemaker, **job)
    text = str(caught.value)
    assert "ValidationException" in text
    for place in (
        "trainingJobName",
        "hyperParameters.a.member",
        "environment.key",
        "roleArn",
        "resourceConfig.instanceType",
    ):
        assert f"at '{place}' failed to satisfy constraint" in text
    without_wait = spot(sagemaker, "true") | {"StoppingCondition": {"MaxRuntimeInSeconds": 60}}
    with pytest.raises(ClientError, match="MaxWaitTimeInSeconds"):
        create(sagemaker, **without_wait)
    with pytest.raises(ClientError, match=r"ValidationException.*Requested resource not found"):
        sagemaker.job("job-1")


def test_names_are_unique_and_jobs_are_listed(sagemaker: SageMaker) -> None:
    for number in range(3):
        create(sagemaker, **request(sagemaker, AlgorithmSpecification=shell("true"), name=f"job-{number}"))
    with pytest.raises(ClientError, match=r"ResourceInUse.*job-0"):
        create(sagemaker, **request(sagemaker, AlgorithmSpecification=shell("true"), name="job-0"))
    client = sagemaker.client("sagemaker")
    listed = client.get_paginator("list_training_jobs").paginate(
        NameContains="job", SortOrder="Descending", PaginationConfig={"PageSize": 2}
    )
    pages = [[job["TrainingJobName"] for job in page["TrainingJobSummaries"]] for page in listed]
    assert pages == [["job-2", "job-1"], ["job-0"]]
    sagemaker.ended("job-1")
    done = client.list_training_jobs(NameContains="-1", StatusEquals="Completed")["TrainingJobSummaries"]
    assert [job["TrainingJobName"] for job in done] == ["job-1"]


def test_faults(sagemaker: SageMaker) -> None:
    patient = boto3.session.Session()
    sagemaker.settings(lost_replies={"CreateTrainingJob": 1}, throttled={"DescribeTrainingJob": 1})
    job = request(sagemaker, AlgorithmSpecification=shell("true"))
    with pytest.raises(ClientError, match="ResourceInUse"):
        patient.client("sagemaker").create_training_job(**job)
    assert patient.client("sagemaker").describe_training_job(TrainingJobName="job-1")["TrainingJobName"] == "job-1"
    assert sagemaker.actions() == [*["CreateTrainingJob"] * 2, *["DescribeTrainingJob"] * 2]

    sagemaker.settings(expired_keys=["AKIASMKITCLIENT00000"])
    with pytest.raises(ClientError, match=r"\(ExpiredTokenException\)"):
        patient.client("sagemaker").list_training_jobs()
    for service, call in (("s3", "list_buckets"), ("sts", "get_caller_identity")):
        with pytest.raises(ClientError, match=r"\(ExpiredToken\)"):
            getattr(patient.client(service), call)()


def test_the_account_beside_sagemaker(sagemaker: SageMaker) -> None:
    sagemaker.settings(quotas={"ml.p3.2xlarge for training job usage": 1.0}, denied=["s3:PutObject"])
    quotas = sagemaker.client("service-quotas").list_service_quotas(ServiceCode="sagemaker")["Quotas"]
    assert [(quota["QuotaName"], quota["Value"]) for quota in quotas] == [("ml.p3.2xlarge for training job usage", 1)]
    filters = [{"Type": "TERM_MATCH", "Field": "instanceName", "Value": "ml.p3.2xlarge"}]
    (product,) = sagemaker.client("pricing").get_products(ServiceCode="AmazonSageMaker", Filters=filters)["PriceList"]
    assert '"USD": "3.825' in product
    asked = ["s3:PutObject", "s3:GetObject"]
    verdicts = sagemaker.client("iam").simulate_principal_policy(PolicySourceArn=sagemaker.role, ActionNames=asked)
    found = {item["EvalActionName"]: item["EvalDecision"] for item in verdicts["EvaluationResults"]}
    assert found == {"s3:PutObject": "explicitDeny", "s3:GetObject": "allowed"}
    with pytest.raises(ClientError, match="NotImplemented"):
        sagemaker.client("sagemaker").update_training_job(TrainingJobName="job-1")


def test_the_owner_of_a_bucket_is_checked(sagemaker: SageMaker) -> None:
    sagemaker.make_foreign_bucket("sniped")
    s3 = boto3.session.Session().client("s3")
    for bucket, owner in (("sniped", sagemaker.account), (sagemaker.bucket, "999999999999")):
        with pytest.raises(ClientError, match="AccessDenied"):
            s3.put_object(Bucket=bucket, Key="key", Body=b"", ExpectedBucketOwner=owner)
        with pytest.raises(ClientError, match="403"):
            s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=owner)
    s3.put_object(Bucket=sagemaker.bucket, Key="a", Body=b"abc", ExpectedBucketOwner=sagemaker.account)
    assert not [request for request in sagemaker.requests() if request.lacks_expected_owner]
    s3.list_buckets()
    s3.get_object(Bucket=sagemaker.bucket, Key="a")
    assert [request.action for request in sagemaker.requests() if request.lacks_expected_owner] == ["GetObject"]
    sagemaker.settings(corrupted={"GetObject": 1, "PutObject": 5})
    with pytest.raises(ClientError, match="BadDigest"):
        s3.put_object(Bucket=sagemaker.bucket, Key="a", Body=b"abc")
    with pytest.raises(FlexibleChecksumError):
        s3.get_object(Bucket=sagemaker.bucket, Key="a")["Body"].read()
