"""MetricLog: one line for CloudWatch, one point for TensorBoard, one row of JSON lines.

Values stay on their device until a record is written: one transfer per record, none per step. This room knows nothing
of loops, steps due or progress bars.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smkit import contract
from smkit.errors import SmkitError
from smkit.metric_files import MetricFiles


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
        self._prints = prints
        self._gather = gather
        self._pending: dict[str, list[tuple[Tensor | float, float]]] = {}
        self._gathered_counts: dict[str, int] = {}
        self._files = MetricFiles(jsonl_file, tensorboard_dir)

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
        self._files.write({"step": step, "epoch": epoch, "time": round(time.time(), 3), **values})

    def _print(self, lines: Sequence[str]) -> None:
        # A reader that has gone away must not end the training; a process without stdout has None.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            for line in lines:
                sys.stdout.write(line)
            sys.stdout.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return what is noted and not yet written, how many rows have been, and what is still on its way."""
        self.read()
        return {"pending": {name: list(noted) for name, noted in self._pending.items()}, **self._files.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from `step`: what was noted then is noted again, and rows written after it are taken back."""
        self._pending = {name: [tuple(noted) for noted in values] for name, values in state["pending"].items()}
        self._gathered_counts = {name: len(noted) for name, noted in self._pending.items()}
        self._files.load_state_dict(state, step)

    def begin(self) -> None:
        """Begin at the first step: what a run that has left no checkpoint wrote is taken back."""
        self.load_state_dict({"pending": {}}, 0)

    def close(self) -> None:
        """Finish the files, which takes a moment; the log can be written to again."""
        self._files.close()


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
