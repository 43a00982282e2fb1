"""When things are due: every so many steps, every so many seconds."""

from __future__ import annotations

import time

_SHORTEST_SECONDS = 60.0
_LARGEST_SHARE_OF_THE_RUN = 0.01
_UPLOAD_BYTES_PER_SECOND = 25e6
"""What is assumed of SageMaker's mirror to S3, which nothing in the container can measure; low on purpose."""
_UPLOADS_BETWEEN_SAVES = 3
"""Saves faster than the mirror can leave no whole checkpoint in S3 at all, so it is given time to finish."""


def next_multiple(step: int, every: int) -> int:
    """Return the first multiple of `every` after `step`."""
    return step - step % every + every


def checkpoint_interval(chosen_seconds: float | None, stall_seconds: float, size_bytes: int) -> float:
    """Return the seconds until the next checkpoint.

    Args:
        chosen_seconds: What the user asked for; it is taken as it is. None chooses: the save may hold the run up for
            1 % of its time, and the mirror to S3 has time to finish.
        stall_seconds: How long the last save held the run up.
        size_bytes: Bytes of a checkpoint.
    """
    if chosen_seconds is not None:
        return chosen_seconds
    upload_seconds = size_bytes / _UPLOAD_BYTES_PER_SECOND
    return max(_SHORTEST_SECONDS, stall_seconds / _LARGEST_SHARE_OF_THE_RUN, _UPLOADS_BETWEEN_SAVES * upload_seconds)


class CheckpointCadence:
    """Says when the next checkpoint is due, by `time.monotonic()`.

    Args:
        chosen_seconds: See `checkpoint_interval`.
        size_bytes: See `checkpoint_interval`.
        step: The step that is saved already.
    """

    def __init__(self, chosen_seconds: float | None, size_bytes: int, step: int) -> None:
        self._chosen_seconds = chosen_seconds
        self._size_bytes = size_bytes
        self.saved(step, stall_seconds=0.0)

    def saved(self, step: int, *, stall_seconds: float) -> None:
        """Note that `step` was saved just now, and held the run up for so long."""
        self.saved_step = step
        self.due = time.monotonic() + checkpoint_interval(self._chosen_seconds, stall_seconds, self._size_bytes)
