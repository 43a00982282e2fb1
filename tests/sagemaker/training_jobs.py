"""The training half of SageMaker's API: each action a function of its parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from sagemaker.execution import Execution
from sagemaker.settings import Settings
from sagemaker.training_job import ENDED, TrainingJob
from sagemaker.validation import training_job_faults
from sagemaker.wire import KEYS, REGION, Request

_ORDERS: dict[str, Callable[[TrainingJob], Any]] = {
    "CreationTime": lambda job: job.created,
    "Name": lambda job: job.name,
    "Status": lambda job: job.status,
}


class RefusedError(Exception):
    """SageMaker answers with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ServiceClients:
    """The clients with which the service itself works, on this very server."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._session = boto3.session.Session(KEYS["service"], "secret", region_name=REGION)
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Read the models of the services, before a job waits for it."""
        training_job_faults({})
        assert self.s3
        assert self.logs

    @cached_property
    def s3(self) -> Any:
        return self._client("s3")

    @cached_property
    def logs(self) -> Any:
        return self._client("logs")

    def _client(self, service: str) -> Any:
        with self._lock:
            config = Config(max_pool_connections=50)
            return self._session.client(service, endpoint_url=self._endpoint, config=config)


class TrainingJobs:
    """All training jobs of the account."""

    def __init__(self, settings: Settings, folder: Path, endpoint: str, *, isolated: bool) -> None:
        self._settings, self._folder, self._endpoint, self._isolated = settings, folder, endpoint, isolated
        self._clients = ServiceClients(endpoint)
        threading.Thread(target=self._clients.warm_up, daemon=True).start()
        self._jobs: dict[str, TrainingJob] = {}
        self._executions: dict[str, Execution] = {}
        self._lock = threading.Lock()
        self.actions: dict[str, Callable[[Request], dict[str, Any]]] = {
            "CreateTrainingJob": self._create,
            "DescribeTrainingJob": lambda request: self._named(request).description(),
            "StopTrainingJob": self._stop,
            "ListTrainingJobs": self._list,
            "AddTags": self._add_tags,
            "ListTags": self._list_tags,
            "DeleteTags": self._delete_tags,
        }

    def answers(self, request: Request) -> bool:
        """Return whether this request is about training jobs; moto knows of the rest of SageMaker."""
        if request.action.endswith("Tags"):
            return ":training-job/" in request.parameters.get("ResourceArn", "")
        return request.service == "sagemaker" and request.action in self.actions

    def interrupt(self, name: str) -> bool:
        """Take the instances of a managed spot job away; return whether there is such a job at work."""
        job = self._jobs.get(name)
        at_work = job is not None and job.is_spot and job.status not in ENDED
        if job and at_work:
            job.interruption_asked.set()
        return at_work

    def delivered(self, name: str) -> bool:
        """Return whether the job has ended and all its lines can be read."""
        return name not in self._executions or self._executions[name].delivered

    def forget_all(self) -> None:
        """End all jobs at once, and forget them."""
        with self._lock:
            executions, self._executions = self._executions, {}
            for job in self._jobs.values():
                job.cancelled.set()
            self._jobs.clear()
        for execution in executions.values():
            execution.wait_for_all()

    def _create(self, request: Request) -> dict[str, Any]:
        faults = training_job_faults(request.parameters)
        if faults:
            raise RefusedError("ValidationException", faults)
        job = TrainingJob(request.parameters, request.region)
        with self._lock:
            if job.name in self._jobs:
                text = "Training job names must be unique within an AWS account and region, and a training job with"
                raise RefusedError("ResourceInUse", f"{text} this name already exists ({self._jobs[job.name].arn})")
            self._jobs[job.name] = job
            execution = Execution(
                job,
                self._settings,
                self._clients,
                self._folder / job.name,
                self._endpoint,
                isolated=self._isolated,
            )
            self._executions[job.name] = execution
        execution.start()
        return {"TrainingJobArn": job.arn}

    def _named(self, request: Request) -> TrainingJob:
        job = self._jobs.get(request.parameters["TrainingJobName"])
        if job is None:
            raise RefusedError("ValidationException", "Requested resource not found.")
        return job

    def _stop(self, request: Request) -> dict[str, Any]:
        status = self._named(request).ask_to_stop()
        if status:
            text = f"The request was rejected because the training job is in status {status}."
            raise RefusedError("ValidationException", text)
        return {}

    def _list(self, request: Request) -> dict[str, Any]:
        asked = request.parameters
        with self._lock:
            found = [job for job in self._jobs.values() if _matches(job, asked)]
        found.sort(key=_ORDERS[asked.get("SortBy", "CreationTime")], reverse=asked.get("SortOrder") == "Descending")
        first, most = int(asked.get("NextToken", 0)), asked.get("MaxResults", 10)
        answer: dict[str, Any] = {"TrainingJobSummaries": [job.summary() for job in found[first : first + most]]}
        if len(found) > first + most:
            answer["NextToken"] = str(first + most)
        return answer

    def _tagged(self, request: Request) -> TrainingJob:
        name = request.parameters["ResourceArn"].rpartition("/")[2]
        if name not in self._jobs:
            raise RefusedError("ValidationException", "Requested resource not found.")
        return self._jobs[name]

    def _add_tags(self, request: Request) -> dict[str, Any]:
        tags = self._tagged(request).tags
        tags |= {tag["Key"]: tag["Value"] for tag in request.parameters["Tags"]}
        return {"Tags": _pairs(tags)}

    def _list_tags(self, request: Request) -> dict[str, Any]:
        return {"Tags": _pairs(self._tagged(request).tags)}

    def _delete_tags(self, request: Request) -> dict[str, Any]:
        tags = self._tagged(request).tags
        for name in request.parameters["TagKeys"]:
            tags.pop(name, None)
        return {}


def _pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": name, "Value": value} for name, value in tags.items()]


def _matches(job: TrainingJob, asked: Any) -> bool:
    times = {"CreationTime": job.created.timestamp(), "LastModifiedTime": job.modified.timestamp()}
    return (
        asked.get("NameContains", "") in job.name
        and asked.get("StatusEquals", job.status) == job.status
        and all(asked.get(f"{name}After", 0) <= time for name, time in times.items())
        and all(asked.get(f"{name}Before", float("inf")) >= time for name, time in times.items())
    )
