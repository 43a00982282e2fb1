"""The whole public face of the cloud, once through, on a SageMaker that runs the jobs; with secrets planted everywhere.

What came of it is kept by the place that it came out of (a sink): every output, every file, every request.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import random
import subprocess
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sagemaker.fixture import ROLE, SageMaker, start_server
from sagemaker.wire import Request

import smkit
from smkit.cli import main

CANARIES = {
    name: f"c4nary{number}Zk39fQp2LmX81"
    for number, name in enumerate(
        [
            *("AWS secret key", "AWS session token", "token in the environment", "secret of a setting"),
            *("secret of a variable", "user of a git remote", "password of a git remote", "file that stays behind"),
            *("password of a proxy", "password of netrc", "value of a secret that is refused"),
            "argument of another program",
        ]
    )
}
_SCRIPT = """
import os, sys, time
from pathlib import Path
from pydantic import SecretStr
import smkit

class Settings(smkit.Hyperparameters):
    mode: str = "train"
    token: SecretStr = SecretStr("")

if __name__ == "__main__":
    context = smkit.TrainingContext.load(Settings)
    secret = smkit.read_secret("SERVICE_TOKEN")
    assert len(secret) > 10 and len(context.hp.token.get_secret_value()) > 10
    print(repr(context), str(context.hp), context.model_dump_json(), flush=True)
    print("[metrics] step=1 epoch=1 train/loss=0.5", flush=True)
    context.save_settings(context.model_dir)
    Path(context.output_data_dir, "plot.txt").write_text("a plot")
    Path(context.checkpoint_dir).mkdir(parents=True, exist_ok=True)
    (Path(context.checkpoint_dir) / "a").write_text("checkpoint")
    time.sleep(0.3)
    (Path(context.checkpoint_dir) / "a").unlink()
    if context.hp.mode == "fail":
        from smkit import report
        error = RuntimeError(f"401 for https://me:{secret}@host, token {context.hp.token.get_secret_value()!r}")
        sys.exit(report.end(error, program="train.py", output_dir=context.output_dir))
    if context.hp.mode == "long":
        time.sleep(60)
