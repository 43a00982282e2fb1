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
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import Any, get_args

from pydantic import SecretBytes, SecretStr, ValidationError

from smkit import contract
from smkit.annotations import choices, is_mapping, is_secret, is_sequence, is_text, members, nested_model, takes_text
from smkit.documents import RepeatedNameError, load_json
from smkit.errors import ConfigurationError
from smkit.hyperparameters import Hyperparameters
from smkit.secret_references import FORMS, is_reference

# --- text -> value ----------------------------------------------------------------------------------------------------

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE]\+?\d{1,3}")
_NUMBERS_AND_BOOLS = (int, float, bool)
_ANYTHING = (Any, object)


def decode(text: str, annotation: Any) -> Any:
    """Return what `text` means for a field of this annotation; pydantic then checks and converts the result.

    The annotation alone decides: a `str` stays as it is written; a list is JSON, Python's notation (which the toolkit
    sends) or comma-separated; a dict is JSON or `key=value,...`; `null` and `None` are None where None is allowed and
    no choice is spelled so.

    Raises:
        ValueError: The text looks like a list or an object, but is neither JSON nor Python's notation, or it gives a
            name twice.
    """
    allowed = members(annotation)
    some = [member for member in allowed if member is not type(None)]
    spelled = _choices_by_spelling(some)
    if text in spelled:
        return spelled[text]
    has_text = any(is_text(member) for member in some)
    if type(None) in allowed and (text in ("None", "null") or (text == "" and not has_text)):
        return None
    if any(is_sequence(member) or is_mapping(member) for member in some):
        return _decode_container(text, some, has_text=has_text)
    return _decode_scalar(text, some)


def _choices_by_spelling(some: Sequence[Any]) -> dict[str, Any]:
    """Return the choices of Literals and Enums by their texts; an Enum's value goes before another's name."""
    options = [choice for member in some for choice in choices(member)]
    names = {choice.name: choice for choice in options if isinstance(choice, enum.Enum)}
    return names | {text: choice for choice in reversed(options) for text in _spellings(choice)}


def _spellings(choice: Any) -> tuple[str, ...]:
    value = choice.value if isinstance(choice, enum.Enum) else choice
    return (str(value), json.dumps(value)) if value is None or isinstance(value, bool) else (str(value),)


def _decode_scalar(text: str, some: Sequence[Any]) -> Any:
    takes_all = any(member in _ANYTHING for member in some)
    if takes_all or (len(some) > 1 and any(member in _NUMBERS_AND_BOOLS for member in some)):
        value = _notation(text)
        fits = takes_all or type(value) in some or (type(value) is int and float in some)
        return value if fits and not isinstance(value, str) else text
    if some == [int] and _EXPONENT.fullmatch(text):
        number = Decimal(text)
        return int(number) if number == int(number) else text
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
        # Without quotes it is a word, of a command line or a web console, and means what it means there.
        is_word = raw == value
        return value if _takes_as_it_is(value, some) and not is_word else decode(value, annotation)
    if len(some) == 1 and is_sequence(some[0]) and not isinstance(value, (list, dict)):
        return [decode_job_value(value, raw, _item_annotation(some[0]))]
    if not all(takes_text(member) for member in some):
        return value
    if raw is not None:
        return raw if some == [str] else decode(raw, annotation)
    if isinstance(value, (bool, int)) or value is None:
        return json.dumps(value)
    left = "a number or a list" if is_secret(annotation) else json.dumps(value)
    raise ValueError(f"is a text, of which only {left} is left; send it as json.dumps(text)")


def loads_once(text: str) -> Any:
    """Return what the one `json.loads` of every runtime makes of a hyperparameter: the text itself if it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _takes_as_it_is(text: str, some: Sequence[Any]) -> bool:
    """Whether one of these types takes a text unread: a str, a Path, anything, a choice that is this text."""
    options = [choice.value if isinstance(choice, enum.Enum) else choice for kind in some for choice in choices(kind)]
    return text in options or any(kind in _ANYTHING or (is_text(kind) and not choices(kind)) for kind in some)


def _notation(text: str) -> Any:
    """Return what JSON, else Python's notation makes of a text; the text itself if neither reads it.

    Raises:
        ValueError: It is JSON that gives a name twice.
    """
    readers: tuple[Callable[[str], Any], ...] = (load_json, ast.literal_eval)
    for reader in readers:
        try:
            return reader(text)
        except RepeatedNameError:
            raise
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
    if has_text:
        return _decode_scalar(text, [kind for kind in some if not (is_sequence(kind) or is_mapping(kind))])
    if type(value) in some:
        return value
    if text.strip()[:1] in ("[", "{"):
        raise ValueError("""looks like JSON and is not; write it like '["a", "b"]' or '{"a": 1}', quotes included""")
    if sequence is not None:
        items = [part.strip() for part in text.split(",")] if text.strip() else []
        return [decode(item, _item_annotation(sequence)) for item in items]
    return _decode_pairs(text, mapping) if "=" in text else {} if text == "" else text


def _decode_pairs(text: str, mapping: Any) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, item = part.partition("=")
        key = name.strip()
        value = decode(item, _annotation_of(key, mapping))
        # A bracket that is not closed before the comma: this is the toolkit's text of a dict that holds a list.
        if not equals or (isinstance(value, str) and value[:1] in ("[", "{") and value == item):
            raise ValueError("""cannot be read as KEY=VALUE,...; write it as JSON, like '{"a": [1, 2]}'""")
        if key in pairs:
            raise RepeatedNameError(key)
        pairs[key] = value
    return pairs


def _annotation_of(key: str, mapping: Any) -> Any:
    model = nested_model(mapping)
    if model is not None:
        field = model.model_fields.get(key.replace("-", "_"))
        return str if field is None else field.annotation
    arguments = get_args(mapping)
    return arguments[-1] if arguments else Any


# --- value -> wire ----------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_ROOM_FOR_THE_PLATFORM = 10
"""Entries kept free for the toolkit's own `sagemaker_*` hyperparameters."""


