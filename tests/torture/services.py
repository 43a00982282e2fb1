"""Faults of S3, SageMaker and CloudWatch: a faulty proxy before the SageMaker of the tests.

A round: something is done through smkit (launch, logs, wait, metrics, download, stop, attach, a command line), and from
a random request on one, two, three, ten or all requests of the same action meet one kind of fault (`faulty_proxy`).
Time-outs and pauses run twenty times as fast. It SURVIVED if it came to what it comes to without a fault: bytes, lines
and rows are compared, and of a launch the job, its source and its data. It was REFUSED if it ended within a minute in
an error of smkit's own, with a fix, after which the same thing succeeds without a fault. LOST: a hang, a foreign
traceback, a job that runs while its launch says that there is none, a second launch that fails. SILENT: two jobs, a job
with other bytes than those that were launched, a file under its final name that is not whole, lines that are missing or
come twice.

A bit that flips in the words of an answer, or of a request that is none to S3, cannot be told by anybody but TLS, which
these servers do not speak: of such a round only what breaks or hangs counts.

In rounds of "killed" and "interrupted" the process that launches ends by SIGKILL, by Ctrl-C at a random moment.
`boto3` is boto3 alone: upload_file, download_file, create_training_job, and the paginators of CloudWatch Logs.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagemaker.fixture import ROLE, SageMaker, start_server

from torture.faulty_proxy import KINDS, plan
from torture.tally import Campaign, Outcome

SPEED = 20.0
ANSWER_SECONDS = 60.0
"""After this an error comes too late."""
_TESTS = Path(__file__).parent.parent
_SURE = ("bit flipped in an answer",)
"""Kinds that put wrong words into an answer, which nobody can tell from right ones."""
_ONLY_OF = {
    "bit flipped in an object": "GetObject",
    "bit flipped in what is put": "PutObject|UploadPart",
    "bit flipped in an answer": "(?!GetObject).*",
    "wrong tag and checksum": "GetObject|PutObject|UploadPart|HeadObject",
    "delivered late": "CreateTrainingJob|PutObject|UploadPart|CompleteMultipartUpload|StopTrainingJob",
    "error in a 200": "CompleteMultipartUpload|PutObject|UploadPart|ListObjectsV2|.*TrainingJob",
    "empty pages": "GetLogEvents",
    "events out of order": "GetLogEvents",
    "events held back": "GetLogEvents",
    "pages without an end": "DescribeLogStreams|ListObjectsV2|ListTrainingJobs|ListServiceQuotas",
}
"""Kinds that are of no use to every action."""
_WEIGHTED = ("reply lost", "hang after the work", "delivered twice", "delivered late")
"""Kinds that matter most where a job is made."""


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
def world(folder: Path, *, speed: float = SPEED) -> Iterator[World]:
    """Provide a world, with the jobs that rounds look at."""
    server, account = start_server(folder / "server")
    command = [sys.executable, "-m", "torture.faulty_proxy", account.endpoint.rpartition(":")[2]]
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    proxy = subprocess.Popen(command, cwd=_TESTS, **pipe)
    assert proxy.stdout is not None
    endpoint = f"http://127.0.0.1:{proxy.stdout.readline().split()[-1]}"
    client = Client(account, speed)
    try:
        account.start_afresh("torture")
        account.settings(log_delay=0.0, quotas={"ml.m5.large for training job usage": 1.0})
        document = json.dumps(
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        )
        account.client("iam").put_role_policy(RoleName=ROLE, PolicyName="jobs", PolicyDocument=document)
        made = World(account, endpoint, client, folder)
        _make_jobs(made)
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
_LIVES = "for i in $(seq 1 12); do echo line $i; sleep 0.1; done; echo w > /opt/ml/model/w"


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


def _make_jobs(world: World) -> None:
    big = random.Random(0).randbytes(11_000_000)
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


# --- what is done, and what it should come to -------------------------------------------------------------------------

Verdict = tuple[Outcome, str]
RIGHT: Verdict = (Outcome.SURVIVED, "")


@dataclass
class Deed:
    """One thing to do in a round, made anew for each.

    Args:
        order: What the client is told.
        of_done: What to say of what it came to.
        of_refused: What to say after an error, which so far is a clear one.
    """

    order: dict[str, Any]
    of_done: Callable[[Any, str], Verdict]
    of_refused: Callable[[str], Verdict] = lambda _: (Outcome.REFUSED, "")


def _same(found: Any, wanted: Any) -> Verdict:
    return RIGHT if found == wanted else (Outcome.SILENT, f"{str(found)[:300]} instead of {str(wanted)[:100]}")


def _same_lines(found: list[str], wanted: list[str]) -> Verdict:
    if Counter(found) != Counter(wanted):
        lack, more = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
        return Outcome.SILENT, f"{lack.total()} lines lack, {more.total()} too many"
    return RIGHT


def _logs(world: World, _: random.Random, *, follow: bool) -> Deed:
    order = {"do": "logs", "name": "packed", "follow": follow}
    return Deed(order, lambda lines, _: _same_lines(lines, world.lines))


def _live(world: World, _: random.Random) -> Deed:
    name = world.fresh("live")
    start_job(world.account, name, _LIVES)
    wanted = [f"line {i}" for i in range(1, 13)]
    return Deed({"do": "logs", "name": name, "follow": True}, lambda lines, _: _same_lines(lines, wanted))


def _wait(world: World, _: random.Random) -> Deed:
    def of_done(uri: str, said: str) -> Verdict:
        own = [line for line in said.splitlines() if line in world.lines]
        right = _same(uri, f"s3://{world.account.bucket}/jobs/packed/output/model.tar.gz")
        return _same_lines(own, world.lines) if right == RIGHT else right

    return Deed({"do": "wait", "name": "packed", "show_logs": True}, of_done)


def _metrics(world: World, _: random.Random) -> Deed:
    return Deed({"do": "metrics", "name": "packed"}, lambda rows, _: _same(rows, world.rows))


def _download(world: World, _: random.Random, *, name: str) -> Deed:
    folder = world.folder / world.fresh("download") / "model"

    def found() -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def leavings() -> list[str]:
        return [path.name for path in folder.parent.glob("*") if path != folder] if folder.parent.exists() else []

    def of_done(_: str, __: str) -> Verdict:
        wrong = [name for name in found().keys() | world.files.keys() if found().get(name) != world.files.get(name)]
        if wrong or leavings():
            return Outcome.SILENT, f"wrong: {wrong}; left: {leavings()}"
        return RIGHT

    def of_refused(_: str) -> Verdict:
        wrong = [name for name, data in found().items() if data != world.files.get(name)]
        if wrong or leavings():
            return Outcome.SILENT, f"not whole: {wrong}; left: {leavings()}"
        return Outcome.REFUSED, ""

    return Deed({"do": "download", "name": name, "directory": str(folder), "what": "model"}, of_done, of_refused)


def _stop(world: World, _: random.Random) -> Deed:
    name = world.fresh("stopped")
    start_job(world.account, name, "trap 'exit 0' TERM; while true; do sleep 0.1; done")
    world.account.until(name, "Training")
    return Deed({"do": "stop", "name": name}, lambda status, _: _same((status, _status(world, name)), ("Stopped",) * 2))


def _status(world: World, name: str) -> str:
    return str(world.account.job(name)["TrainingJobStatus"])


def _attach(world: World, _: random.Random) -> Deed:
    return Deed({"do": "attach", "name": "packed"}, lambda status, _: _same(status, "Completed"))


def _doctor(world: World, _: random.Random) -> Deed:
    words = ["doctor", "--json", "--instance-type", "ml.m5.large", "--bucket", world.account.bucket]

    def of_done(came: list[Any], said: str) -> Verdict:
        status, shown = came
        if status not in (0, 1):
            return Outcome.LOST, f"exit {status}: {said}"
        checks = {check["subject"]: check for check in json.loads(shown)}
        bad = [check for check in checks.values() if check["state"] in ("problem", "warning") and not check["fix"]]
        if bad:
            return Outcome.LOST, f"no fix: {bad}"
        return RIGHT if status == 0 else (Outcome.REFUSED, "")

    return Deed({"do": "command", "words": words}, of_done)


def _command(world: World, draw: random.Random) -> Deed:
    verb = draw.choice(["status", "logs", "metrics", "jobs"])
    words = [verb, "packed"] if verb != "jobs" else [verb, "--limit", "5", "--output-dir", str(world.folder / "none")]

    def of_done(came: list[Any], said: str) -> Verdict:
        status, shown = came
        if status:
            is_clear = status in (1, 2) and "fix:" in said and "Traceback" not in said
            return (Outcome.REFUSED, "") if is_clear else (Outcome.LOST, f"exit {status}: {said}")
        if verb == "logs":
            return _same_lines(shown.splitlines(), world.lines)
        if verb == "jobs":
            is_right = "packed" in shown or "are not shown" in said
        else:
            is_right = ("Completed" if verb == "status" else "0.4") in shown
        return RIGHT if is_right else (Outcome.SILENT, f"{verb}: {shown[:300]} {said[:300]}")

    return Deed({"do": "command", "words": words}, of_done)


# --- launches ---------------------------------------------------------------------------------------------------------


@dataclass
class Launch:
    """A launch of a source and of data that S3 does not have yet."""

    world: World
    name: str
    source: Path
    data: Path

    @staticmethod
    def make(world: World, draw: random.Random) -> Launch:
        name = world.fresh("launch")
        source, data = world.folder / name / "source", world.folder / name / "data"
        for folder in (source, data):
            folder.mkdir(parents=True)
        (source / "train.py").write_text(f"print('{name}')\n")
        (source / "more.py").write_bytes(b"#" * draw.randrange(1, 20_000))
        (data / "small").write_text(name)
        (data / "empty").write_text("")
        (data / "big").write_bytes(draw.randbytes(5_300_000))
        world.account.settings(starting=600.0)
        return Launch(world, name, source, data)

    def order(self, name: str) -> dict[str, Any]:
        given = {"role": self.world.account.role, "bucket": self.world.account.bucket, "instance_type": "ml.m5.large"}
        return {
            "do": "launch",
            "name": name,
            "source_dir": str(self.source),
            "inputs": {"train": str(self.data)},
            **given,
        }

    def of_done(self, name: str, _: str = "") -> Verdict:
        """Compare the job and all that it names with what was launched."""
        jobs = self.jobs()
        if jobs != [name]:
            return Outcome.SILENT, f"jobs: {jobs}"
        wrong = self._wrong(name)
        return (Outcome.SILENT, f"other bytes: {wrong}") if wrong else RIGHT

    def of_refused(self, text: str) -> Verdict:
        """Let there be a job only if the error says that there may, and nothing that a second launch stumbles on."""
        jobs = self.jobs()
        if jobs and not ("is not known" in text or f"smkit attach {jobs[0]}" in text):
            return Outcome.LOST, f"job {jobs} runs, but: {text}"
        if wrong := [wrong for name in jobs for wrong in self._wrong(name)]:
            return Outcome.SILENT, f"other bytes: {wrong}"
        self._stop_jobs()
        plan(self.world.proxy, kind="")
        again = self.world.client.do({**self.order(f"{self.name}-again"), "endpoint": self.world.proxy})
        if "done" not in again:
            return Outcome.LOST, f"after {text}, a second launch: {again}"
        wrong = self._wrong(again["done"])
        return (Outcome.SILENT, f"the second launch used: {wrong}") if wrong else (Outcome.REFUSED, "")

    def jobs(self) -> list[str]:
        listed = self.world.account.client("sagemaker").list_training_jobs(NameContains=self.name, MaxResults=50)
        return [job["TrainingJobName"] for job in listed["TrainingJobSummaries"] if _is_of(job, self.name)]

    def uploads_left(self) -> int:
        """How many uploads in parts S3 keeps of this launch, which cost money."""
        account = self.world.account
        return len(account.client("s3").list_multipart_uploads(Bucket=account.bucket).get("Uploads", ()))

    def clean(self) -> None:
        account = self.world.account
        self._stop_jobs()
        s3, place = account.client("s3"), {"Bucket": account.bucket}
        for key in account.objects("smkit/"):
            s3.delete_object(Key=key, **place)
        for upload in s3.list_multipart_uploads(**place).get("Uploads", ()):
            s3.abort_multipart_upload(Key=upload["Key"], UploadId=upload["UploadId"], **place)
        account.settings(starting=0.0)

    def _stop_jobs(self) -> None:
        client = self.world.account.client("sagemaker")
        for name in self.jobs():
            if _status(self.world, name) == "InProgress":
                client.stop_training_job(TrainingJobName=name)

    def _wrong(self, name: str) -> list[str]:
        account, job = self.world.account, self.world.account.job(name)
        objects, start = account.objects("smkit/"), f"s3://{account.bucket}/"
        packed = objects.get(json.loads(job["HyperParameters"]["sagemaker_submit_directory"]).removeprefix(start))
        if packed is None:
            return ["there is no source"]
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            code = {item.name: archive.extractfile(item).read() for item in archive if item.isfile()}  # type: ignore[union-attr]
        there = job["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"].removeprefix(start)
        data = {key.removeprefix(there): body for key, body in objects.items() if key.startswith(there)}
        wrong = []
        for found, folder in ((code, self.source), (data, self.data)):
            wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
            wrong += [each for each in found.keys() | wanted.keys() if found.get(each) != wanted.get(each)]
        return wrong


def _is_of(job: dict[str, Any], name: str) -> bool:
    return job["TrainingJobName"] in (name, f"{name}-again")


def _launch(world: World, draw: random.Random) -> Deed:
    launch = Launch.make(world, draw)
    return Deed(launch.order(launch.name), launch.of_done, launch.of_refused)


DEEDS: dict[str, Callable[[World, random.Random], Deed]] = {
    "launch": _launch,
    "wait": _wait,
    "logs": lambda world, draw: _logs(world, draw, follow=True),
    "logs so far": lambda world, draw: _logs(world, draw, follow=False),
    "logs live": _live,
    "metrics": _metrics,
    "download packed": lambda world, draw: _download(world, draw, name="packed"),
    "download plain": lambda world, draw: _download(world, draw, name="plain"),
    "stop": _stop,
    "attach": _attach,
    "doctor": _doctor,
    "command": _command,
}
_TIMES = (1, 1, 2, 3, 10, 10**6)
_WAITING = ("wait", "logs", "logs live", "stop", "command")
"""They go on asking as long as an outage lasts, so that no outage lasts for ever."""


# --- the campaign -----------------------------------------------------------------------------------------------------


def attack(campaign: Campaign) -> None:
    """Let each kind of fault meet everything that smkit does with AWS."""
    with world(campaign.folder) as made:
        attack_each_deed(campaign, made, KINDS)
        for what, end in (("launcher", _ended_launch), ("downloader", _ended_download)):
            for signal_, how in ((signal.SIGKILL, "killed"), (signal.SIGINT, "interrupted")):
                draw = campaign.draws(f"{what} {how}")
                for number in range(campaign.rounds):
                    outcome, note = end(made, draw, signal_)
                    campaign.tally.count(f"{what} {how}", "smkit", outcome, f"round {number}: {note}")
        attack_at_true_speed(campaign, made)
        if "boto3" in campaign.subjects:
            _attack_boto3(campaign, made)


def attack_each_deed(campaign: Campaign, world: World, kinds: Iterable[str], deeds: Iterable[str] = ()) -> None:
    """Let each of these kinds of fault meet these deeds, all by default, in turn."""
    usual = {name: _requests_of(world, name, campaign.draws(name)) for name in deeds or DEEDS}
    for kind in kinds:
        draw = campaign.draws(kind)
        for number in range(campaign.rounds):
            _round(campaign, world, kind, _deed_of(kind, number, usual, draw), usual, draw, number)


_AT_TRUE_SPEED = (
    ("hang", "launch", "HeadObject"),
    ("hang", "launch", "UploadPart"),
    ("503 SlowDown", "logs so far", "GetLogEvents"),
    ("500", "launch", "PutObject"),
    ("reset before the body", "metrics", "DescribeLogStreams"),
    ("slow reply", "download packed", "GetObject"),
    ("hang in the reply", "download plain", "GetObject"),
    ("garbage for an answer", "attach", "DescribeTrainingJob"),
)


def attack_at_true_speed(campaign: Campaign, world: World) -> None:
    """Let faults that last for ever meet a client that takes the time that it says: an error comes within a minute."""
    world.client.end()
    hurried, world.client = world.client, Client(world.account, 1.0)
    for number in range(campaign.rounds // 10):
        for kind, name, action in _AT_TRUE_SPEED:
            draw = campaign.draws(f"{kind} {name} {number}")
            deed = DEEDS[name](world, draw)
            plan(world.proxy, kind=kind, times=10**6, actions=action, seed=number)
            outcome, note = _verdict(
                deed, came := world.client.do({**deed.order, "endpoint": world.proxy}, patience=90.0)
            )
            plan(world.proxy, kind="")
            seconds = came.get("seconds", 90.0)
            if outcome in (Outcome.SURVIVED, Outcome.REFUSED) and seconds > ANSWER_SECONDS:
                outcome, note = Outcome.LOST, f"an answer after {seconds} s"
            place = f"{name}, {action}: {note}"
            campaign.tally.count("for ever, at true speed", "smkit", outcome, f"{kind}, {place}")
            _log(world, f"{kind}, at true speed", place, outcome, note, came)
            _forget_launch(world)
    world.client.end()
    world.client = hurried


def _requests_of(world: World, name: str, draw: random.Random) -> list[str]:
    """Return the actions of the requests that a deed sends when nothing is wrong."""
    deed = DEEDS[name](world, draw)
    plan(world.proxy, kind="")
    came = world.client.do({**deed.order, "endpoint": world.proxy})
    assert _verdict(deed, came)[0] is Outcome.SURVIVED, f"{name} without a fault: {came}"
    seen = plan(world.proxy, kind="")["seen"]
    _forget_launch(world)
    return [action for action, _ in seen]


def _deed_of(kind: str, number: int, usual: dict[str, list[str]], draw: random.Random) -> str:
    """Return what to do in a round: all in turn that send a request that this kind can meet."""
    able = [name for name, sent in usual.items() if any(re.fullmatch(_ONLY_OF.get(kind, ".*"), each) for each in sent)]
    if kind in ("events held back",):
        able = [name for name in able if name in ("logs", "wait", "logs live")]
    if kind in _WEIGHTED and number % 2:
        return "launch"
    return able[(number + draw.randrange(len(able))) % len(able)]


def _round(
    campaign: Campaign,
    world: World,
    kind: str,
    name: str,
    usual: dict[str, list[str]],
    draw: random.Random,
    number: int,
) -> None:
    pattern = _ONLY_OF.get(kind, ".*")
    sent = [action for action in usual[name] if re.fullmatch(pattern, action)]
    first, times, seed = draw.randrange(len(sent)), draw.choice(_TIMES), draw.randrange(10**6)
    times = min(times, 40) if name in _WAITING else times
    if kind in _WEIGHTED and name == "launch" and draw.random() < 0.6:
        pattern, first = "CreateTrainingJob", 0
    deed = DEEDS[name](world, draw)
    plan(world.proxy, kind=kind, first=first, times=times, actions=pattern, seed=seed)
    came = world.client.do({**deed.order, "endpoint": world.proxy, "seed": seed})
    told = plan(world.proxy, kind="")
    outcome, note = _verdict(deed, came)
    if kind in _SURE and outcome is Outcome.SILENT:
        outcome = Outcome.SURVIVED
    place = f"{name}, {times} x {told['met']} from request {first}, seed {seed}"
    campaign.tally.count(kind, "smkit", outcome, f"round {number}: {place}: {note}")
    _log(world, kind, place, outcome, note, came)
    _forget_launch(world)


def _log(world: World, kind: str, place: str, outcome: Outcome, note: str, came: dict[str, Any]) -> None:
    with (world.folder / "rounds.jsonl").open("a") as file:
        row = {"kind": kind, "place": place, "outcome": outcome.value, "note": note}
        file.write(json.dumps(row | {name: str(value)[:2000] for name, value in came.items()}) + "\n")


def _verdict(deed: Deed, came: dict[str, Any]) -> Verdict:
    if "hung" in came:
        return Outcome.LOST, f"no answer in {came['hung']} s"
    if "broke" in came:
        return Outcome.LOST, came["broke"]
    if "refused" in came:
        if "fix:" not in came["refused"]:
            return Outcome.LOST, came["refused"]
        return deed.of_refused(came["refused"])
    return deed.of_done(came["done"], came["said"])


def _forget_launch(world: World) -> None:
    Launch(world, "launch", world.folder, world.folder).clean()


def _end_at_random(world: World, order: dict[str, Any], draw: random.Random, signal_: signal.Signals) -> dict[str, Any]:
    """Send a signal to the client when it has sent a random number of requests; return what it says, if anything."""
    plan(world.proxy, kind="")
    usual = world.client.do({"do": "attach", "name": "packed", "endpoint": world.proxy})
    assert "done" in usual, usual
    world.account.settings(latency=0.03)
    plan(world.proxy, kind="")
    process, wanted = world.client.process, draw.randrange(12)
    world.client.send({**order, "endpoint": world.proxy})
    deadline = time.monotonic() + 5
    while len(plan(world.proxy)["seen"]) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 0.1))
    process.send_signal(signal_)
    came = world.client.answer(2.0 if signal_ == signal.SIGKILL else ANSWER_SECONDS) or {}
    world.account.settings(latency=0.0)
    if signal_ == signal.SIGKILL:
        world.client.end()
    elif not came:
        world.client.end()
        return {"hung": ANSWER_SECONDS}
    return came


def _ended_launch(world: World, draw: random.Random, signal_: signal.Signals) -> Verdict:
    launch = Launch.make(world, draw)
    came = _end_at_random(world, launch.order(launch.name), draw, signal_)
    try:
        if "hung" in came:
            return Outcome.LOST, "Ctrl-C is not heard"
        if "done" in came:
            return launch.of_done(came["done"])
        if "broke" in came and "KeyboardInterrupt" not in came["broke"]:
            return Outcome.LOST, came["broke"]
        if signal_ == signal.SIGINT and (left := launch.uploads_left()):
            return Outcome.SILENT, f"{left} uploads in parts are left"
        # Who is killed says nothing; what it leaves must do for the next launch.
        return launch.of_refused(came.get("said", "") if signal_ == signal.SIGINT else "is not known")
    finally:
        _forget_launch(world)


def _ended_download(world: World, draw: random.Random, signal_: signal.Signals) -> Verdict:
    deed = _download(world, draw, name=draw.choice(["packed", "plain"]))
    came = _end_at_random(world, deed.order, draw, signal_)
    if "hung" in came:
        return Outcome.LOST, "Ctrl-C is not heard"
    if "done" in came:
        return deed.of_done(came["done"], "")
    if "broke" in came and "KeyboardInterrupt" not in came["broke"]:
        return Outcome.LOST, came["broke"]
    outcome, note = deed.of_refused("")
    if signal_ == signal.SIGKILL and note.startswith("not whole: []"):
        outcome = Outcome.REFUSED  # a killed process cannot take its temporary folder away
    if outcome is not Outcome.REFUSED:
        return outcome, note
    again = world.client.do({**deed.order, "do": "download", "endpoint": world.proxy})
    if "done" not in again:
        return Outcome.LOST, f"a second download: {again}"
    outcome, note = deed.of_done(again["done"], "")
    is_whole = outcome is Outcome.SURVIVED or (signal_ == signal.SIGKILL and note.startswith("wrong: []"))
    return (Outcome.REFUSED, "") if is_whole else (outcome, note)


# --- boto3 alone ------------------------------------------------------------------------------------------------------

_FOR_BOTO3 = {
    "launch": (
        *("500", "503 SlowDown", "throttled", "reset before the body", "reset in the body", "reply lost"),
        *("bit flipped in what is put", "hang after the work", "delivered twice", "delivered late"),
        *("garbage for an answer", "error in a 200"),
    ),
    "download": (
        *("503 SlowDown", "reset in the reply", "reply cut off", "reply shortened", "bit flipped in an object"),
        *("wrong tag and checksum", "slow reply", "hang in the reply", "garbage for an answer"),
    ),
    "logs": ("503 SlowDown", "throttled", "reply cut off", "garbage for an answer", "error in a 200"),
}
_SLOW_ROUNDS = 2
"""Of what ends in a time-out: boto3's own are minutes."""


