"""What the sources of a run's settings mean, read once more and otherwise: by the letter, from SageMaker's contract.

Nothing here is smkit's. Where a text has one meaning the answer is that value; where it has none, REFUSE. UNSURE is
for what a reader may take or refuse: then a value is right only if it is the one that is given.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

FIELDS: dict[str, tuple[str, object]] = {
    "lr": ("real", 0.1),
    "count": ("whole", 3),
    "flag": ("truth", False),
    "text": ("text", "t"),
    "maybe": ("whole or none", None),
    "kind": ("choice", "sgd"),
    "layers": ("wholes", [1]),
    "table": ("reals by name", {}),
}
"""The fields of `settings_sources.Fields`: the kind of each, and its default."""
CHOICES = ("sgd", "adam", "1")
TRUE = ("true", "1", "yes", "on", "t", "y")
FALSE = ("false", "0", "no", "off", "f", "n")


@dataclass(frozen=True)
class Meaning:
    """What a value means: the value, and whether a reader may refuse it all the same."""

    value: Any = None
    is_none: bool = False
    """It means nothing, and must be refused."""
    is_sure: bool = True


REFUSE = Meaning(is_none=True)


def unsure(value: Any) -> Meaning:
    return Meaning(value, is_sure=False)


class RepeatedError(ValueError):
    """An object with two values under one name."""


def strict_json(text: str) -> Any:
    """Return the value of a JSON text in which no name is given twice."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise RepeatedError
        return found

    return json.loads(text, object_pairs_hook=object_of)


def job_value(kind: str, text: str) -> Meaning:
    """Return what a text of hyperparameters.json means: JSON where it is JSON, else itself."""
    try:
        value = strict_json(text)
    except RepeatedError:
        return REFUSE
    except RecursionError:
        return unsure(text) if kind == "text" else REFUSE
    except ValueError:
        value = text
    if kind == "text":
        return Meaning(value if isinstance(value, str) else text)
    return of_value(kind, value)


def of_value(kind: str, value: Any) -> Meaning:
    """Return what a value of JSON means for a kind of field."""
    if kind == "whole or none":
        return Meaning(None) if value is None else of_text(kind, value) if isinstance(value, str) else _whole(value)
    if kind == "text":
        return Meaning(value) if isinstance(value, str) else REFUSE
    if isinstance(value, str):
        return of_text(kind, value)
    return {
        "real": _real,
        "whole": _whole,
        "truth": _truth,
        "choice": lambda value: unsure(str(value)) if str(value) in CHOICES and type(value) is int else REFUSE,
        "wholes": _wholes,
        "reals by name": _reals,
    }[kind](value)


def _real(value: Any) -> Meaning:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return REFUSE
    try:
        return Meaning(float(value))
    except OverflowError:
        return REFUSE


def _whole(value: Any) -> Meaning:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return REFUSE
    if isinstance(value, int):
        return Meaning(value)
    return unsure(int(value)) if math.isfinite(value) and value == int(value) else REFUSE


def _truth(value: Any) -> Meaning:
    if isinstance(value, bool):
        return Meaning(value)
    return unsure(bool(value)) if isinstance(value, (int, float)) and value in (0, 1) else REFUSE


def _wholes(value: Any) -> Meaning:
    parts = [of_value("whole", part) for part in (value if isinstance(value, list) else [value])]
    return _all(parts, [part.value for part in parts], is_sure=isinstance(value, list))


def _reals(value: Any) -> Meaning:
    if not isinstance(value, dict):
        return REFUSE
    parts = {name: of_value("real", part) for name, part in value.items()}
    return _all(list(parts.values()), {name: part.value for name, part in parts.items()}, is_sure=True)


def _all(parts: list[Meaning], value: Any, *, is_sure: bool) -> Meaning:
    if any(part.is_none for part in parts):
        return REFUSE
    return Meaning(value, is_sure=is_sure and all(part.is_sure for part in parts))


def of_text(kind: str, text: str) -> Meaning:
    """Return what a text of the command line means for a kind of field."""
    if kind == "text":
        return Meaning(text)
    if kind == "choice":
        return Meaning(text) if text in CHOICES else REFUSE
    if kind == "truth":
        word = text.strip().lower()
        known = word in TRUE or word in FALSE
        return (Meaning if word == text else unsure)(word in TRUE) if known else REFUSE
    if kind == "whole or none":
        return Meaning(None) if text in ("None", "null", "") else _number(text, is_whole=True)
    if kind in ("real", "whole"):
        return _number(text, is_whole=kind == "whole")
    return _several(kind, text)


def _number(text: str, *, is_whole: bool) -> Meaning:
    is_plain = re.fullmatch(r"[+-]?[0-9]{1,4000}", text) if is_whole else re.fullmatch(r"[+-]?[0-9.eE+-]{1,300}", text)
    try:
        exact = Fraction(text.strip().replace("_", "")) if is_whole and len(text) < 5000 else None
        value: Any = int(exact) if exact is not None and exact.denominator == 1 else float(text)
    except (ValueError, OverflowError, ZeroDivisionError):
        return REFUSE
    if is_whole and (exact is None or exact.denominator != 1 or "/" in text):
        return REFUSE
    return Meaning(value) if is_plain else unsure(value)


def _several(kind: str, text: str) -> Meaning:
    try:
        value = strict_json(text)
    except RepeatedError:
        return REFUSE
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list if kind == "wholes" else dict):
        found = of_value(kind, value)
        return found if not found.is_none else REFUSE
    if kind == "wholes":
        words = [word.strip() for word in text.split(",")] if text.strip() else []
        parts = [of_text("whole", word) for word in words]
        return _all(parts, [part.value for part in parts], is_sure=False)
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    names = [name.strip() for name, _, _ in pairs]
    if len(set(names)) < len(names) or not all(equals for _, equals, _ in pairs):
        return REFUSE
    found = {name.strip(): of_text("real", word) for name, _, word in pairs}
    return _all(list(found.values()), {name: part.value for name, part in found.items()}, is_sure=False)


def same(mine: Any, its: Any) -> bool:
    """Say whether two values are equal, and of one type; not a number equals itself."""
    if isinstance(mine, Mapping) and isinstance(its, Mapping):
        return mine.keys() == its.keys() and all(same(value, its[name]) for name, value in mine.items())
    if isinstance(mine, (list, tuple)) and isinstance(its, (list, tuple)):
        return len(mine) == len(its) and all(map(same, mine, its))
    if isinstance(mine, float) and isinstance(its, float):
        return mine == its or (mine != mine and its != its)
    return type(mine) is type(its) and mine == its
