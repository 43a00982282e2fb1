"""What a type annotation allows: its union's members, its choices, whether it holds several values or a secret.

This room knows types only; it neither reads nor writes a value.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Secret, SecretBytes, SecretStr


def members(annotation: Any) -> list[Any]:
    """Return the types that a union allows, `Annotated` taken off; a single type for what is no union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in get_args(annotation) for member in members(part)]
    return [annotation]


def kind_of(member: Any) -> Any:
    """Return the bare class of a type: `list` of `list[int]`."""
    return get_origin(member) or member


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """Return the one pydantic model that an annotation holds (with or without None), if it holds no other type."""
    some = [member for member in members(annotation) if member is not type(None)]
    return some[0] if len(some) == 1 and _is_a(some[0], BaseModel) else None


def classes_with_fields(annotation: Any) -> Iterator[type]:
    """Yield every model and dataclass that an annotation names, at any depth."""
    if _is_a(annotation, BaseModel) or (_is_a(annotation, object) and dataclasses.is_dataclass(annotation)):
        yield annotation
    for part in get_args(annotation):
        yield from classes_with_fields(part)


def is_sequence(member: Any) -> bool:
    """Whether a type holds several values in a row."""
    return _is_a(kind_of(member), list, tuple, set, frozenset, Sequence) and not is_text(member)


def is_mapping(member: Any) -> bool:
    """Whether a type holds values under names."""
    return _is_a(kind_of(member), dict, Mapping, BaseModel)


def is_text(member: Any) -> bool:
    """Whether a type is spelled as plain text."""
    return _is_a(member, str, bytes, PurePath, SecretStr, SecretBytes)


def choices(member: Any) -> list[Any]:
    """Return the values of a Literal or an Enum, else nothing."""
    if get_origin(member) is Literal:
        return list(get_args(member))
    return list(member) if _is_a(member, enum.Enum) else []


def is_secret(annotation: Any) -> bool:
    """Whether any part of an annotation is a pydantic Secret."""
    if _is_a(annotation, SecretStr, SecretBytes):
        return True
    if _is_a(annotation, BaseModel):
        return any(is_secret(field.annotation) for field in annotation.model_fields.values())
    return any(is_secret(part) for part in get_args(annotation))


def is_secret_of_a_kind(annotation: Any) -> bool:
    """Whether any part of an annotation is pydantic's `Secret[...]`, which holds a value of any type."""
    is_here = get_origin(annotation) is Secret or annotation is Secret
    return is_here or any(is_secret_of_a_kind(part) for part in get_args(annotation))


def _is_a(annotation: Any, *bases: type) -> bool:
    # Python 3.10 calls `list[int]` a type, and `issubclass` refuses it.
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, bases)


def takes_text(member: Any) -> bool:
    """Whether every value of this type is spelled as plain text, so that `1e3` must not become a number."""
    options = [choice.value if isinstance(choice, enum.Enum) else choice for choice in choices(member)]
    return all(isinstance(option, str) for option in options) if options else is_text(member)
