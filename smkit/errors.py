"""The exception tree; every message says what happened, where, and how to mend it.

    SmkitError
    ├── ConfigurationError   a setting, an argument or a file of the job is wrong
    ├── DataError            a channel does not hold what it should
    ├── CheckpointError      a checkpoint cannot be written, read or used
    └── JobError             a job failed, was stopped or cannot be found

This room knows no other room of smkit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar

_MOST_PROBLEMS = 50
"""That are shown together."""
_LONGEST_LINE = 2000
"""Of a message, in characters: a value that a user mistook for another can be a whole file."""


class SmkitError(Exception):
    """Something that the user can mend.

    Args:
        what: What happened, in one sentence, with the value in question.
        where: The place in the user's own words: a hyperparameter, a channel, a file, a step.
        fix: What to do about it.
    """

    exit_status: ClassVar[int] = 1
    """Status that a process ends with when this error reaches its edge."""

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        self.what = _in_short_lines(what)
        self.where = _in_short_lines(where)
        self.fix = _in_short_lines(fix)
        super().__init__(self.what)

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  fix:   {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


class ConfigurationError(SmkitError):
    """A setting, an argument or a file of the job is wrong; found before any work is done."""

    exit_status = 2
    problems: tuple[str, ...] = ()
    """What `what` reports together, where there are several problems: each by itself."""

    @classmethod
    def of(cls, problems: Sequence[str], *, subject: str, where: str, fix: str) -> ConfigurationError:
        """Return one error that reports all `problems` of `subject` together."""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in problems[:_MOST_PROBLEMS])
        if len(problems) > _MOST_PROBLEMS:
            lines += f"\n  - and {len(problems) - _MOST_PROBLEMS:,} more"
        error = cls(f"{count} in {subject}:{lines}", where=where, fix=fix)
        error.problems = tuple(map(_in_short_lines, problems))
        return error


class DataError(SmkitError):
    """A channel or a data set does not hold what it should."""


class CheckpointError(SmkitError):
    """A checkpoint cannot be written, read or used."""


class JobError(SmkitError):
    """A job failed, was stopped, or cannot be found."""


def shown(value: object, most: int = 60) -> str:
    """Return a value as Python writes it, cut where it is long."""
    # The representation of a long text is not made only to be cut.
    text = repr(value[: most + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return the question that follows a mistyped word in a message, nothing where no choice is like it."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _in_short_lines(text: str) -> str:
    """Return a text with the middle of each line left out that is too long to be read."""
    if len(text) <= _LONGEST_LINE:
        return text
    begin, end = _LONGEST_LINE - 600, 500
    return "\n".join(
        line if len(line) <= _LONGEST_LINE else f"{line[:begin]} ({len(line) - begin - end:,} characters) {line[-end:]}"
        for line in text.split("\n")
    )


def _rebuild(kind: type[SmkitError], what: str, where: str, fix: str) -> SmkitError:
    return kind(what, where=where, fix=fix)
