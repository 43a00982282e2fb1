"""A process that does with smkit, or with boto3 alone, what it is told: `python -m torture.service_client SPEED`.

Each line of standard input is one thing to do, each line of standard output what came of it: it was done, it was
refused with an error of the subject's own, or it broke. Waiting is quicker here than it says: pauses, and the clock
that they are measured by, run `SPEED` times as fast, and time-outs up to five times. It knows no fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_TIME_OUT_SPEED = 5.0
PART_BYTES = 5 * 1024 * 1024
"""S3's smallest part, so that a file of a few megabytes goes up in several."""


def main() -> None:
    """Do one thing after the other, until standard input ends."""
    told = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    # Ctrl-C is meant for what is being done, also where a shell that starts this in the background has it ignored.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    speed = float(sys.argv[1])
    _hurry(speed)
    print("ready", file=told, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        random.seed(order.pop("seed", 0))
        print(json.dumps(_came_of(order)), file=told, flush=True)


def _hurry(speed: float) -> None:
    from smkit.cloud import aws, storage

    storage.PART_BYTES = PART_BYTES
    if speed != 1:
        from botocore.retries.bucket import Clock

        real_sleep, real_monotonic = time.sleep, time.monotonic
        Clock.current_time = lambda _: real_monotonic() * speed
        time.sleep = lambda seconds: real_sleep(seconds / speed)
        time.monotonic = lambda: real_monotonic() * speed
        real = aws.TimeOuts()
        # A machine that is busy takes its time itself.
        slower = min(speed, _TIME_OUT_SPEED)
        times = dataclasses.replace(real, connect=real.connect / slower, read=real.read / slower)
        aws.TimeOuts = functools.partial(dataclasses.replace, times)  # type: ignore[misc, assignment]


def _came_of(order: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    said = io.StringIO()
    # An error of the subject's own is an answer, whatever it says.
    own = ("boto3", "botocore", "s3transfer") if order["do"].startswith("boto3") else ("smkit.errors", "smkit.watching")
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.redirect_stderr(said):
            came: dict[str, Any] = {"done": DEEDS[order.pop("do")](**order)}
    except BaseException as error:
        if type(error).__module__.startswith(own):
            came = {"refused": str(error), "class": type(error).__name__}
        else:
            came = {"broke": traceback.format_exc()}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return came | {"said": said.getvalue(), "seconds": round(time.perf_counter() - began, 2)}


# --- smkit ------------------------------------------------------------------------------------------------------------


@functools.cache
def _session(endpoint: str) -> Any:
    """One session for all that is done at one address: it reads the models of the services once."""
    import os

    import boto3

    os.environ["AWS_ENDPOINT_URL"] = endpoint
    return boto3.Session()


def _attach(endpoint: str, name: str) -> Any:
    import smkit

    job = smkit.attach(name, session=_session(endpoint))
    job.service.poll_seconds = 0.3
    return job


def launch(endpoint: str, **arguments: Any) -> str:
    import smkit

    job = smkit.launch("train.py", session=_session(endpoint), **arguments)
    return str(job.name)


def logs(endpoint: str, name: str, *, follow: bool) -> list[str]:
    return [str(line) for line in _attach(endpoint, name).logs(follow=follow)]


def wait(endpoint: str, name: str, *, show_logs: bool) -> str:
    return str(_attach(endpoint, name).wait(show_logs=show_logs).model_uri)


def metrics(endpoint: str, name: str) -> list[dict[str, Any]]:
    return [dict(row) for row in _attach(endpoint, name).metrics().rows]


def download(endpoint: str, name: str, directory: str, what: str) -> str:
    return str(_attach(endpoint, name).download(Path(directory), what=what))


def stop(endpoint: str, name: str) -> str:
    job = _attach(endpoint, name)
    job.stop()
    return str(job.status)


def attach(endpoint: str, name: str) -> str:
    return str(_attach(endpoint, name).status)


def command(endpoint: str, words: list[str]) -> list[Any]:
    """Run the command line in this process: its exit status and standard output."""
    from smkit.cli import main as smkit_main

    _session(endpoint)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        status = smkit_main(words)
    return [status, shown.getvalue()]


# --- boto3 alone ------------------------------------------------------------------------------------------------------


@functools.cache
def _client(endpoint: str, service: str) -> Any:
    return _session(endpoint).client(service)


def boto3_launch(endpoint: str, file: str, bucket: str, key: str, request: dict[str, Any]) -> str:
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    _client(endpoint, "s3").upload_file(file, bucket, key, Config=config)
    return str(_client(endpoint, "sagemaker").create_training_job(**request)["TrainingJobArn"])


def boto3_download(endpoint: str, bucket: str, key: str, file: str) -> str:
    _client(endpoint, "s3").download_file(bucket, key, file)
    return file


def boto3_logs(endpoint: str, name: str) -> list[str]:
    group = "/aws/sagemaker/TrainingJobs"
    client = _client(endpoint, "logs")
    pages = client.get_paginator("describe_log_streams").paginate(logGroupName=group, logStreamNamePrefix=f"{name}/")
    lines = []
    for stream in [item["logStreamName"] for page in pages for item in page["logStreams"]]:
        # CloudWatch Logs has a paginator for filter_log_events alone.
        found = client.get_paginator("filter_log_events").paginate(logGroupName=group, logStreamNames=[stream])
        lines += [event["message"] for page in found for event in page["events"]]
    return lines


DEEDS: dict[str, Any] = {
    **{deed.__name__: deed for deed in (launch, logs, wait, metrics, download, stop, attach, command)},
    **{deed.__name__: deed for deed in (boto3_launch, boto3_download, boto3_logs)},
}

if __name__ == "__main__":
    main()
