"""What a small file or a variable says: JSON, TOML or YAML read whole, or refused where it could be read in two ways.

A name that is there twice, a text that expands to millions of values, a pipe that nobody writes into: each is an error
here, and none reaches who asked. This room knows neither settings nor jobs.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 16 << 20
"""Of a file; the largest of a job, hyperparameters.json, has a hundredth of it."""
_MOST_VALUES = 1 << 20
"""Of a document, what its YAML aliases stand for counted each time."""
_DEEPEST = 150
"""Values within values of a YAML file; a hyperparameter may have a hundred."""
_MOST_BITS = 1 << 12
"""Of a whole number; Python writes none of more than 4,300 digits."""


def is_there(path: Path) -> bool:
    """Return whether something of this name is there; what cannot be the name of a file is not."""
    return os.path.lexists(path)


def printable(text: str) -> str:
    """Return `text` with what is no UTF-8 in it (a file name, a variable) as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_text(file: Path) -> str:
    """Return the text of a file, without the mark that some programs write before UTF-8.

    Raises:
        FileNotFoundError: It is not there.
        OSError: It cannot be read.
        ValueError: It is no file but a folder or a pipe, is too large, or is no UTF-8.
    """
    # A pipe opened so does not wait for who writes into it.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no file but a folder, a pipe or a device")
    with os.fdopen(descriptor, "rb") as opened:
        data = opened.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB, and holds settings only")
    return data.decode("utf-8").removeprefix("\ufeff")


def read_json_object(file: Path, problems: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file; nothing, and a problem, if it cannot be read as one."""
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        problems.append(f"{printable(str(file))}: cannot be read: {error}")
        return {}
    return parse_json(text, printable(str(file)), dict, problems) or {}


def parse_json(text: str, source: str, kind: type[Any], problems: list[str], *, is_shown: bool = False) -> Any:
    """Return the value of a JSON text; None, and a problem, if it is no JSON or not of the kind wanted.

    Args:
        text: The JSON.
        source: What a problem names as its place.
        kind: `dict` or `list`.
        problems: Where a problem is noted.
        is_shown: Whether a problem may show how the text begins: it holds no secret.
    """
    try:
        value = load_json(text)
    except RecursionError:
        problems.append(f"{source}: is nested too deeply")
    except RepeatedNameError as error:
        problems.append(f"{source}: {error}")
    except ValueError as error:
        begin = f" (it begins {text[:20]!r})" if is_shown else ""
        problems.append(f"{source}: is not JSON: {error}{begin}")
    else:
        if isinstance(value, kind):
            return value
        wanted = "an object" if kind is dict else "a list"
        problems.append(f"{source}: should be {wanted}, and is a {type(value).__name__}")
    return None


class RepeatedNameError(ValueError):
    """One object gives a name twice; readers differ in which of the two values they take."""

    def __init__(self, name: object) -> None:
        super().__init__(f"gives the name {str(name)[:60]!r} twice; keep one")


def load_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is no JSON, or gives a name twice.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require_distinct(name for name, _ in pairs)
    return dict(pairs)


def _require_distinct(names: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for name in names:
        if name in seen:
            raise RepeatedNameError(name)
        seen.add(name)


def load(file: Path) -> Any:
    """Return what a JSON, TOML or YAML file holds, by its ending.

    Raises:
        OSError: It cannot be read.
        ValueError: It is none of these, or could be read in two ways; or one value of it is beyond all measure.
    """
    loaders: Mapping[str, Callable[[str], Any]] = {
        ".json": load_json,
        ".toml": _load_toml,
        ".yaml": _load_yaml,
        ".yml": _load_yaml,
    }
    try:
        content = loaders[file.suffix.lower()](read_text(file))
        _count(content, {})
    except RecursionError as error:
        raise ValueError("it is nested too deeply, or holds itself") from error
    return content


ENDINGS = (".json", ".toml", ".yaml", ".yml")
"""Of the files that `load` reads."""


def _count(value: Any, counted: dict[int, int]) -> int:
    """Return how many values there are in `value`; one that is there several times is looked at once."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError(f"a whole number in it has {value.bit_length():,} bits")
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if id(value) not in counted:
        parts = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(part, counted) for part in parts)
        if counted[id(value)] > _MOST_VALUES:
            raise ValueError(f"its aliases (*name) stand for more than {_MOST_VALUES:,} values")
    return counted[id(value)]


def _load_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _load_yaml(text: str) -> Any:
    # Importing it takes a hundredth of a run's start, and few runs need it.
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML without what is read differently from how it looks: names given twice, `010` and `1:30` as numbers."""

        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            # Where Python's own limit is higher, minutes: PyYAML looks at all that is open at each character.
            self.depth += 1
            if self.depth > _DEEPEST:
                raise RecursionError
            found = super().compose_node(parent, index)
            self.depth -= 1
            return found

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
            # Before `<<` is resolved: what a mapping takes over from another one it may give again.
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _require_distinct(names)
            found: dict[Hashable, Any] = super().construct_mapping(node, deep)
            if len(found) < len(names) - names.count("<<"):
                raise ValueError(f"{', '.join(names)[:60]}: two of these names are one value to YAML")
            return found

        def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
            _require_decimal(node.value)
            return super().construct_yaml_int(node)

        def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
            _require_decimal(node.value)
            return super().construct_yaml_float(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, LookupError, AttributeError, TypeError) as error:
        # PyYAML lets a KeyError or an AttributeError through for a tag that does not fit its value.
        raise ValueError(_without_excerpt(error)) from error


def _without_excerpt(error: Exception) -> str:
    """Return what PyYAML says, and where, without the lines that it shows: a secret can stand in them."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    words = (getattr(error, "context", None), getattr(error, "problem", None))
    return f"{', '.join(filter(None, words))} in line {mark.line + 1}, column {mark.column + 1}"


def _require_decimal(text: str) -> None:
    digits = text.lstrip("+-").replace("_", "")
    if ":" in digits:
        raise ValueError(f"{text} is a number of base 60 in YAML; write '{text}' for a text")
    if len(digits) > 1 and digits[0] == "0" and digits.isdecimal():
        raise ValueError(f"{text} is an octal number in YAML; write it without the 0, or '{text}' for a text")
