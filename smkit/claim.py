"""One run at a time in a directory: two would remove each other's checkpoints and mix their records.

This room knows nothing of what is kept in the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from smkit.errors import ConfigurationError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 10.0
"""A killed run's data processes (torch's DataLoader) hold its claim until they notice, which takes them 5 seconds."""


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Keep an existing directory for this process until the block ends, or the process does, however it does.

    No file is made for it: what lies there is mirrored to S3. Where the file system has no such locks (NFS, Lustre
    without `flock`), nothing is kept.

    Raises:
        ConfigurationError: Another process has claimed it.
    """
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(place, directory)
        yield
    finally:
        os.close(place)


def _lock(place: int, directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    "another process is training there, and two would remove each other's checkpoints",
                    where=str(directory),
                    fix="wait until it has ended, or stop it; or give this run another --run-dir",
                ) from error
            time.sleep(0.1)
        except OSError:
            logger.info("%s has no locks: nothing would notice a second run in it", directory)
            return
        else:
            return
