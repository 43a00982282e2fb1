"""One settings class resolved from all its sources: which value wins, where it came from, and every problem at once.

Layers are laid over each other, pydantic checks the result, and each complaint is traced back to the layer that gave
the value. This room knows nothing of files, channels or hosts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, cast

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import TypeVar

from smkit.annotations import choices, is_secret, members, nested_model
from smkit.arguments import Option, OptionIndex, default_of, type_text
from smkit.errors import ConfigurationError, shown
from smkit.hyperparameters import Hyperparameters, freeze
from smkit.redaction import note, redacted
from smkit.sources import Layer, Options

H = TypeVar("H", bound=Hyperparameters)


@dataclass(frozen=True)
class Resolved(Generic[H]):
    """The outcome: settings and the origin of each value, or the problems that stand in the way."""

    settings: H | None
    origins: Mapping[str, str]
    problems: Sequence[str]


def resolve(settings: type[H], options: Options, layers: Iterable[Layer]) -> Resolved[H]:
    """Lay `layers` over the defaults of `settings`, whose options these are, lowest first, and check the outcome."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.values.items():
            inner = [other for other in values if other.startswith(f"{name}.")]
            if value == {} and inner:
                continue
            for other in [*inner, *(other for other in values if name.startswith(f"{other}."))]:
                del values[other], origins[other]
            values[name], origins[name] = value, layer.label
            if is_secret(options[name].annotation):
                note(value)
    try:
        resolved = settings.model_validate(_tree(settings, values))
    except ValidationError as error:
        # What a validator of the user's own says can quote what it was given.
        return Resolved(None, origins, [redacted(problem) for problem in _explain(error, values, origins, options)])
    leaves = [name for name in options if not any(other.startswith(f"{name}.") for other in options)]
    return Resolved(resolved, {name: _origin(name, origins) for name in leaves}, ())


def with_secrets(resolved: Resolved[H], look_up: Callable[[str], str]) -> Resolved[H]:
    """Return the outcome with every secret replaced by what `look_up` makes of its text, a reference to it or itself.

    The class has checked the references: what is looked up is for it to carry, not to judge.
    """
    settings = resolved.settings
    if settings is None or not is_secret(type(settings)):
        return resolved
    problems: list[str] = []

    def replaced(value: Any, name: str) -> Any:
        if isinstance(value, (SecretStr, SecretBytes)):
            try:
                return _looked_up(value, look_up)
            except ConfigurationError as error:
                problems.append(f"{_source(name, resolved.origins)}: {name}: {error.what}; {error.fix}")
        elif isinstance(value, BaseModel):
            items = {key: replaced(item, f"{name}.{key}" if name else key) for key, item in value.__dict__.items()}
            return value.model_copy(update={key: items[key] for key in items if items[key] is not value.__dict__[key]})
        elif isinstance(value, dict):
            return {key: replaced(item, name) for key, item in value.items()}
        elif isinstance(value, (list, tuple)):
            return type(value)(replaced(item, name) for item in value)
        return value

    found = freeze(replaced(settings, ""))
    return Resolved(None if problems else found, resolved.origins, problems)


def _looked_up(secret: SecretStr | SecretBytes, look_up: Callable[[str], str]) -> SecretStr | SecretBytes:
    if isinstance(secret, SecretStr):
        return SecretStr(look_up(secret.get_secret_value()))
    try:
        return SecretBytes(look_up(secret.get_secret_value().decode("utf-8")).encode("utf-8"))
    except UnicodeDecodeError:
        return secret


def _origin(name: str, origins: Mapping[str, str]) -> str:
    parts = name.split(".")
    paths = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((origins[path] for path in paths if path in origins), "default")


