"""botocore's own model of CreateTrainingJob, walked: all that it knows and does not check.

The model that botocore carries says how long, how many, of which pattern and out of which choices every field is;
botocore itself checks types and required fields only, one call at a time. This room needs neither credentials nor
network, and knows no argument of `launch`: it speaks of fields by their names in the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from smkit.errors import did_you_mean

Part = str | int
Rule = Literal["unknown", "required", "type", "size", "range", "choice", "text", "pattern"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a request.

    Args:
        path: Where: the names of fields and keys, and the positions in lists.
        value: The value as it may be shown: shortened, and empty where it could be a secret.
        fault: What is wrong with it.
        rule: What kind of fault that is.
    """

    path: Sequence[Part]
    value: str
    fault: str
    rule: Rule

    def __str__(self) -> str:
        return f"{dotted(self.path)}{self.value and ' ' + self.value}: {self.fault}"


@dataclass(frozen=True)
class ServiceModel:
    """The input of CreateTrainingJob as botocore describes it; `load` it once and pass it on."""

    shape: Any

    @classmethod
    def load(cls) -> ServiceModel:
        """Read SageMaker's model from botocore's files: some 60 ms."""
        from botocore.loaders import Loader
        from botocore.model import ServiceModel as Model

        model = Model(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")
        return cls(model.operation_model("CreateTrainingJob").input_shape)

    def findings(self, request: object) -> list[Finding]:
        """Return everything in a request that the model refuses; a request may hold anything."""
        return list(_walk(self.shape, request, ()))

    def check(self, request: object) -> list[str]:
        """Return what `findings` finds, as texts in the words of the request."""
        return [str(finding) for finding in self.findings(request)]

    def enum(self, path: str) -> Sequence[str]:
        """Return the choices of a field, such as `ResourceConfig.InstanceType`.

        Raises:
            KeyError: The request has no such field.
        """
        shape = self.shape
        for name in path.split("."):
            shape = shape.members[name]
            while shape.type_name == "list":
                shape = shape.member
        return list(getattr(shape, "enum", ()))


def dotted(path: Sequence[Part]) -> str:
    """Return a path as one writes it: `InputDataConfig[0].ChannelName`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the request"


def shown(value: object) -> str:
    """Return a value for a message: quoted if a text, and never long."""
    try:
        text = f"'{value}'" if isinstance(value, str) else repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits.
        text = f"<{type(value).__name__}>"
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


_HIDDEN = ("Environment", "HyperParameters")
"""Maps whose values may be secrets: messages end in logs, and tell how long a value is, never what it is."""
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "string": (str, "a text"),
    "integer": (int, "a whole number"),
    "long": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "double": ((int, float), "a number"),
    "boolean": (bool, "true or false"),
    "structure": (Mapping, "an object"),
    "map": (Mapping, "an object"),
    "list": ((list, tuple), "a list"),
}


def _walk(shape: Any, value: object, path: tuple[Part, ...]) -> Iterator[Finding]:
    kinds, word = _KINDS.get(shape.type_name, (object, "anything"))
    # A bool is an int in Python, and `InstanceCount: True` is no count.
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool and kinds is not object):
        yield Finding(path, _visible(path, value), f"is {_kind_of(value)}, and {word} belongs here", "type")
    elif isinstance(value, Mapping) and shape.type_name == "structure":
        yield from _structure(shape, value, path)
    elif isinstance(value, Mapping):
        yield from _size(shape, len(value), "entries", path, "")
        for key, item in value.items():
            for finding in _walk(shape.key, key, (*path, _name(key))):
                yield replace(finding, value="", fault=f"its name: {finding.fault}")
            yield from _walk(shape.value, item, (*path, _name(key)))
    elif isinstance(value, (list, tuple)):
        yield from _size(shape, len(value), "entries", path, "")
        for position, item in enumerate(value):
            yield from _walk(shape.member, item, (*path, position))
    elif isinstance(value, str):
        yield from _text(shape, value, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _number(shape, value, path)


def _structure(shape: Any, value: Mapping[Any, Any], path: tuple[Part, ...]) -> Iterator[Finding]:
    for key, item in value.items():
        if key in shape.members:
            yield from _walk(shape.members[key], item, (*path, key))
        else:
            fault = f"there is no such field{did_you_mean(_name(key), list(shape.members))}"
            yield Finding((*path, _name(key)), "", fault, "unknown")
    for key in shape.required_members:
        if key not in value:
            yield Finding((*path, key), "", "is missing", "required")


def _size(shape: Any, size: int, unit: str, path: tuple[Part, ...], value: str) -> Iterator[Finding]:
    least, most = shape.metadata.get("min", 0), shape.metadata.get("max")
    if most is not None and size > most:
        yield Finding(path, value, f"{size:,} {unit}, and at most {most:,} are taken", "size")
    elif size < least:
        yield Finding(path, value, f"{size:,} {unit}, and at least {least:,} are needed", "size")


def _number(shape: Any, value: float, path: tuple[Part, ...]) -> Iterator[Finding]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and value < least:
        yield Finding(path, shown(value), f"at least {least:,}", "range")
    elif most is not None and value > most:
        yield Finding(path, shown(value), f"at most {most:,}", "range")


def _text(shape: Any, value: str, path: tuple[Part, ...]) -> Iterator[Finding]:
    size = list(_size(shape, len(value), "characters", path, _visible(path, value)))
    yield from size
    if any("\ud800" <= character <= "\udfff" for character in value):
        yield Finding(
            path, _visible(path, value), "holds half a character (a surrogate), which nothing can send", "text"
        )
        return
    choices = list(getattr(shape, "enum", ()))
    if choices and value not in choices:
        listed = ", ".join(f"'{choice}'" for choice in choices) if len(choices) <= 8 else f"{len(choices)}"
        yield Finding(path, _visible(path, value), f"not one of {listed}{did_you_mean(value, choices)}", "choice")
    pattern = shape.metadata.get("pattern")
    # A text of the wrong length has been said to be wrong; and what is long is no food for a backtracking pattern.
    if pattern and not size and not _matches(pattern, value):
        yield Finding(path, _visible(path, value), f"does not match {pattern}", "pattern")


_JAVA_CLASSES = {
    r"\p{Alnum}": "a-zA-Z0-9",
    r"\p{Alpha}": "a-zA-Z",
    r"\p{Digit}": "0-9",
    # Letters and numbers of any script: Python has one class for both, with `_`. What is let through here, AWS refuses.
    r"\p{L}": r"\w",
    r"\p{N}": r"\w",
    r"\p{M}": r"\u0300-\u036f",
    r"\p{Z}": r"\x20\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
}


def _matches(pattern: str, value: str) -> bool:
    """Whether a Java pattern takes all of a value; one that Python cannot read takes everything."""
    flags = re.UNICODE if r"\p" in pattern else re.ASCII
    for java, python in _JAVA_CLASSES.items():
        pattern = pattern.replace(java, python)
    try:
        return re.fullmatch(pattern, value, flags) is not None
    except re.error:
        return True


def _visible(path: tuple[Part, ...], value: object) -> str:
    return "" if path and path[0] in _HIDDEN and len(path) > 1 else shown(value)


def _name(key: object) -> str:
    return key if isinstance(key, str) and len(key) <= 80 else shown(key).strip("'")


def _kind_of(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, bool):
        return "true or false"
    words = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}
    return words.get(type(value), f"a {type(value).__name__}")
