"""Where metric records are kept: rows of JSON lines, and TensorBoard's points, written by a thread of its own.

A process that waits for a disk that hangs hears no signal and cannot be ended; so it is never the thread that trains. A
disk that is full costs records and not the run. This room knows no metric.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from smkit.disk import put_in_place, sync_file
from smkit.event_file import EventFile

logger = logging.getLogger(__name__)

_MOST_WAITING = 1000
"""Records that may wait for a disk; later ones are dropped, and counted."""
_MOST_ROW_BYTES = 2**20
_SECONDS_TO_CLOSE = 10.0

Record = dict[str, Any]
"""Step, epoch, time and values by name."""


class MetricFiles:
    """The files of one run's records.

    Args:
        jsonl_file: A row for each record; None for none.
        tensorboard_dir: A point for each value of each record; None for none.
    """

    def __init__(self, jsonl_file: Path | None, tensorboard_dir: Path | None) -> None:
        self._jsonl_file = jsonl_file
        self._tensorboard_dir = tensorboard_dir
        self._row_count: int | None = None
        self._first_step = 0
        self._missing: dict[Path, int] = {}
        self._rows: TextIO | None = None
        self._events: EventFile | None = None
        self._lock = threading.Lock()
        self._waiting: list[Record] = []
        self._dropped = 0
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    def write(self, record: Record) -> None:
        """Hand over a record; it is written as soon as the disk takes it."""
        if self._jsonl_file is None and self._tensorboard_dir is None:
            return
        if self._row_count is None:
            self._row_count = 0 if self._jsonl_file is None else sum(1 for _ in _rows_of(self._jsonl_file))
        with self._lock:
            is_dropped = len(self._waiting) >= _MOST_WAITING
            self._dropped += is_dropped
            is_first_dropped = is_dropped and self._dropped == 1
            if not is_dropped:
                self._waiting.append(record)
        if is_first_dropped:
            logger.warning("%d metric records wait for the disk, and more are dropped: %s", _MOST_WAITING, self._places)
        if is_dropped:
            return
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, name="smkit-metrics", daemon=True)
            self._writer.start()
        self._queue.put(record)

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows there are, and the records that are still on their way."""
        with self._lock:
            return {"rows": self._row_count or 0, "waiting": list(self._waiting)}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on after `step`: rows written after it are taken back, those that were on their way then are made up.

        It reads and writes in this thread, for a training has not begun.
        """
        self.close()
        self._first_step = step + 1
        rows, waiting = int(state.get("rows", 0)), list(state.get("waiting", ()))
        try:
            if self._jsonl_file is not None:
                self._row_count = self._taken_back(self._jsonl_file, rows, waiting)
        except OSError as error:
            # Rows of the same steps would follow those that are still there.
            logger.warning("metrics are not written to %s any more: %s", self._jsonl_file, error)
            self._jsonl_file = None

    def _taken_back(self, file: Path, count: int, waiting: Sequence[Record]) -> int:
        if not file.is_file() and not waiting:
            return 0
        kept = [*_rows_of(file, count), *(_row(record) for record in waiting)]
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.unlink(missing_ok=True)
        part.write_bytes(b"".join(kept))
        put_in_place(part, file)
        return len(kept)

    def close(self) -> None:
        """Finish the files, unless the disk hangs; they can be written to again."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        self._queue.put(None)
        writer.join(_SECONDS_TO_CLOSE)
        if writer.is_alive():
            logger.warning("the last metrics are not written: the disk of %s hangs", self._jsonl_file)
            self._queue = queue.SimpleQueue()

    # --- in the other thread --------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        waiting = self._queue
        while (record := waiting.get()) is not None:
            self._write(record)
        rows, events, self._rows, self._events = self._rows, self._events, None, None
        _close(rows)
        _close(events)
        if rows is not None and self._jsonl_file is not None:
            with contextlib.suppress(OSError):
                sync_file(self._jsonl_file)

    def _write(self, record: Record) -> None:
        is_row = self._jsonl_file is not None and self._is_written(self._jsonl_file, self._write_row, record)
        with self._lock:
            # A checkpoint knows of a record as one that is there or one that is on its way.
            self._waiting = [one for one in self._waiting if one is not record]
            self._row_count = (self._row_count or 0) + is_row
        if self._jsonl_file is not None and not is_row:
            _close(self._rows)
            self._rows = None
        directory = self._tensorboard_dir
        if directory is not None and not self._is_written(directory, self._write_events, record):
            _close(self._events)
            self._events = None
        with self._lock:
            dropped = 0 if self._waiting else self._dropped
            self._dropped -= dropped
        if dropped:
            logger.warning("the disk has taken the metrics that waited; %d were dropped: %s", dropped, self._places)

    @property
    def _places(self) -> str:
        return ", ".join(str(place) for place in (self._jsonl_file, self._tensorboard_dir) if place is not None)

    def _is_written(self, place: Path, write: Callable[[Path, Record], None], record: Record) -> bool:
        """Write a record; whatever the disk says of it, the next one is tried again."""
        try:
            write(place, record)
        except OSError as error:
            if place not in self._missing:
                logger.warning("metrics are not written to %s, until that can be done again: %s", place, error)
            self._missing[place] = self._missing.get(place, 0) + 1
            return False
        if missing := self._missing.pop(place, 0):
            logger.warning("metrics are written to %s again; %d records are missing there", place, missing)
        return True

    def _write_row(self, file: Path, record: Record) -> None:
        if self._rows is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            # A pipe in its place would wait for a reader; so it cannot be opened.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
            rows = os.fdopen(os.open(file, flags, 0o666), "a", encoding="utf-8", buffering=1)
            whole = sum(map(len, _rows_of(file)))
            if os.fstat(rows.fileno()).st_size > whole:
                # A row that a full disk has cut short would be the beginning of the next one.
                os.ftruncate(rows.fileno(), whole)
            self._rows = rows
        self._rows.write(_row(record).decode())

    def _write_events(self, directory: Path, record: Record) -> None:
        if self._events is None:
            self._events = EventFile(directory)
            if self._first_step:
                # What a run that was killed wrote after its last checkpoint is written again.
                self._events.start(self._first_step)
        values = {name: value for name, value in record.items() if name not in ("step", "epoch", "time")}
        self._events.add(record["step"], values, record["time"])


def _row(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _rows_of(file: Path, most: int | None = None) -> Iterator[bytes]:
    """Yield the whole rows of a file, from the first; one that was cut short is none, nor is what follows it."""
    if not file.is_file():
        return
    with file.open("rb") as rows:
        while most is None or most > 0:
            row = rows.readline(_MOST_ROW_BYTES)
            if not row.endswith(b"\n"):
                return
            yield row
            most = None if most is None else most - 1


def _close(file: TextIO | EventFile | None) -> None:
    """Close a file; what it could not write is lost."""
    with contextlib.suppress(OSError):
        if file is not None:
            file.close()