def _tree(
    model: type[BaseModel], values: Mapping[str, Any], base: BaseModel | None = None, prefix: str = ""
) -> dict[str, Any]:
    """Return `values` as nested dicts by the names that pydantic reads; what they leave open is taken from `base`."""
    tree: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        path, key = prefix + name, _input_name(name, info)
        inner = nested_model(info.annotation)
        if inner is not None and (values.get(path) == {} or any(other.startswith(f"{path}.") for other in values)):
            default = default_of(info) if base is None else getattr(base, name)
            tree[key] = _tree(inner, values, inner.model_validate(default) if default else None, f"{path}.")
        elif path in values:
            tree[key] = values[path]
        elif base is not None:
            tree[key] = getattr(base, name)
    return tree


def _input_name(name: str, info: FieldInfo) -> str:
    return info.validation_alias if isinstance(info.validation_alias, str) else info.alias or name


def _explain(
    error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str], options: Options
) -> list[str]:
    """Return pydantic's complaints in the words of the user; those about one value of a union in one sentence."""
    index = OptionIndex(options.values())
    complaints: dict[tuple[str, str], list[str]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        subject, wish, given = _complaint(cast("dict[str, Any]", detail), values, origins, index)
        wishes = complaints.setdefault((subject, given), [])
        if wish not in wishes:
            wishes.append(wish)
    return [subject + _either(wishes) + given for (subject, given), wishes in complaints.items()]


def _complaint(
    detail: Mapping[str, Any], values: Mapping[str, Any], origins: Mapping[str, str], index: OptionIndex
) -> tuple[str, str, str]:
    """Return source and name, what is wanted, what was given."""
    location: Sequence[int | str] = detail["loc"]
    ends = range(len(location), 0, -1)
    found = ((end, index.find(".".join(map(str, location[:end])))) for end in ends)
    depth, option = next(((end, option) for end, option in found if option is not None), (0, None))
    if option is None:
        return detail["msg"].removeprefix("Value error, "), "", ""
    if detail["type"] == "missing" and depth == len(location):
        return f"{option.name} is required; give {option.flag} {type_text(option.annotation)}", "", ""
    place, value = _given(location[depth:], values.get(option.name))
    is_shown = option.name in values and not is_secret(option.annotation)
    given = (f" (got {shown(value)})" if is_shown else "") + _nearest(value, option)
    return f"{_source(option.name, origins)}: {option.name}{place}", _wish(detail, option, place), given


def _source(name: str, origins: Mapping[str, str]) -> str:
    """Return where a value came from; of a nested model, where its parts did."""
    parts = [origin for other, origin in origins.items() if other.startswith(f"{name}.")]
    return " and ".join(dict.fromkeys(parts)) or _origin(name, origins)


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


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "model": "an object, like '{\"a\": 1}' or a=1",
    "dict": "an object, like '{\"a\": 1}' or a=1",
}


def _wish(detail: Mapping[str, Any], option: Option, place: str) -> str:
    kind: str = detail["type"]
    wanted = _TYPES.get(kind.partition("_")[0])
    if wanted is not None:
        may_be_none = not place and type(None) in members(option.annotation)
        return f" must be {wanted}" + (" or none" if may_be_none else "")
    if kind == "missing":
        return f" lacks '{detail['loc'][-1]}'"
    if kind == "extra_forbidden":
        return " is an unknown name"
    message: str = detail["msg"]
    if kind == "value_error":
        return ": " + message.removeprefix("Value error, ")
    wish = re.sub(r"^\w+ should", "must", message.split(", unable to", maxsplit=1)[0])
    wish = wish.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return " " + wish.replace(" after validation", "").replace("a valid string", "a text")


def _either(wishes: Sequence[str]) -> str:
    """Join what the members of a union want: ` must be a whole number or 'auto'`."""
    first, *others = wishes
    return " or ".join([first, *(wish.removeprefix(" must be ").strip() for wish in others)])


def _nearest(given: Any, option: Option) -> str:
    """Suggest the nearest choice, where there are choices."""
    allowed = [
        str(getattr(choice, "value", choice)) for member in members(option.annotation) for choice in choices(member)
    ]
    near = difflib.get_close_matches(str(given), allowed, 1, 0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
