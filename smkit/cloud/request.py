"""The whole CreateTrainingJob request, built in one place from what `launch` was given and what was uploaded.

Pure: it asks nobody, reads no file, and never refuses: what is wrong with a request is said by `request_checks`, all at
once. The shape is that of the sagemaker-training toolkit, which the PyTorch images start: the script and its source are
named by hyperparameters of the platform's own, `sagemaker_*`, each as JSON.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from smkit import contract
from smkit.cloud.images import Image
from smkit.cloud.instances import accelerators
from smkit.inputs import Input
from smkit.launch_arguments import LaunchArguments

MAX_RUNTIME_SECONDS = 28 * 24 * 3600
"""API: StoppingCondition; its prose says 28 days, the shape says nothing."""
VOLUME_GIGABYTES = 30
"""For instance types without storage of their own; SageMaker ignores it for the others (API: ResourceConfig)."""
CODE_CHANNEL = "code"
"""How the source travels where the network is cut off and the toolkit cannot fetch it (SDK v2: estimator.py)."""

Channel = tuple[str, str, Input]
"""A channel's name, its place in S3, and how the job reads it."""


def build_request(
    arguments: LaunchArguments,
    *,
    name: str,
    role: str | None,
    region: str,
    image: Image | str | None,
    hyperparameters: Mapping[str, str],
    channels: Sequence[Channel],
    source_uri: str | None,
    output_uri: str,
    checkpoint_uri: str | None,
    environment: Mapping[str, str],
    tags: Mapping[str, str],
    entrypoint: tuple[Sequence[str], Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return the request, `arguments.request` merged into it last (see `merge`).

    What is None could not be found, which has been reported: it is left out, so that everything else can be checked.

    Args:
        arguments: What the user wrote.
        name: The job's name.
        role: The ARN of the execution role.
        region: Where the job runs.
        image: The training image, or the URI of one that is not in the table.
        hyperparameters: The user's, encoded (`wire.encode`).
        channels: The input channels, each with the place in S3 that holds its data.
        source_uri: The archive of the source in S3.
        output_uri: The prefix below which SageMaker writes `<job>/output/model.tar.gz`, and TensorBoard's files into
            `<job>/tensorboard-output` (SDK v2: `latest_job_tensorboard_artifacts_path`).
        checkpoint_uri: The prefix that is mirrored with /opt/ml/checkpoints.
        environment: Variables of the container.
        tags: Tags of the job.
        entrypoint: A program in front of the container's own, and its arguments (`supervisor.entrypoint`).
    """
    isolated = arguments.request.get("EnableNetworkIsolation") is True
    code = [(CODE_CHANNEL, source_uri, Input(source_uri))] if isolated and source_uri else []
    platform = _platform_hyperparameters(arguments, name, region, _submit_directory(source_uri, isolated=isolated))
    tree = contract.JobTree(contract.BASE_DIR)
    optional = {
        "InputDataConfig": [_channel(*channel) for channel in (*channels, *code)],
        "CheckpointConfig": checkpoint_uri and {"S3Uri": checkpoint_uri, "LocalPath": str(tree.checkpoint_dir)},
        "EnableManagedSpotTraining": arguments.spot,
        "RetryStrategy": arguments.retries and {"MaximumRetryAttempts": arguments.retries},
        "Environment": dict(environment),
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        "RoleArn": role,
    }
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": _algorithm(arguments, image, entrypoint),
        "HyperParameters": {**hyperparameters, **platform},
        "OutputDataConfig": {"S3OutputPath": output_uri},
        "ResourceConfig": _resources(arguments),
        "StoppingCondition": _stopping_condition(arguments),
        "TensorBoardOutputConfig": {
            "S3OutputPath": output_uri,
            "LocalPath": str(contract.tensorboard_dir(tree.output_dir)),
        },
        **{key: value for key, value in optional.items() if value},
    }
    return merge(request, arguments.request)


def merge(request: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request with changes: objects are merged at every depth, lists and values replaced, None takes out."""
    merged = {key: value for key, value in request.items() if changes.get(key, value) is not None}
    for key, change in changes.items():
        if isinstance(change, Mapping):
            before = merged.get(key)
            merged[key] = merge(before if isinstance(before, Mapping) else {}, change)
        elif change is not None:
            merged[key] = change
    return merged


def uses_torchrun(arguments: LaunchArguments) -> bool:
    """Whether the toolkit's torchrun starts the script: a Python script on more than one GPU or host.

    A shell script starts its own processes; the toolkit's torchrun takes Python only.
    """
    if not str(arguments.entry).endswith(".py"):
        return False
    each = arguments.processes_per_host
    most = (
        max((accelerators(name).count or 1 for name in arguments.instance_types), default=1) if each is None else each
    )
    return arguments.instance_count != 1 or most != 1


def processes_per_host(arguments: LaunchArguments) -> int | None:
    """Return how many processes train on a host, for the plan; None if that depends or is not known.

    The toolkit starts one for each GPU unless it is told a number.
    """
    if not uses_torchrun(arguments):
        return 1
    if arguments.processes_per_host is not None:
        return arguments.processes_per_host
    counts = {accelerators(name).count for name in arguments.instance_types}
    count = counts.pop() if len(counts) == 1 else None
    return 1 if count == 0 else count


def _platform_hyperparameters(
    arguments: LaunchArguments, name: str, region: str, submit_directory: str | None
) -> dict[str, str]:
    """Return what the toolkit reads (its params.py), as JSON, which it decodes; a log level by name would kill it."""
    values: dict[str, object] = {
        "sagemaker_program": arguments.entry,
        "sagemaker_submit_directory": submit_directory,
        "sagemaker_job_name": name,
        "sagemaker_region": region,
        "sagemaker_container_log_level": logging.INFO,
    }
    if uses_torchrun(arguments):
        values["sagemaker_torch_distributed_enabled"] = True
        # By this name torchrun's --nproc_per_node is set too; without it the toolkit counts the GPUs.
        values["sagemaker_mpi_num_of_processes_per_host"] = arguments.processes_per_host
    return {key: json.dumps(value, default=str) for key, value in values.items() if value is not None}


def _submit_directory(source_uri: str | None, *, isolated: bool) -> str | None:
    if source_uri is None or not isolated:
        return source_uri
    return str(contract.JobTree(contract.BASE_DIR).data_dir / CODE_CHANNEL / source_uri.rpartition("/")[2])


def _algorithm(
    arguments: LaunchArguments, image: Image | str | None, entrypoint: tuple[Sequence[str], Sequence[str]] | None
) -> dict[str, Any]:
    algorithm: dict[str, Any] = {"TrainingInputMode": "File"}
    if image:
        algorithm["TrainingImage"] = image.uri if isinstance(image, Image) else image
    if entrypoint:
        algorithm["ContainerEntrypoint"], algorithm["ContainerArguments"] = map(list, entrypoint)
    if arguments.metrics:
        algorithm["MetricDefinitions"] = [
            {"Name": metric, "Regex": contract.metric_regex(str(metric))} for metric in arguments.metrics
        ]
        algorithm["EnableSageMakerMetricsTimeSeries"] = True
    return algorithm


def _channel(name: str, uri: str, given: Input) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "ChannelName": name,
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "S3Prefix",
                "S3Uri": uri,
                "S3DataDistributionType": "ShardedByS3Key" if given.sharded else "FullyReplicated",
            }
        },
        "InputMode": given.mode,
    }
    return channel if given.content_type is None else {**channel, "ContentType": given.content_type}


