"""Text to value and back: what a text means for a field, and how a value travels to a job.

`decode` reads a text (command line, variable, file) as what an annotation asks for; `encode` writes values as
CreateTrainingJob carries them. The two are inverses. This room knows neither the command line, the environment, nor a
job's files.
"""

from __future__ import annotations

import ast
import enum
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretBytes, SecretStr

from smkit import contract
from smkit.annotations import choices, is_mapping, is_secret, is_sequence, is_text, members, takes_text
from smkit.errors import ConfigurationError
from smkit.hyperparameters import Hyperparameters

# --- text -> value ----------------------------------------------------------------------------------------------------

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE]\+?\d{1,3}")
_NUMBERS_AND_BOOLS = (int, float, bool)


def decode(text: str, annotation: Any) -> Any:
    """Return what `text` means for a field of this annotation; pydantic then checks and converts the result.

    The annotation alone decides: a `str` stays as it is written; a list is JSON, Python's notation (which the toolkit
    sends) or comma-separated; a dict is JSON or `key=value,...`; `null` and `None` are None where None is allowed.

    Raises:
        ValueError: The text looks like a list or an object, but is neither JSON nor Python's notation.
    """
    allowed = members(annotation)
    some = [member for member in allowed if member is not type(None)]
    has_text = any(is_text(member) for member in some)
    if type(None) in allowed and (text in ("None", "null") or (text == "" and not has_text)):
        return None
    for member in some:
        for choice in choices(member):
            if text in _spellings(choice):
                return choice
    if any(is_sequence(member) or is_mapping(member) for member in some):
        return _decode_container(text, some, has_text=has_text)
    if Any in some or object in some or (len(some) > 1 and any(member in _NUMBERS_AND_BOOLS for member in some)):
        value = _notation(text)
        fits = Any in some or object in some or type(value) in some or (type(value) is int and float in some)
        return value if fits and not isinstance(value, str) else text
    if some == [int] and _EXPONENT.fullmatch(text) and float(text).is_integer():
        return int(float(text))
    return text


def decode_all(texts: Sequence[str], annotation: Any) -> Any:
    """Return what several texts of one option mean: one is decoded whole, more are the items of a list."""
    if len(texts) == 1:
        return decode(texts[0], annotation)
    sequence = next((member for member in members(annotation) if is_sequence(member)), None)
    return [decode(text, _item_annotation(sequence)) for text in texts]


def decode_job_value(value: Any, raw: str | None, annotation: Any) -> Any:
    """Return what a hyperparameter of a job means for a field of this annotation.

    Args:
        value: The value after the one `json.loads` that every runtime does, or the raw text where that failed.
        raw: The text in hyperparameters.json, where that file is to be had.
        annotation: The field's annotation.

    Raises:
        ValueError: The field is a text, and all that is left of the text is a number or a list made of it.
    """
    allowed = members(annotation)
    some = [member for member in allowed if member is not type(None)]
    if value is None and type(None) in allowed:
        return None
    if isinstance(value, str):
        return value if any(member is str for member in some) or value == raw == "" else decode(value, annotation)
    if not all(takes_text(member) for member in some):
        return value
    if raw is not None:
        return raw if some == [str] else decode(raw, annotation)
    if isinstance(value, (bool, int)) or value is None:
        return json.dumps(value)
    raise ValueError(f"is a text, of which only {json.dumps(value)} is left; send it as json.dumps(text)")


def _spellings(choice: Any) -> tuple[str, ...]:
    if isinstance(choice, enum.Enum):
        return (choice.name, *_spellings(choice.value))
    return (choice,) if isinstance(choice, str) else (str(choice), json.dumps(choice, default=str))


