"""The requirements of a source with those of smkit: the user's lines stay, smkit's own follow where none says the same.

This room knows the requirements files of a source, and not where they are installed.
"""

from __future__ import annotations

import importlib.metadata
import posixpath
from collections.abc import Iterator
from pathlib import Path

from smkit.errors import did_you_mean
from smkit.source.requirements import Line, is_below, normal, of_distribution, read_lines
from smkit.source.survey import Source

REQUIREMENTS_FILE = "requirements.txt"
"""What the toolkit hands to pip, in the folder of the code."""
_IN_THE_IMAGE = "torch"
_CONSTRAINTS = ("-c", "--constraint")
_INCLUDES = ("-r", "--requirement", *_CONSTRAINTS)
_EDITABLE = ("-e", "--editable")
_ABOUT_AN_INDEX = ("-i", "--index-url", "--pypi-url", "--extra-index-url", "--no-index", "-f", "--find-links")
_OWN = "# What smkit requires, which travels beside this file; torch is the image's."


class Merge:
    """The requirements files of a source, as they are to travel."""

    def __init__(self, source: Source, smkit_project: Path) -> None:
        self.problems: list[str] = []
        self._source = source
        self._smkit_project = smkit_project
        self._given: dict[str, list[Line]] = {}
        """The user's lines of each file that pip will read, `requirements.txt` first."""
        self._constraints: set[str] = set()
        """Those files of them that require nothing, but only bound versions."""
        self._added: list[Line] = []

    def read(self) -> None:
        """Read requirements.txt, if there is one, and what it includes."""
        if any(file.path == REQUIREMENTS_FILE for file in self._source.files):
            self._read(REQUIREMENTS_FILE)

    def add_smkit(self, metadata: importlib.metadata.Distribution | None) -> None:
        """Put what smkit requires behind the user's lines, with the extras that they name."""
        if metadata is None:
            self.problems.append(
                "vendor: what smkit requires is unknown, for it is not installed but only imported; "
                "install it with pip, or give vendor='none' and an image that has it"
            )
            return
        extras = {"train"}
        known = metadata.metadata.get_all("Provides-Extra") or []
        for path, line in self._user_lines():
            if line.name == "smkit":
                extras.update(line.extras)
                self.problems += [
                    f"{_place(path, line)}: smkit has no extra '{extra}'{did_you_mean(extra, known)}"
                    for extra in line.extras
                    if extra not in map(normal, known)
                ]
        for own in of_distribution(metadata.requires or (), extras):
            if own.name != _IN_THE_IMAGE:
                self._add(own)
        if self._added and any(line.has_hash for _, line in self._user_lines()):
            names = ", ".join(f"'{line.text}'" for line in self._added)
            self.problems.append(
                f"{REQUIREMENTS_FILE}: has hashes, so that pip wants a pinned version and a hash of everything, "
                f"also of what smkit requires; add {names}, with hashes"
            )

    def texts(self, *, from_wheels: str | None = None) -> dict[str, str]:
        """Return the text of each file as it is to travel.

        Args:
            from_wheels: The folder of the archive to install from; then no file names an index.
        """
        if not self._given and not self._added:
            return {}
        texts = {}
        for path in {REQUIREMENTS_FILE: None} | self._given:
            kept = [line for line in self._given.get(path, []) if not self._is_smkit(line)]
            if from_wheels is not None:
                kept = [line for line in kept if line.option not in _ABOUT_AN_INDEX]
            lines = [line.text for line in kept]
            if path == REQUIREMENTS_FILE:
                first = [] if from_wheels is None else ["--no-index", f"--find-links {from_wheels}"]
                own = [_OWN, *(line.text for line in self._added)] if self._added else []
                lines = [*first, *lines, *own]
            texts[path] = "".join(f"{line}\n" for line in lines)
        return texts

    def is_changed(self, path: str) -> bool:
        """Whether a file travels otherwise than it lies in the source."""
        is_longer = path == REQUIREMENTS_FILE and bool(self._added)
        return is_longer or any(self._is_smkit(line) for line in self._given.get(path, []))

    def _read(self, path: str) -> None:
        text = (self._source.root / path).read_bytes().decode(errors="replace")
        self._given[path] = read_lines(text)
        for line in self._given[path]:
            if line.option in _INCLUDES and "://" not in line.value:
                self._follow(path, line)
            elif not self._is_smkit(line) and (local := _local_path(line)) and self._leads_out(local):
                self.problems.append(f"{_place(path, line)}: '{local}' leads out of the folder; put a copy into it")

    def _follow(self, path: str, line: Line) -> None:
        included = posixpath.normpath(posixpath.join(posixpath.dirname(path), line.value))
        files = [file.path for file in self._source.files]
        if included.startswith(("/", "../")):
            self.problems.append(f"{_place(path, line)}: '{line.value}' leads out of the folder; put a copy into it")
        elif included not in files:
            self.problems.append(f"{_place(path, line)}: no file '{included}' travels{did_you_mean(included, files)}")
        elif included not in self._given:
            if line.option in _CONSTRAINTS or path in self._constraints:
                self._constraints.add(included)
            self._read(included)

    def _user_lines(self) -> Iterator[tuple[str, Line]]:
        for path, lines in self._given.items():
            if path not in self._constraints:
                yield from ((path, line) for line in lines)

    def _add(self, own: Line) -> None:
        """Add a line of smkit's unless the user has decided; an open choice keeps smkit's lower bound beside it."""
        same = [(path, line) for path, line in self._user_lines() if line.name == own.name]
        self.problems += [
            f"{_place(path, line)}: '{line.name}{line.specifier}' is too old for smkit, which requires '{own.text}'"
            for path, line in same
            if is_below(line, own)
        ]
        if not any(line.is_pinned and not line.has_marker for _, line in same):
            self._added.append(own)

    def _is_smkit(self, line: Line) -> bool:
        if line.name == "smkit" or (line.option in _EDITABLE and "egg=smkit" in line.value):
            return True
        local = _local_path(line)
        return local is not None and (self._source.root / local).resolve() == self._smkit_project.resolve()

    def _leads_out(self, local: str) -> bool:
        return not (self._source.root / local).resolve().is_relative_to(self._source.root)


def _place(path: str, line: Line) -> str:
    return f"{path}, line {line.number}"


def _local_path(line: Line) -> str | None:
    """Return the path on this machine that a line requires, if it does."""
    if line.name or (line.option and line.option not in _EDITABLE) or not line.value:
        return None
    path = line.value.partition(";")[0].partition("[")[0].partition("#")[0].strip()
    path = path.removeprefix("file://")
    return None if "://" in path or "+" in path.partition(":")[0] else path
