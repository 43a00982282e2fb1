"""Jobs on SageMaker: real ones on the SageMaker of the tests, and a CloudWatch that is as bad as it can be."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import random
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import wait_until
from sagemaker.fixture import SageMaker

from smkit.cli import main
from smkit.cloud.aws import Clients, connect
from smkit.cloud.connection import Connection
from smkit.cloud.jobs import SageMakerJobs
from smkit.cloud.logs import JobLog
from smkit.cloud.prices import read_price
from smkit.errors import JobError
from smkit.job import Job
from smkit.watching import OutOfReach

pytestmark = pytest.mark.aws

Start = Callable[..., Job]

ALGORITHM = {
    "TrainingImage": "image",
    "TrainingInputMode": "File",
    "ContainerEntrypoint": ["sh", "/opt/ml/input/data/script/run.sh"],
}


@pytest.fixture
def start(sagemaker: SageMaker) -> Start:
    """Run a shell script as a job, without the toolkit, which takes seconds to start."""

    def start(script: str, *, name: str = "job-1", hosts: int = 1, **changes: Any) -> Job:
        sagemaker.client("sagemaker").create_training_job(**request(sagemaker, script, name, hosts) | changes)
        jobs = SageMakerJobs(connect())
        jobs.poll_seconds = 0.3
        return Job(name, jobs)

    return start


def request(sagemaker: SageMaker, script: str, name: str, hosts: int) -> dict[str, Any]:
    sagemaker.put({f"scripts/{name}/run.sh": script})
    data = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{sagemaker.bucket}/scripts/{name}/"}
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": ALGORITHM,
        "InputDataConfig": [{"ChannelName": "script", "DataSource": {"S3DataSource": data}}],
        "RoleArn": sagemaker.role,
        "OutputDataConfig": {"S3OutputPath": f"s3://{sagemaker.bucket}/jobs/"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": hosts, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }


# --- a job from its start to its end --------------------------------------------------------------------------------


def test_the_log_of_two_hosts_is_followed_live_and_whole(sagemaker: SageMaker, start: Start) -> None:
    sagemaker.settings(log_delay=0.9, starting=0.5)
    job = start("for i in $(seq 1 40); do echo line $i; echo; sleep 0.05; done; echo end", hosts=2)
    lines = list(job.logs())
    for host in ("algo-1", "algo-2"):
        own = [line for line in lines if line.startswith(f"[{host}]")]
        assert [line for line in own if "line" in line] == [f"[{host}] line {i}" for i in range(1, 41)]
        assert len(own) == 81
        assert own[-1] == f"[{host}] end"
    assert job.status == "Completed"
    assert Counter(job.logs(follow=False)) == Counter(lines)


def test_a_wait_says_what_happens_and_where_the_model_is(
    sagemaker: SageMaker, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    sagemaker.settings(starting=3.0)
    job = start("echo hello; echo w > /opt/ml/model/weights")
    assert job.wait() is job
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0].startswith("job 'job-1': Starting: ")
    assert said.err.endswith(f"hello\njob 'job-1' completed; its model: {job.model_uri}\n")
    assert job.model_uri == f"s3://{sagemaker.bucket}/jobs/job-1/output/model.tar.gz"
    assert job.describe()["TrainingJobArn"].endswith(":training-job/job-1")
    assert "ResponseMetadata" not in job.describe()
    with pytest.raises(JobError, match="is in S3 and not on this machine") as caught:
        _ = job.model_dir
    assert caught.value.where == job.model_uri


FAILS = """
echo epoch 1
if [ $(hostname) = algo-2 ] || grep -q '"current_host": "algo-2"' /opt/ml/input/config/resourceconfig.json; then
printf 'Traceback (most recent call last):\\n  File "train.py", line 3, in <module>\\nValueError: boom\\n'
printf 'ValueError: boom' > /opt/ml/output/failure
exit 1
fi
sleep 20
"""


def test_a_failure_shows_the_traceback_of_the_host_that_failed_and_the_address_of_the_log(
    sagemaker: SageMaker, start: Start
) -> None:
    sagemaker.settings(log_delay=1.2)
    job = start(FAILS, hosts=2)
    with pytest.raises(JobError) as caught:
        job.wait(show_logs=False)
    assert caught.value.what.startswith(
        "job 'job-1' failed: ValueError: boom\n"
        "    Traceback (most recent call last):\n"
        '      File "train.py", line 3, in <module>\n'
        "    ValueError: boom"
    )
    assert caught.value.where == (
        "https://us-east-1.console.aws.amazon.com/cloudwatch/home?region=us-east-1#logsV2:log-groups/log-group/"
        "$252Faws$252Fsagemaker$252FTrainingJobs$3FlogStreamNameFilter$3Djob-1$252F "
        "(log group /aws/sagemaker/TrainingJobs, streams job-1/...)"
    )
    assert "boom" in (job.failure_reason or "")


@pytest.mark.toolkit
def test_the_traceback_that_the_toolkit_cuts_into_pieces_is_whole(sagemaker: SageMaker, start: Start) -> None:
    torch = importlib.util.find_spec("torch")
    sagemaker.settings(hidden=[*torch.submodule_search_locations] if torch else [])  # Its import takes seconds.
    script = b"def load():\n    raise KeyError('label')\n\nload()\n"
    source = io.BytesIO()
    with tarfile.open(fileobj=source, mode="w:gz") as packed:
        entry = tarfile.TarInfo("train.py")
        entry.size = len(script)
        packed.addfile(entry, io.BytesIO(script))
    sagemaker.put({"source.tar.gz": source.getvalue()})
    address = json.dumps(f"s3://{sagemaker.bucket}/source.tar.gz")
    job = start(
        "",
        AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
        HyperParameters={"sagemaker_program": '"train.py"', "sagemaker_submit_directory": address},
    )
    with pytest.raises(JobError) as caught:
        job.wait(show_logs=False)
    assert caught.value.what == (
        "job 'job-1' failed: KeyError: 'label'\n"
        "    Traceback (most recent call last):\n"
        '      File "/opt/ml/code/train.py", line 4, in <module>\n'
        "        load()\n"
        '      File "/opt/ml/code/train.py", line 2, in load\n'
        "        raise KeyError('label')\n"
        "    KeyError: 'label'"
    )


def test_stop_returns_when_the_job_has_ended_and_leaves_an_ended_one_as_it_is(
    sagemaker: SageMaker, start: Start
) -> None:
    job = start("trap 'echo saving; exit 0' TERM; echo ready; while true; do sleep 0.1; done")
    next(line for line in job.logs() if line == "ready")
    job.stop()
    assert job.status == "Stopped"
    with pytest.raises(JobError, match="was stopped"):
        job.wait(show_logs=False)
    done = start("exit 0", name="job-2")
    sagemaker.ended("job-2")
    done.stop()
    assert done.status == "Completed"


SECOND_LIFE = """
first=10; test -e /opt/ml/checkpoints/10 && first=20
for step in $(seq $first 10 40); do
echo "[metrics] step=$step epoch=1 loss=0.$step$(test $first = 20 && echo 5)"
touch /opt/ml/checkpoints/$step
sleep 0.4
done
"""


def test_a_spot_job_is_followed_through_its_interruption(
    sagemaker: SageMaker, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    sagemaker.settings(interrupt_at="step=30 ", starting=0.4)
    job = start(
        SECOND_LIFE,
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120},
        CheckpointConfig={"S3Uri": f"s3://{sagemaker.bucket}/checkpoints"},
    )
    job.wait()
    said = capsys.readouterr().err
    assert "job 'job-1': Interrupted" in said
    assert said.index("job 'job-1': Interrupted") < said.index("job 'job-1' completed")
    assert "step=40 epoch=1 loss=0.405\n" in said
    metrics = job.metrics()
    assert [row["step"] for row in metrics.rows] == [10, 20, 30, 40]
    assert [row["loss"] for row in metrics.rows] == [0.1, 0.205, 0.305, 0.405]
    assert metrics.times[0] > 1.7e9
    cost = job.cost()
    assert cost.price_per_hour is not None
    assert cost.dollars == pytest.approx(cost.billable_seconds / 3600 * 0.115)
    assert cost.price_per_hour.origin == "pricing API, 2026-11-01"


def test_metrics_without_metric_lines_are_those_that_sagemaker_has_found(start: Start) -> None:
    algorithm = ALGORITHM | {"MetricDefinitions": [{"Name": "loss", "Regex": "loss: ([0-9.]+)"}]}
    job = start("echo loss: 0.5; echo loss: 0.25", AlgorithmSpecification=algorithm)
    job.wait(show_logs=False)
    assert job.metrics().rows == [{"step": 0, "epoch": 0, "loss": 0.25}]


# --- trouble on the way ---------------------------------------------------------------------------------------------


def impatient(sagemaker: SageMaker) -> Clients:
    """Clients that do not try again by themselves, so that a test need not wait for ten attempts."""

    def make(service: str) -> Any:
        return boto3.Session().client(service, config=Config(read_timeout=1, retries={"total_max_attempts": 1}))

    return Clients(sagemaker.region, "aws", make, lambda: impatient(sagemaker))


def test_throttling_and_lost_connections_do_not_end_a_wait(
    sagemaker: SageMaker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smkit.watching._FIRST_PAUSE_SECONDS", 0.01)
    start("for i in 1 2 3; do echo $i; sleep 0.5; done")
    faults = {"DescribeTrainingJob": 1, "GetLogEvents": 1, "DescribeLogStreams": 1}
    sagemaker.settings(throttled=faults, lost_replies=faults)
    job = Job("job-1", SageMakerJobs(impatient(sagemaker)))
    assert list(job.logs()) == ["1", "2", "3"]
    sagemaker.settings(throttled={"DescribeTrainingJob": 1})
    with pytest.raises(OutOfReach):
        _ = job.status


def test_credentials_that_have_run_out_are_looked_for_again(
    sagemaker: SageMaker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("exit 0")
    jobs = SageMakerJobs(connect())
    assert jobs.describe("job-1")["TrainingJobName"] == "job-1"
    sagemaker.settings(expired_keys=[sagemaker.environment["AWS_ACCESS_KEY_ID"]])
    with pytest.raises(OutOfReach, match="the AWS credentials have expired"):
        jobs.describe("job-1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(OutOfReach, match="no usable AWS credentials"):
        jobs.describe("job-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIARENEWED000000000")
    assert jobs.describe("job-1")["TrainingJobName"] == "job-1"


def test_a_wait_asks_for_renewed_credentials_and_goes_on(
    sagemaker: SageMaker, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    job = start("echo 1; sleep 3; echo 2")
    lines = job.logs()
    assert next(lines) == "1"
    sagemaker.forget_requests()
    sagemaker.settings(expired_keys=[sagemaker.environment["AWS_ACCESS_KEY_ID"]])

    def sign_in() -> None:
        wait_until(lambda: len(sagemaker.requests()) > 1)
        sagemaker.settings(expired_keys=[])

    signing_in = threading.Thread(target=sign_in)
    signing_in.start()
    assert list(lines) == ["2"]
    signing_in.join()
    said = capsys.readouterr().err
    assert said.count("goes on, but cannot be asked: the AWS credentials have expired") == 1
    assert "aws sso login" in said


def test_an_unknown_job_is_said_with_the_nearest_name(sagemaker: SageMaker, start: Start) -> None:
    job = start("exit 0", name="digits-2026")
    for ask in (lambda j: j.status, lambda j: j.wait(), lambda j: list(j.logs()), lambda j: j.stop()):
        with pytest.raises(JobError, match="there is no job 'digits-2062'") as caught:
            ask(Job("digits-2062", job.service))
        assert caught.value.fix == "did you mean 'digits-2026'?"
        assert "us-east-1" in caught.value.where


def test_the_list_of_jobs_is_newest_first(start: Start) -> None:
    for number in range(3):
        job = start("exit 0", name=f"job-{number}")
    assert [found["TrainingJobName"] for found in job.service.list_jobs(limit=2)] == ["job-2", "job-1"]
    assert [found["TrainingJobName"] for found in job.service.list_jobs("b-0")] == ["job-0"]
    assert {"TrainingJobStatus", "CreationTime"} <= job.service.list_jobs()[0].keys()


# --- what a job leaves ----------------------------------------------------------------------------------------------

LEAVES = """
mkdir -p /opt/ml/model/deep /opt/ml/output/data
echo w > /opt/ml/model/weights; echo d > /opt/ml/model/deep/er; ln -s weights /opt/ml/model/best
echo p > /opt/ml/output/data/plot
"""


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_model_and_output_are_downloaded(sagemaker: SageMaker, start: Start, tmp_path: Path, compression: str) -> None:
    output = {"S3OutputPath": f"s3://{sagemaker.bucket}/jobs", "CompressionType": compression}
    job = start(LEAVES, OutputDataConfig=output).wait(show_logs=False)
    folder = job.download(tmp_path / "new" / "model")
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert {"weights": "w\n", "deep/er": "d\n"}.items() <= found.items()
    assert (job.download(tmp_path / "output", what="output") / "plot").read_text() == "p\n"
    owners = [call for call in sagemaker.requests() if call.service == "s3"]
    assert owners
    assert all(call.headers.get("x-amz-expected-bucket-owner") == sagemaker.account for call in owners)
    assert job.download(folder) == folder
    (folder / "weights").write_text("mine")
    (folder / "deep" / "er").unlink()
    with pytest.raises(JobError, match="'weights' would overwrite another file"):
        job.download(folder)
    assert not (folder / "deep" / "er").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_download_that_fails_leaves_nothing(sagemaker: SageMaker, start: Start, tmp_path: Path) -> None:
    job = start(LEAVES).wait(show_logs=False)
    key = "jobs/job-1/output/model.tar.gz"
    for place in (Path("/dev/null"), Path("/dev/null/model"), Path("/proc/model")):
        with pytest.raises(JobError, match="cannot be written"):
            job.download(place)
    sagemaker.settings(corrupted={"GetObject": 9})
    with pytest.raises(JobError, match="arrived damaged"):
        job.download(tmp_path / "model")
    sagemaker.settings(corrupted={})
    hostile = io.BytesIO()
    with tarfile.open(fileobj=hostile, mode="w:gz") as packed:
        packed.addfile(tarfile.TarInfo("fine"))
        packed.addfile(tarfile.TarInfo("../escaped"))
    sagemaker.put({key: hostile.getvalue()})
    with pytest.raises(JobError, match=r"the entry '\.\./escaped' leads out of the folder"):
        job.download(tmp_path / "model")
    sagemaker.client("s3").delete_object(Bucket=sagemaker.bucket, Key=key)
    with pytest.raises(JobError, match=f"there is no s3://{sagemaker.bucket}/{key}"):
        job.download(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# --- CloudWatch at its worst ----------------------------------------------------------------------------------------


class CloudWatch:
    """Events that are seen late and out of order, pages that are short or empty, and calls that fail now and then.

    Positions are indexes into what can be seen by now, as in moto: what is seen late shifts them.
    """

    def __init__(self, events: list[tuple[int, str, int, str]], chance: random.Random) -> None:
        self.events, self.chance, self.now, self.fails = events, chance, 0, False

    def describe_log_streams(self, *, logStreamNamePrefix: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        self._fail()
        streams = sorted({stream for seen, stream, *_ in self.events if seen <= self.now})
        return {"logStreams": [{"logStreamName": name} for name in streams if name.startswith(logStreamNamePrefix)]}

    def get_log_events(self, **request: Any) -> dict[str, Any]:
        self._fail()
        found = [
            {"timestamp": time, "message": text}
            for seen, stream, time, text in self.events
            if stream == request["logStreamName"] and seen <= self.now and time >= request.get("startTime", 0)
        ]
        found.sort(key=lambda event: event["timestamp"])
        given = request.get("nextToken")
        position, _, count = (given or "0/0").partition("/")
        page = found[int(position) : int(position) + self.chance.choice([0, 1, 2, 5, 2000])]
        end = int(position) + len(page)
        is_end = end >= len(found) and not page and given
        return {"events": page, "nextForwardToken": given if is_end else f"{end}/{int(count) + 1}"}

    def _fail(self) -> None:
        if self.fails and self.chance.random() < 0.1:
            raise OutOfReach("busy", where="CloudWatch", fix="wait")


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 8),  # the look that it can first be seen at
        st.sampled_from(["algo-1-17", "algo-2-17", "algo-1-99"]),
        st.integers(0, 20).map(lambda seconds: 1_700_000_000_000 + 1000 * seconds),
        st.sampled_from(["a", "b", " "]),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, seed=st.integers(0, 2**32), fails=st.booleans())
def test_no_line_is_lost_or_given_twice_however_late_it_comes(
    events: list[tuple[int, str, int, str]], seed: int, *, fails: bool
) -> None:
    cloud = CloudWatch([(seen, f"job/{stream}", *rest) for seen, stream, *rest in events], random.Random(seed))  # type: ignore[misc]
    cloud.fails = fails
    log = JobLog(Connection(SimpleNamespace(logs=cloud, profile_name=None)), "job", lambda: 2)  # type: ignore[arg-type]
    lines: list[str] = []
    quiet = 0
    while quiet < 6:
        try:
            line = next(log)
        except OutOfReach:
            continue
        if line is None:
            cloud.now, quiet = cloud.now + 1, quiet + 1 if cloud.now >= 8 else 0
        else:
            lines.append(line)
            quiet = 0
    expected = Counter(f"[{stream[:6]}] {text}" for _, stream, _, text in events)
    assert Counter(lines) == expected


def test_a_line_that_comes_minutes_late_is_found_when_its_host_has_become_quiet() -> None:
    at = 1_700_000_000_000
    cloud = CloudWatch([(0, "job/algo-1-1", at, "new"), (1, "job/algo-1-1", at - 200_000, "late")], random.Random(0))
    log = JobLog(Connection(SimpleNamespace(logs=cloud, profile_name=None)), "job", lambda: 1)  # type: ignore[arg-type]
    found = []
    for line in itertools.islice(log, 30):
        cloud.now += line is None
        found += [line] if line else []
    assert found == ["new", "late"]


# --- prices ---------------------------------------------------------------------------------------------------------


def product(*hours: str, **changes: Any) -> str:
    dimensions = {str(number): {"unit": "Hrs", "pricePerUnit": {"USD": price}} for number, price in enumerate(hours)}
    return json.dumps(
        {"terms": {"OnDemand": {"x": {"priceDimensions": dimensions}}}, "publicationDate": "2026-01-02"} | changes
    )


@pytest.mark.parametrize(
    ("products", "dollars"),
    [
        ([product("1.5")], 1.5),
        ([product("1.5"), product("1.5", publicationDate="2026-01-03")], 1.5),
        ([product("1.5"), product("1.6")], None),
        ([product("0.0", "1.5")], 1.5),
        ([product("many"), "{", "[]", "null", product(terms={}), json.loads(product("2"))], 2.0),
        ([], None),
    ],
)
def test_a_price_is_one_that_all_products_agree_on(products: list[Any], dollars: float | None) -> None:
    price = read_price(products)
    assert (price and price.dollars_per_hour) == dollars


def test_the_command_shows_each_host_in_its_colour(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = start("echo hello", hosts=2)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["logs", job.name]) == 0
    shown = re.findall(r"\x1b\[(\d+)m\[(algo-\d)\]\x1b\[0m hello", capsys.readouterr().out)
    assert (sorted(colour for colour, _ in shown), sorted(host for _, host in shown)) == (
        ["33", "36"],
        ["algo-1", "algo-2"],
    )
