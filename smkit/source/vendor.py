"""smkit travels with the source, for it is on no index: its files, and what it requires beside the user's requirements.

A source that does not import smkit travels untouched. torch is not asked for: the image has it. A job without a network
takes wheels along. This room does not know what the image is.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from smkit.source import wheels
from smkit.source.merge import Merge
from smkit.source.survey import Source

PACKAGE = Path(__file__).absolute().parents[1]
"""Where smkit lies on this machine; an editable install has it in its repository."""
_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+(?:[\w., \t]*,[ \t]*)?smkit\b", re.MULTILINE)


@dataclass(frozen=True)
class Vendored:
    """What goes into the archive beside, or in the place of, the source's own files.

    Args:
        files: By their path in the archive, their content or where it lies.
        problems: What forbids the launch, in words of `launch`.
    """

    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def vendored(
    source: Source,
    *,
    vendor: Literal["source", "wheels", "none"],
    python_version: str,
    torch_version: str | None = None,
) -> Vendored:
    """Return what has to travel with a source so that it runs in an image that does not know smkit.

    Args:
        source: What travels; it has no problems.
        vendor: `source` sends smkit and a requirements.txt for the job's pip; `wheels` sends in addition all that pip
            would download; `none` sends nothing.
        python_version: The image's, as `3.12` or `py312`.
        torch_version: The image's, without which no wheel that requires torch can be chosen.

    Raises:
        ConfigurationError: pip cannot download the wheels.
    """
    imports = imports_smkit(source)
    if vendor == "none" or (vendor == "source" and not imports):
        return Vendored()
    files: dict[str, bytes | Path] = {}
    problems: list[str] = []
    merge = Merge(source, PACKAGE.parent)
    merge.read()
    if imports:
        problems += _name_problems(source)
        files |= package_files()
        merge.add_smkit(_metadata())
    if vendor == "wheels":
        problems += [
            f"source_dir: '{file.path}' lies where the wheels of smkit go; rename the folder"
            for file in source.files
            if file.path.split("/")[0] == wheels.FOLDER
        ]
    problems += merge.problems
    if vendor == "wheels" and not problems and merge.texts():
        files |= wheels.download(
            merge.texts(),
            root=source.root,
            python_version=python_version,
            torch_version=torch_version,
        )
        files |= {path: text.encode() for path, text in merge.texts(from_wheels=wheels.FOLDER).items()}
    else:
        files |= {path: text.encode() for path, text in merge.texts().items() if merge.is_changed(path)}
    return Vendored(files, tuple(problems))


def imports_smkit(source: Source) -> bool:
    """Say whether a script or module of the source imports smkit."""
    scripts = (file.location for file in source.files if file.path.endswith(".py") and not file.is_link)
    return any(b"smkit" in (code := path.read_bytes()) and _imports_smkit(code) for path in scripts)


def _imports_smkit(code: bytes) -> bool:
    with warnings.catch_warnings():
        # What the user's code is warned of is not for launch to say.
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return _IMPORT.search(code) is not None
    names = (
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    )
    return any(name.partition(".")[0] == "smkit" for name in names)


def package_files() -> dict[str, bytes | Path]:
    """Return the files of smkit and its metadata, which tell the job smkit's version, by their path in the archive."""
    paths = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    files: dict[str, bytes | Path] = {f"smkit/{path.relative_to(PACKAGE).as_posix()}": path for path in paths}
    metadata = _metadata()
    if metadata is not None:
        files[f"smkit-{metadata.version}.dist-info/METADATA"] = (metadata.read_text("METADATA") or "").encode()
    return files


def _metadata() -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution("smkit")
    except importlib.metadata.PackageNotFoundError:
        return None


def _name_problems(source: Source) -> Iterator[str]:
    """Say which of the user's own names would hide smkit: in the root, and beside the script."""
    if (source.root / "smkit").is_dir() and (source.root / "smkit").resolve() == PACKAGE.resolve():
        return
    beside = source.entry.rpartition("/")[0]
    for prefix in dict.fromkeys(("", f"{beside}/" if beside else "")):
        for name in ("smkit", "smkit.py"):
            if any(file.path == prefix + name or file.path.startswith(f"{prefix}{name}/") for file in source.files):
                yield f"source_dir: '{prefix}{name}' would hide smkit, which travels with the source; rename it"
