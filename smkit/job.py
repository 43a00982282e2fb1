"""Job: what a user does with a launched job. It asks its service each time and remembers nothing.

A job is a name and the service that runs it, so whoever has the two can pick the job up again. This room does not know
where jobs run.
"""

from __future__ import annotations

import filecmp
import itertools
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from smkit.errors import JobError

JobStatus = Literal["InProgress", "Completed", "Failed", "Stopped"]
"""The API's words (DescribeTrainingJob: TrainingJobStatus)."""


class JobService(Protocol):
    """A place that runs jobs and answers for them by name; each method raises JobError for a name it does not know."""

    @property
    def poll_seconds(self) -> float:
        """How long to wait between two looks at a job."""

    def status(self, name: str) -> JobStatus:
        """Return the state of a job; all but `InProgress` are final."""

    def failure_reason(self, name: str) -> str | None:
        """Return why a failed job failed, None for any other job."""

    def log_location(self, name: str) -> str:
        """Return where a person finds the log."""

    def log_lines(self, name: str) -> Iterator[str | None]:
        """Yield each line of the log once, and None, for ever, whenever there is no further one yet."""

    def stop(self, name: str, *, grace_seconds: float) -> None:
        """End a running job and return when it has ended; leave any other job as it is."""

    def model_dirs(self, name: str) -> Sequence[Path]:
        """Return the folder that each host leaves its model in."""


@dataclass(frozen=True)
class Job:
    """A launched job; `Job(name, service)` picks one up again from anywhere."""

    name: str
    service: JobService

    @property
    def status(self) -> str:
        """`InProgress`, `Completed`, `Failed` or `Stopped`."""
        return self.service.status(self.name)

    @property
    def failure_reason(self) -> str | None:
        """What SageMaker shows as FailureReason, at most 1,024 characters; None unless the job failed."""
        return self.service.failure_reason(self.name)

    @property
    def model_dir(self) -> Path:
        """The folder of the model, with several hosts that of the first.

        Raises:
            JobError: The job has not completed.
        """
        self._require_completed()
        return self.service.model_dirs(self.name)[0]

    def logs(self, *, follow: bool = True) -> Iterator[str]:
        """Yield the lines of the log, those of several hosts after the host's name in brackets.

        Args:
            follow: Wait for further lines until the job ends; otherwise only those that are there now.
        """
        source = self.service.log_lines(self.name)
        lines = self._until_the_end(source) if follow else itertools.takewhile(lambda line: line is not None, source)
        return (line for line in lines if line is not None)

    def wait(self, *, timeout_seconds: float | None = None, show_logs: bool = True) -> Job:
        """Return this job when it has completed. Ctrl-C stops the job; a second one kills it at once.

        Args:
            timeout_seconds: Give up waiting after this long; the job goes on.
            show_logs: Write the log, and at the end where the model is, to standard error.

        Raises:
            JobError: The job failed or was stopped, or is still running after `timeout_seconds`.
        """
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        try:
            lines = self.service.log_lines(self.name) if show_logs else itertools.repeat(None)
            for line in self._until_the_end(lines):
                if line is not None:
                    sys.stderr.write(f"{line}\n")
                elif time.monotonic() > deadline:
                    raise self._error(
                        f"is still running after {timeout_seconds:g} s", fix="wait() for longer, or stop() it"
                    )
        except KeyboardInterrupt:
            self._stop_on_interrupt()
            raise
        model_dir = self.model_dir
        if show_logs:
            sys.stderr.write(f"job '{self.name}' completed; its model: {model_dir}\n")
        return self

    def stop(self, *, grace_seconds: float = 120) -> None:
        """Stop the job as SageMaker does: SIGTERM to the script, SIGKILL to whatever is left after the grace.

        Returns when the job has ended; a job that had ended before stays what it was.
        """
        self.service.stop(self.name, grace_seconds=grace_seconds)

    def download(self, directory: str | Path) -> Path:
        """Copy the model into `directory`, the files of all hosts together as SageMaker merges them; return the folder.

        Raises:
            JobError: The job has not completed, or a file would overwrite one that differs; then nothing is copied.
        """
        self._require_completed()
        folder = Path(directory).expanduser()
        sources: dict[Path, Path] = {}
        for model in self.service.model_dirs(self.name):
            for file in (path for path in sorted(model.rglob("*")) if path.is_file()):
                target = folder / file.relative_to(model)
                others = {sources.setdefault(target, file), target} - {file}
                if not all(filecmp.cmp(file, other, shallow=False) for other in others if other.exists()):
                    raise JobError(
                        f"'{file.relative_to(model)}' would overwrite another file of that name",
                        where=str(file),
                        fix="download into another folder; let hosts write files of different names",
                    )
        folder.mkdir(parents=True, exist_ok=True)
        for target, file in sources.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        return folder

    def _stop_on_interrupt(self) -> None:
        try:
            sys.stderr.write(f"stopping job '{self.name}', Ctrl-C again to kill it; its log: {self._log_location}\n")
            self.stop()
        except KeyboardInterrupt:
            self.stop(grace_seconds=0)

    def _until_the_end(self, lines: Iterator[str | None]) -> Iterator[str | None]:
        """Yield `lines` to the last one of the ended job; None each time a running job has no news."""
        ended = False
        for line in lines:
            if line is not None:
                yield line
            elif ended:
                return
            else:
                # One more round after the end: a line may have come between the last look and the end.
                ended = self.status != "InProgress"
                if not ended:
                    yield None
                    time.sleep(self.service.poll_seconds)

    def _require_completed(self) -> None:
        status = self.status
        if status == "Failed":
            reason = (self.failure_reason or "").replace("\n", "\n    ")
            raise self._error(f"failed: {reason}", fix="mend what the log says and launch again")
        if status == "Stopped":
            raise self._error("was stopped", fix="launch again; the same checkpoint_dir lets the script resume")
        if status == "InProgress":
            raise self._error("is still running and has no model yet", fix="wait() for it")

    def _error(self, what: str, *, fix: str) -> JobError:
        return JobError(f"job '{self.name}' {what}", where=self._log_location, fix=fix)

    @property
    def _log_location(self) -> str:
        return self.service.log_location(self.name)
