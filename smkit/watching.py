"""Watching a job to its end: when to look again, when the log is whole, patience with a service out of reach.

This room knows no service: it is handed what to ask.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from smkit.errors import JobError
from smkit.log_view import LogLine
from smkit.report import say

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 10.0
_SAID_AFTER_SECONDS = 20.0
"""A pause of this length is worth a word."""
_HEARD = ("Training", "Downloading", "Uploading")
"""States that the log itself tells of."""
_LAST_LOOKS = 3
"""How often the log of a job that has just ended is looked at, at least."""
_SETTLING_FACTOR = 2.5
"""How many times as long as it should be quiet the log of an ended job is read at most."""


class OutOfReach(JobError):  # noqa: N818 - it reads as what it is, and not every one of them ends in an error
    """A service cannot be asked at the moment, which says nothing about the job.

    Args:
        what: What happened, in one sentence.
        where: The service.
        fix: What to do about it.
        patience_seconds: How long somebody who waits goes on asking; None for ever.
        is_said_at_once: Whether a person can do something about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str,
        fix: str,
        patience_seconds: float | None = None,
        is_said_at_once: bool = False,
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.patience_seconds = patience_seconds
        self.is_said_at_once = is_said_at_once

    def __reduce__(self) -> tuple[object, ...]:
        return (JobError.__reduce__(self)[0], (JobError, self.what, self.where, self.fix))


def has_ended(description: Mapping[str, Any]) -> bool:
    """Whether a job's description is that of an ended one."""
    # A status that nobody knows yet is no end.
    return description["TrainingJobStatus"] in ("Completed", "Failed", "Stopped")


@dataclass
class Watch:
    """One pass over a job, from now to its end.

    Args:
        name: The job's name.
        describe: Returns the job's description, in the shape of DescribeTrainingJob.
        poll_seconds: How long to pause between two looks at most.
        settle_seconds: How long the log of a job that has just ended must be quiet to count as whole.
        on_look: Is handed each description.
    """

    name: str
    describe: Callable[[], Mapping[str, Any]]
    poll_seconds: float
    settle_seconds: Callable[[Mapping[str, Any]], float]
    on_look: Callable[[Mapping[str, Any]], None] = lambda description: None  # noqa: ARG005
    last_description: Mapping[str, Any] = field(default_factory=dict, init=False)
    _trouble_since: float | None = field(default=None, init=False)
    _trouble_is_said: bool = field(default=False, init=False)
    _pause: float = field(default=0.0, init=False)

    def lines(self, source: Iterator[LogLine | None]) -> Iterator[LogLine | None]:
        """Yield what `source` yields to the last line of the ended job; None whenever there is no news.

        Args:
            source: The log: a line, or None while there is no further one, for ever. Where it raises OutOfReach, asking
                again is possible.

        Raises:
            JobError: The service has been out of reach for longer than there is patience.
        """
        ended_at = settle = None
        last_news, looks = 0.0, 0
        while True:
            try:
                line = next(source)
                if line is None and ended_at is None:
                    description = self.describe()
                    self.last_description = description
                    self.on_look(description)
                    if has_ended(description):
                        ended_at, settle = time.monotonic(), self.settle_seconds(description)
                        # One more round after the end: a line may have come between the last look and the end.
                        continue
            except OutOfReach as error:
                yield from self._out_of_reach(error)
                continue
            self._trouble_since = None
            if line is not None:
                last_news = time.monotonic()
                yield line
            elif ended_at is None or settle is None:
                yield None
                time.sleep(self.poll_seconds * random.uniform(0.6, 1.0))  # noqa: S311 - spreads the load
            else:
                now = time.monotonic()
                looks += 1
                is_settled = now - max(ended_at, last_news) >= settle or now - ended_at >= settle * _SETTLING_FACTOR
                # Of a slow service one look can take as long as the log should be quiet.
                if is_settled and (looks >= _LAST_LOOKS or not settle):
                    return
                time.sleep(settle / 4)

    def _out_of_reach(self, error: OutOfReach) -> Iterator[None]:
        """Pause, twice as long each time, in slices that a deadline can fall into."""
        now = time.monotonic()
        if self._trouble_since is None:
            self._trouble_since, self._trouble_is_said, self._pause = now, False, _FIRST_PAUSE_SECONDS
        waited = now - self._trouble_since
        if error.patience_seconds is not None and waited > error.patience_seconds:
            raise JobError(
                f"job '{self.name}' cannot be watched any longer, but goes on by itself: {error.what}",
                where=error.where,
                fix=f"{error.fix}; then smkit attach {self.name}",
            ) from error
        if not self._trouble_is_said and (error.is_said_at_once or waited >= _SAID_AFTER_SECONDS):
            say(f"job '{self.name}' goes on, but cannot be asked: {error.what.rstrip('.')}; {error.fix}; trying again")
            self._trouble_is_said = True
        end = now + self._pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads the load
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        while (left := end - time.monotonic()) > 0:
            yield None
            time.sleep(min(left, 1.0))


@dataclass
class StatusNews:
    """Tells a person what a job does, as long as its log does not.

    Args:
        name: The job's name.
        log_has_begun: Whether the script can be heard; then only what it cannot know is told.
    """

    name: str
    log_has_begun: bool = False
    _told: set[tuple[str, Any]] = field(default_factory=set, init=False)

    def tell(self, description: Mapping[str, Any]) -> None:
        """Write what has changed since the last description to standard error; of a job's past, only its present."""
        changes = list(description.get("SecondaryStatusTransitions") or ())
        is_first = not self._told
        for change in changes:
            key = (change["Status"], change.get("StartTime"))
            is_news = key not in self._told and not (is_first and change is not changes[-1])
            self._told.add(key)
            if is_news and not has_ended(description) and not (self.log_has_begun and change["Status"] in _HEARD):
                message = change.get("StatusMessage")
                say(f"job '{self.name}': {change['Status']}" + (f": {message}" if message else ""))
