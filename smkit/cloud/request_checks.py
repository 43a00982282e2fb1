"""What is wrong with a CreateTrainingJob request: all that the API, the toolkit or the bill would punish, at once.

Each problem starts with the argument of `launch` that it comes from, in the user's words; where the user wrote the
field itself, in `request=`, with the field. What is wrong wherever a job runs is said by `launch_arguments`, what is
wrong with a hyperparameter's value by `wire`; neither is repeated here. This room builds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, TypeGuard

from smkit import contract
from smkit.cloud.images import Image, image_problems, image_warnings
from smkit.cloud.instances import accelerators
from smkit.cloud.request import CODE_CHANNEL, MAX_RUNTIME_SECONDS, uses_torchrun
from smkit.cloud.service_model import Finding, Part, ServiceModel, dotted, shown
from smkit.launch_arguments import LaunchArguments

_MAX_RETRIES = 30
"""API: RetryStrategy."""
_MAX_HOSTS = 10_000
"""The API names no limit; its largest cluster (ClusterInstanceCount, of HyperPod) has 6,758."""
_MAX_KEEP_ALIVE_MINUTES = 360
"""API: KeepAlivePeriodInSeconds, 21,600; the user guide still says one hour."""


def request_problems(
    request: Mapping[str, Any],
    arguments: LaunchArguments,
    *,
    model: ServiceModel,
    image: Image | None,
    has_setup_py: bool,
    has_requirements: bool,
) -> list[str]:
    """Return everything that forbids to send a request.

    Args:
        request: What `build_request` has made.
        arguments: What the user wrote.
        model: botocore's model of the request.
        image: The training image, if the table knows it.
        has_setup_py: Whether a `setup.py` lies in the root of the source.
        has_requirements: Whether the job is to install packages from an index when it starts.
    """
    known = set(model.enum("ResourceConfig.InstanceType"))
    types = [name for name in map(str, arguments.instance_types) if name in known]
    return [
        *_missing_parts(request),
        *_model_problems(request, arguments, model),
        *_time_problems(arguments),
        *_capacity_problems(request, arguments),
        *_stopping_problems(request, arguments),
        *(image_problems(image, types) if image else ()),
        *_process_problems(arguments, types, has_setup_py=has_setup_py),
        *_isolation_problems(request, arguments, has_requirements=has_requirements),
        *_hyperparameter_problems(request, arguments),
        *_name_problems(request, arguments),
        *_secret_problems(request, arguments),
    ]


def _missing_parts(request: Mapping[str, Any]) -> Iterator[str]:
    """Say what a job of a script cannot do without; the API has other jobs, so that its model asks for none of it."""
    for part in ("AlgorithmSpecification", "ResourceConfig", "OutputDataConfig", "StoppingCondition"):
        if not isinstance(request.get(part), Mapping):
            yield f"request {part}: a job needs it; leave it out of request=, or give the parts that are to change"


def request_warnings(
    arguments: LaunchArguments,
    *,
    image: Image | None,
    has_setup_py: bool,
    has_requirements: bool,
    today: date,
    hyperparameters: Iterable[str] = (),
) -> list[str]:
    """Return what the user should know, and may go on with."""
    warnings = image_warnings(image, arguments.instance_types, today) if image else []
    torchrun = uses_torchrun(arguments)
    if str(arguments.entry).endswith(".sh"):
        if has_requirements:
            warnings.append(f"entry '{arguments.entry}': the toolkit installs no requirements.txt for a shell script")
        if arguments.instance_count != 1 or any((accelerators(n).count or 0) > 1 for n in arguments.instance_types):
            warnings.append(
                f"entry '{arguments.entry}': is started once on each host; torchrun starts all GPUs and hosts only if "
                "the entry is the Python script"
            )
    elif has_setup_py and not torchrun:
        warnings.append(
            "source_dir: has a setup.py, so the toolkit installs it as a package and runs the entry with -m"
        )
    warnings += _torchrun_warnings(hyperparameters if torchrun else ())
    each = arguments.processes_per_host
    for name in arguments.instance_types:
        chip = accelerators(name)
        if isinstance(each, int) and chip.kind == "GPU" and chip.count and each < chip.count:
            warnings.append(f"processes_per_host {each}: '{name}' has {chip.count} GPUs, and all are paid for")
    for channel, given in arguments.inputs.items():
        if getattr(given, "sharded", False):
            warnings += _sharding_warnings(channel, arguments.instance_count)
        if getattr(given, "mode", "File") == "Pipe":
            warnings.append(f"input '{channel}': a pipe is read once, in order; FastFile streams too, and shows files")
    return warnings


def _torchrun_warnings(hyperparameters: Iterable[str]) -> list[str]:
    return [
        f"hyperparameter '{name}': torchrun takes --{name} for an abbreviation of its own and dies of it, unless the "
        "image has Python 3.12.8 or newer; give it a longer name"
        for name in filter(contract.abbreviates_torchrun_option, hyperparameters)
    ]


def _sharding_warnings(channel: str, hosts: int) -> Iterator[str]:
    if hosts == 1:
        yield f"input '{channel}': sharded changes nothing on one host"
    else:
        yield f"input '{channel}': sharded gives out whole objects; with fewer than {hosts} a host gets none"


# --- the service model, in the words of launch ------------------------------------------------------------------------

_WORDS = {
    ("TrainingJobName",): "name",
    ("RoleArn",): "role",
    ("AlgorithmSpecification", "TrainingImage"): "image_uri",
    ("AlgorithmSpecification", "MetricDefinitions"): "metrics",
    ("ResourceConfig", "InstanceType"): "instance_type",
    ("ResourceConfig", "InstancePreferences"): "instance_type",
    ("ResourceConfig", "InstanceCount"): "instance_count",
    ("ResourceConfig", "KeepAlivePeriodInSeconds"): "keep_alive_minutes",
    ("StoppingCondition",): "max_hours",
    ("RetryStrategy",): "retries",
    ("EnableManagedSpotTraining",): "spot",
    ("CheckpointConfig", "S3Uri"): "checkpoint_uri",
    ("OutputDataConfig", "S3OutputPath"): "bucket",
    ("Environment",): "environment",
    ("HyperParameters",): "hyperparameter",
    ("InputDataConfig",): "input",
    ("Tags",): "tag",
}


def _model_problems(request: Mapping[str, Any], arguments: LaunchArguments, model: ServiceModel) -> Iterator[str]:
    secrets = set(_secrets(request, ()))
    for finding in model.findings(request):
        if tuple(finding.path) in secrets:
            continue
        if _is_written(finding.path, arguments.request):
            yield f"request {finding}"
        elif not _is_said_elsewhere(finding, arguments):
            subject = _subject(finding.path, request)
            value = finding.value and f" {finding.value}"
            yield f"{subject.removesuffix(value)}{value}: {finding.fault}"


def _is_written(path: Sequence[Part], changes: object) -> bool:
    """Whether the user wrote this field in `request=`, or the whole list that holds it."""
    for part in path:
        if isinstance(changes, (list, tuple)):
            return True
        if not isinstance(changes, Mapping) or part not in changes:
            return False
        changes = changes[part]
    return True


def _is_said_elsewhere(finding: Finding, arguments: LaunchArguments) -> bool:
    """Whether the argument itself has been checked, here or before: its own unit or rule says it better."""
    path, rule = tuple(finding.path), finding.rule
    if path[0] == "InputDataConfig":
        too_many = len(arguments.inputs) > contract.MAX_CHANNELS
        return too_many if len(path) == 1 else rule == "type" or path[-1] in ("ChannelName", "InputMode")
    return (
        path[0] in ("RetryStrategy", "StoppingCondition")
        or path[:2] == ("ResourceConfig", "KeepAlivePeriodInSeconds")
        or (path == ("ResourceConfig", "InstanceCount") and rule == "range")
        or (path == ("RoleArn",) and rule == "required")
        or (path == ("ResourceConfig", "InstancePreferences") and not arguments.instance_types)
        or (path[0] == "TrainingJobName" and rule in ("size", "pattern"))
        or (path[0] == "Environment" and rule in ("type", "text", "pattern"))
    )


def _subject(path: Sequence[Part], request: Mapping[str, Any]) -> str:
    """Return the argument of `launch` that a field comes from, with the name that the user gave it."""
    depth, word = max(
        ((len(start), word) for start, word in _WORDS.items() if tuple(path[: len(start)]) == start),
        default=(0, ""),
    )
    if word in ("environment", "hyperparameter") and len(path) > 1:
        return f"{word} '{path[1]}'"
    if word == "input" and len(path) > 1:
        channel = request["InputDataConfig"][path[1]]["ChannelName"]
        return f"input {shown(channel)} {dotted(path[2:])}"
    if word == "tag" and len(path) > 1:
        return f"tag {shown(request['Tags'][path[1]]['Key'])}" if path[-1] != "Key" else "tag"
    names = {"environment": "environment", "hyperparameter": "hyperparameters", "input": "inputs", "tag": "tags"}
    return names.get(word, word) if depth else f"request {dotted(path)}"


# --- what no model says -----------------------------------------------------------------------------------------------


def _time_problems(arguments: LaunchArguments) -> Iterator[str]:
    hours, minutes, retries = arguments.max_hours, arguments.keep_alive_minutes, arguments.retries
    most = MAX_RUNTIME_SECONDS // 3600
    if not _is_number(hours) or not 0 < hours <= most:
        yield f"max_hours {shown(hours)}: more than 0 and at most {most} (28 days)"
    if not _is_number(minutes) or not 0 <= minutes <= _MAX_KEEP_ALIVE_MINUTES:
        yield f"keep_alive_minutes {shown(minutes)}: 0 to {_MAX_KEEP_ALIVE_MINUTES}"
    if type(retries) is not int or not 0 <= retries <= _MAX_RETRIES:
        yield f"retries {shown(retries)}: a whole number from 0 to {_MAX_RETRIES}"


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _capacity_problems(request: Mapping[str, Any], arguments: LaunchArguments) -> Iterator[str]:
    """Say what spot, warm pools and several instance types do not go with."""
    resources = _part(request, "ResourceConfig")
    if request.get("EnableManagedSpotTraining"):
        if not request.get("CheckpointConfig"):
            yield "spot True: an interrupted job would begin anew, again and again; give checkpoint_uri"
        if resources.get("InstancePreferences"):
            yield f"spot True: goes with one instance_type, and not with {len(arguments.instance_types)} to choose from"
        # User guide, "Train Using SageMaker Managed Warm Pools": no spot instances.
        if resources.get("KeepAlivePeriodInSeconds"):
            yield "spot True: SageMaker keeps no spot instance warm; leave keep_alive_minutes out"
    hosts = arguments.instance_count
    if type(hosts) is int and hosts > _MAX_HOSTS:
        yield f"instance_count {shown(hosts)}: no account may have so many; at most {_MAX_HOSTS:,}"
    types = [str(name) for name in arguments.instance_types]
    yield from (f"instance_type '{name}': is there twice" for name in sorted(set(types)) if types.count(name) > 1)
    kinds = [kind for kind in ("InstanceType", "InstancePreferences", "InstanceGroups") if kind in resources]
    if len(kinds) > 1:
        yield f"request ResourceConfig: {' and '.join(kinds)} exclude each other; set {kinds[0]} to None"


def _stopping_problems(request: Mapping[str, Any], arguments: LaunchArguments) -> Iterator[str]:
    """Say what is wrong with times that the user wrote into the request, past `max_hours`."""
    condition = _part(request, "StoppingCondition")
    runtime, wait = condition.get("MaxRuntimeInSeconds"), condition.get("MaxWaitTimeInSeconds")
    if not _is_number(runtime):
        return
    written = _is_written(("StoppingCondition", "MaxRuntimeInSeconds"), arguments.request)
    if written and runtime > MAX_RUNTIME_SECONDS:
        most = f"at most {MAX_RUNTIME_SECONDS:,} (28 days)"
        yield f"request StoppingCondition.MaxRuntimeInSeconds {shown(runtime)}: {most}"
    if request.get("EnableManagedSpotTraining") and not (_is_number(wait) and wait >= runtime):
        yield f"request StoppingCondition.MaxWaitTimeInSeconds {shown(wait)}: on spot, at least {runtime:,}"


def _part(request: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object in a request; an empty one if something else stands there, which the model refuses."""
    part = request.get(name)
    return part if isinstance(part, Mapping) else {}


