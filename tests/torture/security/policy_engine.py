"""What IAM says: whether a policy allows a call, told by AWS's rules of evaluation; and what a request needs of it.

The names of actions are the service authorization reference's, which differ from those of some operations of S3.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker.wire import ACCOUNT, Request

_ALWAYS_ALLOWED = {"GetCallerIdentity"}
_S3 = {
    "HeadBucket": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "HeadObject": "GetObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
}
_WITHOUT_RESOURCE = {"ListTrainingJobs", "GetProducts", "ListServiceQuotas"}


@dataclass(frozen=True)
class Need:
    """A call as IAM sees it."""

    action: str
    resource: str
    context: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.action} on {self.resource}"


def needs(request: Request) -> Iterator[Need]:
    """Yield what a request needs to be allowed; those that need nothing yield nothing."""
    if request.action in _ALWAYS_ALLOWED:
        return
    if request.service == "s3":
        action = _S3.get(request.action, request.action)
        arn = f"arn:aws:s3:::{request.bucket}"
        is_of_bucket = action == "CreateBucket" or action.startswith("ListBucket")
        context = {} if action == "CreateBucket" else {"s3:ResourceAccount": ACCOUNT}
        yield Need(f"s3:{action}", arn if is_of_bucket else f"{arn}/{request.key}", context)
        return
    yield Need(f"{request.service}:{request.action}", _resource(request), {})
    if request.action == "CreateTrainingJob":
        if request.parameters.get("Tags"):
            yield Need("sagemaker:AddTags", _resource(request), {})
        passed = {"iam:PassedToService": "sagemaker.amazonaws.com"}
        yield Need("iam:PassRole", request.parameters["RoleArn"], passed)


def _resource(request: Request) -> str:
    given, where = request.parameters, f"{request.region}:{ACCOUNT}"
    if request.action in _WITHOUT_RESOURCE:
        return "*"
    if request.service == "sagemaker":
        return str(given.get("ResourceArn") or f"arn:aws:sagemaker:{where}:training-job/{given['TrainingJobName']}")
    if request.service == "logs":
        stream = given.get("logStreamName")
        group = f"arn:aws:logs:{where}:log-group:{given['logGroupName']}"
        return f"{group}:log-stream:{stream}" if stream else f"{group}:*"
    if request.service == "iam":
        # moto calls a user by STS's word.
        caller = given.get("PolicySourceArn", "").replace(":sts:", ":iam:")
        return caller or f"arn:aws:iam::{ACCOUNT}:role/{given['RoleName']}"
    if request.service == "secretsmanager":
        return f"arn:aws:secretsmanager:{where}:secret:{given['SecretId']}-AbCdEf"
    if request.service == "ssm":
        return f"arn:aws:ssm:{where}:parameter/{given['Name'].lstrip('/')}"
    raise AssertionError(f"what {request.service}:{request.action} is about is not known here")


def allowing(policy: Mapping[str, Any], need: Need) -> Iterator[tuple[str, str, str]]:
    """Yield each grant (Sid, action, resource) that allows a call."""
    for grant in grants(policy):
        sid, action, resource = grant
        statement = next(each for each in policy["Statement"] if each["Sid"] == sid)
        conditions = statement.get("Condition", {})
        if _fits(need.action, action) and _fits(need.resource, resource) and _meets(need.context, conditions):
            yield grant


def grants(policy: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield each pair of an action and a resource that a policy allows."""
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in _list(statement["Action"]):
            yield from ((statement["Sid"], action, resource) for resource in _list(statement["Resource"]))


def _list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _fits(text: str, pattern: str) -> bool:
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), text) is not None


def _meets(context: Mapping[str, str], conditions: Mapping[str, Any]) -> bool:
    """Whether each key is there and is one of the values, as StringEquals and StringLike want it."""
    return all(
        key in context and any(_fits(context[key], value) for value in _list(values))
        for operator, wanted in conditions.items()
        for key, values in wanted.items()
        if operator in ("StringEquals", "StringLike")
    )
