"""One settings class resolved from all its sources: which value wins, where it came from, and every problem at once.

Layers are laid over each other, pydantic checks the result, and each complaint is traced back to the layer that gave
the value. This room knows nothing of files, channels or hosts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import TypeVar

from smkit.annotations import choices, is_secret, members, nested_model
from smkit.arguments import Option, OptionIndex, options_of, type_text
from smkit.hyperparameters import Hyperparameters
from smkit.sources import Layer

H = TypeVar("H", bound=Hyperparameters)


@dataclass(frozen=True)
class Resolved(Generic[H]):
    """The outcome: settings and the origin of each value, or the problems that stand in the way."""

    settings: H | None
    origins: Mapping[str, str]
    problems: Sequence[str]


def resolve(settings: type[H], layers: Iterable[Layer]) -> Resolved[H]:
    """Lay `layers` over the defaults, lowest first, and check the outcome."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.values.items():
            for other in [other for other in values if other.startswith(f"{name}.") or name.startswith(f"{other}.")]:
                del values[other], origins[other]
            values[name], origins[name] = value, layer.label
    options = options_of(settings)
    try:
        resolved = settings.model_validate(_tree(settings, values))
    except ValidationError as error:
        return Resolved(None, origins, _explain(error, values, origins, options))
    leaves = [name for name in options if not any(other.startswith(f"{name}.") for other in options)]
    return Resolved(resolved, {name: _origin(name, origins) for name in leaves}, ())


def _origin(name: str, origins: Mapping[str, str]) -> str:
    parts = name.split(".")
    paths = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((origins[path] for path in paths if path in origins), "default")


def _tree(model: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `values` as nested dicts by the names that pydantic reads, defaults of half-given models filled in."""
    tree: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        path = prefix + name
        if path in values:
            tree[_input_name(name, info)] = values[path]
            continue
        inner = nested_model(info.annotation)
        if inner is not None and any(other.startswith(f"{path}.") for other in values):
            default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
            base = {_input_name(key, inner.model_fields[key]): item for key, item in default} if default else {}
            tree[_input_name(name, info)] = base | _tree(inner, values, f"{path}.")
    return tree


def _input_name(name: str, info: FieldInfo) -> str:
    return info.validation_alias if isinstance(info.validation_alias, str) else info.alias or name


def _explain(
    error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str], options: Mapping[str, Option]
) -> list[str]:
    """Return pydantic's complaints in the words of the user: source, name, what is wanted, what was given."""
    problems: list[str] = []
    index = OptionIndex(options.values())
    for detail in error.errors(include_url=False, include_input=False):
        location = [str(part) for part in detail["loc"]]
        found = ((end, index.find(".".join(location[:end]))) for end in range(len(location), 0, -1))
        depth, option = next(((end, option) for end, option in found if option is not None), (0, None))
        if option is None:
            problems.append(detail["msg"].removeprefix("Value error, "))
            continue
        wish = _wish(cast("dict[str, Any]", detail), option)
        item, given = _given(detail["loc"][depth:], values.get(option.name))
        if detail["type"] == "missing":
            problems.append(f"{option.name} is required; give {option.flag} {type_text(option.annotation)}")
        else:
            shown = "" if is_secret(option.annotation) or option.name not in values else f" (got {_short(given)})"
            problem = f"{_origin(option.name, origins)}: {option.name}{item} {wish}{shown}{_nearest(given, option)}"
            if problem not in problems:
                problems.append(problem)
    return problems


def _given(inner: Sequence[int | str], value: Any) -> tuple[str, Any]:
    """Return the part of a value that is wrong, and its place in it: `[1]`, and the item there."""
    place = ""
    for part in inner:
        try:
            value = value[part]
        except (LookupError, TypeError):
            break
        place += f"[{part!r}]"
    return place, value


def _wish(detail: Mapping[str, Any], option: Option) -> str:
    kind: str = detail["type"]
    if kind.startswith(("int_", "bool_", "float_")) and "|" not in type_text(option.annotation):
        names = {"int": "a whole number", "float": "a number", "bool": "true or false"}
        return f"must be {names[kind.partition('_')[0]]}"
    message: str = detail["msg"].split(", unable to")[0]
    return message.replace("Input should be", "must be").replace("Value error, ", "").replace("Input", "value")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(given: Any, option: Option) -> str:
    """Suggest the nearest choice, where there are choices."""
    allowed = [
        str(getattr(choice, "value", choice)) for member in members(option.annotation) for choice in choices(member)
    ]
    near = difflib.get_close_matches(str(given), allowed, 1, 0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