def _process_problems(arguments: LaunchArguments, types: Sequence[str], *, has_setup_py: bool) -> Iterator[str]:
    torchrun = uses_torchrun(arguments)
    each = arguments.processes_per_host
    for name in types:
        chip = accelerators(name)
        if each is None and chip.count is None and str(arguments.entry).endswith(".py"):
            kind = "GPUs" if chip.kind == "GPU" else "Neuron cores"
            yield f"instance_type '{name}': this smkit does not know how many {kind} it has; give processes_per_host"
        elif isinstance(each, int) and chip.kind == "GPU" and chip.count and each > chip.count:
            gpus = "1 GPU" if chip.count == 1 else f"{chip.count} GPUs"
            yield f"processes_per_host {each}: '{name}' has {gpus}, and each process needs its own"
    if torchrun and has_setup_py:
        yield (
            "source_dir: has a setup.py, which makes the toolkit install it as a package, and torchrun starts none; "
            "name it in .smkitignore, or give a source_dir below it"
        )


def _isolation_problems(
    request: Mapping[str, Any], arguments: LaunchArguments, *, has_requirements: bool
) -> Iterator[str]:
    if request.get("EnableNetworkIsolation") is not True:
        return
    if has_requirements and arguments.vendor != "wheels":
        yield (
            "request EnableNetworkIsolation: the job cannot reach an index to install its requirements.txt from; "
            "give vendor='wheels'"
        )
    if CODE_CHANNEL in arguments.inputs:
        yield f"input '{CODE_CHANNEL}': a job without a network gets its source under this name; take another"


