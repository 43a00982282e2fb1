"""Plan: what a launch is about to do, checked to the end, before a byte has moved.

A plan is what `launch(dry_run=True)` returns: print it, look at its request and its files, and start it. This room does
not know where the job will run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smkit.job import Job
from smkit.report import table


@dataclass(frozen=True)
class Plan:
    """A checked launch that has not begun; `launch(dry_run=True)` makes it, `print` shows it, `start` begins it.

    Args:
        name: The job's name.
        request: What CreateTrainingJob will be sent, to the letter.
        files: The source files that travel: relative paths and sizes in bytes.
        rows: What was resolved, and where from: (what, value, from).
        warnings: What one should know, and may go on with.
        estimate: Return what the job can cost at most; on SageMaker this asks AWS for the price.
        start: Make and upload what is missing, start the job, and return it.
    """

    name: str
    request: Mapping[str, Any]
    files: Sequence[tuple[str, int]]
    rows: Sequence[tuple[str, str, str]]
    warnings: Sequence[str]
    estimate: Callable[[], str] = field(repr=False)
    start: Callable[[], Job] = field(repr=False)

    def __str__(self) -> str:
        lines = [table([("", "value", "from"), *self.rows], title=f"job {self.name}")]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)
