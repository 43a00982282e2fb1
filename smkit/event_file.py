"""A file of points for TensorBoard, written record by record: what was added survives the process, however it ends.

TensorBoard's own writer leaves this to a thread, which keeps points back for seconds and puts a traceback on the screen
when a disk fails. This room knows the format of one record from tensorboard, and no metric.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class EventFile:
    """A new file in a folder, which is made with it.

    Args:
        directory: TensorBoard reads all files of it in the order of their names, and so of their times.

    Raises:
        OSError: It cannot be made, or, of the methods, not be written to.
        ImportError: tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._file = _new_file(directory)
        self._records = RecordWriter(self._file)
        try:
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        except OSError:
            # Who tries again begins another one.
            self._discard()
            raise

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def start(self, step: int) -> None:
        """Tell TensorBoard to drop what files before this one hold of `step` and later steps."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._write(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float], wall_time: float | None = None) -> None:
        """Add one point of each metric, by default as of now."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(wall_time=wall_time or time.time(), step=step, summary=summary))

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            Path(self._file.name).unlink()

    def close(self) -> None:
        self._file.close()


def _new_file(directory: Path) -> BinaryIO:
    """Open a file that nobody has: a process can have the number, and the second, of one before it."""
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    number = 0
    while True:
        try:
            return (directory / f"{name}.{number}").open("xb")
        except FileExistsError:
            number += 1
