"""What is on the disk for good: bytes and names that survive a power cut once a call here has returned.

The bytes of a file, its name, and the names of the folders above it are three things, and each must be brought to the
disk for itself. This room knows neither what is written nor when it counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_NOT_KNOWN = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
"""What file systems say that know of no such thing, such as some of networks for folders."""


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, with their names."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    _sync(directory, os.O_DIRECTORY)


def sync_file(file: Path) -> None:
    """Wait until what was written to a file, by whomever, and its name are on the disk."""
    _sync(file, os.O_NONBLOCK)
    sync_directory(file.parent)


def sync_above(path: Path) -> None:
    """Wait until the names of all folders above a path are on the disk, whoever has made them."""
    for directory in path.absolute().parents:
        # What one may pass through and not look into was not made by this process.
        with contextlib.suppress(PermissionError):
            sync_directory(directory)


def sync_tree(directory: Path) -> None:
    """Wait until all files below a directory are on the disk, with all names that lead to them."""
    for path in directory.rglob("*"):
        with contextlib.suppress(PermissionError):
            if path.is_dir() and not path.is_symlink():
                sync_directory(path)
            elif path.is_file() and not path.is_symlink():
                _sync(path, os.O_NONBLOCK)
    sync_above(directory / "any")


def put_in_place(part: Path, file: Path) -> None:
    """Give a finished file its name, over another one that may bear it: after a power cut there is one or the other."""
    _sync(part, 0)
    part.replace(file)
    sync_directory(file.parent)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise
    finally:
        os.close(descriptor)
