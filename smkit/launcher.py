"""launch and attach: the two ways to a job.

`launch` checks everything that can be checked here and reports all problems together; only then is anything made,
uploaded or started. This room does not know how a job is run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from smkit import argument_types, contract, estimator_words, local_plan
from smkit.errors import ConfigurationError, JobError
from smkit.inputs import Input
from smkit.job import Job
from smkit.launch_arguments import LaunchArguments, Vendor, absolute
from smkit.local import LocalJobs
from smkit.plan import Plan

if TYPE_CHECKING:
    from smkit.hyperparameters import Hyperparameters

_logger = logging.getLogger(__name__)
_METRICS = ("train/loss", "validation/loss", "validation/accuracy")


@overload
def launch(entry: str | Path, *, dry_run: Literal[True], **arguments: Any) -> Plan: ...
@overload
def launch(
    entry: str | Path,
    *,
    instance_type: str | Sequence[str],
    source_dir: str | Path = ...,
    instance_count: int = ...,
    processes_per_host: int | None = ...,
    inputs: Mapping[str, str | Path | Input] | None = ...,
    hyperparameters: Hyperparameters | Mapping[str, object] | None = ...,
    environment: Mapping[str, str] | None = ...,
    name: str | None = ...,
    role: str | None = ...,
    profile_name: str | None = ...,
    session: Any = ...,
    region: str | None = ...,
    bucket: str | None = ...,
    image_uri: str | None = ...,
    framework_version: str | None = ...,
    py_version: str | None = ...,
    spot: bool = ...,
    max_hours: float = ...,
    checkpoint_uri: str | None = ...,
    keep_alive_minutes: int = ...,
    retries: int = ...,
    graceful_stop: bool = ...,
    metrics: Sequence[str] = ...,
    tags: Mapping[str, str] | None = ...,
    vendor: Vendor = ...,
    allow_secrets: Sequence[str] = ...,
    request: Mapping[str, Any] | None = ...,
    output_dir: str | Path = ...,
    checkpoint_dir: str | Path | None = ...,
    wait: bool = ...,
    dry_run: Literal[False] = ...,
) -> Job: ...
def launch(
    entry: str | Path | None = None,
    *,
    instance_type: str | Sequence[str] = (),
    source_dir: str | Path = ".",
    instance_count: int = 1,
    processes_per_host: int | None = None,
    inputs: Mapping[str, str | Path | Input] | None = None,
    hyperparameters: Hyperparameters | Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    name: str | None = None,
    role: str | None = None,
    profile_name: str | None = None,
    session: Any = None,
    region: str | None = None,
    bucket: str | None = None,
    image_uri: str | None = None,
    framework_version: str | None = None,
    py_version: str | None = None,
    spot: bool = False,
    max_hours: float = 24,
    checkpoint_uri: str | None = None,
    keep_alive_minutes: int = 0,
    retries: int = 0,
    graceful_stop: bool = False,
    metrics: Sequence[str] = _METRICS,
    tags: Mapping[str, str] | None = None,
    vendor: Vendor = "source",
    allow_secrets: Sequence[str] = (),
    request: Mapping[str, Any] | None = None,
    output_dir: str | Path = "runs",
    checkpoint_dir: str | Path | None = None,
    wait: bool = False,
    dry_run: bool = False,
    **other_words: Any,
) -> Job | Plan:
    """Run a training script on SageMaker, or here as SageMaker does, and return its job.

    The script is uploaded with its folder once for each content; so is local data. The job goes on when the caller
    ends: `smkit.attach(job.name)` picks it up again from anywhere.

    With `instance_type="local"` the script runs on this machine under the real sagemaker-training toolkit, in a copy of
    `source_dir` that leaves out its `requirements.txt` and `setup.py`, which the toolkit would install into this
    environment. What only SageMaker has (role, bucket, image, spot, ...) is not looked at then.

    Args:
        entry: The script, a `.py` or `.sh` file, as a path relative to `source_dir`.
        instance_type: `"local"`, or a type such as `"ml.g5.xlarge"`; of several, the first that is to be had is taken
            (API: ResourceConfig.InstancePreferences).
        source_dir: The folder that the script runs in. What `.gitignore` and `.smkitignore` name, version control,
            caches and virtual environments stay behind. smkit itself travels along if the script imports it.
        instance_count: How many hosts; several are joined by torchrun. Of local ones each is a toolkit on this machine.
        processes_per_host: How many processes torchrun starts on each host; otherwise one for each GPU.
        inputs: Channels: for each name an `s3://` URI, or a folder, a file, a glob pattern or a `file://` URI, which
            is uploaded if it is not there yet; `smkit.Input(...)` says more. A local run reads them in place.
        hyperparameters: What the script gets on its command line and in `SM_HPS`: an instance of its settings class,
            or a dict, which is checked by that class where it can be imported without torch.
        environment: Further variables of the script. `secretsmanager:NAME` and `ssm:NAME` are references, which
            `smkit.read_secret` resolves in the job.
        name: The job's name; otherwise the script's with the time (UTC) and random digits.
        role: The role that the job acts as, an ARN or a name; otherwise `SMKIT_ROLE`, the notebook's, or the caller's.
        profile_name: The AWS profile to use.
        session: A `boto3.Session`, or the SageMaker SDK's Session, instead of a profile.
        region: The region; otherwise the session's.
        bucket: The bucket for source, data and results, which must be there (looked at when something is uploaded);
            otherwise `sagemaker-{region}-{account}`, made if missing.
        image_uri: The container image, instead of one of the PyTorch images of AWS.
        framework_version: The PyTorch version of that image; otherwise the newest that runs on the instance type.
        py_version: Its Python version, checked against the image.
        spot: Use spot instances: cheaper, and interrupted at any time; the script goes on from its last checkpoint.
        max_hours: When SageMaker stops the job. Waiting for spot instances may take as long again.
        checkpoint_uri: Where `/opt/ml/checkpoints` is mirrored to, so that a later job with the same URI goes on from
            there; otherwise a folder of this job's own.
        keep_alive_minutes: Keep the instances so long for a next job that is alike (a warm pool, which is billed).
        retries: How often SageMaker starts the job again after an internal error of its own.
        graceful_stop: Deliver SIGTERM to the script when the job is stopped, which AWS's containers do not.
        metrics: Names of metrics that SageMaker shows as curves; the log has all of them in any case.
        tags: Tags of the job, besides those with its git commit and the hash of its code.
        vendor: How smkit and its requirements travel: `"source"`: smkit in the source, its requirements installed by
            pip when the job starts; `"wheels"`: all of them as wheels, for jobs without network; `"none"`: not at all.
        allow_secrets: Files of the source, as glob patterns, that may travel although they look like credentials.
        request: Any part of the CreateTrainingJob request; merged into it last, None removes a key. What launch uploads
            is encrypted with the key of OutputDataConfig.KmsKeyId, if there is one.
        output_dir: The folder of local jobs. The job's own folder in it has the job's name.
        checkpoint_dir: One folder for the checkpoints of all local hosts, so that a later job goes on from this one's;
            otherwise each host has its own, in the job's folder.
        wait: Return when the job has completed; see `Job.wait`.
        dry_run: Check everything, and return the plan with the exact request and the list of files; nothing is made,
            uploaded or started. `plan.start()` then does. With `vendor="wheels"` the wheels are downloaded from the
            package index all the same, into a temporary folder.
        **other_words: What `launch` does not take; the words of the SDK's estimators are answered with launch's own.

    Raises:
        ConfigurationError: All that is wrong with the arguments, the files, the account or this machine; nothing has
            been made.
        JobError: `wait` is set, and the job failed or was stopped.
    """
    arguments = LaunchArguments(
        entry=str(entry) if isinstance(entry, Path) else entry or "",
        instance_type=instance_type,
        source_dir=source_dir,
        instance_count=instance_count,
        processes_per_host=processes_per_host,
        inputs={} if inputs is None else inputs,
        hyperparameters=hyperparameters,
        environment={} if environment is None else environment,
        name=name,
        role=role,
        profile_name=profile_name,
        session=session,
        region=region,
        bucket=bucket,
        image_uri=image_uri,
        framework_version=framework_version,
        py_version=py_version,
        spot=spot,
        max_hours=max_hours,
        checkpoint_uri=checkpoint_uri,
        keep_alive_minutes=keep_alive_minutes,
        retries=retries,
        graceful_stop=graceful_stop,
        metrics=metrics,
        tags={} if tags is None else tags,
        vendor=vendor,
        allow_secrets=allow_secrets,
        request={} if request is None else request,
        output_dir=output_dir,
        checkpoint_dir=checkpoint_dir,
    )
    arguments, mistyped = argument_types.check(arguments)
    misnamed = [*estimator_words.problems(other_words, known=LaunchArguments.__annotations__), *mistyped]
    if entry is None and "entry_point" not in other_words:
        misnamed.append("entry: missing; the script, as a path relative to source_dir")
    plan = _make_plan(arguments, misnamed)
    if dry_run:
        return plan
    for warning in plan.warnings:
        _logger.warning("%s", warning)
    job = plan.start()
    return job.wait() if wait else job


def _make_plan(arguments: LaunchArguments, problems: list[str]) -> Plan:
    types = arguments.instance_types
    if list(types) == ["local"]:
        return local_plan.make_plan(arguments, problems)
    if not types and not any(problem.startswith("instance_type") for problem in problems):
        problems = [*problems, "instance_type: missing; 'local', or a type such as 'ml.g5.xlarge'"]
    elif "local" in types:
        problems = [*problems, "instance_type: 'local' stands alone; a job runs here or on SageMaker"]
    from smkit.cloud import cloud_plan

    return cloud_plan.make_plan(arguments, problems)


def attach(
    name: str,
    *,
    profile_name: str | None = None,
    session: Any = None,
    region: str | None = None,
    output_dir: str | Path = "runs",
) -> Job:
    """Return the job of this name, whoever launched it, from wherever.

    Args:
        name: The job's name.
        profile_name: The AWS profile to use.
        session: A `boto3.Session`, or the SageMaker SDK's Session, instead of a profile.
        region: The region that the job runs in; otherwise the session's.
        output_dir: The folder of local jobs; a job in it goes before one of the same name on SageMaker.

    Raises:
        ConfigurationError: An argument is of a wrong type; or there is no such local job, and AWS cannot be asked.
        JobError: There is no such job.
    """
    given: object = name
    if not (isinstance(given, str) and contract.JOB_NAME.fullmatch(given)):
        raise JobError(
            f"there can be no job {name!r}",
            where="name of attach",
            fix="give a job's name, 1 to 63 letters, digits and '-'; look at 'smkit jobs'",
        )
    mistyped = argument_types.problems({"profile_name": profile_name, "region": region, "output_dir": output_dir})
    if mistyped:
        raise ConfigurationError.of(
            list(mistyped.values()),
            subject=f"attach to '{name}'",
            where=f"attach({name!r}, ...)",
            fix="change what is named above",
        )
    jobs = LocalJobs(absolute(output_dir))
    if (jobs.root / name).is_dir():
        return Job(name, jobs)
    from smkit.cloud.aws import connect
    from smkit.cloud.jobs import SageMakerJobs

    job = Job(name, SageMakerJobs(connect(profile_name=profile_name, session=session, region=region)))
    job.describe()
    return job
