"""Plan: what a launch is about to do, checked to the end, before a byte has moved.

A plan is what `launch(dry_run=True)` returns: print it, look at its request and its files, and start it. This room does
not know where the job will run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smkit.job import Job


@dataclass(frozen=True)
class Plan:
    """A checked launch that has not begun; made by `launch(dry_run=True)`.

    Args:
        name: The job's name.
        request: What CreateTrainingJob will be sent, to the letter.
        files: The source files that travel, as relative paths with their sizes in bytes.
        rows: What was resolved and from where: (what, value, from).
        warnings: What the user should know and may go on with.
        start: Upload what is missing, start the job and return it.
    """

    name: str
    request: Mapping[str, Any]
    files: Sequence[tuple[str, int]]
    rows: Sequence[tuple[str, str, str]]
    warnings: Sequence[str]
    start: Callable[[], Job] = field(repr=False)
