"""What a source folder sends to a job, and all that is wrong with it; nothing is changed or packed here.

This room judges what the walk has found: the script, sizes, links and secrets. It does not know where the files go.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smkit.errors import did_you_mean
from smkit.source import credentials
from smkit.source.ignore_rules import names_any
from smkit.source.nested import files_of
from smkit.source.walk import IGNORE_FILE, SourceFile, Walk

WARN_BYTES = 50_000_000
MAX_BYTES = 500_000_000
WARN_FILES = 10_000
_ENTRY = re.compile(r"(?![+-])((?!\.{1,2}/)[A-Za-z0-9._+-]+/)*[A-Za-z0-9._+-]*\.(py|sh)")
"""What the toolkit takes (process.py: validate_entry_point), of the two kinds that need no preparation."""
_SCANNED_BYTES = 32 * 2**20
"""As much of a file is searched for secrets: a notebook with all its pictures, and not a file of data to its end."""
_SHOWN = 20
_SHOWN_OF_A_FILE = 5


@dataclass(frozen=True)
class Source:
    """A source folder, looked through.

    Args:
        root: The folder, without links in its path.
        entry: The script, relative to it.
        files: What travels, sorted by path.
        left_out: What stays behind; of a folder that stays behind as a whole, only the folder.
        problems: What forbids a launch, in words of `launch`.
        warnings: What the user should know.
    """

    root: Path
    entry: str
    files: tuple[SourceFile, ...] = ()
    left_out: frozenset[Path] = frozenset()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def has_setup_py(self) -> bool:
        """Whether the toolkit takes the source for a Python package, installs it, and refuses torchrun."""
        return any(file.path == "setup.py" for file in self.files)


def survey(root: Path, *, entry: str, own_folders: Iterable[Path] = (), allow_secrets: Sequence[str] = ()) -> Source:
    """Look through a source folder.

    Args:
        root: The folder.
        entry: The script, relative to it.
        own_folders: Jobs, checkpoints and channels, which may lie in the source folder and are no source.
        allow_secrets: Paths and patterns, as in `.gitignore`, of files that may hold secrets. With `**` nothing is
            searched for secrets.
    """
    root = root.absolute().resolve()
    if problem := _problem_of_root(root):
        return Source(root, entry, problems=(f"source_dir '{root}': {problem}",))
    walk = Walk(root, entry, own_folders)
    walk.run()
    files = tuple(sorted(walk.files, key=lambda file: file.path))
    problems = [
        *_entry_problems(root, entry, files),
        *walk.problems,
        *_size_problems(root, files),
        *_secret_problems(files, allow_secrets),
    ]
    warnings = [*walk.warnings, *_size_warnings(files), *_link_warnings(root, files, walk.left_out)]
    return Source(root, entry, files, frozenset(walk.left_out), tuple(problems), tuple(warnings))


def _problem_of_root(root: Path) -> str:
    try:
        if root.is_dir():
            return ""
        if root.exists():
            return "a file, not a folder"
        return f"there is no such folder{did_you_mean(root.name, _names(root.parent))}"
    except OSError as error:
        # A name that is too long, or a folder above that may not be looked into.
        return f"it cannot be looked at: {error.strerror}"


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _entry_problems(root: Path, entry: str, files: Iterable[SourceFile]) -> Iterator[str]:
    if not _ENTRY.fullmatch(entry):
        yield (
            f"entry '{entry}': a path relative to source_dir, ending in .py or .sh, "
            "of letters, digits, '.', '_', '+', '-' and '/'"
        )
    elif not (root / entry).is_file():
        scripts = [file.path for file in files if file.path.endswith((".py", ".sh"))]
        elsewhere = [path for path in scripts if path.endswith(f"/{entry}")]
        choices = elsewhere or [path for path in scripts if path.count("/") == entry.count("/")]
        yield f"entry '{entry}': not in {root}{did_you_mean(entry, choices)}"


def _size_problems(root: Path, files: Sequence[SourceFile]) -> Iterator[str]:
    size = sum(file.size for file in files)
    if size > MAX_BYTES:
        yield (
            f"source_dir '{root}': {_megabytes(size)}, and at most {_megabytes(MAX_BYTES)} travel as source; "
            f"largest: {_largest(files)}; name in {IGNORE_FILE} what is no source, and give data as an input"
        )


def _size_warnings(files: Sequence[SourceFile]) -> Iterator[str]:
    size = sum(file.size for file in files)
    if WARN_BYTES < size <= MAX_BYTES:
        yield (
            f"source_dir: {_megabytes(size)} travel whenever a file of them has changed; "
            f"largest: {_largest(files)}; {IGNORE_FILE} leaves out what is no source"
        )
    if len(files) > WARN_FILES:
        yield f"source_dir: {len(files):,} files travel; {IGNORE_FILE} leaves out what is no source"


def _largest(files: Iterable[SourceFile]) -> str:
    """Name the largest files, and the largest of the folders that lie in the root."""
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.path] += file.size
        if "/" in file.path:
            sizes[file.path.partition("/")[0] + "/"] += file.size
    return ", ".join(f"'{name}' {_megabytes(size)}" for name, size in sizes.most_common(5) if size > 1_000_000)


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:,.0f} MB"


def _link_warnings(root: Path, files: Iterable[SourceFile], left_out: set[Path]) -> Iterator[str]:
    for file in files:
        if file.is_link:
            target = Path(os.path.realpath(file.location))
            if not left_out.isdisjoint((target, *target.parents)):
                yield f"source_dir: the link '{file.path}' leads to '{target.relative_to(root)}', which stays behind"


def _secret_problems(files: Iterable[SourceFile], allowed: Sequence[str]) -> Iterator[str]:
    if "**" in allowed:
        return
    secrets = [
        (file.path, found)
        for file in files
        if not file.is_link and (found := _secrets(file)) and not names_any(allowed, file.path)
    ]
    for path, found in secrets[:_SHOWN]:
        yield (
            f"source_dir: '{path}' {' and '.join(found)}; "
            f"name it in {IGNORE_FILE}, or let it travel with allow_secrets=['{path}']"
        )
    if len(secrets) > _SHOWN:
        yield f"source_dir: {len(secrets) - _SHOWN} more files look like secrets"


def _secrets(file: SourceFile) -> list[str]:
    """Return what looks like a secret in a file, or in what is packed in it, in words that follow its name."""
    try:
        with file.location.open("rb") as opened:
            content = opened.read(_SCANNED_BYTES)
    except OSError:
        # The walk has asked for the right to read, so the file has just gone; packing it will say so.
        content = b""
    packed = [
        f"holds {name!a}, which {finding}"
        for name, inner in files_of(file.location, content[:512])
        for finding in _findings(name, inner)
    ]
    found = packed or list(map(str, _findings(file.path, content)))
    return found[:_SHOWN_OF_A_FILE]


def _findings(path: str, content: bytes) -> list[credentials.Finding]:
    named = credentials.by_name(path)
    if named is not None:
        return [] if credentials.is_public_key(named, content) else [named]
    return list(credentials.in_content(content))
