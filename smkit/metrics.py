"""MetricLog: one line for CloudWatch, one point for TensorBoard, one row of JSON lines.

Values stay on their device until a record is written: one transfer per record, none per step. This room knows nothing
of loops, steps due or progress bars.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor

from smkit import contract
from smkit.errors import SmkitError

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

_FLUSH_SECONDS = 5
"""How old a point can get before TensorBoard sees it."""


class MetricLog:
    """Collects metrics step by step and writes a record when asked to.

    Args:
        jsonl_file: File of JSON lines, one object per record; None for none.
        tensorboard_dir: Folder of TensorBoard events; None for none.
        prints: Whether records go to stdout, where CloudWatch finds them by `contract.metric_regex`.
    """

    def __init__(
        self, jsonl_file: Path | None = None, tensorboard_dir: Path | None = None, *, prints: bool = True
    ) -> None:
        self._jsonl_file = jsonl_file
        self._tensorboard_dir = tensorboard_dir
        self._prints = prints
        self._pending: dict[str, list[Tensor | float]] = {}
        self._rows: TextIO | None = None
        self._events: EventFileWriter | None = None
        self._first_step = 0

    def add(self, name: str, value: Tensor | float) -> None:
        """Note one value of a metric; a tensor of one element stays on its device."""
        if isinstance(value, Tensor) and value.requires_grad:
            value = value.detach()
        try:
            self._pending[name].append(value)
        except KeyError:
            if not name or any(character in name for character in " =\n"):
                raise SmkitError(
                    f"a metric cannot be called {name!r}",
                    where="log()",
                    fix="use a name like 'train/loss': no spaces, no '='",
                ) from None
            self._pending[name] = [value]

    def read(self) -> dict[str, list[float]]:
        """Return all values noted since the last `write`, in one transfer from the device; they stay noted."""
        tensors = [value for values in self._pending.values() for value in values if isinstance(value, Tensor)]
        if tensors:
            for name, values in self._pending.items():
                if any(isinstance(value, Tensor) and value.numel() != 1 for value in values):
                    raise SmkitError(
                        f"a value of '{name}' has more than one element", where="log()", fix="log a mean or a sum of it"
                    )
            numbers = iter(torch.stack([tensor.reshape(()).float() for tensor in tensors]).tolist())
            for values in self._pending.values():
                values[:] = [next(numbers) if isinstance(value, Tensor) else float(value) for value in values]
        return {name: [float(value) for value in values] for name, values in self._pending.items()}

    def write(self, step: int, epoch: int, values: Mapping[str, float] | None = None) -> dict[str, float]:
        """Write one record: the mean of what was noted of each metric since the last one, and `values` as they are.

        Returns:
            The record by name.
        """
        record = {name: math.fsum(noted) / len(noted) for name, noted in self.read().items()} | dict(values or {})
        self._pending.clear()
        self.write_values(step, epoch, record)
        return record

    def write_values(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write one record of these values; what was noted stays noted."""
        if values and self._prints:
            # A reader that has gone away must not end the training.
            with contextlib.suppress(OSError):
                sys.stdout.write(contract.metric_line(step, epoch, values))
                sys.stdout.flush()
        if values and self._jsonl_file is not None:
            row = json.dumps({"step": step, "epoch": epoch, "time": round(time.time(), 3), **values})
            if self._rows is None:
                self._jsonl_file.parent.mkdir(parents=True, exist_ok=True)
                self._rows = self._jsonl_file.open("a", encoding="utf-8", buffering=1)
            self._rows.write(row + "\n")
        if values and self._tensorboard_dir is not None:
            self._write_events(self._tensorboard_dir, step, values)

    def _write_events(self, directory: Path, step: int, record: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._events is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._events = EventFileWriter(str(directory), flush_secs=_FLUSH_SECONDS)
            if self._first_step:
                # Tells TensorBoard to drop what a run that was killed wrote after its last checkpoint.
                start = SessionLog(status=SessionLog.START)
                self._events.add_event(Event(wall_time=time.time(), step=self._first_step, session_log=start))
        points = [Summary.Value(tag=name, simple_value=value) for name, value in record.items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))

    def state_dict(self) -> dict[str, Any]:
        """Return what is noted and not yet written."""
        return {"pending": self.read()}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from `step`: what was noted then is noted again, and records after it are taken back."""
        self._pending = {name: list(values) for name, values in state["pending"].items()}
        self._first_step = step + 1
        self.close()
        if self._jsonl_file is not None and self._jsonl_file.is_file():
            kept = [
                line for line in self._jsonl_file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step
            ]
            part = self._jsonl_file.with_name(self._jsonl_file.name + ".part")
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            part.replace(self._jsonl_file)

    def close(self) -> None:
        """Finish the files; the log can be written to again."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._rows is not None:
            self._rows.close()
            self._rows = None


def _step_of(line: str) -> float:
    """Return the step of a row; infinity for a row that was cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
