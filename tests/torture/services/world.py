"""The world that a round happens in: the server and its account, the proxy, a client, and jobs that are known.

It knows no round.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagemaker.fixture import ROLE, SageMaker, start_server

SPEED = 20.0
"""How many times as fast as it says a client waits."""
ANSWER_SECONDS = 60.0
"""After this an error comes too late."""
_TESTS = Path(__file__).parents[2]


class Client:
    """A process of `torture.service_client`, which is replaced when it has been killed."""

    def __init__(self, account: SageMaker, speed: float) -> None:
        self._command = [sys.executable, "-m", "torture.service_client", str(speed)]
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SM_"))}
        self._environment |= account.environment | {"NO_COLOR": "1", "SMKIT_ROLE": account.role}
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._process = subprocess.Popen(self._command, cwd=_TESTS, env=self._environment, **pipe)
            self._read(60)
        return self._process

    def do(self, order: dict[str, Any], *, patience: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Return what came of it; `hung` if that took too long."""
        self.send(order)
        line = self._read(patience)
        if line:
            return dict(json.loads(line))
        self.end()
        return {"hung": patience}

    def send(self, order: dict[str, Any]) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()

    def answer(self, patience: float = ANSWER_SECONDS) -> dict[str, Any] | None:
        line = self._read(patience)
        return dict(json.loads(line)) if line else None

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _read(self, patience: float) -> str:
        assert self._process is not None
        stdout = self._process.stdout
        assert stdout is not None
        return stdout.readline() if select.select([stdout], [], [], patience)[0] else ""


@dataclass
class World:
    """The account, the proxy before it, a client; and one job that has ended, whose all is known."""

    account: SageMaker
    proxy: str
    client: Client
    folder: Path
    lines: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    def fresh(self, what: str) -> str:
        return f"{what}-{next(self.names)}"


@contextmanager
def world(folder: Path, *, big_bytes: int = 11_000_000) -> Iterator[World]:
    """Provide a world, with the jobs that rounds look at, whose models hold a file of so many bytes."""
    with (folder / "server.log").open("w") as errors:
        server, account = start_server(folder / "server", errors=errors)
    command = [sys.executable, "-m", "torture.faulty_proxy", account.endpoint.rpartition(":")[2]]
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    proxy = subprocess.Popen(command, cwd=_TESTS, **pipe)
    assert proxy.stdout is not None
    endpoint = f"http://127.0.0.1:{proxy.stdout.readline().split()[-1]}"
    client = Client(account, SPEED)
    try:
        account.start_afresh("torture")
        account.settings(log_delay=0.0, quotas={"ml.m5.large for training job usage": 1.0})
        document = json.dumps(
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        )
        account.client("iam").put_role_policy(RoleName=ROLE, PolicyName="jobs", PolicyDocument=document)
        made = World(account, endpoint, client, folder)
        _make_jobs(made, random.Random(0).randbytes(big_bytes))
        yield made
    finally:
        client.end()
        for process in (proxy, server):
            process.communicate(timeout=60)


# --- the jobs that are looked at --------------------------------------------------------------------------------------

_LEAVES = """
for i in $(seq 1 40); do echo line $i; echo "[metrics] step=$i epoch=1 loss=0.$i"; done
mkdir -p /opt/ml/model/deep
cp /opt/ml/input/data/script/* /opt/ml/model/; cp /opt/ml/input/data/script/run.sh /opt/ml/model/deep/
"""


def start_job(account: SageMaker, name: str, script: str, *, compressed: bool = True, more: bytes = b"") -> None:
    """Start a shell script as a job, without the toolkit, which takes seconds."""
    files = {f"scripts/{name}/run.sh": script.encode()} | ({f"scripts/{name}/big": more} if more else {})
    account.put(files)
    data = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{account.bucket}/scripts/{name}/"}
    output = {"S3OutputPath": f"s3://{account.bucket}/jobs", "CompressionType": "GZIP" if compressed else "NONE"}
    account.client("sagemaker").create_training_job(
        TrainingJobName=name,
        AlgorithmSpecification={
            "TrainingImage": "image",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["sh", "/opt/ml/input/data/script/run.sh"],
        },
        InputDataConfig=[{"ChannelName": "script", "DataSource": {"S3DataSource": data}}],
        RoleArn=account.role,
        OutputDataConfig=output,
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        StoppingCondition={"MaxRuntimeInSeconds": 300},
    )


def _make_jobs(world: World, big: bytes) -> None:
    for name, compressed in (("packed", True), ("plain", False)):
        start_job(world.account, name, _LEAVES, compressed=compressed, more=big)
    world.files = {"run.sh": _LEAVES.encode(), "deep/run.sh": _LEAVES.encode(), "big": big}
    for name in ("packed", "plain"):
        world.account.all_lines(name)
    world.lines = world.account.lines("plain")
    world.rows = [{"step": i, "epoch": 1, "loss": float(f"0.{i}")} for i in range(1, 41)]
    # As SageMaker does it: an object of several parts, whose tag is no MD5 of the whole.
    s3, key = world.account.client("s3"), "jobs/plain/output/model/big"
    upload = s3.create_multipart_upload(Bucket=world.account.bucket, Key=key)["UploadId"]
    place = {"Bucket": world.account.bucket, "Key": key, "UploadId": upload}
    size = 5 * 2**20
    parts = [
        {"PartNumber": n + 1, "ETag": s3.upload_part(**place, PartNumber=n + 1, Body=big[n * size :][:size])["ETag"]}
        for n in range(-(-len(big) // size))
    ]
    s3.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