"""


class Tour:
    """What was seen on the way."""

    def __init__(self) -> None:
        self.sinks: dict[str, str] = {}
        self.requests: list[Request] = []
        self.of_doctor: list[Request] = []
        self.of_jobs: list[Request] = []
        self.of_service: list[Request] = []
        self.role = ROLE
        self.bucket = ""

    def keep(self, sink: str, *what: object) -> None:
        self.sinks[sink] = self.sinks.get(sink, "") + "\n".join(map(str, what))


def take(folder: Path) -> Tour:
    """Take the tour; in a full environment of its own, for the time that it lasts."""
    process, account = start_server(folder / "server")
    tour, before, cwd = Tour(), dict(os.environ), Path.cwd()
    try:
        account.start_afresh("somebodys-own")
        os.environ.update(_environment(account, folder))
        (folder / "work").mkdir()
        os.chdir(folder / "work")
        _plant(account, folder)
        account.hide("torch")
        with _watched(tour):
            _walk(tour, account, folder)
        _collect(tour, account, folder)
    finally:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(before)
        process.communicate(timeout=60)
    return tour


def _environment(account: SageMaker, folder: Path) -> dict[str, str]:
    return account.environment | {
        "AWS_SECRET_ACCESS_KEY": CANARIES["AWS secret key"],
        "AWS_SESSION_TOKEN": CANARIES["AWS session token"],
        "HF_TOKEN": CANARIES["token in the environment"],
        "HTTPS_PROXY": f"http://me:{CANARIES['password of a proxy']}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home/cache"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "SMKIT_ROLE": ROLE,
    }


def _plant(account: SageMaker, folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {CANARIES['password of netrc']}\n")
    code = Path("code")
    code.mkdir()
    (code / "train.py").write_text(textwrap.dedent(_SCRIPT))
    (code / ".env").write_text(f"KEY={CANARIES['file that stays behind']}\n")
    (code / ".smkitignore").write_text(".env\n")
    user, password = CANARIES["user of a git remote"], CANARIES["password of a git remote"]
    remote = f"https://{user}:{password}@git.corp/team/code?x=1"
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"], ["remote", "add", "origin", remote]):
        subprocess.run(
            ["git", "-C", "code", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True
        )
    with (code / "train.py").open("a") as script, (code / ".env").open("a") as secrets:
        script.write("# changed\n")
        secrets.write("# changed\n")
    Path("data").mkdir()
    Path("data/big.bin").write_bytes(random.Random(0).randbytes(33 * 2**20))
    for name in ("token-of-setting", "token-of-variable"):
        value = CANARIES["secret of a setting" if name == "token-of-setting" else "secret of a variable"]
        account.client("secretsmanager").create_secret(Name=name, SecretString=value)


@contextlib.contextmanager
def _watched(tour: Tour) -> Iterator[None]:
    """Keep what is written, logged and named in the list of processes."""
    out, error, log = io.StringIO(), io.StringIO(), io.StringIO()
    handler, root = logging.StreamHandler(log), logging.getLogger("smkit")
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    ended, seen = threading.Event(), set()

    def look() -> None:
        while not ended.wait(0.3):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            yield
    finally:
        ended.set()
        watcher.join()
        root.removeHandler(handler)
        root.setLevel(logging.NOTSET)
        tour.keep("standard output", out.getvalue())
        tour.keep("standard error", error.getvalue())
        tour.keep("the log of smkit at DEBUG", log.getvalue())
        tour.keep("the list of processes", *seen)


def _walk(tour: Tour, account: SageMaker, folder: Path) -> None:
    """Call all that is public and asks AWS something."""
    words: dict[str, Any] = {
        "source_dir": "code",
        "instance_type": "ml.m5.large",
        "role": ROLE,
        # Else what others change in smkit meanwhile would count as a change since the plan.
        "vendor": "none",
        "hyperparameters": {"token": "secretsmanager:token-of-setting"},
        "environment": {"SERVICE_TOKEN": "secretsmanager:token-of-variable"},
    }
    _be_refused(tour, words)
    plan = smkit.launch("train.py", dry_run=True, **words)
    tour.keep("the plan", repr(plan), plan, plan.estimate())
    tour.keep("the plan's request", json.dumps(plan.request), plan.files, plan.rows, plan.warnings)
    job = smkit.launch("train.py", inputs={"train": "data"}, **words)
    job.wait()
    failing = smkit.launch("train.py", **(words | {"hyperparameters": words["hyperparameters"] | {"mode": "fail"}}))
    try:
        failing.wait(show_logs=False)
    except smkit.JobError as error:
        tour.keep("the error of a failed job", str(error), repr(error))
    tour.keep("the failure reason", failing.failure_reason)
    long = smkit.launch("train.py", **(words | {"hyperparameters": words["hyperparameters"] | {"mode": "long"}}))
    account.until(long.name, "Training")
    long.stop()
    account.settings(lost_replies={"CreateTrainingJob": 1})
    smkit.launch("train.py", **(words | {"hyperparameters": words["hyperparameters"] | {"mode": "quick"}})).stop()
    tour.keep("a job", job, repr(job), job.status, job.model_uri, job.cost())
    tour.keep("a job's description", json.dumps(job.describe(), default=str))
    tour.keep("a job's log", *job.logs(follow=False), *failing.logs(follow=False))
    tour.keep("a job's metrics", job.metrics(), job.metrics().rows)
    for what in ("model", "output"):
        job.download(folder / "work/results" / what, what=what)
    _give_up_an_upload()
    for line in (f"status {job.name}", f"logs {job.name} --no-follow", "jobs", f"attach {job.name}"):
        tour.keep("the command line", line, _command(line))
    tour.keep("policies", *(_command(f"policy {name}") for name in ("job", "launching", "doctor")))
    tour.requests, tour.of_jobs = account.requests(), account.requests("job")
    account.forget_requests()
    tour.keep("the doctor", _command("doctor --json"), _command("doctor --instance-type ml.g5.xlarge"))
    tour.of_doctor = account.requests()
    tour.bucket = plan.request["OutputDataConfig"]["S3OutputPath"].split("/")[2]


def _be_refused(tour: Tour, words: Mapping[str, Any]) -> None:
    canary = CANARIES["value of a secret that is refused"]
    refused: list[dict[str, Any]] = [
        {"hyperparameters": {"token": canary}},
        {"hyperparameters": {"token": SecretStr(canary)}},
        {"environment": {"SERVICE_TOKEN": SecretStr(canary)}},
        {"hyperparameters": {"token": [canary]}},
        {"bucket": "No_Bucket", "hyperparameters": {"token": canary, "no_such": 1}},
    ]
    for change in refused:
        try:
            plan = smkit.launch("train.py", dry_run=True, **(words | change))
            tour.keep("what launch should have refused", canary, plan.request)
        except smkit.ConfigurationError as error:
            tour.keep("what launch refuses", str(error), repr(error), *error.problems)
    line = f"launch --source-dir code --instance-type ml.m5.large --max-hours x train.py --token {canary}"
    tour.keep("the command line that is refused", _command(line))


def _command(line: str) -> str:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        main(line.split())
    return out.getvalue() + error.getvalue()


def _give_up_an_upload() -> None:
    """Have an upload in parts fail on the way, so that it is given up."""
    from smkit.cloud.aws import connect
    from smkit.cloud.storage import Storage, Upload
    from smkit.contract import default_bucket

    clients = connect()

    def refuse() -> None:
        raise smkit.ConfigurationError("it has changed", where="a file", fix="launch again")

    path = Path("data/big.bin")
    for kind in ("source", "data"):
        upload = Upload(f"smkit/{kind}/given-up", path, path.stat().st_size, "0" * 64, refuse)
        with contextlib.suppress(smkit.SmkitError):
            Storage(clients, default_bucket(clients.region, clients.account), clients.account).upload(
                [upload], advance=lambda _: None
            )


def _collect(tour: Tour, account: SageMaker, folder: Path) -> None:
    shown = ("authorization", "x-amz-security-token")
    for request in [*tour.requests, *tour.of_doctor]:
        headers = {name: value for name, value in request.headers.items() if name not in shown}
        sink = "a request to S3" if request.service == "s3" else f"a request to {request.service}"
        tour.keep(sink, request.action, request.path, request.query, headers, request.parameters)
        if request.action == "CreateTrainingJob":
            tour.keep("CreateTrainingJob", request.parameters)
    for key, content in account.objects("smkit/", tour.bucket).items():
        text = gzip.decompress(content) if key.endswith(".gz") else content
        kind = "source" if "/source/" in key else "data" if "/data/" in key else key.rpartition("/")[2]
        if kind != "data":
            tour.keep(f"in S3: {kind}", key, text.decode(errors="replace"))
    cache = folder / "home/cache"
    for sink, place in (("what was downloaded", Path("results")), ("the cache of digests", cache)):
        for path in sorted(place.rglob("*")):
            if path.is_file():
                tour.keep(sink, path, path.read_bytes().decode(errors="replace"))
    left = [path for path in Path(tempfile.gettempdir()).glob("smkit-*") if path.is_file()]
    tour.keep("what is left in the temporary folder", *(path.read_bytes() for path in left))
