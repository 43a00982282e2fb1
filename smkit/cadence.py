"""When things are due: every so many steps, every so many seconds. Arithmetic only; this room has no clock."""

from __future__ import annotations

_SHORTEST_SECONDS = 60.0
_LARGEST_SHARE_OF_THE_RUN = 0.01
_UPLOAD_BYTES_PER_SECOND = 25e6
"""What is assumed of SageMaker's mirror to S3, which nothing in the container can measure; low on purpose."""
_UPLOADS_BETWEEN_SAVES = 3
"""Saves faster than the mirror can leave no whole checkpoint in S3 at all, so it is given time to finish."""
_UPLOADS_AFTER_THE_FIRST_SAVE = 3 * _UPLOADS_BETWEEN_SAVES
"""Until the first checkpoint is in S3 there is none, so the mirror has time for it alone, even if it is three times
slower than the saves: after six, 18 of 9,900 cuts of slow mirrors had left nothing whole; after nine, none."""


def next_multiple(step: int, every: int) -> int:
    """Return the first multiple of `every` after `step`."""
    return step - step % every + every


def checkpoint_interval(
    chosen_seconds: float | None, stall_seconds: float, size_bytes: int, *, uploads_first: bool = False
) -> float:
    """Return the seconds until the next checkpoint.

    Args:
        chosen_seconds: What the user asked for; it is taken as it is, but after the first save. None chooses: the save
            may hold the run up for 1 % of its time, and the mirror to S3 has time to finish.
        stall_seconds: How long the last save held the run up.
        size_bytes: Bytes of a checkpoint.
        uploads_first: Whether the last save was the first of a store that is mirrored to S3.
    """
    upload_seconds = size_bytes / _UPLOAD_BYTES_PER_SECOND
    shortest = _UPLOADS_AFTER_THE_FIRST_SAVE * upload_seconds if uploads_first else 0.0
    if chosen_seconds is not None:
        return max(chosen_seconds, shortest)
    share = stall_seconds / _LARGEST_SHARE_OF_THE_RUN
    return max(_SHORTEST_SECONDS, share, _UPLOADS_BETWEEN_SAVES * upload_seconds, shortest)
