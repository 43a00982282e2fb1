"""From a checked plan to a job: what is missing goes to S3, then one CreateTrainingJob makes the job.

Keys are hashes of what they hold, so a second launch of the same code and data sends neither. This room decides nothing
about the job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smkit.cloud.aws_errors import aws_errors, error_code, is_passing, is_unanswered
from smkit.cloud.jobs import SageMakerJobs
from smkit.cloud.storage import Storage, Upload
from smkit.cloud.transfer_line import TransferLine
from smkit.cloud.uploads import LocalData, upload
from smkit.errors import ConfigurationError
from smkit.job import Job
from smkit.report import say
from smkit.source.archive import Archive, pack
from smkit.source.survey import Source

LAUNCH_TAG = "smkit:launch"
"""A tag with random digits: whether a job of this name is this very launch's, or somebody else's."""
_READ_BYTES = 1024 * 1024
_IS_THERE = ("ResourceInUse", "ResourceInUseException")


@dataclass(frozen=True)
class Submission:
    """All that is sent to make a job.

    Args:
        storage: The bucket that it goes to.
        request: The CreateTrainingJob request.
        source: The script's folder.
        vendored: What else the archive holds, by path: smkit itself.
        source_key: Where the archive lies.
        source_sha256: The hash of the archive's tar stream, which that place is named by.
        data: Local inputs.
        record_key: Where the record of the code's origin lies, beside the model.
        record: That record, as JSON.
    """

    storage: Storage
    request: Mapping[str, Any]
    source: Source
    vendored: Mapping[str, bytes | Path]
    source_key: str
    source_sha256: str
    data: Sequence[LocalData]
    record_key: str
    record: str

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    def start(self) -> Job:
        """Upload what S3 does not have, make the job, and return it.

        Raises:
            ConfigurationError: AWS refuses, or a file has changed since it was read; no job has been made, unless the
                error says that this is not known.
        """
        try:
            self._upload()
        except KeyboardInterrupt:
            say("interrupted: no job has been made; what is uploaded by now stays for the next launch")
            raise
        self._create()
        return Job(self.name, SageMakerJobs(self.storage.clients, just_made=self.name))

    def _upload(self) -> None:
        if self.storage.head(self.source_key) is None:
            self._require_own_account()
            self.storage.ensure_bucket()
            with pack(self.source, self.vendored) as archive:
                self._require_planned(archive)
                self._upload_source(archive)
        for data in self.data:
            upload(data, self.storage)
        self.storage.put(self.record_key, self.record.encode(), ContentType="application/json")

    def _upload_source(self, archive: Archive) -> None:
        digest = hashlib.sha256()
        with archive.open() as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        line = TransferLine("uploading the source", archive.size)
        try:
            item = Upload(self.source_key, archive.path, archive.size, digest.hexdigest(), verify=lambda: None)
            self.storage.upload([item], advance=line.advance)
        finally:
            line.end()

    def _require_planned(self, archive: Archive) -> None:
        """Refuse an archive of anything else than the plan's: every later launch would take it for what it is not."""
        if archive.sha256 != self.source_sha256:
            raise ConfigurationError(
                "what travels with the source has changed since the plan was made",
                where=f"source_dir '{self.source.root}', and smkit itself",
                fix="launch again; nothing has been uploaded",
            )

    def _require_own_account(self) -> None:
        """Refuse the role of another account before anything goes to that account's bucket."""
        own = self.storage.clients.caller.split(":")[4]
        if own != self.storage.owner:
            raise ConfigurationError(
                f"the role is one of account {self.storage.owner}, and you are in account {own}",
                where=f"role of launch, {self.request.get('RoleArn')}",
                fix="give a role of your account, or a profile of the role's; nothing has been uploaded",
            )

    def _create(self) -> None:
        """Make the job, once: whenever the reply does not say whether there is one, it is looked for."""
        clients = self.storage.clients
        try:
            with aws_errors(f"CreateTrainingJob of '{self.name}'", profile_name=clients.profile_name):
                clients.sagemaker.create_training_job(**self.request)
        except KeyboardInterrupt:
            say(
                f"interrupted while job '{self.name}' was being made; if it was, it goes on:\n"
                f"  smkit attach {self.name}\n  smkit stop {self.name}"
            )
            raise
        except ConfigurationError as error:
            # Of a reply that was lost, the next attempt meets the job that the first one made, or is lost as well.
            if not (error_code(error) in _IS_THERE or is_passing(error)) or not self._is_made(error):
                raise

    def _is_made(self, error: ConfigurationError) -> bool:
        """Whether the job is there, and is this very launch's.

        Raises:
            ConfigurationError: There is another job of this name, or AWS does not say.
        """
        sagemaker = self.storage.clients.sagemaker
        try:
            with aws_errors(error.where):
                found = sagemaker.describe_training_job(TrainingJobName=self.name)
                is_ours = self._is_tagged(found) if self._tag else self._is_alike(found, error)
        except ConfigurationError as silence:
            # What was refused every time is not on its way; what had no answer can still become a job.
            if error_code(silence).startswith("Validation") and not is_unanswered(error):
                return False
            raise ConfigurationError(
                f"{error.what}\nwhether job '{self.name}' was made is not known",
                where=error.where,
                fix=f"'smkit attach {self.name}' tells, in a minute; or launch again as name='{self.name}': of one "
                "name there is never a second job",
            ) from error
        if not is_ours:
            raise ConfigurationError(
                f"job '{self.name}' already exists",
                where=error.where,
                fix=f"give another name, or 'smkit attach {self.name}' if that is the job you mean",
            ) from error
        return True

    @property
    def _tag(self) -> Mapping[str, str] | None:
        """The launch's own tag; None where the user wants no tags."""
        return next((tag for tag in self.request.get("Tags") or () if tag["Key"] == LAUNCH_TAG), None)

    def _is_tagged(self, found: Mapping[str, Any]) -> bool:
        return self._tag in self.storage.clients.sagemaker.list_tags(ResourceArn=found["TrainingJobArn"])["Tags"]

    def _is_alike(self, found: Mapping[str, Any], error: ConfigurationError) -> bool:
        """Whether a job without tags is this launch's: a reply was lost, and it runs this code with these settings."""
        response = getattr(error.__cause__, "response", None) or {}
        attempts: int = response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
        settings: Mapping[str, str] = found.get("HyperParameters", {})
        return (is_passing(error) or attempts > 0) and settings == self.request.get("HyperParameters", {})
