"""No test waits for a process for ever: one that goes on for too long is made to say where it is, and dies of it."""

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SECONDS = 300.0
"""Longer than anything here takes on a busy machine, and less than pytest's own patience, which ends the whole run."""


@contextlib.contextmanager
def patient_with(process: subprocess.Popen[Any], seconds: float = SECONDS) -> Iterator[None]:
    """End `process` after this long, so that reading what it writes and waiting for it come to an end.

    It dies of SIGABRT: a Python process started with PYTHONFAULTHANDLER=1 writes its stack to stderr before.
    """
    timer = threading.Timer(seconds, process.send_signal, (signal.SIGABRT,))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what another thread or process is about to do."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.02)
