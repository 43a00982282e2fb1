"""A directory of files that counts whole or not at all, and survives a power cut once it counts.

Each file gets its name only when its bytes are on the disk. The manifest comes last, with the size and xxh3_128 of each
file and its own sha256. The bytes that are handed out are the very bytes that were verified; names and times prove
nothing. This room knows neither what the files mean nor which directory is wanted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from smkit.disk import sync_directory
from smkit.errors import CheckpointError

_FORMAT = 2
_NAME = "manifest.json"
_BLOCK_BYTES = 4 * 2**20
_READ_BYTES = 2**20
"""What was read is hashed while it is still in the processor's cache."""
_MAX_MANIFEST_BYTES = 2**20


class DamageError(CheckpointError):
    """A directory does not hold what its manifest says, or has no manifest."""

    @classmethod
    def of(cls, path: Path, what: str) -> DamageError:
        return cls(what, where=str(path), fix="restore it from a copy, or remove the directory")


@dataclass(frozen=True)
class Manifest:
    """A manifest that verifies; the files beside it are verified as they are read.

    Attributes:
        directory: Where it lies; a manifest of another directory does not verify.
        step: Finished training steps.
        ordinal: Grows with every save of a store.
        score: Higher is better.
        files: Size in bytes and xxh3_128 of each file.
    """

    directory: Path
    step: int
    ordinal: int
    score: float | None
    files: dict[str, tuple[int, str]]

    def at(self, directory: Path) -> Manifest:
        """Return this manifest for the same directory at its place on another host."""
        return replace(self, directory=directory)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read the manifest of a directory.

        Raises:
            DamageError: It is missing or does not verify, or the directory holds a link.
            CheckpointError: It verifies, and is of a format that this version does not know.
        """
        _refuse_links(directory)
        path = directory / _NAME
        try:
            content = json.loads(bytes(_read_file(path, max_bytes=_MAX_MANIFEST_BYTES)))
            sha256 = content.pop("sha256")
            if sha256 != _sha256(content):
                raise DamageError.of(path, "its own hash does not match")
            if content["format"] != _FORMAT:
                raise CheckpointError(
                    f"the checkpoint is of format {content['format']!r:.40}; this smkit reads format {_FORMAT}",
                    where=str(path),
                    fix="resume with the version of smkit that wrote it, or use another checkpoint directory",
                )
            if content["directory"] != directory.name:
                raise DamageError.of(path, f"belongs to {content['directory']}")
            files = {
                _own_name(name): (_count(entry["bytes"]), str(entry["xxh3_128"]))
                for name, entry in content["files"].items()
            }
            score = None if content["score"] is None else _finite(content["score"])
            return cls(directory, _count(content["step"]), _count(content["ordinal"]), score, files)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise DamageError.of(path, "is not a manifest") from error

    def sizes_match(self, names: Iterable[str]) -> bool:
        """Whether these files are there with their sizes, which costs no reading."""
        try:
            return all((self.directory / name).lstat().st_size == self.files[name][0] for name in names)
        except (OSError, KeyError):
            return False

    def read_file(self, name: str) -> memoryview:
        """Return the verified content of a file.

        Raises:
            DamageError: It is missing, a link, or not what was written.
        """
        path = self.directory / name
        if name not in self.files:
            raise DamageError.of(path, "is not in the manifest")
        size, xxh3_128 = self.files[name]
        digest = xxhash.xxh3_128()
        data = _read_file(path, max_bytes=size, each_block=digest.update)
        if len(data) != size:
            raise DamageError.of(path, f"has {len(data):,} bytes and not {size:,}")
        if digest.hexdigest() != xxh3_128:
            raise DamageError.of(path, "holds other bytes than were saved (its hash differs)")
        return data


Entries = dict[str, dict[str, Any]]
"""Size and hash of files by name, as a manifest holds them."""


def write_files(directory: Path, files: Mapping[str, Iterable[memoryview]]) -> Entries:
    """Make a directory, unless another process of this host has, and write files into it piece by piece.

    Returns:
        Their entries, when the files would survive a power cut.

    Raises:
        OSError: Not all of them are there.
    """
    directory.mkdir(exist_ok=True)
    try:
        entries = {name: _write_file(directory / name, pieces) for name, pieces in files.items()}
        sync_directory(directory)
        sync_directory(directory.parent)
    except OSError:
        # The room that they took is wanted; other processes may still write to the directory.
        with contextlib.suppress(OSError):
            for name in files:
                (directory / name).unlink(missing_ok=True)
                (directory / f"{name}.part").unlink(missing_ok=True)
            directory.rmdir()
        raise
    return entries


def commit(directory: Path, entries: Entries, *, step: int, ordinal: int, score: float | None) -> None:
    """Write the manifest of a directory; when this returns, the directory counts, and survives a power cut.

    Raises:
        OSError: It may count or not.
    """
    content = {"format": _FORMAT, "directory": directory.name, "step": step, "ordinal": ordinal, "score": score}
    content |= {"files": entries}
    content |= {"sha256": _sha256(content)}
    _write_file(directory / _NAME, [memoryview(json.dumps(content, indent=2).encode())])
    sync_directory(directory)


def is_committed(directory: Path) -> bool:
    """Whether there is a manifest, sound or not."""
    try:
        os.lstat(directory / _NAME)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # It cannot be looked at: what must not be taken for a checkpoint that never was, and removed.
        return True
    return True


def remove(directory: Path) -> None:
    """Remove a directory, its manifest first, so that one half removed never counts."""
    (directory / _NAME).unlink(missing_ok=True)
    sync_directory(directory)
    shutil.rmtree(directory)


def _write_file(path: Path, pieces: Iterable[memoryview]) -> dict[str, Any]:
    part = path.with_name(path.name + ".part")
    digest = xxhash.xxh3_128()
    size = 0
    with part.open("xb") as file:
        for block in _blocks(pieces):
            file.write(block)
            digest.update(block)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def _read_file(
    path: Path, *, max_bytes: int, each_block: Callable[[memoryview], object] = lambda _: None
) -> memoryview:
    """Return the content of a file; a link is not followed, a pipe is empty and not waited for."""
    try:
        with open(path, "rb", buffering=0, opener=_as_it_is) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise DamageError.of(path, f"has {size:,} bytes, more than {max_bytes:,}")
            # Memory that nobody has filled with zeros before; an empty piece of it cannot be had.
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            data = memoryview(mmap.mmap(-1, max(size, 1), flags=flags))[:size]
            end = 0
            while end < size and (count := file.readinto(data[end : end + _READ_BYTES])):
                each_block(data[end : end + count])
                end += count
            return data[:end]
    except FileNotFoundError as error:
        raise DamageError.of(path, "is missing") from error
    except OSError as error:
        raise DamageError.of(path, f"cannot be read: {error.strerror}") from error


def _as_it_is(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _refuse_links(directory: Path) -> None:
    try:
        paths = [directory] if directory.is_symlink() else list(directory.iterdir())
    except OSError as error:
        raise DamageError.of(directory, f"cannot be read: {error.strerror}") from error
    for path in paths:
        if path.is_symlink():
            raise DamageError.of(path, "is a symbolic link")


def _blocks(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        for start in range(0, len(piece), _BLOCK_BYTES):
            yield piece[start : start + _BLOCK_BYTES]


def _own_name(name: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r:.80} is no file of the directory")
    return name


def _count(value: object) -> int:
    """Return a number of things; what a manifest says can be anything, for who forges it forges its hash too."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.80} is no number of things")
    return value


def _finite(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(number := float(value)):  # type: ignore[arg-type]
        raise ValueError(f"{value!r:.80} is no number")
    return number


def _sha256(content: Mapping[str, Any]) -> str:
    """Return the hash of an object's canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