class Word(str):
    """A text that a user wrote on a command line: the job's script reads it as it would read it there.

    Unless it is JSON, which every runtime reads before the script can, or the script has no hyperparameters.json.
    """

    __slots__ = ()


def encode(hyperparameters: Hyperparameters | Mapping[str, object]) -> dict[str, str]:
    """Return `{name: json.dumps(value)}`, the one form that every runtime gives back to the script unchanged.

    A `Word` that is no JSON travels without quotes. A secret travels only as a reference to it.

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
        text, problem = _json_text(value)
        problem = _name_problem(name) or problem
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            encoded[name] = text
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
    """Return the JSON form of every field, and a problem for each that the script would not read back as it is."""
    kind = type(hyperparameters)
    values: dict[str, object] = {}
    problems: list[str] = []
    read: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        value = getattr(hyperparameters, name)
        if is_secret(field.annotation) and value == field.default:
            continue  # The class has it in the job too.
        try:
            values |= hyperparameters.model_dump(mode="json", include={name}, by_alias=False, round_trip=True)
            if name not in values:
                problems.append(f"{name}: is left out of every dump by Field(exclude=True); drop that")
                continue
            if is_secret(field.annotation):
                values[name] = _unmasked(values[name], value)
                problem = _value_problem(values[name])
                if problem:
                    problems.append(f"{name}: {problem}")
                    del values[name]
                    continue
            text = json.dumps(values[name], default=_plain)
            read[name] = decode_job_value(json.loads(text), None, field.annotation)
        except (ValueError, RecursionError) as error:
            values.pop(name, None)
            problems.append(f"{name}: has no JSON form ({error})")
    return values, problems or _differences(hyperparameters, read)


def _unmasked(plain: Any, value: Any) -> Any:
    """Return the JSON form of a value with its secrets, which a dump masks, put back."""
    if isinstance(value, (SecretStr, SecretBytes)):
        return value
    if isinstance(plain, dict):
        items = value.values() if isinstance(value, Mapping) else [getattr(value, name, None) for name in plain]
        return {name: _unmasked(part, item) for (name, part), item in zip(plain.items(), items, strict=True)}
    if isinstance(plain, list) and isinstance(value, Collection):
        return [_unmasked(part, item) for part, item in zip(plain, value, strict=True)]
    return plain


def _differences(hyperparameters: Hyperparameters, read: Mapping[str, Any]) -> list[str]:
    try:
        back = type(hyperparameters).model_validate(read)
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, detail['loc']))}: would be refused by the script: {detail['msg']}"
            for detail in error.errors(include_url=False, include_input=False)
        ]
    pairs = [(name, getattr(hyperparameters, name), getattr(back, name)) for name in read]
    return [
        f"{name}: {mine!r} would reach the script as {its!r}"
        for name, mine, its in pairs
        # Not a number does not equal itself, and a set's text depends on how it was filled.
        if mine != its and repr(mine) != repr(its)
    ]


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "a name is letters, digits, '_', '-' and '.', and starts with a letter"
    if contract.is_platform_hyperparameter(name):
        return "names of this kind belong to the platform and never reach the script"
    if len(name) > contract.MAX_HYPERPARAMETER_NAME:
        return f"SageMaker takes names of {contract.MAX_HYPERPARAMETER_NAME} characters"
    return None


def _json_text(value: object) -> tuple[str, str | None]:
    """Return a value as JSON, or the reason why it cannot travel so."""
    try:
        problem = _value_problem(value)
        text = "" if problem else str(value) if _is_plain_word(value) else json.dumps(value, default=_plain)
    except (ValueError, RecursionError) as error:
        return "", f"has no JSON form ({error})"
    if len(text) > contract.MAX_HYPERPARAMETER_VALUE:
        most = contract.MAX_HYPERPARAMETER_VALUE
        problem = f"{len(text)} characters as JSON, and SageMaker takes {most}; put it into a file in a channel"
    return text, problem


def _is_plain_word(value: object) -> bool:
    """Whether a value is a word that no runtime takes for JSON, and that every one leaves as it is."""
    if not (isinstance(value, Word) and value.isascii() and value.isprintable() and value.strip() == value != ""):
        return False
    try:
        return loads_once(value) is value
    except RecursionError:
        return False


_READABLE = f"a secret would be readable in the job's description and log; send a reference to it: {FORMS}"


def _value_problem(value: object) -> str | None:
    """Say why a value would not come back from JSON, and from a process's environment, as it went in."""
    if isinstance(value, (SecretStr, SecretBytes)):
        return None if is_reference(_secret_text(value)) else _READABLE
    if isinstance(value, enum.Enum):
        return _value_problem(value.value)
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
    if value is None or isinstance(value, (bool, int, float, PurePath)):
        return None
    return f"a {type(value).__name__} has no JSON form; give a number, a text, a bool, None, a list or a dict of these"


def _secret_text(secret: SecretStr | SecretBytes) -> str:
    value = secret.get_secret_value()
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (SecretStr, SecretBytes)):
        return _secret_text(value)
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
