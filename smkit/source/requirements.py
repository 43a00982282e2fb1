"""Requirement files of pip, as lines: what each asks for, so that some can be taken out and others put beside them.

Lines that nothing is to be done about stay as they are, with their comments, options and hashes. Nothing here is a
whole reader of pip's format or of version specifiers: what is not understood is left to pip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_REQUIREMENT = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[([^\]]*)\])?\s*(?=[=<>!~@;(]|\s|$)(.*)", re.S
)
_OPTION = re.compile(r"(--?[A-Za-z-]+)(?:\s*=\s*|\s+)?(.*)", re.S)
_EXTRA = re.compile(r"""(?:\s*\band\b)?\s*\(?\bextra\s*==\s*['"]([A-Za-z0-9._-]+)['"]\)?""")
_COMMENT = re.compile(r"(^|\s)#.*$")
_VERSION = re.compile(r"(===|==|<=|~=|<)\s*v?([0-9]+(?:\.[0-9]+)*)(\.\*)?")


@dataclass(frozen=True)
class Line:
    """A logical line of a requirements file.

    Args:
        number: The number of its first line, from 1.
        text: The line as it is written, continuations and comment included.
        name: What it requires, in pip's normal form; empty for an option, a path, an address or nothing.
        extras: The extras of it, in the same form.
        specifier: What follows the name: versions, address, marker, hashes.
        option: The option that it is, or empty.
        value: The option's value, or the path or address that is required.
    """

    number: int
    text: str
    name: str = ""
    extras: tuple[str, ...] = ()
    specifier: str = ""
    option: str = ""
    value: str = ""

    @property
    def has_marker(self) -> bool:
        return ";" in self.specifier

    @property
    def is_pinned(self) -> bool:
        """Whether it allows versions of one series only, or one address."""
        return self.specifier.startswith("@") or re.search(r"==|~=", self.specifier) is not None

    @property
    def has_hash(self) -> bool:
        return "--hash" in self.specifier


def read_lines(text: str) -> list[Line]:
    """Return the logical lines of a requirements file."""
    lines: list[Line] = []
    parts: list[str] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        parts.append(line)
        if not line.endswith("\\") or line.lstrip().startswith("#"):
            lines.append(_read_line(number - len(parts) + 1, parts))
            parts = []
    return [*lines, _read_line(0, parts)] if parts else lines


def _read_line(number: int, parts: list[str]) -> Line:
    text = "\n".join(parts)
    content = " ".join(_COMMENT.sub("", part).removesuffix("\\").strip() for part in parts).strip()
    if content.startswith("-") and (option := _OPTION.fullmatch(content)):
        return Line(number, text, option=option[1], value=option[2].strip().strip("'\""))
    if requirement := _REQUIREMENT.fullmatch(content):
        name, extras, specifier = requirement.groups()
        names = tuple(normal(extra) for extra in (extras or "").split(",") if extra.strip())
        return Line(number, text, normal(name), names, specifier.strip())
    return Line(number, text, value=content)


def normal(name: str) -> str:
    """Return a project's name in the form in which pip compares names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def of_distribution(requires: Iterable[str], extras: Iterable[str]) -> Iterator[Line]:
    """Yield what a distribution requires with these extras, as its metadata say it, without the extras' conditions."""
    wanted = {normal(extra) for extra in extras}
    for text in requires:
        requirement, _, marker = text.partition(";")
        condition = _EXTRA.search(marker)
        if condition and normal(condition[1]) not in wanted:
            continue
        rest = _EXTRA.sub("", marker).strip().removeprefix("and ").strip()
        yield _read_line(0, [f"{requirement.strip()}; {rest}" if rest else requirement.strip()])


def is_below(line: Line, floor: Line) -> bool:
    """Say whether a line allows no version that another one's `>=` allows; False where that cannot be told."""
    least = re.search(r">=\s*([0-9]+(?:\.[0-9]+)*)", floor.specifier)
    if least is None or line.has_marker:
        return False
    for operator, version, series in _VERSION.findall(line.specifier):
        lowest, numbers = _numbers(least[1]), _numbers(version)
        if operator == "~=" or series:
            length = len(numbers) - (operator == "~=")
            lowest, numbers = lowest[:length], numbers[:length]
        lowest, numbers = _padded(lowest), _padded(numbers)
        if lowest > numbers or (operator == "<" and lowest == numbers):
            return True
    return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _padded(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return numbers + (0,) * (8 - len(numbers))