def _resources(arguments: LaunchArguments) -> dict[str, Any]:
    """Return the hosts: of one type, or of the first of several that SageMaker has (API: InstancePreferences)."""
    types = arguments.instance_types
    resources: dict[str, Any] = {
        "InstanceCount": arguments.instance_count,
        "VolumeSizeInGB": VOLUME_GIGABYTES,
    }
    if len(types) == 1:
        resources["InstanceType"] = types[0]
    else:
        resources["InstancePreferences"] = [{"InstanceType": name} for name in types]
    seconds = _seconds(arguments.keep_alive_minutes, 60)
    return {**resources, "KeepAlivePeriodInSeconds": seconds} if seconds else resources


def _stopping_condition(arguments: LaunchArguments) -> dict[str, int]:
    """Return how long the job may run and, on spot, how long it may take with all its waiting: twice as long."""
    runtime = _seconds(arguments.max_hours, 3600)
    if not runtime:
        return {}
    condition = {"MaxRuntimeInSeconds": runtime}
    if arguments.spot:
        condition["MaxWaitTimeInSeconds"] = max(runtime, min(2 * runtime, MAX_RUNTIME_SECONDS))
    return condition


def _seconds(value: object, unit: int) -> int:
    """Return a time in seconds; 0 for what is no time, which the checks report."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0
    seconds = value * unit
    return max(0, math.ceil(seconds)) if isinstance(seconds, int) or math.isfinite(seconds) else 0
