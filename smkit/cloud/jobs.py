"""SageMakerJobs: the jobs of one account and region, answered for by name. It submits none and remembers none.

Whatever is asked can be asked again: credentials that run out are renewed on the way. This room knows of a job what
DescribeTrainingJob says; the log is read by `logs`, prices are asked by `prices`.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from smkit.artifacts import Artifact, Remains, beside, inside, unpack
from smkit.cloud.aws import Clients
from smkit.cloud.aws_errors import error_code
from smkit.cloud.connection import Connection
from smkit.cloud.logs import JobLog, address, last_words
from smkit.cloud.pages import pages
from smkit.cloud.prices import ask_prices
from smkit.cloud.storage import Storage
from smkit.errors import JobError
from smkit.job_cost import Price, instances
from smkit.log_view import LogLine
from smkit.watching import OutOfReach, Watch, has_ended

_Answer = TypeVar("_Answer")
_LINES_COME_SECONDS = 2.0
"""How long the log of a job that has just ended must be quiet; lines are seen seconds after they were written."""
_SEEN_SECONDS = 60.0
"""How long whoever has made a job waits for it to be shown."""
_WHOLE_AFTER = datetime.timedelta(minutes=10)
"""After this all lines are there."""
_ARCHIVES = {"model": "model.tar.gz", "output": "output.tar.gz"}
_FOLDERS = {"model": ["model/"], "output": ["output/", "data/"]}
"""What an artifact is called below `<S3OutputPath>/<job>/output/` when it is compressed, and when it is not; the user
guide gives no name for the folder of the output."""


class SageMakerJobs:
    """The training jobs that `clients` can ask about; `Job(name, SageMakerJobs(clients))` picks one up again."""

    poll_seconds = 2.0
    stops_on_interrupt = False

    def __init__(self, clients: Clients, *, just_made: str | None = None) -> None:
        """Answer for jobs.

        Args:
            clients: What AWS is asked through.
            just_made: The name of a job that has been made a moment ago, and may not be seen everywhere yet.
        """
        self._connection = Connection(clients)
        self._just_made = just_made

    def describe(self, name: str) -> Mapping[str, Any]:
        """Return what DescribeTrainingJob says.

        Raises:
            OutOfReach: AWS cannot be asked at the moment.
            JobError: There is no such job, or AWS refuses to tell.
        """
        try:
            found = self._connection.ask(
                f"job '{name}'", lambda clients: clients.sagemaker.describe_training_job(TrainingJobName=name)
            )
        except JobError as error:
            if not _is_unknown(error):
                raise
            raise self._unknown(name, error) from error
        self._just_made = None
        return {word: value for word, value in found.items() if word != "ResponseMetadata"}

    def list_jobs(self, name_contains: str | None = None, limit: int = 20) -> Sequence[Mapping[str, Any]]:
        """Return the newest jobs, in the shape of ListTrainingJobs."""
        request: dict[str, Any] = {"SortBy": "CreationTime", "SortOrder": "Descending"}
        if name_contains:
            request["NameContains"] = name_contains
        doing, found = "the list of jobs", list[Mapping[str, Any]]()

        def page(**token: str) -> Mapping[str, Any]:
            asked = {**request, **token, "MaxResults": min(100, limit - len(found))}
            return self._connection.ask(doing, lambda clients: clients.sagemaker.list_training_jobs(**asked))

        for each in pages(page, doing, kind=JobError):
            found += each["TrainingJobSummaries"]
            if len(found) >= limit:
                break
        return found[:limit]

    def log_location(self, name: str) -> str:
        """Return the address of the log in the console, and its names in CloudWatch."""
        clients = self._connection.clients
        return address(clients.region, clients.partition, name)

    def log_lines(self, name: str) -> Iterator[LogLine | None]:
        """Yield each line of the log once, and None, for ever, whenever there is no further one yet."""
        return JobLog(self._connection, name, lambda: sum(count for _, count in instances(self.describe(name))))

    def settle_seconds(self, description: Mapping[str, Any]) -> float:
        """Return how long the log must be quiet to be whole."""
        ended = description.get("TrainingEndTime") or description.get("LastModifiedTime")
        is_old = ended is not None and datetime.datetime.now(datetime.timezone.utc) - ended > _WHOLE_AFTER
        return 0.0 if is_old else _LINES_COME_SECONDS

    def last_words(self, name: str) -> Sequence[str]:
        """Return the last lines of the log of the host that failed first."""
        return last_words(self._connection, name, str(self.describe(name).get("FailureReason", "")))

    def stop(self, name: str, *, grace_seconds: float) -> None:  # noqa: ARG002 - SageMaker's own is 120 seconds
        """Stop a job and return when it has ended; a job that has ended before stays what it was."""
        # An order that cannot be given is an error at once; what is out of reach later on is waited for.
        self._order_to_stop(name)
        watch = Watch(name, lambda: self._order_to_stop(name), self.poll_seconds, lambda _: 0.0)
        for _ in watch.lines(itertools.repeat(None)):
            pass

    def _order_to_stop(self, name: str) -> Mapping[str, Any]:
        """Order a job to stop, unless it does or has, and return its description.

        The answer to the order is empty, so that one which did not arrive looks the same: it is given until it shows.
        """
        description = self.describe(name)
        if description["TrainingJobStatus"] == "Stopping" or has_ended(description):
            return description
        try:
            self._connection.ask(
                f"stop job '{name}'", lambda clients: clients.sagemaker.stop_training_job(TrainingJobName=name)
            )
        except JobError as error:
            # It may have ended, or been stopped by somebody else, between the two.
            if not error_code(error).startswith("Validation") or "status" not in error.what:
                raise
        return description

    def model_dirs(self, name: str) -> Sequence[Path]:
        """Say that the model is in S3.

        Raises:
            JobError: Always.
        """
        raise JobError(
            f"the model of job '{name}' is in S3 and not on this machine",
            where=_artifact_uris(self.describe(name), "model")[0],
            fix="job.download('model') copies it into a folder; job.model_uri says where it is",
        )

    @contextlib.contextmanager
    def remains(self, description: Mapping[str, Any], what: Artifact, *, near: Path) -> Iterator[Remains]:
        """Provide a folder with the files of an artifact, which is gone at the end."""
        uris = _artifact_uris(description, what)
        owner = description["TrainingJobArn"].split(":")[4]
        bucket = urlsplit(uris[0]).netloc
        keys = [urlsplit(uri).path[1:] for uri in uris]
        with beside(near) as temporary:
            folder = temporary / "files"
            folder.mkdir()
            if not any(self._fetch(bucket, owner, key, folder) for key in keys):
                raise JobError(
                    f"there is no {uris[0]}",
                    where=f"job '{description['TrainingJobName']}'",
                    fix="look at what the script writes to SM_MODEL_DIR and SM_OUTPUT_DATA_DIR; nothing has no archive",
                )
            yield Remains([folder], are_ours=True)

    def _fetch(self, bucket: str, owner: str, key: str, folder: Path) -> bool:
        """Put the files of an artifact into an empty folder; return whether there is such an artifact."""
        uri = f"s3://{bucket}/{key}"

        def ask(call: Callable[[Storage], _Answer]) -> _Answer:
            # Of many files, or big ones, the last may outlive the credentials that the first was asked for with.
            return self._connection.ask(f"download of {uri}", lambda clients: call(Storage(clients, bucket, owner)))

        if key.endswith("/"):
            found = [found for found in ask(lambda storage: storage.sizes(key)) if not found.endswith("/")]
            for each in found:
                path = folder / inside(each.removeprefix(key), archive=uri)
                ask(partial(Storage.download, key=each, path=path))
            return bool(found)
        archive = folder.with_name("archive")
        try:
            ask(partial(Storage.download, key=key, path=archive))
        except JobError as error:
            if error_code(error) not in ("NoSuchKey", "404"):
                raise
            return False
        unpack(archive, folder, name=uri)
        archive.unlink()
        return True

    def prices(self, description: Mapping[str, Any]) -> Mapping[str, Price]:
        """Return what AWS says an hour costs, of those types that it says it of."""
        return ask_prices(self._connection, {kind for kind, _ in instances(description)})

    def _unknown(self, name: str, error: JobError) -> JobError:
        names: list[str] = []
        with contextlib.suppress(JobError):
            names = [job["TrainingJobName"] for job in self.list_jobs(limit=100)]
        if name in (*names, self._just_made):
            return OutOfReach(
                f"SageMaker has taken job '{name}' and does not show it",
                where=error.where,
                fix="look again in a minute",
                patience_seconds=_SEEN_SECONDS,
            )
        near = difflib.get_close_matches(name, names)
        clients = self._connection.clients
        profile = f" of profile '{clients.profile_name}'" if clients.profile_name else ""
        return JobError(
            f"there is no job '{name}'",
            where=f"SageMaker in {clients.region}, in the account{profile}",
            fix=f"did you mean '{near[0]}'?" if near else "look at 'smkit jobs'; it may be another region or profile",
        )


def _artifact_uris(description: Mapping[str, Any], what: Artifact) -> list[str]:
    """Return where an artifact can be, the likeliest place first: an archive, or a folder with "/" at its end."""
    output = description.get("OutputDataConfig", {})
    base = f"{output.get('S3OutputPath', 's3://').rstrip('/')}/{description['TrainingJobName']}/output/"
    is_compressed = output.get("CompressionType") != "NONE"
    names = [_ARCHIVES[what]] if is_compressed else _FOLDERS[what]
    known = description.get("ModelArtifacts", {}).get("S3ModelArtifacts") if what == "model" else None
    if known and not is_compressed:
        known = f"{known.rstrip('/')}/"
    return [known] if known else [base + name for name in names]


def _is_unknown(error: JobError) -> bool:
    text = str(error).lower()
    is_refused = error_code(error) in ("ValidationException", "ValidationError", "ResourceNotFound")
    return is_refused and any(words in text for words in ("not found", "could not find", "does not exist"))
