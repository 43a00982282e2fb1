"""What each source says about a run's settings: the job's hyperparameters, config files, the command line, code.

A source becomes a layer: a label, and values by dotted name. This room reads texts into values; which layer wins is
decided in `settings`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from smkit.annotations import is_mapping, members, nested_model
from smkit.arguments import Option, OptionIndex, options_of
from smkit.contract import is_platform_hyperparameter
from smkit.hyperparameters import Hyperparameters
from smkit.wire import decode, decode_all, decode_job_value


@dataclass(frozen=True)
class Layer:
    """What one source says: values by dotted name."""

    label: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class JobValues:
    """The hyperparameters of a job: decoded once, as every runtime does, and their texts where these are left."""

    label: str
    values: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


def read_job_values(file: Path, variables: Mapping[str, str], problems: list[str]) -> JobValues:
    """Read a job's hyperparameters: hyperparameters.json, which has their exact texts, else `SM_HPS`."""
    if file.is_file():
        content = read_json_object(file, problems)
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in content.items()}
        return JobValues(file.name, {name: _loads_or_text(text) for name, text in texts.items()}, texts)
    if not variables.get("SM_HPS"):
        return JobValues("SM_HPS")
    return JobValues("SM_HPS", parse_json(variables["SM_HPS"], "SM_HPS", dict, problems) or {})


def _loads_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_json_object(file: Path, problems: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file; nothing, and a problem, if it cannot be read as one."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{file}: cannot be read: {error}")
        return {}
    return parse_json(text, str(file), dict, problems) or {}


def parse_json(text: str, source: str, kind: type[Any], problems: list[str]) -> Any:
    """Return the value of a JSON text; None, and a problem, if it is no JSON or not of the kind wanted."""
    wanted = "an object" if kind is dict else "a list"
    try:
        value = json.loads(text)
    except RecursionError:
        problems.append(f"{source}: is nested too deeply")
        return None
    except ValueError as error:
        problems.append(f"{source}: is not JSON: {error} (it begins {text[:40]!r})")
        return None
    if not isinstance(value, kind):
        problems.append(f"{source}: should be {wanted} and is {text[:40]!r}")
        return None
    return value


def job_layer(job: JobValues, settings: type[Hyperparameters], problems: list[str]) -> Layer:
    """Return what the job's hyperparameters mean for the fields of a settings class."""
    options = options_of(settings)
    index = OptionIndex(options.values())
    values: dict[str, Any] = {}
    for name, value in job.values.items():
        option = index.find(name)
        if option is None:
            if not is_platform_hyperparameter(name):
                problems.append(f"{job.label}: {index.unknown(name)}")
            continue
        if option.name in values:
            problems.append(f"{job.label}: '{name}' is given twice, in two spellings")
        with_text = job.texts.get(name)
        _note(values, option, job.label, problems, _reader(decode_job_value, value, with_text, option.annotation))
    return Layer(job.label, _by_leaf(values, options, job.label, problems))


def argument_layer(texts: Mapping[str, Sequence[str]], settings: type[Hyperparameters], problems: list[str]) -> Layer:
    """Return what the words of the command line mean for the fields of a settings class."""
    label = "command line"
    options = options_of(settings)
    values: dict[str, Any] = {}
    for name, words in texts.items():
        option = options.get(name)
        if option is None:
            continue
        reader = _merged_mapping if _is_repeated_mapping(option, words) else decode_all
        _note(values, option, label, problems, _reader(reader, words, option.annotation))
    return Layer(label, _by_leaf(values, options, label, problems))


def _reader(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _note(values: dict[str, Any], option: Option, label: str, problems: list[str], read: Callable[[], Any]) -> None:
    try:
        values[option.name] = read()
    except ValueError as error:
        problems.append(f"{label}: {option.name} {error}")


def _is_repeated_mapping(option: Option, words: Sequence[str]) -> bool:
    return len(words) > 1 and any(is_mapping(member) for member in members(option.annotation))


def _merged_mapping(words: Sequence[str], annotation: Any) -> dict[str, Any]:
    parts = [decode(word, annotation) for word in words]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("is given several times, and not each time as KEY=VALUE or JSON")
    return {key: value for part in parts for key, value in part.items()}


def config_layer(file: Path, settings: type[Hyperparameters], problems: list[str]) -> Layer:
    """Return what a config file says: JSON, TOML or YAML by its ending; also one saved beside a model."""
    label = f"config file {file}"
    content = _read_config(file, label, problems)
    if isinstance(content.get("hyperparameters"), dict) and isinstance(content.get("origins"), dict):
        content = content["hyperparameters"]
    options = options_of(settings)
    index = OptionIndex(options.values())
    values: dict[str, Any] = {}
    for name, value in content.items():
        option = index.find(str(name))
        if option is None:
            problems.append(f"{label}: {index.unknown(str(name))}")
        elif isinstance(value, str):
            # YAML reads 1e-4 as a text; a text that a field does not take is read as on the command line.
            _note(values, option, label, problems, _reader(decode_job_value, value, None, option.annotation))
        else:
            values[option.name] = value
    return Layer(label, _by_leaf(values, options, label, problems))


def _read_config(file: Path, label: str, problems: list[str]) -> dict[str, Any]:
    readers: dict[str, Callable[[str], Any]] = {
        ".json": json.loads,
        ".toml": _load_toml,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
    }
    reader = readers.get(file.suffix.lower())
    if reader is None:
        problems.append(f"{label}: ends in '{file.suffix}'; .json, .toml, .yaml and .yml are read")
        return {}
    try:
        content = reader(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{label}: does not exist")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"{label}: cannot be read: {' '.join(str(error).split())}")
    else:
        if isinstance(content, dict):
            return content
        if content is not None:
            problems.append(f"{label}: should hold names and values, and holds {str(content)[:40]!r}")
    return {}


def _load_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def code_layer(values: Mapping[str, Any], settings: type[Hyperparameters], problems: list[str]) -> Layer:
    """Return the values given in code, which win over every other source."""
    label = "code"
    options = options_of(settings)
    index = OptionIndex(options.values())
    known: dict[str, Any] = {}
    for name, value in values.items():
        option = index.find(name)
        if option is None:
            problems.append(f"{label}: {index.unknown(name)}")
        else:
            known[option.name] = value
    return Layer(label, _by_leaf(known, options, label, problems))


def _by_leaf(
    values: Mapping[str, Any], options: Mapping[str, Option], label: str, problems: list[str]
) -> dict[str, Any]:
    """Spread objects given for nested models over their fields, so that sources mix field by field."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if nested_model(options[name].annotation) is None or not isinstance(value, Mapping):
            leaves[name] = value
            continue
        children = {path: option for path, option in options.items() if path.startswith(f"{name}.")}
        index = OptionIndex(children.values())
        inner: dict[str, Any] = {}
        for key, item in value.items():
            child = index.find(f"{name}.{key}")
            if child is None:
                problems.append(f"{label}: {index.unknown(f'{name}.{key}')}")
            else:
                inner[child.name] = item
        leaves |= _by_leaf(inner, options, label, problems)
    return leaves
