"""The fixture `sagemaker`: the server in a process of its own, and what a test may ask of it."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import boto3
import pytest

from sagemaker.logs import GROUP
from sagemaker.training_job import ENDED
from sagemaker.wire import ACCOUNT, KEYS, REGION, Request

ROLE = "SmkitTests"
_TESTS = Path(__file__).parent.parent


class SageMaker:
    """An account on the server, from the side of a test."""

    account = ACCOUNT
    region = REGION
    role = f"arn:aws:iam::{ACCOUNT}:role/{ROLE}"

    def __init__(self, endpoint: str, bucket: str = "") -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self._sessions: dict[str, boto3.session.Session] = {}
        self._clients: dict[tuple[str, str], Any] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make any client in a process one of this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEYS["client"],
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            # Whatever this machine has of profiles stays out of the tests.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @property
    def isolated(self) -> bool:
        """Whether jobs have namespaces of their own; else they run under SAGEMAKER_BASE_DIR."""
        return bool(self._control("state")["isolated"])

    def client(self, service: str, key: str = KEYS["service"]) -> Any:
        """Return a client of boto3 that is not counted among those under test, unless given another key."""
        if (service, key) not in self._clients:
            session = self._sessions.setdefault(key, boto3.session.Session(key, "secret", region_name=REGION))
            self._clients[service, key] = session.client(service, endpoint_url=self.endpoint)
        return self._clients[service, key]

    def settings(self, **values: Any) -> None:
        """Turn knobs; those of `sagemaker.settings.Settings`."""
        self._control("settings", values)

    def hide(self, *packages: str) -> None:
        """Hide packages of this Python environment from the jobs of a test, if there are namespaces to hide them in."""
        folders = []
        for package in packages:
            spec = importlib.util.find_spec(package)
            folders += list(spec.submodule_search_locations or []) if spec else []
        self.settings(hidden=folders)

    def interrupt(self, job: str) -> bool:
        """Take the instances of a managed spot job away; return whether it was at work."""
        return bool(self._control("interrupt", {"job": job})["interrupted"])

    def requests(self, caller: str = "client") -> list[Request]:
        """Return what this caller has sent so far: "client", "job" or "service"."""
        received = [Request(**item) for item in self._control("requests")]
        return [request for request in received if request.caller == caller]

    def actions(self, caller: str = "client") -> list[str]:
        """Return the actions of these requests, in their order."""
        return [request.action for request in self.requests(caller)]

    def forget_requests(self) -> None:
        """Count from here."""
        self._control("forget-requests")

    def job(self, name: str) -> dict[str, Any]:
        """Describe a training job."""
        found: dict[str, Any] = self.client("sagemaker").describe_training_job(TrainingJobName=name)
        return found

    def until(self, name: str, *statuses: str, timeout: float = 60) -> dict[str, Any]:
        """Wait until the job has had one of these secondary statuses, and return its description."""
        deadline, client = time.monotonic() + timeout, self.client("sagemaker")
        while True:
            found: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
            if any(step["Status"] in statuses for step in found["SecondaryStatusTransitions"]):
                return found
            assert time.monotonic() < deadline, f"{name} is {found['SecondaryStatus']}: {self.lines(name)}"
            time.sleep(0.05)

    def ended(self, name: str, timeout: float = 60) -> dict[str, Any]:
        """Wait until the job has ended, and return its description."""
        return self.until(name, *ENDED, "MaxRuntimeExceeded", "MaxWaitTimeExceeded", timeout=timeout)

    def until_line(self, name: str, line: str, timeout: float = 60) -> None:
        """Wait until this line of a job can be read."""
        deadline = time.monotonic() + timeout
        while line not in self.lines(name):
            assert time.monotonic() < deadline, f"no {line!r} in {self.lines(name)}"
            time.sleep(0.02)

    def lines(self, name: str) -> list[str]:
        """Return the lines of a job that can be read by now, stream by stream."""
        return [line for lines in self.streams(name).values() for line in lines]

    def streams(self, name: str) -> dict[str, list[str]]:
        """Return the lines of a job that can be read by now, by the names of their streams."""
        logs = self.client("logs")
        try:
            found = logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
        except logs.exceptions.ResourceNotFoundException:
            return {}
        texts = {}
        for stream in [item["logStreamName"] for item in found]:
            answer = logs.get_log_events(logGroupName=GROUP, logStreamName=stream, startFromHead=True)
            texts[stream] = [event["message"] for event in answer["events"]]
        return texts

    def all_lines(self, name: str, timeout: float = 60) -> list[str]:
        """Return all lines of a job, once it has ended and they can be read."""
        deadline = time.monotonic() + timeout
        while not self._control("delivered", {"job": name})["delivered"]:
            assert time.monotonic() < deadline, f"{name} is {self.job(name)['SecondaryStatus']} after {timeout} s"
            time.sleep(0.02)
        return self.lines(name)

    def put(self, files: Mapping[str, bytes | str], bucket: str = "") -> None:
        """Put objects into the bucket."""
        s3 = self.client("s3")
        for key, content in files.items():
            body = content.encode() if isinstance(content, str) else content
            s3.put_object(Bucket=bucket or self.bucket, Key=key, Body=body)

    def objects(self, prefix: str = "", bucket: str = "") -> dict[str, bytes]:
        """Return the objects of the bucket, by their keys."""
        s3, bucket = self.client("s3"), bucket or self.bucket
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return {item["Key"]: s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read() for item in listed}

    def archive(self, key: str) -> dict[str, bytes]:
        """Return the files of a tar.gz in the bucket."""
        with tarfile.open(fileobj=io.BytesIO(self.objects(key)[key])) as packed:
            files = [member for member in packed if member.isfile()]
            return {member.name: packed.extractfile(member).read() for member in files}  # type: ignore[union-attr]

    def make_foreign_bucket(self, name: str, account: str = "999999999999") -> None:
        """Make a bucket that belongs to somebody else, and that lets anyone in."""
        role = f"arn:aws:iam::{account}:role/somebody"
        keys = self.client("sts").assume_role(RoleArn=role, RoleSessionName="somebody")["Credentials"]
        session = boto3.session.Session(
            keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], region_name=REGION
        )
        session.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket=name)
        self.forget_requests()

    def start_afresh(self, bucket: str) -> None:
        """End all jobs, empty the account and give it its role and this bucket."""
        self._control("reset")
        urllib.request.urlopen(f"{self.endpoint}/moto-api/reset", b"").close()
        trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole"}]}
        trust["Statement"][0]["Principal"] = {"Service": "sagemaker.amazonaws.com"}  # type: ignore[index]
        self.client("iam").create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust))
        self.client("s3").create_bucket(Bucket=bucket)
        self.bucket = bucket
        self.forget_requests()

    def _control(self, verb: str, given: Any = None) -> Any:
        body = json.dumps(given or {}).encode()
        with urllib.request.urlopen(f"{self.endpoint}/_tests/{verb}", body) as answer:
            return json.loads(answer.read())


def start_server(folder: Path, *options: str, errors: IO[str] | None = None) -> tuple[subprocess.Popen[str], SageMaker]:
    """Start a server and return its process, which ends with its standard input, and its account.

    What it has to say of errors of its own goes to the file `errors`, otherwise to standard error.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "COVERAGE_"))}
    command = [sys.executable, "-m", "sagemaker", str(folder), *options]
    process = subprocess.Popen(
        command, cwd=_TESTS, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith("ready"), "the server did not start; see its error output"
    return process, SageMaker(f"http://127.0.0.1:{ready.split()[-1]}")


@pytest.fixture(scope="session")
def _sagemaker_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SageMaker]:
    process, account = start_server(tmp_path_factory.mktemp("sagemaker"))
    yield account
    process.communicate(timeout=60)


@pytest.fixture
def sagemaker(_sagemaker_server: SageMaker, monkeypatch: pytest.MonkeyPatch) -> SageMaker:
    """A fresh account on a SageMaker that runs jobs; for the time of the test, clients of this process are its own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in _sagemaker_server.environment.items():
        monkeypatch.setenv(name, value)
    _sagemaker_server.start_afresh("smkit-tests")
    return _sagemaker_server


@pytest.fixture
def unpaused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of this process repeat a failed call at once."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