def _notation(text: str) -> Any:
    """Return what JSON, else Python's notation makes of a text; the text itself if neither reads it."""
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for reader in readers:
        try:
            return reader(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _item_annotation(sequence: Any) -> Any:
    arguments = get_args(sequence)
    return arguments[0] if arguments else str


def _decode_container(text: str, some: Sequence[Any], *, has_text: bool) -> Any:
    value = _notation(text)
    sequence = next((member for member in some if is_sequence(member)), None)
    mapping = next((member for member in some if is_mapping(member)), None)
    if (isinstance(value, (list, tuple, set)) and sequence) or (isinstance(value, dict) and mapping):
        return value
    if has_text or (type(value) in some and not isinstance(value, str)):
        return text if has_text else value
    if text.strip()[:1] in ("[", "{"):
        raise ValueError("""looks like JSON and is not; write it like '["a", "b"]' or '{"a": 1}', quotes included""")
    if sequence is not None:
        items = [part.strip() for part in text.split(",")] if text.strip() else []
        return [decode(item, _item_annotation(sequence)) for item in items]
    if "=" in text:
        pairs = [part.partition("=") for part in text.split(",")]
        arguments = get_args(mapping)
        item = arguments[-1] if arguments else str
        return {key.strip(): decode(part, item) for key, _, part in pairs}
    return {} if text == "" else text


# --- value -> wire ----------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_ROOM_FOR_THE_PLATFORM = 10
"""Entries kept free for the toolkit's own `sagemaker_*` hyperparameters."""


def encode(hyperparameters: Hyperparameters | Mapping[str, object]) -> dict[str, str]:
    """Return `{name: json.dumps(value)}`, the one form that every runtime gives back to the script unchanged.

    Raises:
        ConfigurationError: Values that would not reach the script as they are, or that the API refuses; all at once.
    """
    values: Mapping[str, object]
    problems: list[str] = []
    if isinstance(hyperparameters, Hyperparameters):
        values, problems = _plain_values(hyperparameters)
    else:
        values = hyperparameters
    encoded: dict[str, str] = {}
    for name, value in values.items():
        problem = _name_problem(name) or _value_problem(value)
        if problem:
            problems.append(f"{name}: {problem}")
            continue
        encoded[name] = json.dumps(value, default=_plain)
        if len(encoded[name]) > contract.MAX_HYPERPARAMETER_VALUE:
            problems.append(
                f"{name}: {len(encoded[name])} characters as JSON, and SageMaker takes "
                f"{contract.MAX_HYPERPARAMETER_VALUE}; put it into a file in a channel"
            )
    problems += _set_problems(encoded)
    if problems:
        raise ConfigurationError.of(
            problems,
            subject="the hyperparameters",
            where="launch(hyperparameters=...)",
            fix="change the values named above",
        )
    return encoded


def _plain_values(hyperparameters: Hyperparameters) -> tuple[dict[str, object], list[str]]:
    """Return the JSON form of every field, and a problem for each that JSON would not bring back as it is."""
    kind = type(hyperparameters)
    values: dict[str, object] = {}
    problems: list[str] = []
    for name, field in kind.model_fields.items():
        if is_secret(field.annotation):
            if getattr(hyperparameters, name) is not None:
                problems.append(
                    f"{name}: a secret would be readable in the job's description and log; "
                    "send its name and read it in the script"
                )
            continue
        try:
            values[name] = hyperparameters.model_dump(mode="json", include={name})[name]
        except ValueError as error:
            problems.append(f"{name}: has no JSON form ({error})")
    if not problems:
        decoded = {name: json.loads(json.dumps(value)) for name, value in values.items()}
        back = kind.model_validate(decoded)
        problems = [
            f"{name}: {getattr(hyperparameters, name)!r} would reach the script as {getattr(back, name)!r}"
            for name in values
            if repr(getattr(back, name)) != repr(getattr(hyperparameters, name))
        ]
    return values, problems


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "a name is letters, digits, '_', '-' and '.', and starts with a letter"
    if contract.is_platform_hyperparameter(name):
        return "names of this kind belong to the platform and never reach the script"
    if len(name) > contract.MAX_HYPERPARAMETER_NAME:
        return f"SageMaker takes names of {contract.MAX_HYPERPARAMETER_NAME} characters"
    return None


def _value_problem(value: object) -> str | None:
    """Say why a value would not come back from JSON, and from a process's environment, as it went in."""
    if isinstance(value, (SecretStr, SecretBytes)):
        return "a secret would be readable in the job's description and log; send its name and read it in the script"
    if isinstance(value, str):
        bad = next((character for character in value if character == "\0" or "\ud800" <= character <= "\udfff"), None)
        return None if bad is None else f"the character {bad!r} cannot stand in an environment variable"
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            return f"the key {odd!r} is not a text, and JSON would make it one"
        return next(filter(None, (_value_problem(item) for pair in value.items() for item in pair)), None)
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_value_problem, value)), None)
    if isinstance(value, enum.Enum):
        return _value_problem(value.value)
    if value is None or isinstance(value, (bool, int, float, Path)):
        return None
    return f"a {type(value).__name__} has no JSON form; give a number, a text, a bool, None, a list or a dict of these"


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    return dict(value) if isinstance(value, Mapping) else str(value)


def _set_problems(encoded: Mapping[str, str]) -> list[str]:
    """Check what only shows when all hyperparameters are seen together."""
    problems: list[str] = []
    seen: dict[str, str] = {}
    for name in encoded:
        other = seen.setdefault(name.lower().replace("-", "_"), name)
        if other != name:
            problems.append(f"{name}: shares its SM_HP_ variable and its option with '{other}'; rename one of them")
    allowed = contract.MAX_HYPERPARAMETERS - _ROOM_FOR_THE_PLATFORM
    if len(encoded) > allowed:
        problems.append(f"{len(encoded)} hyperparameters, and a job takes {allowed} beside the platform's own")
    size = sum(len(name) + len(value) for name, value in encoded.items())
    if size > contract.MAX_HYPERPARAMETERS_BYTES:
        problems.append(f"{size} bytes together, and a job takes {contract.MAX_HYPERPARAMETERS_BYTES}")
    return problems
