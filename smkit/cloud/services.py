"""The services of AWS that smkit uses, as the protocols that a client of boto3 answers, and a fake in a test can.

Each lists the calls that smkit makes and no other. Arguments and answers are AWS's own, so their types are the API's.
This room knows no boto3.
"""

from __future__ import annotations

from typing import Any, Protocol


class S3(Protocol):
    """Objects and buckets."""

    meta: Any

    def head_bucket(self, **request: Any) -> dict[str, Any]: ...
    def create_bucket(self, **request: Any) -> dict[str, Any]: ...
    def list_objects_v2(self, **request: Any) -> dict[str, Any]: ...
    def head_object(self, **request: Any) -> dict[str, Any]: ...
    def get_object(self, **request: Any) -> dict[str, Any]: ...
    def put_object(self, **request: Any) -> dict[str, Any]: ...


class SageMaker(Protocol):
    """Training jobs."""

    def create_training_job(self, **request: Any) -> dict[str, Any]: ...
    def describe_training_job(self, **request: Any) -> dict[str, Any]: ...
    def stop_training_job(self, **request: Any) -> dict[str, Any]: ...
    def list_training_jobs(self, **request: Any) -> dict[str, Any]: ...
    def list_tags(self, **request: Any) -> dict[str, Any]: ...


class Logs(Protocol):
    """The lines of a job, as CloudWatch keeps them."""

    def describe_log_streams(self, **request: Any) -> dict[str, Any]: ...
    def get_log_events(self, **request: Any) -> dict[str, Any]: ...


class Sts(Protocol):
    """Who is asking."""

    def get_caller_identity(self, **request: Any) -> dict[str, Any]: ...


class Iam(Protocol):
    """Roles."""

    def get_role(self, **request: Any) -> dict[str, Any]: ...
