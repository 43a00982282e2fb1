"""From a checked plan to a job: what is missing goes to S3, then one CreateTrainingJob makes the job.

Keys are hashes of what they hold, so a second launch of the same code and data sends neither. This room decides nothing
about the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smkit.cloud.aws_errors import aws_errors, error_code
from smkit.cloud.jobs import SageMakerJobs
from smkit.cloud.storage import Storage
from smkit.cloud.uploads import LocalData, upload
from smkit.job import Job
from smkit.source.archive import pack
from smkit.source.survey import Source

LAUNCH_TAG = "smkit:launch"
"""A tag with random digits: whether a job of this name is this very launch's, or somebody else's."""
_LOST_REPLY = ("ResourceInUse", "ResourceInUseException")


@dataclass(frozen=True)
class Submission:
    """All that is sent to make a job.

    Args:
        storage: The bucket that it goes to.
        request: The CreateTrainingJob request.
        source: The script's folder.
        vendored: What else the archive holds, by path: smkit itself.
        source_key: Where the archive lies.
        data: Local inputs.
        record_key: Where the record of the code's origin lies, beside the model.
        record: That record, as JSON.
    """

    storage: Storage
    request: Mapping[str, Any]
    source: Source
    vendored: Mapping[str, bytes | Path]
    source_key: str
    data: Sequence[LocalData]
    record_key: str
    record: str

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    def start(self) -> Job:
        """Upload what S3 does not have, make the job, and return it.

        Raises:
            ConfigurationError: AWS refuses, or a file has changed since it was read; no job has been made.
        """
        if self.storage.head(self.source_key) is None:
            self.storage.ensure_bucket()
            with pack(self.source, self.vendored) as archive:
                self.storage.put(self.source_key, archive.path.read_bytes(), ContentType="application/gzip")
        for data in self.data:
            upload(data, self.storage)
        self.storage.put(self.record_key, self.record.encode(), ContentType="application/json")
        self._create()
        return Job(self.name, SageMakerJobs(self.storage.clients))

    def _create(self) -> None:
        """Make the job, once: a reply that was lost makes the next attempt meet the job that the first one made."""
        clients = self.storage.clients
        with aws_errors(f"CreateTrainingJob of '{self.name}'", profile_name=clients.profile_name):
            try:
                clients.sagemaker.create_training_job(**self.request)
            except Exception as error:
                if not (error_code(error) in _LOST_REPLY and self._is_ours()):
                    raise

    def _is_ours(self) -> bool:
        sagemaker = self.storage.clients.sagemaker
        found = sagemaker.describe_training_job(TrainingJobName=self.name)
        tags = sagemaker.list_tags(ResourceArn=found["TrainingJobArn"])["Tags"]
        return any(tag in self.request["Tags"] for tag in tags if tag["Key"] == LAUNCH_TAG)
