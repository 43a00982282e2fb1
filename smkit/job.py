"""Job: what a user does with a launched job. It asks its service each time and remembers nothing.

A job is a name and the service that runs it, so whoever has the two can pick the job up again. This room does not know
where jobs run.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any, Literal, Protocol, get_args
from urllib.parse import urlsplit
from urllib.request import url2pathname

from smkit.artifacts import Artifact, Remains, gather
from smkit.errors import ConfigurationError, JobError
from smkit.job_cost import Cost, Price, cost
from smkit.log_view import LogLine, Paint, collapse_bars, fold_environment, last_lines, last_traceback
from smkit.metric_rows import JobMetrics, final_metrics, read_metrics
from smkit.report import say
from smkit.watching import OutOfReach, StatusNews, Watch, has_ended

JobStatus = Literal["InProgress", "Completed", "Failed", "Stopping", "Stopped"]
"""The API's words (DescribeTrainingJob: TrainingJobStatus)."""

_EXIT_CODE = re.compile(r"\bExitCode -?\d")
"""In a reason that the toolkit gives; scripts that say why they failed give their own."""
_KILLED = re.compile(r"(?i)\bexit_?code *:? *-9\b|\bSIGKILL\b")
_LOOKS_AT_A_LOG = 10
"""How often a log that keeps growing is read on, for somebody who does not want to follow it."""


class JobService(Protocol):
    """A place that runs jobs and answers for them by name; each method raises JobError for a name it does not know.

    A service that cannot be asked at the moment raises OutOfReach, and can be asked again.
    """

    @property
    def poll_seconds(self) -> float:
        """How long to wait between two looks at a job, at most."""

    @property
    def stops_on_interrupt(self) -> bool:
        """Whether a Ctrl-C of who waits for a job is meant for the job."""

    def describe(self, name: str) -> Mapping[str, Any]:
        """Return what is known of a job, in the shape of DescribeTrainingJob."""

    def list_jobs(self, name_contains: str | None = None, limit: int = 20) -> Sequence[Mapping[str, Any]]:
        """Return the newest jobs, in the shape of ListTrainingJobs."""

    def log_location(self, name: str) -> str:
        """Return where a person finds the log."""

    def log_lines(self, name: str) -> Iterator[LogLine | None]:
        """Yield each line of the log once, and None, for ever, whenever there is no further one yet."""

    def settle_seconds(self, description: Mapping[str, Any]) -> float:
        """Return how long the log of an ended job must be quiet until all of it has come."""

    def last_words(self, name: str) -> Sequence[str]:
        """Return the last lines of the log of the host that failed first."""

    def stop(self, name: str, *, grace_seconds: float) -> None:
        """End a running job and return when it has ended; leave any other job as it is."""

    def model_dirs(self, name: str) -> Sequence[Path]:
        """Return the folder that each host leaves its model in; JobError where they are not on this machine."""

    def remains(
        self, description: Mapping[str, Any], what: Artifact, *, near: Path
    ) -> contextlib.AbstractContextManager[Remains]:
        """Provide the folders of what the hosts have left; those that have to be made lie beside the folder `near`."""

    def prices(self, description: Mapping[str, Any]) -> Mapping[str, Price]:
        """Return the price of each type of instance that the job has, as far as anybody knows it."""


