"""How much room a disk has, in the words of an error that says how much is needed.

This room writes nothing, and does not know what is to be written.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk, or somebody's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def room(directory: Path) -> str:
    """Return how many bytes, and files, the disk of a directory, which need not be there yet, has room for."""
    for place in (directory, *directory.parents):
        with contextlib.suppress(OSError):
            status = os.statvfs(place)
            files = f" and {status.f_favail:,} files" if status.f_files else ""
            return f"{status.f_bavail * status.f_frsize:,} bytes{files}"
    return "nobody knows how many"


def shortage(directory: Path, needed_bytes: int) -> str:
    """Return how much is needed in a directory, and how much there is."""
    return f"it needs about {needed_bytes:,} bytes, and there are {room(directory)} free"
