"""Checking CreateTrainingJob as SageMaker does: by the constraints of its model, then by rules between the fields.

It shares no code with smkit's own check, on purpose: each is the other's test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sagemaker.wire import service_model

# The classes of Java's regular expressions that the model uses, all of them inside of [].
_JAVA = {r"\p{L}": r"\w", r"\p{Z}": r"\s", r"\p{N}": r"\d", r"\p{Alnum}": "a-zA-Z0-9"}


def training_job_faults(request: Mapping[str, Any]) -> str:
    """Return what SageMaker would say of this request; empty if nothing."""
    shape = service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    faults = list(_model_faults(shape, request, ""))
    if faults:
        plural = "s" if len(faults) > 1 else ""
        return f"{len(faults)} validation error{plural} detected: {'; '.join(faults)}"
    return next(_rule_faults(request), "")


def _model_faults(shape: Any, value: Any, place: str) -> Iterator[str]:
    if shape.type_name in ("string", "list", "map"):
        yield from _size_faults(shape, value, place)
    if shape.type_name == "string":
        yield from _text_faults(shape, value, place)
    elif shape.type_name in ("integer", "long", "float", "double"):
        yield from _range_faults(shape, value, place)
    elif shape.type_name == "list":
        for position, item in enumerate(value, 1):
            yield from _model_faults(shape.member, item, f"{place}.{position}.member")
    elif shape.type_name == "map":
        for name, item in value.items():
            yield from _model_faults(shape.key, name, f"{place}.key")
            yield from _model_faults(shape.value, item, f"{place}.{name}.member")
    elif shape.type_name == "structure":
        yield from _structure_faults(shape, value, place)


def _structure_faults(shape: Any, value: Any, place: str) -> Iterator[str]:
    for name in shape.required_members:
        if value.get(name) is None:
            yield _fault("null", _member(place, name), "Member must not be null")
    for name, item in value.items():
        if name in shape.members:
            yield from _model_faults(shape.members[name], item, _member(place, name))


def _member(place: str, name: str) -> str:
    name = name[0].lower() + name[1:]
    return f"{place}.{name}" if place else name


def _fault(value: Any, place: str, constraint: str) -> str:
    return f"Value '{value}' at '{place}' failed to satisfy constraint: {constraint}"


def _size_faults(shape: Any, value: Any, place: str) -> Iterator[str]:
    for limit, wrong, word in (("min", int.__lt__, "greater"), ("max", int.__gt__, "less")):
        bound = shape.metadata.get(limit)
        if bound is not None and wrong(len(value), bound):
            yield _fault(value, place, f"Member must have length {word} than or equal to {bound}")


def _text_faults(shape: Any, value: str, place: str) -> Iterator[str]:
    if shape.enum and value not in shape.enum:
        yield _fault(value, place, f"Member must satisfy enum value set: [{', '.join(shape.enum)}]")
    pattern = shape.metadata.get("pattern")
    if pattern:
        ours = pattern
        for java, python in _JAVA.items():
            ours = ours.replace(java, python)
        if not re.fullmatch(ours, value):
            yield _fault(value, place, f"Member must satisfy regular expression pattern: {pattern}")


def _range_faults(shape: Any, value: float, place: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and value < low:
        yield _fault(value, place, f"Member must have value greater than or equal to {low}")
    if high is not None and value > high:
        yield _fault(value, place, f"Member must have value less than or equal to {high}")


def _rule_faults(request: Mapping[str, Any]) -> Iterator[str]:
    stopping, resources = request.get("StoppingCondition") or {}, request.get("ResourceConfig") or {}
    runtime, wait = stopping.get("MaxRuntimeInSeconds", 86400), stopping.get("MaxWaitTimeInSeconds")
    spot = request.get("EnableManagedSpotTraining", False)
    if spot and (wait is None or wait < runtime):
        yield "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
    if not spot and wait is not None:
        yield "MaxWaitTimeInSeconds can only be specified if EnableManagedSpotTraining is set to true"
    if spot and resources.get("InstancePreferences"):
        yield "InstancePreferences cannot be used with EnableManagedSpotTraining"
    if bool(resources.get("InstanceType")) == bool(resources.get("InstancePreferences")):
        yield "Exactly one of InstanceType and InstancePreferences must be specified in ResourceConfig"
    channels = request.get("InputDataConfig") or []
    names = [channel["ChannelName"] for channel in channels]
    if len(set(names)) < len(names):
        yield "Channel names must be unique"
    yield from _unsupported(request, channels)


def _unsupported(request: Mapping[str, Any], channels: list[Mapping[str, Any]]) -> Iterator[str]:
    # What this server cannot do is said at once, not imitated.
    this = "The SageMaker of the tests does not support"
    modes = [request["AlgorithmSpecification"]["TrainingInputMode"], *(item.get("InputMode") for item in channels)]
    if "Pipe" in modes:
        yield f"{this} the input mode Pipe"
    for channel in channels:
        source = channel["DataSource"].get("S3DataSource")
        if source is None:
            yield f"{this} data sources other than S3 (channel {channel['ChannelName']})"
        elif source["S3DataType"] != "S3Prefix":
            yield f"{this} the S3DataType {source['S3DataType']} (channel {channel['ChannelName']})"
    for config in ("CheckpointConfig", "TensorBoardOutputConfig"):
        path = (request.get(config) or {}).get("LocalPath", "/opt/ml/")
        if not path.startswith("/opt/ml/"):
            yield f"{this} a LocalPath outside of /opt/ml (in {config})"
