"""MetricLog: one line for CloudWatch, one point for TensorBoard, one row of JSON lines.

Values stay on their device until a record is written: one transfer per record, none per step. This room knows nothing
of loops, steps due or progress bars.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from smkit import contract
from smkit.disk import put_in_place
from smkit.errors import SmkitError
from smkit.event_file import EventFile

logger = logging.getLogger(__name__)


class MetricLog:
    """Collects metrics step by step and writes a record when asked to.

    Args:
        jsonl_file: File of JSON lines, one object per record; None for none.
        tensorboard_dir: Folder of TensorBoard events; None for none.
        prints: Whether records go to stdout, where CloudWatch finds them by `contract.metric_regex`.
        gather: Returns what each process of a run in several passes to it; `read` and `write` then are called by all at
            the same step, and give the means over all. The files and the printing are for one of them.
    """

    def __init__(
        self,
        jsonl_file: Path | None = None,
        tensorboard_dir: Path | None = None,
        *,
        prints: bool = True,
        gather: Callable[[Any], Sequence[Any]] | None = None,
    ) -> None:
        self._jsonl_file = jsonl_file
        self._tensorboard_dir = tensorboard_dir
        self._prints = prints
        self._gather = gather
        self._pending: dict[str, list[tuple[Tensor | float, float]]] = {}
        self._gathered_counts: dict[str, int] = {}
        self._rows: TextIO | None = None
        self._row_count = 0
        self._events: EventFile | None = None
        self._missing: dict[Path, int] = {}
        self._first_step = 0

    @property
    def files(self) -> list[Path]:
        """The files whose rows a saved state counts."""
        return [] if self._jsonl_file is None else [self._jsonl_file]

    def add(self, name: str, value: Any, weight: float = 1.0) -> None:
        """Note one value of a metric, and what it weighs in the mean, such as its number of samples.

        A tensor of one element stays on its device, and must not change any more.
        """
        if isinstance(value, Tensor):
            value = value.detach() if value.requires_grad else value
        elif not isinstance(value, (int, float)):
            value = _number(name, value)
        try:
            self._pending[name].append((value, weight))
        except KeyError:
            check_name(name)
            self._pending[name] = [(value, weight)]

    def read(self) -> dict[str, list[float]]:
        """Return all values noted since the last `write`, in one transfer from the device; they stay noted."""
        tensors = [value for noted in self._pending.values() for value, _ in noted if isinstance(value, Tensor)]
        if tensors:
            for name, noted in self._pending.items():
                if any(isinstance(value, Tensor) and value.numel() != 1 for value, _ in noted):
                    raise SmkitError(
                        f"a value of '{name}' has more than one element", where="log()", fix="log a mean or a sum of it"
                    )
            numbers = iter(_numbers(tensors))
            for noted in self._pending.values():
                noted[:] = [
                    (next(numbers) if isinstance(value, Tensor) else float(value), weight) for value, weight in noted
                ]
        if self._gather is not None:
            self._read_all(self._gather)
        return {name: [float(value) for value, _ in noted] for name, noted in self._pending.items()}

    def _read_all(self, gather: Callable[[Any], Sequence[Any]]) -> None:
        """Replace what this process has noted since the last time by the means over what all processes have."""
        new = {name: noted[self._gathered_counts.get(name, 0) :] for name, noted in self._pending.items()}
        of_all: Sequence[dict[str, list[tuple[float, float]]]] = gather(
            {name: noted for name, noted in new.items() if noted}
        )
        for name in dict.fromkeys(name for of_one in of_all for name in of_one):
            known = self._pending.setdefault(name, [])[: self._gathered_counts.get(name, 0)]
            self._pending[name] = [*known, *_means([of_one.get(name, []) for of_one in of_all])]
            self._gathered_counts[name] = len(self._pending[name])

    def write(self, step: int, epoch: int, values: Mapping[str, float] | None = None) -> dict[str, float]:
        """Write one record: the mean of what was noted of each metric since the last one, and `values` as they are.

        Returns:
            The record by name.
        """
        values_by_name = self.read()
        weights = {name: [weight for _, weight in noted] for name, noted in self._pending.items()}
        record = {name: _mean(noted, weights[name]) for name, noted in values_by_name.items()} | dict(values or {})
        self._pending.clear()
        self._gathered_counts.clear()
        self.write_values(step, epoch, record)
        return record

    def write_values(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write one record of these values; what was noted stays noted."""
        if not values:
            return
        if self._prints:
            self._print(contract.metric_lines(step, epoch, values))
        row = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **values}
        if self._jsonl_file is not None and not self._is_written(self._jsonl_file, self._write_row, row):
            _close(self._rows)
            self._rows = None
        directory = self._tensorboard_dir
        if directory is not None and not self._is_written(directory, self._write_events, step, values):
            _close(self._events)
            self._events = None

    def _is_written(self, place: Path, write: Callable[..., None], *record: Any) -> bool:
        """Write a record; a disk that is full, or gone, costs the record and not the run, and is tried again."""
        try:
            write(place, *record)
        except OSError as error:
            if place not in self._missing:
                logger.warning("metrics are not written to %s, until that can be done again: %s", place, error)
            self._missing[place] = self._missing.get(place, 0) + 1
            return False
        if missing := self._missing.pop(place, 0):
            logger.warning("metrics are written to %s again; %d records are missing there", place, missing)
        return True

    def _print(self, lines: Sequence[str]) -> None:
        # A reader that has gone away must not end the training; a process without stdout has None.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            for line in lines:
                sys.stdout.write(line)
            sys.stdout.flush()

    def _write_row(self, file: Path, row: Mapping[str, Any]) -> None:
        if self._rows is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = _lines(file)
            self._row_count = len(rows)
            # A pipe in its place would wait for a reader; so it cannot be opened.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
            self._rows = os.fdopen(os.open(file, flags, 0o666), "a", encoding="utf-8", buffering=1)
            if file.stat().st_size > (whole := sum(map(len, rows))):
                # A row that a full disk has cut short would be the beginning of the next one.
                os.truncate(file, whole)
        self._rows.write(json.dumps(row) + "\n")
        self._row_count += 1

    def _write_events(self, directory: Path, step: int, record: Mapping[str, float]) -> None:
        if self._events is None:
            self._events = EventFile(directory)
            if self._first_step:
                # What a run that was killed wrote after its last checkpoint is written again.
                self._events.start(self._first_step)
        self._events.add(step, record)

    def state_dict(self) -> dict[str, Any]:
        """Return what is noted and not yet written, and how many rows have been."""
        self.read()
        return {"pending": {name: list(noted) for name, noted in self._pending.items()}, "rows": self._row_count}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from `step`: what was noted then is noted again, and rows written after it are taken back."""
        self._pending = {name: [tuple(noted) for noted in values] for name, values in state["pending"].items()}
        self._gathered_counts = {name: len(noted) for name, noted in self._pending.items()}
        self._first_step = step + 1
        self.close()
        try:
            if self._jsonl_file is not None and self._jsonl_file.is_file():
                self._take_back_rows(self._jsonl_file, state["rows"])
        except OSError as error:
            # Rows of the same steps would follow those that are still there.
            logger.warning("metrics are not written to %s any more: %s", self._jsonl_file, error)
            self._jsonl_file = None

    def _take_back_rows(self, file: Path, count: int) -> None:
        kept = _lines(file)[:count]
        part = file.with_name(file.name + ".part")
        part.unlink(missing_ok=True)
        part.write_bytes(b"".join(kept))
        put_in_place(part, file)
        self._row_count = len(kept)

    def begin(self) -> None:
        """Begin at the first step: what a run that has left no checkpoint wrote is taken back."""
        self.load_state_dict({"pending": {}, "rows": 0}, 0)

    def close(self) -> None:
        """Finish the files; the log can be written to again."""
        events, rows = self._events, self._rows
        self._events = self._rows = None
        _close(events)
        _close(rows)


def check_name(name: str) -> None:
    """Refuse a name that the metric line could not carry.

    Raises:
        SmkitError: It is empty, or holds a space or an equals sign.
    """
    if not name or any(character in name for character in " =\n"):
        raise SmkitError(
            f"a metric cannot be called {name!r}",
            where="the metric",
            fix="use a name like 'train/loss': no spaces, no '='",
        )


def _numbers(tensors: Sequence[Tensor]) -> list[float]:
    """Return the values of tensors of one element, in one transfer from each device: a user's may lie on the CPU."""
    numbers = [0.0] * len(tensors)
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.device == device]
        values = torch.stack([tensors[place].reshape(()).double() for place in places]).tolist()
        for place, value in zip(places, values, strict=True):
            numbers[place] = value
    return numbers


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted mean; what weighs nothing, such as a sample that stands in, has no say at all."""
    weighed = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    if not weighed:
        return math.nan
    if len({weight for _, weight in weighed}) == 1:
        return math.fsum(value for value, _ in weighed) / len(weighed)
    return math.fsum(value * weight for value, weight in weighed) / math.fsum(weight for _, weight in weighed)


def _means(of_all: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the values of all processes as one list: entry by entry where each has as many, else all of them."""
    if len({len(of_one) for of_one in of_all}) > 1:
        return [noted for of_one in of_all for noted in of_one]
    return [
        (
            _mean([value for value, _ in entry], [weight for _, weight in entry]),
            math.fsum(weight for _, weight in entry),
        )
        for entry in zip(*of_all, strict=True)
    ]


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise SmkitError(f"'{name}' is {value!r:.60}", where="log()", fix="log a number or a tensor of one") from error


def _close(file: TextIO | EventFile | None) -> None:
    """Close a file that could not be written to; what it holds back is lost."""
    with contextlib.suppress(OSError):
        if file is not None:
            file.close()


def _lines(file: Path) -> list[bytes]:
    """Return the whole rows of a file; one that was cut short is none."""
    if not file.is_file():
        return []
    return [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
