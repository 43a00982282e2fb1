"""Input channels as a launch is given them: what each names, and how the job reads it.

This room only reads what the user wrote and what lies on this machine; it uploads nothing.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from smkit import contract
from smkit.errors import did_you_mean
from smkit.s3_uris import looks_like_s3, parse_uri

Mode = Literal["File", "FastFile", "Pipe"]
_MAX_KEY_BYTES = 900
"""S3's keys have at most 1,024 bytes; the rest is the place of the data in the bucket."""
_SHOWN = 5


@dataclass(frozen=True)
class Input:
    """A channel of a job, where more is to be said than where its data lies.

    Args:
        source: An `s3://` prefix or object, a `file://` URI, a folder, a file, or a glob pattern of files.
        mode: How the job gets it: `File` copies it before the script starts, `FastFile` shows it as a read-only folder
            that is read from S3 on demand, `Pipe` streams it (API: TrainingInputMode).
        sharded: Give each host its own part of the objects (API: ShardedByS3Key) instead of a copy of all.
        content_type: The MIME type of the data, which `open_dataset` believes (API: ContentType).
    """

    source: str | Path
    mode: Mode = "File"
    sharded: bool = False
    content_type: str | None = None


@dataclass(frozen=True)
class GivenInput:
    """A channel whose source has been understood: it lies in S3, or on this machine.

    Args:
        name: The channel's name.
        input: What was given, made an `Input` if it was less.
        uri: The s3:// URI, None for local data.
        root: The local folder or file; of a glob pattern, the folder that the paths in the channel start from.
        matches: What a glob pattern has found: files, and folders that stand for all in them.
    """

    name: str
    input: Input
    uri: str | None = None
    root: Path | None = None
    matches: tuple[Path, ...] = ()

    @property
    def local_paths(self) -> tuple[Path, ...]:
        """The files and folders of this machine that the channel is made of."""
        return self.matches or ((self.root,) if self.root else ())


def read_inputs(inputs: Mapping[Any, Any]) -> tuple[tuple[GivenInput, ...], list[str]]:
    """Return the channels that can be understood, and the problems of all the others.

    Args:
        inputs: A mapping of channel names to paths, URIs or `Input`, as `launch` takes it.
    """
    given: list[GivenInput] = []
    problems: list[str] = []
    variables: dict[str, str] = {}
    for channel, source in inputs.items():
        name = str(channel)
        whole = source if isinstance(source, Input) else Input(source)
        try:
            given.append(_given_input(name, whole))
        except (ValueError, OSError, RuntimeError) as error:
            problems.append(f"input '{name}': {error}")
        problems += (f"input '{name}': {problem}" for problem in _setting_problems(whole))
        if not contract.CHANNEL_NAME.fullmatch(name) or name.strip(".") == "":
            problems.append(f"input '{name}': a channel's name has 1 to 64 letters, digits, '.', '-' or '_'")
        other = variables.setdefault(name.upper(), name)
        if other != name:
            problems.append(f"input '{name}': shares its variable SM_CHANNEL_{name.upper()} with '{other}'")
    if len(inputs) > contract.MAX_CHANNELS:
        problems.append(f"inputs: a job takes {contract.MAX_CHANNELS} channels, not {len(inputs)}")
    return tuple(given), problems