def _hyperparameter_problems(request: Mapping[str, Any], arguments: LaunchArguments) -> Iterator[str]:
    """Say what the toolkit would make of hyperparameters that went past `wire.encode`."""
    for name in _part(arguments.request, "HyperParameters"):
        if not contract.is_platform_hyperparameter(str(name)):
            yield f"request HyperParameters.{name}: give it in hyperparameters, where it is encoded and checked"
    values = _part(request, "HyperParameters")
    level = values.get("sagemaker_container_log_level")
    if level is not None and not str(level).isdigit():
        yield f"request HyperParameters.sagemaker_container_log_level {shown(level)}: the toolkit takes a number only"
    size = sum(len(str(name)) + len(str(value)) for name, value in values.items())
    if size > contract.MAX_HYPERPARAMETERS_BYTES:
        yield (
            f"hyperparameters: {size:,} bytes with the platform's own, and the toolkit can hand on "
            f"{contract.MAX_HYPERPARAMETERS_BYTES:,}; put the large ones into a file in a channel"
        )


def _name_problems(request: Mapping[str, Any], arguments: LaunchArguments) -> Iterator[str]:
    """Say which names are not the user's to give, or not there."""
    if "TrainingJobName" in arguments.request:
        name = arguments.request["TrainingJobName"]
        yield f"request TrainingJobName: give name={shown(name)}, which its results and checkpoints are named by, too"
    tags = request.get("Tags")
    for position, tag in enumerate(tags if isinstance(tags, (list, tuple)) else ()):
        key = tag.get("Key") if isinstance(tag, Mapping) else None
        # API: Tag; in upper case as well.
        if isinstance(key, str) and key.lower().startswith("aws:"):
            is_written = _is_written(("Tags", position, "Key"), arguments.request)
            subject = f"request Tags[{position}].Key" if is_written else "tag"
            yield f"{subject} {shown(key)}: names that start with aws: belong to AWS"


def _secret_problems(request: Mapping[str, Any], arguments: LaunchArguments) -> Iterator[str]:
    """Refuse secrets in the request, which everybody may read who may describe the job; `environment` is checked."""
    for path in _secrets(request, ()):
        if path[:1] != ("Environment",) or _is_written(path, arguments.request):
            subject = f"request {dotted(path)}" if _is_written(path, arguments.request) else _subject(path, request)
            yield f"{subject}: a secret would be readable in the job's description; send its name in a store instead"


def _secrets(value: object, path: tuple[Part, ...]) -> Iterator[tuple[Part, ...]]:
    # pydantic's classes, by what they are for: this wing need not load pydantic to know one.
    if hasattr(value, "get_secret_value"):
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _secrets(item, (*path, position))
