"""Metrics of a job, read back from the metric lines of its log: rows, a table, a folder for TensorBoard.

This room knows the line's grammar from `contract`, and neither jobs nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smkit import contract
from smkit.errors import ConfigurationError
from smkit.event_file import EventFile
from smkit.log_view import LogLine
from smkit.report import table

_SHOWN_ROWS = 10
_SMALLER_IS_BETTER = ("loss", "error", "perplexity", "mae", "mse", "rmse")


@dataclass(frozen=True)
class JobMetrics:
    """What a job has logged.

    Args:
        rows: One per step, in their order: `step`, `epoch`, and each metric by its name.
        times: When each row was logged, in seconds since 1970; 0 where nobody knows.
    """

    rows: Sequence[Mapping[str, float]]
    times: Sequence[float] = field(default=(), repr=False)

    @property
    def names(self) -> list[str]:
        """All metrics, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name not in ("step", "epoch")))

    def best(self, name: str) -> Mapping[str, float] | None:
        """Return the row where a metric was best: lowest for losses and errors, highest for all others."""
        rows = [row for row in self.rows if not math.isnan(row.get(name, math.nan))]
        lower = any(word in name.lower() for word in _SMALLER_IS_BETTER)
        return (min if lower else max)(rows, key=lambda row: row[name], default=None)

    def write_tensorboard(self, directory: str | Path) -> Path:
        """Write an event file that TensorBoard shows; return the folder.

        Raises:
            ConfigurationError: tensorboard is not installed.
        """
        folder = Path(directory).expanduser()
        try:
            events = EventFile(folder)
        except ImportError as error:
            raise ConfigurationError(
                "tensorboard is not installed, and its files are written with it",
                where="metrics().write_tensorboard()",
                fix="pip install tensorboard",
            ) from error
        for row, seconds in zip(self.rows, self.times or [0.0] * len(self.rows), strict=True):
            events.add(int(row["step"]), {name: row[name] for name in self.names if name in row}, seconds or None)
        events.close()
        return folder

    def __str__(self) -> str:
        if not self.rows:
            return "no metrics: the log has no line that begins with [metrics]"
        head = ["", "step", "epoch", *self.names]
        lines = [("", *_cells(row, head[1:])) for row in self.rows[-_SHOWN_ROWS:]]
        best = [f"best {name}: {_best_text(self.best(name), name)}" for name in self.names if self.best(name)]
        hidden = len(self.rows) - len(lines)
        title = f"the last {len(lines)} of {len(self.rows)} rows" if hidden else f"{len(self.rows)} rows"
        return "\n".join([table([head, *lines], title=title), *(f"  {text}" for text in best)])


def read_metrics(lines: Iterable[LogLine]) -> JobMetrics:
    """Return the metrics of a log, one row for each step; of a step that was done twice, the later values.

    A job that goes on after an interruption does the steps after its last checkpoint again.
    """
    rows: dict[int, dict[str, float]] = {}
    times: dict[int, float] = {}
    for line in lines:
        record = contract.parse_metric_line(line.text)
        if record is not None:
            step, epoch, values = record
            rows.setdefault(step, {}).update({"step": step, "epoch": epoch, **values})
            times[step] = line.seconds or 0.0
    steps = sorted(rows)
    return JobMetrics([rows[step] for step in steps], [times[step] for step in steps])


def final_metrics(description: Mapping[str, Any]) -> JobMetrics:
    """Return what SageMaker has read from the log by the regular expressions of the job: the last value of each."""
    values = {
        str(metric["MetricName"]): float(metric["Value"]) for metric in description.get("FinalMetricDataList", ())
    }
    return JobMetrics([{"step": 0, "epoch": 0, **values}] if values else [])


def _cells(row: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [contract.format_number(row[name]) if name in row else "" for name in names]


def _best_text(row: Mapping[str, float] | None, name: str) -> str:
    return f"{contract.format_number(row[name])} at step {row['step']:g}" if row else ""
