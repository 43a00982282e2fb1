"""Commands on jobs that are there: the list of them, and what one does with one of them.

Each takes its parsed arguments and returns its exit status. What is shown of a job comes from its description, in the
words of DescribeTrainingJob, so that this room need not know where the job runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from smkit import report
from smkit.commands import screens
from smkit.errors import ConfigurationError, JobError
from smkit.job import Job
from smkit.local import LocalJobs
from smkit.log_view import Paint


def show_jobs(arguments: argparse.Namespace) -> int:
    """Show the latest jobs, those on this machine and those on SageMaker together."""
    if arguments.limit < 1:
        raise ConfigurationError(f"--limit {arguments.limit}", where="smkit jobs", fix="give 1 or more")
    root = Path(arguments.output_dir).expanduser()
    found = [_summary(job) for job in LocalJobs(root).list_jobs(limit=arguments.limit)]
    if not arguments.local:
        found += _jobs_on_sagemaker(arguments)
    found.sort(key=lambda job: job["started"] or datetime.max.replace(tzinfo=timezone.utc), reverse=True)
    found = found[: arguments.limit]
    if arguments.json:
        screens.write_json(found)
    elif found:
        head = ("job", "status", "where", "started", "took")
        screens.write(screens.table(head, [_row(job) for job in found]))
    else:
        report.say(f"there is no job; 'smkit launch train.py' starts one, and local ones are looked for in {root}")
    return 0


def _jobs_on_sagemaker(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the jobs on SageMaker; why there are none to be seen is an error only to somebody who named an account."""
    from smkit.cloud.aws import connect
    from smkit.cloud.jobs import SageMakerJobs

    try:
        clients = connect(profile_name=arguments.profile_name, region=arguments.region)
        return [_summary(job) for job in SageMakerJobs(clients).list_jobs(limit=arguments.limit)]
    except (ConfigurationError, JobError) as error:
        if arguments.profile_name or arguments.region:
            raise
        report.say(f"jobs on SageMaker are not shown: {error.what}\n  fix: {screens.as_options(error.fix)}; or --local")
        return []


def _summary(description: Mapping[str, Any]) -> dict[str, Any]:
    arn = str(description.get("TrainingJobArn", ""))
    started = description.get("TrainingStartTime") or description.get("CreationTime")
    ended = description.get("TrainingEndTime")
    seconds = None if started is None else ((ended or datetime.now(timezone.utc)) - started).total_seconds()
    return {
        "name": description["TrainingJobName"],
        "status": description["TrainingJobStatus"],
        "secondary_status": description.get("SecondaryStatus", ""),
        "place": arn.split(":")[3] if arn else "local",
        "started": started,
        "ended": ended,
        "seconds": None if seconds is None else round(max(0.0, seconds)),
    }


def _row(job: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        *(job["name"], job["status"], job["place"]),
        *(screens.clock(job["started"]), screens.duration(job["seconds"])),
    )


def show_status(arguments: argparse.Namespace) -> int:
    """Show what is known of a job."""
    job = _job(arguments)
    description = job.describe()
    cost = job.cost()
    document = _summary(description) | {
        "instance_type": cost.instance_type,
        "instance_count": cost.instance_count,
        "billable_seconds": cost.billable_seconds,
        "dollars": cost.dollars,
        "model_uri": description.get("ModelArtifacts", {}).get("S3ModelArtifacts"),
        "log": job.service.log_location(job.name),
        "failure_reason": description.get("FailureReason"),
    }
    if arguments.json:
        screens.write_json(document)
    else:
        screens.write(screens.facts(_status_rows(document, str(cost))))
    return 0


def _status_rows(document: Mapping[str, Any], cost: str) -> Iterator[tuple[str, str]]:
    yield "job", document["name"]
    yield "status", document["status"]
    if document["secondary_status"] != document["status"]:
        yield "", document["secondary_status"]
    region = "" if document["place"] == "local" else f" in {document['place']}"
    yield "runs on", f"{document['instance_count']} x {document['instance_type']}{region}"
    yield "started", screens.clock(document["started"])
    yield "took", screens.duration(document["seconds"])
    yield "cost", cost
    yield "model", document["model_uri"] or ""
    yield "log", document["log"]
    yield "failed by", document["failure_reason"] or ""


def show_logs(arguments: argparse.Namespace) -> int:
    """Show a job's log."""
    lines = _job(arguments).logs(follow=not arguments.no_follow)
    if arguments.json:
        screens.write_json({"name": arguments.name, "lines": list(lines)})
        return 0
    paint = Paint(sys.stdout)
    for line in lines:
        screens.write(paint.line(line))
        # Who follows a log through a pipe wants each line when it is there.
        screens.flush()
    return 0


def attach_to(arguments: argparse.Namespace) -> int:
    """Follow a job to its end."""
    follow(_job(arguments), as_json=arguments.json)
    return 0


def follow(job: Job, *, as_json: bool) -> None:
    """Show a job's log until it ends, and as JSON what has become of it, whatever that is.

    Raises:
        JobError: It failed or was stopped.
    """
    try:
        job.wait()
    except JobError:
        _show_end(job, as_json=as_json)
        raise
    _show_end(job, as_json=as_json)


def _show_end(job: Job, *, as_json: bool) -> None:
    if as_json:
        screens.write_json({"name": job.name, "status": job.status, "failure_reason": job.failure_reason})


def stop(arguments: argparse.Namespace) -> int:
    """Stop a job, and say what has become of it."""
    job = _job(arguments)
    job.stop()
    status = job.status
    if arguments.json:
        screens.write_json({"name": job.name, "status": status})
    else:
        screens.write(screens.facts([("job", job.name), ("status", status)]))
    return 0


def show_metrics(arguments: argparse.Namespace) -> int:
    """Show the metrics of a job, and write them for TensorBoard where that is asked for."""
    metrics = _job(arguments).metrics()
    folder = metrics.write_tensorboard(arguments.tensorboard) if arguments.tensorboard else None
    if arguments.json:
        # JSON has no NaN and no infinity, and most that read it stop at either.
        rows = [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in metrics.rows]
        screens.write_json({"name": arguments.name, "rows": rows, "tensorboard": folder})
        return 0
    screens.write(str(metrics))
    if folder:
        report.say(f"written for TensorBoard: tensorboard --logdir {folder}")
    return 0


def download(arguments: argparse.Namespace) -> int:
    """Copy what a job has left into a folder."""
    folder = _job(arguments).download(arguments.directory, what=arguments.what)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if arguments.json:
        listed = [{"path": str(path.relative_to(folder)), "size": path.stat().st_size} for path in files]
        screens.write_json({"name": arguments.name, "folder": folder, "files": listed})
        return 0
    rows = [(str(path.relative_to(folder)), report.amount(path.stat().st_size)) for path in files]
    screens.write(screens.table(("file", "size"), rows))
    report.say(f"{arguments.what} of job '{arguments.name}' is in {folder}")
    return 0


def _job(arguments: argparse.Namespace) -> Job:
    from smkit.launcher import attach

    return attach(
        arguments.name,
        profile_name=arguments.profile_name,
        region=arguments.region,
        output_dir=arguments.output_dir,
    )
