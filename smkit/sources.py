"""What each source says about a run's settings: the job's hyperparameters, config files, the command line, code.

A source becomes a layer: a label, and values by dotted name. This room reads texts into values; which layer wins is
decided in `settings`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from smkit.annotations import is_mapping, is_sequence, members, nested_model
from smkit.arguments import Option, OptionIndex
from smkit.contract import is_platform_hyperparameter
from smkit.documents import (
    ENDINGS,
    RepeatedNameError,
    is_there,
    load,
    load_json,
    parse_json,
    printable,
    read_json_object,
)
from smkit.wire import decode, decode_all, decode_job_value

Options = Mapping[str, Option]
"""The options of a settings class, by dotted name."""


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
    echo: Sequence[str] = ()
    """the command line that the toolkit made of the values, where it says so"""


def read_job_values(file: Path, variables: Mapping[str, str], problems: list[str]) -> JobValues:
    """Read a job's hyperparameters: hyperparameters.json, which has their exact texts, else `SM_HPS`."""
    echo = parse_json(variables.get("SM_USER_ARGS") or "[]", "SM_USER_ARGS", list, problems) or []
    if is_there(file):
        content = read_json_object(file, problems)
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in content.items()}
        values = {name: _loads_or_text(text, f"{file.name}: {name}", problems) for name, text in texts.items()}
        return JobValues(file.name, values, texts, echo)
    values = parse_json(variables.get("SM_HPS") or "{}", "SM_HPS", dict, problems) or {}
    return JobValues("SM_HPS", values, echo=echo)


def _loads_or_text(text: str, source: str, problems: list[str]) -> Any:
    try:
        return load_json(text)
    except RecursionError:
        problems.append(f"{source} is nested too deeply")
    except RepeatedNameError as error:
        problems.append(f"{source} {error}")
    except ValueError:
        pass
    return text


def _recognised(
    values: Mapping[str, Any], options: Options, label: str, problems: list[str]
) -> Iterator[tuple[Option, str, Any]]:
    """Yield option, given name and value of what there is an option for; the rest is a problem, or the platform's."""
    index = OptionIndex(options.values())
    names: dict[str, str] = {}
    for name, value in values.items():
        option = index.find(name)
        if option is None:
            if not is_platform_hyperparameter(name):
                problems.append(f"{label}: {index.unknown(name)}")
        elif option.name in names:
            problems.append(f"{label}: '{names[option.name]}' and '{name}' are the same hyperparameter; give one")
        else:
            names[option.name] = name
            yield option, name, value


def job_layer(job: JobValues, options: Options, problems: list[str]) -> Layer:
    """Return what the job's hyperparameters mean for these options."""
    values: dict[str, Any] = {}
    for option, name, value in _recognised(job.values, options, job.label, problems):
        reader = _reader(decode_job_value, value, job.texts.get(name), option.annotation)
        _note(values, option, job.label, problems, reader)
    return Layer(job.label, _by_leaf(values, options, job.label, problems))


def argument_layer(texts: Mapping[str, Sequence[str]], options: Options, problems: list[str]) -> Layer:
    """Return what the words of the command line mean for these options."""
    label = "command line"
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


def config_layer(file: Path, options: Options, problems: list[str]) -> Layer:
    """Return what a config file says: JSON, TOML or YAML by its ending; also one saved beside a model."""
    label = f"config file {printable(str(file))}"
    values: dict[str, Any] = {}
    for option, _, value in _recognised(read_config(file, label, problems), options, label, problems):
        if isinstance(value, str):
            # YAML reads 1e-4 as a text; a text that a field does not take is read as on the command line.
            _note(values, option, label, problems, _reader(decode_job_value, value, None, option.annotation))
        else:
            values[option.name] = value
    return Layer(label, _by_leaf(values, options, label, problems))


def read_config(file: Path, label: str, problems: list[str]) -> dict[str, Any]:
    """Return what a JSON, TOML or YAML file holds, or the settings in one saved beside a model.

    Problems begin with `label`.
    """
    content = _read_object(file, label, problems)
    if isinstance(content.get("hyperparameters"), dict) and isinstance(content.get("origins"), dict):
        content = content["hyperparameters"]
    return {str(name): value for name, value in content.items()}


def _read_object(file: Path, label: str, problems: list[str]) -> dict[Any, Any]:
    if file.suffix.lower() not in ENDINGS:
        problems.append(f"{label}: ends in '{file.suffix}'; .json, .toml, .yaml and .yml are read")
        return {}
    try:
        content = load(file)
    except FileNotFoundError:
        problems.append(f"{label}: does not exist")
    except (OSError, ValueError) as error:
        problems.append(f"{label}: cannot be read: {' '.join(str(error).split())}")
    else:
        if isinstance(content, dict):
            return content
        if content is not None:
            problems.append(f"{label}: should hold names and values, and holds a {type(content).__name__}")
    return {}


def _is_bool_for_number(value: Any, annotation: Any) -> bool:
    """Whether True or False stands where a number is wanted, which pydantic would make 1 or 0 of it."""
    some = [member for member in members(annotation) if member is not type(None)]
    if isinstance(value, bool):
        return bool(some) and all(member in (int, float) for member in some)
    held = [get_args(member) for member in some if is_sequence(member) or is_mapping(member)]
    inner = [part for parts in held for part in [part for part in parts if part is not ...][-1:]]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return bool(inner) and any(all(_is_bool_for_number(item, part) for part in inner) for item in items)


def code_layer(values: Mapping[str, Any], options: Options, problems: list[str]) -> Layer:
    """Return the values given in code, which win over every other source."""
    label = "code"
    known = {option.name: value for option, _, value in _recognised(values, options, label, problems)}
    return Layer(label, _by_leaf(known, options, label, problems))


def _by_leaf(values: Mapping[str, Any], options: Options, label: str, problems: list[str]) -> dict[str, Any]:
    """Spread objects given for nested models over their fields, so that sources mix field by field."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if _is_bool_for_number(value, options[name].annotation):
            problems.append(f"{label}: {name} holds true or false where a number belongs")
            continue
        if nested_model(options[name].annotation) is None or not isinstance(value, Mapping) or not value:
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