def _attack_boto3(campaign: Campaign, world: World) -> None:
    world.client.end()
    hurried, world.client = world.client, Client(world.account, 1.0)
    for what, kinds in _FOR_BOTO3.items():
        for kind in kinds:
            is_slow = kind.startswith(("hang", "slow"))
            for number in range(min(_SLOW_ROUNDS, campaign.rounds) if is_slow else campaign.rounds):
                _boto3_round(campaign, world, kind, what, number)
    world.client.end()
    world.client = hurried


def _boto3_round(campaign: Campaign, world: World, kind: str, what: str, number: int) -> None:
    draw = campaign.draws(f"boto3 {kind} {what} {number}")
    deed = {"launch": _boto3_launch, "download": _boto3_download, "logs": _boto3_logs}[what](world, draw)
    actions = _ONLY_OF.get(kind, {"launch": ".*", "download": "GetObject", "logs": ".*Log.*"}[what])
    times = draw.choice(_TIMES)
    if what == "launch" and kind in _WEIGHTED and number % 2:
        actions = "CreateTrainingJob"
    plan(world.proxy, kind=kind, first=draw.randrange(2), times=times, actions=actions, seed=number)
    came = world.client.do({**deed.order, "endpoint": world.proxy})
    told = plan(world.proxy, kind="")
    if "refused" in came:
        outcome, note = deed.of_refused(came["refused"])
    else:
        outcome, note = _verdict(deed, came)
    place = f"{what}, {times} x {told['met']}"
    campaign.tally.count(kind, "boto3", outcome, f"round {number}: {place}: {note}")
    _log(world, f"boto3: {kind}", place, outcome, note, came)
    _forget_launch(world)