def local_files(given: GivenInput) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return the files of local data, each with its path below the channel, and the problems of what is none.

    Links are followed: what they lead to is data like any other. Nothing is opened.
    """
    root = given.root
    if root is None:
        return [], []
    if given.matches:
        starts = [(match.relative_to(root).as_posix().removeprefix("."), match) for match in given.matches]
    else:
        starts = [(root.name if root.is_file() else "", root)]
    files: dict[str, Path] = {}
    problems: list[str] = []
    for relative, path in starts:
        for found, file, problem in _walk(relative, path, frozenset()):
            if problem:
                problems.append(f"'{file}' {problem}")
            else:
                files[found] = file
    if not files and not problems:
        problems.append(f"'{given.input.source}' holds no file")
    more = [f"and {len(problems) - _SHOWN} more like these"] if len(problems) > _SHOWN else []
    return list(files.items()), [f"input '{given.name}': {problem}" for problem in (*problems[:_SHOWN], *more)]


def _given_input(name: str, given: Input) -> GivenInput:
    """Return what a channel's source names.

    Raises:
        ValueError: It names neither something in S3 nor something on this machine.
    """
    text = _text(given.source)
    if isinstance(given.source, str) and looks_like_s3(text):
        return GivenInput(name, given, uri=_prefix(str(parse_uri(text)), given))
    path = _local_path(text)
    if path.exists():
        return GivenInput(name, given, root=path)
    if glob.has_magic(str(path)):
        root, matches = _glob(path)
        if matches:
            return GivenInput(name, given, root=root, matches=matches)
        raise ValueError(f"no file matches {path}")
    raise ValueError(f"there is no {path}{did_you_mean(path.name, _names(path.parent))}")


def _text(source: object) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    raise ValueError(f"give a path, a file:// or s3:// URI, or a smkit.Input, not {source!r}")


def _local_path(text: str) -> Path:
    if text.startswith("file://"):
        uri = urlsplit(text)
        if uri.netloc not in ("", "localhost"):
            raise ValueError(f"'{text}' is on the machine '{uri.netloc}'; write file:///path with three slashes")
        text = unquote(text.removeprefix(f"file://{uri.netloc}"))
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ValueError(f"'{text}' is neither a path nor a file:// URI nor an s3:// URI")
    if not text.strip():
        raise ValueError("the path is empty")
    return Path(text).expanduser().absolute()


def _prefix(uri: str, given: Input) -> str:
    """Return the URI that the job is given: of a folder that is read on demand, with the slash at its end.

    Without it, `s3://bucket/train` means every key that starts so, those of `s3://bucket/train-old/` too.
    """
    last = uri.rpartition("/")[2]
    return f"{uri}/" if given.mode == "FastFile" and last and "." not in last else uri


def _setting_problems(given: Input) -> Iterator[str]:
    # What a type checker would have seen, for those who use none.
    mode: object = given.mode
    sharded: object = given.sharded
    content_type: object = given.content_type
    modes = get_args(Mode)
    if mode not in modes:
        near = [known for known in modes if known.lower() == str(mode).lower()]
        yield f"mode {mode!r}: one of {', '.join(modes)}" + (f"; did you mean '{near[0]}'?" if near else "")
    if not isinstance(sharded, bool):
        yield f"sharded {sharded!r}: True or False"
    if content_type is not None and not isinstance(content_type, str):
        yield f"content_type {content_type!r}: a text such as 'text/csv'"


def _glob(pattern: Path) -> tuple[Path, tuple[Path, ...]]:
    """Return the folder above the first wildcard and what the pattern finds below it, hidden names only if named."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[1:]:
        if glob.has_magic(part):
            break
        fixed /= part
    found = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no hidden name for one
    return fixed, tuple(map(Path, sorted(found)))


def _walk(relative: str, path: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, Path, str]]:
    """Yield for each file below `path` its path in the channel, where it lies, and what is wrong with it or nothing."""
    problem = _name_problem(relative)
    try:
        status = path.stat()
        identity = (status.st_dev, status.st_ino)
        is_folder = stat.S_ISDIR(status.st_mode)
        names = sorted(os.listdir(path)) if is_folder and identity not in above else []  # noqa: PTH208 - names only
    except OSError as error:
        yield relative, path, "is a link to nothing" if path.is_symlink() else f"cannot be read: {error.strerror}"
        return
    if is_folder and identity in above:
        yield relative, path, "leads back to a folder that it lies in"
    elif is_folder:
        for name in names:
            yield from _walk(f"{relative}/{name}" if relative else name, path / name, above | {identity})
    elif not stat.S_ISREG(status.st_mode):
        yield relative, path, "is no file"
    elif not os.access(path, os.R_OK):
        yield relative, path, "cannot be read: you have no permission"
    else:
        yield relative, path, problem


def _name_problem(relative: str) -> str:
    if not relative.isprintable():
        return f"has a name that S3 does not keep: {relative!r}"
    if len(relative.encode("utf-8", errors="replace")) > _MAX_KEY_BYTES:
        return f"has a path of more than {_MAX_KEY_BYTES} bytes"
    return ""


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
