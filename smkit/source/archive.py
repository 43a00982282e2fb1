"""The archive of a source folder, for the toolkit to unpack: the same files give the same hash, anywhere and always.

Names are sorted; times, owners and all rights but that of a program are left out. The hash is that of the tar stream
and not of its compressed bytes, which differ between versions of zlib; `gunzip -c sourcedir.tar.gz | sha256sum` shows
it. This room does not choose the files.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from smkit.errors import ConfigurationError
from smkit.source.survey import Source
from smkit.source.walk import SourceFile


@dataclass(frozen=True)
class Archive:
    """A tar.gz in a temporary file, which is deleted at the end of a `with`.

    Args:
        path: The file.
        sha256: The hash of the uncompressed tar stream, in hexadecimal digits.
        size: The size of the file, in bytes.
    """

    path: Path
    sha256: str
    size: int

    def open(self) -> IO[bytes]:
        """Return the file, opened for reading."""
        return self.path.open("rb")

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)


def pack(source: Source, extra: Mapping[str, bytes | Path]) -> Archive:
    """Write the files of a source to a temporary tar.gz.

    Args:
        source: What travels; it has no problems.
        extra: Further files by their path in the archive, as their content or where it lies. They take the place of
            files of the source.

    Raises:
        ConfigurationError: A file has changed since the survey, or there is no space for the archive.
    """
    path = None
    try:
        descriptor, name = tempfile.mkstemp(prefix="smkit-", suffix=".tar.gz")
        path = Path(name)
        with os.fdopen(descriptor, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as compressed:
            sha256 = _write(source, extra, compressed)
        return Archive(path, sha256, path.stat().st_size)
    except BaseException as error:
        if path is not None:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConfigurationError(
                f"the source cannot be packed: {error}",
                where=f"source_dir '{source.root}', packed in {tempfile.gettempdir()}",
                fix="make space there, or set TMPDIR to a folder that has it",
            ) from error
        raise


def content_hash(source: Source, extra: Mapping[str, bytes | Path]) -> str:
    """Return the `sha256` that `pack` would give, and write nothing.

    Raises:
        ConfigurationError: A file has changed since the survey.
    """
    return _write(source, extra, None)


class _HashedFile:
    """A file, or none, with the hash of what is written to it."""

    def __init__(self, file: gzip.GzipFile | None) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        return self._file.write(content) if self._file else len(content)


def _write(source: Source, extra: Mapping[str, bytes | Path], file: gzip.GzipFile | None) -> str:
    """Write the tar stream and return its hash."""
    hashed = _HashedFile(file)
    members: dict[str, SourceFile | Path | bytes] = {each.path: each for each in source.files}
    members.update(extra)
    with tarfile.open(fileobj=cast("IO[bytes]", hashed), mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path, member in sorted(members.items()):
            if isinstance(member, SourceFile):
                _add_source_file(tar, member)
            elif isinstance(member, bytes):
                tar.addfile(_header(path, len(member)), io.BytesIO(member))
            else:
                with member.open("rb") as content:
                    tar.addfile(_header(path, os.fstat(content.fileno()).st_size), content)
    return hashed.hash.hexdigest()


def _header(path: str, size: int, *, is_executable: bool = False) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.size = size
    header.mode = 0o755 if is_executable else 0o644
    return header


def _add_source_file(tar: tarfile.TarFile, file: SourceFile) -> None:
    if file.target is not None:
        header = _header(file.path, 0, is_executable=True)
        header.type, header.linkname = tarfile.SYMTYPE, file.target
        tar.addfile(header)
        return
    try:
        # Without O_NOFOLLOW a link, and without O_NONBLOCK a pipe, could have taken the file's place.
        content = os.fdopen(os.open(file.location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise _changed(file) from error
    with content:
        if not _is_unchanged(file, content):
            raise _changed(file)
        try:
            tar.addfile(_header(file.path, file.size, is_executable=file.is_executable), content)
        except OSError as error:
            if error.errno is None:  # tarfile's own, of a file that has become shorter
                raise _changed(file) from error
            raise
        if not _is_unchanged(file, content):
            raise _changed(file)


def _changed(file: SourceFile) -> ConfigurationError:
    return ConfigurationError(
        f"'{file.path}' has changed, or has gone, while the source was packed",
        where=f"source_dir, {file.location}",
        fix="launch again when nothing writes to the folder, or name the file in .smkitignore",
    )


def _is_unchanged(file: SourceFile, content: IO[bytes]) -> bool:
    status = os.fstat(content.fileno())
    return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (file.size, file.modified)
