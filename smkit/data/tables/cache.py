"""Where the parsed rows of a table are kept: files of fixed-width rows, for this run and for the next one.

Rows are written into a private folder that gets its name when all are there; whoever dies before leaves a folder that
the next one removes. This room does not know where rows come from.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from smkit.data.tables.columns import Array, Field, Texts, Values
from smkit.errors import DataError

_log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_ROWS = "rows.bin"
_TEXTS = "texts.bin"
_FILES = (_ROWS, _TEXTS)
_PRIVATE = ".partial"
_PAGE = 4096
_HASHED_BYTES = 4 << 20
_MAX_MANIFEST_BYTES = 64 << 20
_FIX = "give another place: cache_dir=, on a volume with enough space (in a job: a larger volume)"


def default_folder(where: str) -> Path:
    """Return the folder of this user's caches below the machine's temporary folder.

    Raises:
        DataError: What is there is not this user's.
    """
    folder = Path(tempfile.gettempdir()) / f"smkit-cache-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}", where=where, fix=_FIX) from error
    found = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or found.st_uid != os.geteuid():
        raise DataError(
            f"{folder} is not this user's own folder, so that others could change what is read from it",
            where=where,
            fix="remove it, or give a folder of your own: cache_dir=",
        )
    folder.chmod(0o700)
    return folder


class TableCache:
    """The rows of one table in files: published, or being written.

    Args:
        folder: The folder of all caches.
        key: Names this table: another one for other files or columns.
        fields: What each row holds.
        rows: How many rows there are.
        where: What an error names as its place.
    """

    def __init__(self, folder: Path, key: str, fields: Sequence[Field], rows: int, where: str) -> None:
        self._folder = folder
        self._published = folder / key
        self._fields = tuple(fields)
        self._rows = rows
        self._where = where
        self._starts = _starts(fields, rows)
        self._text_bytes = 0
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._private: Path | None = None
        self._descriptors: list[int] = []
        self._maps: list[mmap.mmap] = []
        self.classes: tuple[str, ...] = ()
        self.is_whole = self._open_published()

    def __del__(self) -> None:
        self.close()

    @property
    def is_mine(self) -> bool:
        """Whether this process may write: a child that was forked shares the files of its parent."""
        return self._pid == os.getpid()

    def close(self) -> None:
        """Leave the files; those that are not published are removed."""
        descriptors, self._descriptors = self.__dict__.get("_descriptors", []), []
        for descriptor in descriptors:
            os.close(descriptor)
        if descriptors and self._private is not None and self.is_mine:
            shutil.rmtree(self._private, ignore_errors=True)
            self._private = None

    # --- reading ------------------------------------------------------------------------------------------------------

    def array(self, field: int) -> Array:
        """Return all rows of a field, mapped into memory; those that are not yet written are zeros."""
        described = self._fields[field]
        shape = (self._rows, *described.shape)
        rows: Array = np.ndarray(shape, described.dtype, buffer=self._maps[0], offset=self._starts[field])
        return rows

    def texts(self, places: Array) -> list[str]:
        """Return the texts at (start, length)."""
        ends = places.sum(axis=1)
        if len(self._maps) < 2 or len(self._maps[1]) < ends.max(initial=0):
            # The texts grow while they are written.
            self._maps[1:] = [self._map(1)] if ends.max(initial=0) else []
        data: Any = self._maps[1] if len(self._maps) > 1 else b""
        spans = zip(places[:, 0].tolist(), ends.tolist(), strict=True)
        return [str(data[start:end], "utf-8") for start, end in spans]

    def forget(self) -> None:
        """Let the kernel take back the memory of the pages that were read; they stay in its cache of files."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    # --- writing ------------------------------------------------------------------------------------------------------

    def create(self, expected_text_bytes: int) -> None:
        """Make the files that rows are written to.

        Raises:
            DataError: The disk has not enough space.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            needed = self._starts[-1] + expected_text_bytes
            found = os.statvfs(self._folder)
            if needed > found.f_bavail * found.f_frsize:
                raise DataError(
                    f"the parsed table takes {needed / 1e6:,.1f} MB, and {self._folder} has "
                    f"{found.f_bavail * found.f_frsize / 1e6:,.1f} MB left",
                    where=self._where,
                    fix=_FIX,
                )
            self._private = self._new_folder()
            for name in _FILES:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._descriptors.append(os.open(self._private / name, flags, 0o600))
            os.ftruncate(self._descriptors[1], max(1, self._starts[-1]))
            self._maps = [self._map(0)]
        except OSError as error:
            raise self._failed(error) from error

    def write(self, first: int, values: Sequence[Values]) -> None:
        """Write rows from `first` on, one array or one bundle of texts for each field.

        Threads may call it at once, for other rows.
        """
        for field, rows in enumerate(values):
            self.write_field(field, first, rows)

    def write_field(self, field: int, first: int, values: Values) -> None:
        """Write rows of one field from `first` on."""
        described = self._fields[field]
        try:
            kept = self._placed(values) if isinstance(values, Texts) else values
            offset = self._starts[field] + first * described.row_bytes
            _write_all(self._descriptors[1], np.ascontiguousarray(kept, described.dtype), offset)
        except OSError as error:
            raise self._failed(error) from error

    def _placed(self, texts: Texts) -> Array:
        """Write texts after all others and return their places."""
        with self._lock:
            start = self._text_bytes
            self._text_bytes += len(texts.data)
        _write_all(self._descriptors[2], np.frombuffer(texts.data, np.uint8), start)
        lengths = texts.lengths.astype(np.int64)
        return np.stack([start + np.cumsum(lengths) - lengths, lengths], axis=1)

    def publish(self, classes: Sequence[str]) -> None:
        """Give the cache its name, now that all rows are written, in a thread: it waits for the disk.

        What goes wrong is said in the log alone, for this run has its rows.
        """
        self.classes = tuple(classes)
        self.is_whole = True
        threading.Thread(target=self._publish, name="smkit-cache", args=(self._descriptors,)).start()

    def _publish(self, descriptors: Sequence[int]) -> None:
        private = self._private
        if private is None:
            return
        try:
            for descriptor in descriptors[1:]:
                os.fsync(descriptor)
            manifest = json.dumps(self._manifest())
            with (private / _MANIFEST).open("x", encoding="utf-8") as file:
                file.write(manifest)
                file.flush()
                os.fsync(file.fileno())
            os.fsync(descriptors[0])
            with suppress(OSError):
                private.rename(self._published)
                self._private = None
                _log.info("%s: the parsed rows are kept in %s", self._where, self._published)
        except OSError as error:
            _log.warning("%s: the parsed rows cannot be kept for the next run: %s", self._where, error)

    def _manifest(self) -> dict[str, object]:
        """Return what the files hold, and its own hash: a class's name that has changed would be believed else."""
        content = self._content()
        return content | {"xxh3_128": xxhash.xxh3_128_hexdigest(json.dumps(content).encode())}

    def _sizes(self) -> list[int]:
        return [os.fstat(descriptor).st_size for descriptor in self._descriptors[1:]]

    def _content(self) -> dict[str, object]:
        return {
            "fields": [[field.name, field.dtype, list(field.shape)] for field in self._fields],
            "rows": self._rows,
            "sizes": self._sizes(),
            "hashes": [_digest(descriptor) for descriptor in self._descriptors[1:]],
            "classes": list(self.classes),
        }

    # --- folders ------------------------------------------------------------------------------------------------------

    def _open_published(self) -> bool:
        """Map the files of an earlier run, if they are there and whole; what is damaged is removed."""
        if not os.path.lexists(self._published):
            return False
        try:
            self._descriptors = [os.open(self._published, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)]
            with open(_opened(self._published / _MANIFEST), encoding="utf-8") as file:
                manifest = json.load(file)
            for name in _FILES:
                self._descriptors.append(_opened(self._published / name))
            self.classes = tuple(manifest["classes"])
            is_full = manifest["sizes"] == self._sizes() and manifest["sizes"][0] == max(1, self._starts[-1])
            # What is damaged is never mapped: all of it is read, which an epoch does anyway.
            if is_full and manifest == self._manifest():
                self._maps = [self._map(0)]
                return True
            reason = "it is not what its manifest says"
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = str(error)
        _log.warning("%s: the cache %s is damaged and made anew: %s", self._where, self._published, reason)
        self.close()
        if self._published.is_dir() and not self._published.is_symlink():
            shutil.rmtree(self._published, ignore_errors=True)
        else:
            # The other function would open a pipe, and wait.
            with suppress(OSError):
                self._published.unlink(missing_ok=True)
        self.classes = ()
        return False

    def _new_folder(self) -> Path:
        """Return a new folder that is locked as long as this process lives."""
        while True:
            folder = Path(tempfile.mkdtemp(_PRIVATE, f"{self._published.name}.", self._folder))
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                # Another process has taken it for an abandoned one, and can do so until it is locked.
                continue
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    self._descriptors = [descriptor]
                    return folder
            os.close(descriptor)

    def _remove_abandoned(self) -> None:
        """Remove the folders of processes that are gone: theirs are not locked."""
        for folder in self._folder.glob(f"*{_PRIVATE}"):
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)

    def _map(self, file: int) -> mmap.mmap:
        return mmap.mmap(self._descriptors[file + 1], 0, access=mmap.ACCESS_READ)

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"the parsed rows cannot be written to {self._folder}: {error.strerror or error}",
            where=self._where,
            fix=_FIX,
        )


def _opened(path: Path) -> int:
    """Open a file to read; anything else, which could be waited for or has no end, is refused.

    Raises:
        OSError: It cannot be opened, or it is no file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or (path.name == _MANIFEST and found.st_size > _MAX_MANIFEST_BYTES):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file, or larger than it can be", str(path))
    return descriptor


def _digest(descriptor: int) -> str:
    """Return the xxh3_128 of a file."""
    digest = xxhash.xxh3_128()
    offset = 0
    while block := os.pread(descriptor, _HASHED_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _starts(fields: Sequence[Field], rows: int) -> list[int]:
    """Return where each field begins in the file of rows, and where the last one ends."""
    starts = [0]
    for field in fields:
        starts.append(-(-(starts[-1] + rows * field.row_bytes) // _PAGE) * _PAGE)
    return starts


def _write_all(descriptor: int, values: Array, offset: int) -> None:
    left = values.reshape(-1).view(np.uint8).data if values.size else memoryview(b"")
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
