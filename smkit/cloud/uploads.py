"""Local data as a channel in S3: under an address made of its content, so that the same data is uploaded once.

    s3://bucket/smkit/data/<hash over all paths and contents>/<relative path>

A channel is one prefix. Whatever is there already, from an earlier launch or from one that was cut off, stays; only
what is missing goes up. This room knows neither jobs nor channels' settings.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smkit.cloud.digests import LocalFile, default_cache, digest_files, remember
from smkit.cloud.storage import PREFIX, Storage, Upload
from smkit.cloud.transfer_line import TransferLine
from smkit.errors import ConfigurationError

_MANY_FILES = 100_000


@dataclass(frozen=True)
class LocalData:
    """Files whose contents are known, and the one hash that stands for all of them.

    Args:
        name: The channel, for messages.
        tree_hash: SHA-256 over relative paths and contents.
        files: The files, in the order of their relative paths.
    """

    name: str
    tree_hash: str
    files: tuple[LocalFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.stamp.size for file in self.files)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know and may go on with."""
        if len(self.files) <= _MANY_FILES:
            return ()
        return (
            f"input '{self.name}': {len(self.files):,} files; uploading and reading so many takes long, "
            "so pack them into shards (tar) or tables",
        )

    def key(self) -> str:
        """Return the key that the keys of all files start with."""
        return f"{PREFIX}/data/{self.tree_hash}/"


def address(name: str, files: Sequence[tuple[str, Path]], *, cache: Path | None = None) -> LocalData:
    """Hash files and return what identifies them; this asks no network and writes nothing.

    Args:
        name: The channel, for messages.
        files: For each file, its path below the channel and where it lies; see `inputs.local_files`.
        cache: The file of remembered digests; by default in the user's cache folder.

    Raises:
        ConfigurationError: A file cannot be read, or changes while it is read.
    """
    line = TransferLine(f"hashing input '{name}'", sum(_size(path) for _, path in files))
    try:
        digested = digest_files(sorted(files), cache=cache or default_cache(), advance=line.advance)
    finally:
        line.end()
    tree = hashlib.sha256()
    for file in digested:
        # No path holds a NUL, so no two trees give the same text.
        tree.update(f"{file.sha256} {file.relative}\0".encode())
    return LocalData(name, tree.hexdigest(), digested)


def upload(data: LocalData, storage: Storage, *, cache: Path | None = None) -> str:
    """Upload what S3 does not have yet, and return the URI of the channel.

    Args:
        data: What to upload.
        storage: Where to.
        cache: The file of remembered digests; by default in the user's cache folder.

    Raises:
        ConfigurationError: AWS refuses, or a file has changed since it was hashed; what is uploaded stays for the next
            attempt.
    """
    start = data.key()
    there = storage.sizes(start)
    wanted = {start + file.relative: file for file in data.files}
    strange = sorted(there.keys() - wanted.keys())
    if strange:
        raise ConfigurationError(
            f"{len(strange)} objects that are no part of input '{data.name}' lie among its own, such as '{strange[0]}'",
            where=storage.uri(start),
            fix="the job would read them too: delete them, with 'aws s3 rm'",
        )
    missing = [
        Upload(key, file.path, file.stamp.size, file.sha256, file.verify)
        for key, file in wanted.items()
        if there.get(key) != file.stamp.size
    ]
    if missing:
        storage.ensure_bucket()
        line = TransferLine(f"uploading input '{data.name}'", sum(item.size for item in missing))
        try:
            storage.upload(missing, advance=line.advance)
        finally:
            line.end()
    remember(data.files, cache=cache or default_cache())
    return storage.uri(start)


def _size(path: Path) -> int:
    # Whatever is wrong with a file is said where it is read.
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
