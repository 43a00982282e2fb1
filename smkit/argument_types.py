"""Whether the arguments of `launch` are of types that they can be, for those who use no type checker.

What is not is said, and stood in for by a value that is, so that all the others can still be checked. What a value of
the right type may be is said elsewhere. Values of mappings are not shown: they may be secrets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from smkit.launch_arguments import LaunchArguments


class _Type(NamedTuple):
    belongs: str
    holds: Callable[[Any], bool]
    is_shown: bool = True


_DEPTH = 50
"""CreateTrainingJob's own fields are nested seven deep."""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and not _has_half_characters(value)


def _has_half_characters(text: str) -> bool:
    """Whether a text cannot be written, not even as the name of a file, which may be of any bytes."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return True
    return False


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike)) and _is_text(os.fspath(value)) and not _is_in_s3(value)


def _is_in_s3(value: object) -> bool:
    # A Path makes one slash of two.
    return isinstance(value, (str, os.PathLike)) and str(value).startswith("s3:/")


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)


def _is_settings(value: object) -> bool:
    """Whether hyperparameters are a mapping or an instance of a settings class; it need not be loaded to know one."""
    return isinstance(value, Mapping) or (not isinstance(value, type) and hasattr(value, "model_fields_set"))


def _is_finite(value: object, above: tuple[int, ...] = ()) -> bool:
    """Whether a value can be walked to its end: it does not hold itself, and is not nested deeper than anything is."""
    if not isinstance(value, (Mapping, list, tuple)):
        return True
    if id(value) in above or len(above) == _DEPTH:
        return False
    parts = value.values() if isinstance(value, Mapping) else value
    return all(_is_finite(part, (*above, id(value))) for part in parts)


def _or_none(kind: _Type) -> _Type:
    return kind._replace(holds=lambda value: value is None or kind.holds(value))


_TEXT = _Type("a text", _is_text)
_PATH = _Type("a path", _is_path)
_COUNT = _Type("a whole number", lambda value: type(value) is int)
_FLAG = _Type("True or False", lambda value: isinstance(value, bool))
_TEXTS = _Type("a list of texts", _is_list_of_texts)
_MAPPING = _Type("a dict with texts for names", _is_mapping, is_shown=False)

_PLAIN = _Type("a single value", lambda value: not isinstance(value, (Mapping, list, tuple)), is_shown=False)
"""What else is wrong with it is said better where its bounds are known; a container could hold itself."""
_CHANNELS = _Type("a dict from the names of channels to their data", lambda value: isinstance(value, Mapping))
_REQUEST = _MAPPING._replace(holds=lambda value: _is_mapping(value) and _is_finite(value))

_TYPES: Mapping[str, tuple[_Type, object]] = {
    "entry": (_TEXT, ""),
    "source_dir": (_PATH, "."),
    "instance_type": (
        _Type("a text, or a list of texts,", lambda value: isinstance(value, str) or _is_list_of_texts(value)),
        (),
    ),
    "instance_count": (_COUNT, 1),
    "processes_per_host": (_or_none(_COUNT), None),
    "inputs": (_CHANNELS, {}),
    "hyperparameters": (
        _or_none(_Type("an instance of a settings class, or a dict,", _is_settings, is_shown=False)),
        None,
    ),
    "environment": (_MAPPING, {}),
    "name": (_or_none(_TEXT), None),
    "role": (_or_none(_TEXT), None),
    "profile_name": (_or_none(_TEXT), None),
    "region": (_or_none(_TEXT), None),
    "bucket": (_or_none(_TEXT), None),
    "image_uri": (_or_none(_TEXT), None),
    "framework_version": (_or_none(_TEXT), None),
    "py_version": (_or_none(_TEXT), None),
    "spot": (_PLAIN, False),
    "max_hours": (_PLAIN, 24.0),
    "checkpoint_uri": (_or_none(_TEXT), None),
    "keep_alive_minutes": (_PLAIN, 0),
    "retries": (_PLAIN, 0),
    "graceful_stop": (_FLAG, False),
    "metrics": (_TEXTS, ()),
    "tags": (_MAPPING, {}),
    "vendor": (_TEXT, "source"),
    "allow_secrets": (_TEXTS, ()),
    "request": (_REQUEST, {}),
    "output_dir": (_PATH, "runs"),
    "checkpoint_dir": (_or_none(_PATH), None),
}
"""Each argument's type, and what stands in for a value of another; of the others something else says it better."""


def check(arguments: LaunchArguments) -> tuple[LaunchArguments, list[str]]:
    """Return the arguments, those of a wrong type stood in for, and what is wrong with those."""
    found = problems({name: getattr(arguments, name) for name in _TYPES})
    stand_ins: dict[str, Any] = {name: _TYPES[name][1] for name in found}
    return replace(arguments, **stand_ins), list(found.values())


def problems(given: Mapping[str, object]) -> dict[str, str]:
    """Return what is wrong with those arguments that are of a wrong type, by their names, which are `launch`'s."""
    kinds = ((name, value, _TYPES[name][0]) for name, value in given.items())
    return {name: _problem(name, value, kind) for name, value, kind in kinds if not kind.holds(value)}


def _problem(name: str, value: object, kind: _Type) -> str:
    if isinstance(value, str) and "\0" in value:
        return f"{name}: holds a NUL character"
    if isinstance(value, (str, os.PathLike)) and _has_half_characters(str(value)):
        return f"{name}: holds half a character (a surrogate)"
    if isinstance(value, type):
        return f"{name}: is the class {value.__name__}, and an instance belongs here: {value.__name__}(...)"
    if kind is _REQUEST and _is_mapping(value):
        return f"{name}: contains itself, or is nested more than {_DEPTH} deep"
    if _is_in_s3(value):
        return f"{name} '{value}': a path on this machine belongs here; 'aws s3 sync' copies what is in S3"
    if kind is _CHANNELS:
        return _problem_of_channels(value)
    is_short = kind.is_shown and isinstance(value, (str, bytes, int, float, type(None))) and len(repr(value)) <= 80
    subject = f"{name} {value!r}" if is_short else name
    if kind is _TEXTS and isinstance(value, str):
        return f"{subject}: {kind.belongs} belongs here; did you mean {[value]!r}?"
    shown = "" if value is None else f"is of type {type(value).__name__}, and "
    return f"{subject}: {shown}{kind.belongs} belongs here"


def _problem_of_channels(value: object) -> str:
    sources = value if isinstance(value, (list, tuple)) else [value]
    if not sources or not all(isinstance(each, (str, os.PathLike)) for each in sources):
        return f"inputs {value!r:.80}: {_CHANNELS.belongs} belongs here: {{'train': 's3://bucket/prefix'}}"
    names = ["train", "test", *(f"channel{number}" for number in range(3, len(sources) + 1))]
    meant = {name: os.fspath(each) for name, each in zip(names, sources, strict=False)}
    return f"inputs {value!r}: {_CHANNELS.belongs} belongs here; did you mean {meant!r}?"