def _boto3_launch(world: World, draw: random.Random) -> Deed:
    launch, key = Launch.make(world, draw), f"smkit/{world.fresh('boto3')}"
    data, account = launch.data / "big", world.account
    request = {
        "TrainingJobName": launch.name,
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "RoleArn": account.role,
        "OutputDataConfig": {"S3OutputPath": f"s3://{account.bucket}/jobs"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 300},
    }

    def of_done(_: str, __: str) -> Verdict:
        if account.objects("smkit/").get(key) != data.read_bytes():
            return Outcome.SILENT, "other bytes"
        return _same(launch.jobs(), [launch.name])

    def of_refused(text: str) -> Verdict:
        runs = launch.jobs()
        return (Outcome.LOST, f"{runs} runs, but: {text[:200]}") if runs else (Outcome.REFUSED, "")

    order = {"do": "boto3_launch", "file": str(data), "bucket": account.bucket, "key": key, "request": request}
    return Deed(order, of_done, of_refused)


def _boto3_download(world: World, _: random.Random) -> Deed:
    file = world.folder / world.fresh("boto3")

    def right() -> bool:
        return file.exists() and file.read_bytes() == world.files["big"]

    order = {"do": "boto3_download", "bucket": world.account.bucket, "file": str(file)}
    return Deed(
        {**order, "key": "jobs/plain/output/model/big"},
        lambda _, __: RIGHT if right() else (Outcome.SILENT, "other bytes"),
        lambda _: (Outcome.LOST, "half a file") if file.exists() and not right() else (Outcome.REFUSED, ""),
    )


def _boto3_logs(world: World, _: random.Random) -> Deed:
    return Deed({"do": "boto3_logs", "name": "packed"}, lambda lines, _: _same_lines(lines, world.lines))
