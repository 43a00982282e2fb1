"""SHA-256 digests of local files, made in threads and remembered between launches.

A digest is remembered under everything that the file system notes about a change, the time of the inode's last change
included, which no program can set back; and only for a file that had been left alone for a while, since two changes
within one tick of the clock look like one. The memory is a convenience: without it everything is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smkit.errors import ConfigurationError

_logger = logging.getLogger(__name__)
_BLOCK_BYTES = 1024 * 1024
_SETTLED_NANOSECONDS = 2_000_000_000


class Stamp(NamedTuple):
    """What the file system notes about a file; any change of the content changes it."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


@dataclass(frozen=True)
class LocalFile:
    """A file whose content is known.

    Args:
        relative: The path below the channel, with slashes.
        path: Where the file lies.
        stamp: What the file system noted when the content was read.
        sha256: The content's digest, in hexadecimal digits.
        settled: Whether the file had been left alone long enough for its stamp to tell a later change.
    """

    relative: str
    path: Path
    stamp: Stamp
    sha256: str
    settled: bool

    def verify(self) -> None:
        """Raise ConfigurationError if the file is no longer what the digest was made of."""
        try:
            now = _stamp(self.path)
        except OSError as error:
            raise _changed(self.path, f"is gone: {error.strerror}") from error
        if now != self.stamp:
            raise _changed(self.path, "was changed")


def default_cache() -> Path:
    """Return where digests are remembered: in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(caches) / "smkit" / "digests.sqlite"


def digest_files(
    files: Sequence[tuple[str, Path]], *, cache: Path, advance: Callable[[int], None]
) -> tuple[LocalFile, ...]:
    """Return the files with their digests; this writes nothing, see `remember`.

    Raises:
        ConfigurationError: A file cannot be read, or changes while it is read.
    """
    known = _recall(cache)
    stop = threading.Event()

    def digest(relative: str, path: Path) -> LocalFile:
        try:
            stamp = _stamp(path)
            settled = time.time_ns() - max(stamp.modified, stamp.changed) > _SETTLED_NANOSECONDS
            found = known.get((os.fsencode(path), stamp))
            if found:
                advance(stamp.size)
            file = LocalFile(relative, path, stamp, found or _sha256(path, stop, advance), settled)
        except OSError as error:
            raise ConfigurationError(
                f"'{path}' cannot be read: {error.strerror}", where=str(path), fix="make it readable"
            ) from error
        file.verify()
        return file

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        return tuple(pool.map(lambda pair: digest(*pair), files))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def remember(files: Iterable[LocalFile], *, cache: Path) -> None:
    """Keep the digests of these files for a later launch; a cache that cannot be written is no failure."""
    rows = [(os.fsencode(file.path), _text(file.stamp), file.sha256) for file in files if file.settled]
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.closing(sqlite3.connect(cache)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, stamp TEXT, sha256 TEXT)")
            database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
    except (OSError, sqlite3.Error) as error:
        _logger.info("the digests of %d files are not kept in %s: %s", len(rows), cache, error)


def _recall(cache: Path) -> Mapping[tuple[bytes, Stamp], str]:
    if not cache.exists():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(f"{cache.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT path, stamp, sha256 FROM digests").fetchall()
            return {(path, Stamp(*map(int, stamp.split()))): sha256 for path, stamp, sha256 in rows}
    except (OSError, sqlite3.Error, ValueError, TypeError) as error:
        _logger.info("the digests in %s are not used: %s", cache, error)
        return {}


def _text(stamp: Stamp) -> str:
    return " ".join(map(str, stamp))


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _sha256(path: Path, stop: threading.Event, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while not stop.is_set() and (block := file.read(_BLOCK_BYTES)):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _changed(path: Path, how: str) -> ConfigurationError:
    return ConfigurationError(
        f"'{path}' {how} while the launch was reading it",
        where=str(path),
        fix="launch when whatever writes it has ended, or give a copy; what was uploaded so far is not lost",
    )