@dataclass(frozen=True)
class Job:
    """A launched job; `Job(name, service)` picks one up again from anywhere."""

    name: str
    service: JobService

    def describe(self) -> dict[str, Any]:
        """Return all that is known of the job, in the shape of DescribeTrainingJob."""
        return dict(self.service.describe(self.name))

    @property
    def status(self) -> str:
        """`InProgress`, `Completed`, `Failed`, `Stopping` or `Stopped`."""
        return str(self.describe()["TrainingJobStatus"])

    @property
    def failure_reason(self) -> str | None:
        """What SageMaker shows as FailureReason, at most 1,024 characters; None unless the job failed."""
        return self.describe().get("FailureReason") or None

    @property
    def model_dir(self) -> Path:
        """The folder of the model, with several hosts that of the first.

        Raises:
            JobError: The job has not completed, or its model is not on this machine: `download` it.
        """
        self._require_completed(self.describe())
        return self.service.model_dirs(self.name)[0]

    @property
    def model_uri(self) -> str:
        """Where the model is: `s3://...` or `file://...`.

        Raises:
            JobError: The job has not completed.
        """
        return self._model_uri(self.describe())

    def logs(self, *, follow: bool = True) -> Iterator[LogLine]:
        """Yield the lines of the log as texts, those of several hosts after the host's name in brackets.

        A progress bar comes once, at its last state, or every ten seconds if it goes on for longer.

        Args:
            follow: Wait for further lines until the job ends; otherwise only those that are there now.
        """
        return self._lines(follow=follow)

    def wait(self, *, timeout_seconds: float | None = None, show_logs: bool = True) -> Job:
        """Return this job when it has completed.

        Ctrl-C stops a local job, and a second one kills it at once; a job on SageMaker goes on.

        Args:
            timeout_seconds: Give up waiting after this long; the job goes on.
            show_logs: Write the log, and at the end where the model is, to standard error. What the toolkit shows of
                the environment is left to `logs`.

        Raises:
            JobError: The job failed or was stopped, or is still running after `timeout_seconds`.
        """
        deadline = math.inf if timeout_seconds is None else time.monotonic() + _seconds(timeout_seconds)
        watch, news = self._watch(), StatusNews(self.name)
        paint = Paint(sys.stderr)
        if show_logs:
            watch.on_look = news.tell
        else:
            watch.settle_seconds = lambda _: 0
        try:
            source = self.service.log_lines(self.name) if show_logs else itertools.repeat(None)
            for line in collapse_bars(fold_environment(watch.lines(source))):
                if line is not None:
                    news.log_has_begun = True
                    say(paint.line(line))
                if time.monotonic() > deadline:
                    if not self._has_ended():
                        raise self._error(
                            f"is still running after {timeout_seconds:g} s", fix="wait() for longer, or stop() it"
                        )
                    deadline = math.inf
        except KeyboardInterrupt:
            self._interrupted()
            raise
        location = self._model_uri(watch.last_description)
        if show_logs:
            say(f"job '{self.name}' completed; its model: {_readable(location)}")
        return self

    def _has_ended(self) -> bool:
        with contextlib.suppress(OutOfReach):
            return has_ended(self.describe())
        return False

    def stop(self, *, grace_seconds: float = 120) -> None:
        """Stop the job as SageMaker does: SIGTERM to the script, SIGKILL to whatever is left after the grace.

        Returns when the job has ended; a job that had ended before stays what it was.

        Args:
            grace_seconds: How long the script may take. SageMaker's own grace is always 120 seconds.
        """
        self.service.stop(self.name, grace_seconds=grace_seconds)

    def metrics(self) -> JobMetrics:
        """Return the metrics that the job has logged so far; print them for a table.

        They are read from the log's metric lines, and without such lines from what SageMaker has found by the regular
        expressions of the job.
        """
        logged = read_metrics(self._lines(follow=False))
        return logged if logged.rows else final_metrics(self.describe())

    def download(self, directory: str | Path, *, what: Artifact = "model") -> Path:
        """Copy the model into `directory`, the files of all hosts together as SageMaker merges them; return the folder.

        Args:
            directory: A folder; it is made if it is missing.
            what: `"model"`, or `"output"` for what the script left in SM_OUTPUT_DATA_DIR, which a job that failed can
                have as well.

        Raises:
            JobError: The job has not completed, or a file would overwrite one that differs; then nothing is copied.
        """
        _require_path(directory)
        if what not in get_args(Artifact):
            raise ConfigurationError(
                f"a job leaves no {what!r}", where="what of download", fix=f"one of {', '.join(get_args(Artifact))}"
            )
        description = self.describe()
        if what == "model":
            self._require_completed(description)
        elif not has_ended(description):
            raise self._error("is still running and has no output yet", fix="wait() for it")
        folder = Path(directory).expanduser()
        try:
            with self.service.remains(description, what, near=folder) as remains:
                gather(remains, folder)
        except OSError as error:
            raise JobError(
                f"'{error.filename or folder}' cannot be written: {error.strerror or error}",
                where=f"download of job '{self.name}' to {folder}",
                fix="give another folder, or make space or room for this one",
            ) from error
        return folder

    def cost(self) -> Cost:
        """Return what is billed for the job: seconds, what spot saves, and dollars if a price is known."""
        description = self.describe()
        return cost(description, self.service.prices(description))

    def _watch(self) -> Watch:
        service = self.service
        return Watch(self.name, lambda: service.describe(self.name), service.poll_seconds, service.settle_seconds)

    def _lines(self, *, follow: bool) -> Iterator[LogLine]:
        source = self.service.log_lines(self.name)
        lines = self._watch().lines(source) if follow else _what_is_there(source)
        return (line for line in collapse_bars(lines) if line is not None)

    def _interrupted(self) -> None:
        if not self.service.stops_on_interrupt:
            say(f"detached; job '{self.name}' goes on:\n  smkit attach {self.name}\n  smkit stop {self.name}")
            return
        try:
            say(f"stopping job '{self.name}', Ctrl-C again to kill it; its log: {self._log_location}")
            self.stop()
        except KeyboardInterrupt:
            self.stop(grace_seconds=0)

    def _model_uri(self, description: Mapping[str, Any]) -> str:
        self._require_completed(description)
        location = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
        if not location:
            raise self._error("has completed and left no model", fix="let the script write to SM_MODEL_DIR")
        return str(location)

    def _require_completed(self, description: Mapping[str, Any]) -> None:
        status = description["TrainingJobStatus"]
        if status == "Failed":
            raise self._failure(description)
        if status == "Stopped":
            why = {
                "MaxRuntimeExceeded": ": it ran for longer than it was allowed to",
                "MaxWaitTimeExceeded": ": it waited for spot instances for longer than it was allowed to",
            }.get(description.get("SecondaryStatus", ""), "")
            raise self._error(
                f"was stopped{why}", fix="launch again; with the same place for checkpoints the script resumes"
            )
        if status != "Completed":
            raise self._error("is still running and has no model yet", fix="wait() for it")

    def _failure(self, description: Mapping[str, Any]) -> JobError:
        """Return the error of a failed job: the traceback of its script if there is one, and what the service says."""
        reason = description.get("FailureReason") or ""
        traceback, words = self._last_words(self.service.settle_seconds(description))
        what = f"failed: {reason}"
        if traceback:
            cause = traceback[-1].strip()
            what = "\n".join([f"failed: {cause}", *traceback])
            if not _says(reason, cause):
                what += f"\nFailureReason: {reason}"
        elif _EXIT_CODE.search(reason):
            # The toolkit has seen no more than how the script ended; what it said stands in the log alone.
            killed = ["killed: perhaps it was out of memory"] if _KILLED.search("\n".join([reason, *words])) else []
            said = last_lines(words)
            what = "\n".join([what, *killed, *(["the end of its log:", *said] if said else [])])
        return self._error(indent(what, "    ").lstrip(), fix="mend what the log says and launch again")

    def _last_words(self, settle_seconds: float) -> tuple[Sequence[str], Sequence[str]]:
        """Return the script's last traceback, if there is one, and the end of the log."""
        deadline = time.monotonic() + settle_seconds
        words: Sequence[str] = ()
        while True:
            with contextlib.suppress(OutOfReach):
                words = self.service.last_words(self.name)
                if traceback := last_traceback(words):
                    return traceback, words
            if time.monotonic() >= deadline:
                return (), words
            time.sleep(settle_seconds / 4)

    def _error(self, what: str, *, fix: str) -> JobError:
        return JobError(f"job '{self.name}' {what}", where=self._log_location, fix=fix)

    @property
    def _log_location(self) -> str:
        return self.service.log_location(self.name)


# What a type checker would have seen, for those who use none.


def _seconds(given: object) -> float:
    if isinstance(given, (int, float)) and not isinstance(given, bool) and not math.isnan(given):
        return given
    raise ConfigurationError(
        f"{given!r} is no length of time", where="timeout_seconds of wait", fix="give seconds as a number, or None"
    )


def _require_path(given: object) -> None:
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigurationError(f"{given!r} is no path", where="directory of download", fix="give a folder's path")


def _what_is_there(source: Iterator[LogLine | None]) -> Iterator[LogLine]:
    """Yield the lines of a log up to now: until a look finds nothing, or there is always more."""
    looks, is_quiet = 0, False
    for line in source:
        if line is not None:
            is_quiet = False
            yield line
        elif is_quiet or looks == _LOOKS_AT_A_LOG:
            return
        else:
            looks, is_quiet = looks + 1, True


def _says(text: str, words: str) -> bool:
    """Whether a text holds these words, whatever is between them: the toolkit cuts and strips what it passes on."""
    return re.sub(r"\W+", "", words) in re.sub(r"\W+", "", text)


def _readable(location: str) -> str:
    uri = urlsplit(location)
    return url2pathname(uri.path) if uri.scheme == "file" else location
