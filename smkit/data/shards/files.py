"""Open shards: a limited number of them, and, where a mount streams them from S3, local copies.

A mount such as FastFile is fast only where a file is read from its beginning to its end, so a shard is copied whole
before a sample of it is read. This room does not know what lies in a shard.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smkit.errors import DataError

_OPENED = 256
_COPIED_AT_ONCE = 4
_PIECE = 8 << 20


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Return `size` bytes at `offset`, fewer only where the file ends."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


class Descriptor:
    """A descriptor of a file, closed when nobody has it any more: whoever still reads keeps an evicted one open."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Of the modules, nothing may be left when the process ends.
        close(self.number)


class ShardFiles:
    """The shards, opened when they are asked for; the least recently used are closed, and their copies gone.

    A copy has no name, so that nothing is left behind, however the process ends.

    Args:
        root: The folder that `files` are relative to.
        files: The shards.
        sizes: Bytes of each.
        copies: How many copies lie on the disk at once; None reads the shards themselves.
        folder: Where copies lie; by default the system's folder for temporary files.
        where: What an error names as their place.

    Raises:
        DataError: The disk is too small for the copies.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        sizes: Sequence[int],
        *,
        copies: int | None,
        folder: Path | None,
        where: str,
    ) -> None:
        self._root = str(root)
        self._files = tuple(files)
        self._sizes = tuple(sizes)
        self._copies = copies
        self._folder = str(folder or tempfile.gettempdir())
        self._where = where
        self._opened: OrderedDict[int, Descriptor] = OrderedDict()
        self.limit = copies or _OPENED
        """Shards that can be open at once."""
        if copies is not None:
            needed, free = sum(sorted(sizes)[-copies:]), self._free()
            if needed > free:
                raise self._no_space(f"{min(copies, len(files))} shards of a window", needed, free)

    def __getstate__(self) -> dict[str, object]:
        # Descriptors are of this process.
        return self.__dict__ | {"_opened": OrderedDict()}

    def groups(self, shards: Sequence[int]) -> list[list[int]]:
        """Return `shards` in groups that can be open at once, those first that are open already."""
        ordered = sorted(shards, key=lambda shard: shard not in self._opened)
        return [ordered[start : start + self.limit] for start in range(0, len(ordered), self.limit)]

    def open(self, shards: Sequence[int]) -> dict[int, Descriptor]:
        """Return the descriptors of these shards, at most `limit` of them.

        Raises:
            DataError: A shard cannot be read, or is not the one that was indexed.
        """
        for shard in shards:
            if shard in self._opened:
                self._opened.move_to_end(shard)
        missing = [shard for shard in shards if shard not in self._opened]
        while self._opened and len(self._opened) + len(missing) > self.limit:
            self._opened.popitem(last=False)
        if self._copies is not None and len(missing) > 1:
            # One stream from S3 is slower than several.
            with ThreadPoolExecutor(_COPIED_AT_ONCE) as pool:
                self._opened.update(zip(missing, pool.map(self._open, missing), strict=True))
        else:
            self._opened.update((shard, self._open(shard)) for shard in missing)
        return {shard: self._opened[shard] for shard in shards}

    def announce(self, descriptors: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> None:
        """Have the disk fetch these pieces at once, before they are read one by one."""
        # A copy has been written a moment ago.
        if self._copies is None and hasattr(os, "posix_fadvise"):
            for descriptor, offset, size in zip(descriptors, offsets, sizes, strict=True):
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def open_itself(self, shard: int) -> Descriptor:
        """Return a descriptor of a shard itself, not of a copy."""
        file = self._files[shard]
        try:
            descriptor = Descriptor(os.open(f"{self._root}/{file}", os.O_RDONLY | os.O_CLOEXEC))
            size = os.fstat(descriptor.number).st_size
        except OSError as error:
            raise self._unreadable(file, error) from error
        if size != self._sizes[shard]:
            raise DataError(
                f"{file} has changed: it had {self._sizes[shard]:,} bytes when it was opened, and has {size:,} now",
                where=self._where,
                fix="leave a channel as it is while it is read",
            )
        return descriptor

    def _open(self, shard: int) -> Descriptor:
        original = self.open_itself(shard)
        return original if self._copies is None else self._copy(shard, original)

    def _copy(self, shard: int, original: Descriptor) -> Descriptor:
        file, size = self._files[shard], self._sizes[shard]
        try:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as copy:
                descriptor = Descriptor(os.dup(copy.fileno()))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor.number, 0, size)
            copied = _copy_bytes(original.number, descriptor.number)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_space(f"the bytes of {file}", size, self._free()) from error
            raise self._unreadable(file, error) from error
        if copied != size:
            raise DataError(
                f"{file} has {size:,} bytes, and reading it ended after {copied:,}",
                where=self._where,
                fix="start the job again; if it happens again, use File mode for the channel",
            )
        return descriptor

    def _free(self) -> int:
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._folder).free

    def _no_space(self, what: str, needed: int, free: int) -> DataError:
        return DataError(
            f"{what} take {needed / 1e6:,.1f} MB, and the disk of {self._folder} has {free / 1e6:,.1f} MB left",
            where=self._where,
            fix="give the job a larger volume (VolumeSizeInGB), or write smaller shards",
        )

    def _unreadable(self, file: str, error: OSError) -> DataError:
        return DataError(
            f"{file} cannot be read: {error.strerror}",
            where=self._where,
            fix="check that the channel has arrived whole",
        )


def _copy_bytes(source: int, target: int) -> int:
    """Copy from the beginning to the end, and return how many bytes that were."""
    copied = 0
    while piece := memoryview(os.read(source, _PIECE)):
        copied += len(piece)
        while piece:
            piece = piece[os.write(target, piece) :]
    return copied
