"""What lies in an archive that travels with a source: the names and the first bytes of its files, nothing unpacked.

An archive is known by how it begins, whatever it is called. How much of it is looked at has a bound, for one that
unpacks to more than anybody has room for is no reason to fail. This room does not know what is looked for.
"""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_FILE_BYTES = 4 * 2**20
_ALL_BYTES = 64 * 2**20
_FILES = 10_000
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, NotImplementedError, RuntimeError, tarfile.TarError)
"""What damage, a password and unknown compression make the two libraries raise; zipfile's own error is one of them."""


def files_of(archive: Path, beginning: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the first bytes of each file in a zip, a tar or a gzip file; nothing for any other file.

    Args:
        archive: The file.
        beginning: Its first bytes, some hundreds of them.
    """
    is_tar = beginning[257:262] == b"ustar"
    left = _ALL_BYTES
    try:
        with archive.open("rb") as file:
            if beginning.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                found = _of_zip(file)
            elif beginning.startswith(b"\x1f\x8b"):
                found = _of_gzip(file, archive.name.removesuffix(".gz"))
            else:
                found = _of_tar(file) if is_tar else iter(())
            for number, (name, content) in enumerate(found):
                yield name, content
                left -= len(content) + 512
                if left < 0 or number >= _FILES:
                    return
    except (*_DAMAGED, zipfile.BadZipFile):
        return


def _of_zip(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as packed:
        for entry in packed.infolist():
            if not entry.is_dir():
                with packed.open(entry) as content:
                    yield entry.filename, content.read(_FILE_BYTES)


def _of_gzip(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    with gzip.open(file) as unpacked:
        beginning = unpacked.read(_FILE_BYTES)
        if beginning[257:262] != b"ustar":
            yield name, beginning
            return
    file.seek(0)
    with gzip.open(file) as unpacked:
        yield from _of_tar(unpacked)


def _of_tar(file: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, bytes]]:
    # As a stream: what lies between two headers is read past and not looked for.
    with tarfile.open(fileobj=file, mode="r|") as packed:
        for entry in packed:
            content = packed.extractfile(entry) if entry.isreg() else None
            if content is not None:
                yield entry.name, content.read(_FILE_BYTES)
            if file.tell() > _ALL_BYTES:
                return
            # It keeps every header that it has read.
            packed.members = []  # type: ignore[attr-defined]
