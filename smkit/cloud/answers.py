"""What counts as an answer of AWS: how long it is waited for, and that it holds what was asked for.

botocore takes an answer of JSON that it cannot read for an empty one. Such a page of a captive portal, or half of an
answer, would mean "there is nothing" or "it is done". Here it counts as a failure of the service, which it treats S3's
own errors with status 200 as: it is asked again, and in the end refused. This room knows calls, and no job.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

UNREADABLE = "UnreadableAnswer"
"""The code, as of AWS, of an answer that is none."""
_PATIENCE_SECONDS = 40.0
"""A call that has paused for longer is not repeated any more; with the longest pause, of 20, that is a minute."""
_SHOWN_CHARACTERS = 80
_DAMAGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
_DAMAGED_ATTEMPTS = 3
_ROLE = ("Role", "Arn", "AssumeRolePolicyDocument")
_JOB = ("TrainingJobName", "TrainingJobStatus")
_NEEDED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "CreateTrainingJob": (("TrainingJobArn",),),
    "DescribeTrainingJob": (
        *((name,) for name in (*_JOB, "TrainingJobArn")),
        ("SecondaryStatusTransitions", "Status"),
        ("FinalMetricDataList", "MetricName", "Value"),
    ),
    "ListTrainingJobs": (("TrainingJobSummaries", *_JOB),),
    "ListTags": (("Tags", "Key", "Value"),),
    "DescribeLogStreams": (("logStreams", "logStreamName"),),
    "GetLogEvents": (("events", "timestamp", "message"), ("nextForwardToken",), ("nextBackwardToken",)),
    "GetCallerIdentity": (("Account",), ("Arn",)),
    "GetRole": (_ROLE,),
    "ListAttachedRolePolicies": (("AttachedPolicies", "PolicyName"),),
    "ListRolePolicies": (("PolicyNames",),),
    "SimulatePrincipalPolicy": (("EvaluationResults", "EvalActionName", "EvalDecision"),),
    "ListServiceQuotas": (("Quotas", "QuotaName", "QuotaCode"),),
    "GetProducts": (("PriceList",),),
    "ListObjectsV2": (("Name",), ("Contents", "Key", "Size")),
    **dict.fromkeys(("HeadObject", "GetObject"), (("ETag",), ("ContentLength",))),
    **dict.fromkeys(("PutObject", "UploadPart", "CompleteMultipartUpload"), (("ETag",),)),
    "CreateMultipartUpload": (("UploadId",),),
}
"""What smkit reads of an answer: a name, and the names in it, or in each of a list, after that."""
_MAY_LACK = frozenset({"SecondaryStatusTransitions", "FinalMetricDataList", "Contents"})
"""An empty list of these is left out."""


def watch(client: Any, *, silent_attempts: int) -> None:
    """Let a client of boto3 count what is no answer as a failure, and end a call that gets none.

    Args:
        client: The client.
        silent_attempts: How often a service is asked that says nothing at all.
    """
    events = client.meta.events
    events.register("before-parse.*", _refuse_unreadable)
    events.register("request-created.*", _count_pauses)
    events.register_first("needs-retry.*", partial(_end_in_time, silent_attempts))


def _refuse_unreadable(
    *, operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Make a failure of the service of an answer that botocore cannot read, or that lacks what smkit reads of it."""
    if not 200 <= response_dict["status_code"] < 300:
        return
    lack = _lack(operation_model, response_dict)
    if lack is None:
        return
    body = response_dict["body"]
    text = body[:1000].decode("utf-8", "replace") if isinstance(body, bytes) else ""
    # botocore's parsers make a failure without a body of this; what it was is said by the rest.
    response_dict.update(status_code=500, body=b"")
    shown = f": {' '.join(text.split())[:_SHOWN_CHARACTERS]!r}" if text else ""
    error = {"Code": UNREADABLE, "Message": f"the answer is none of {operation_model.name}, {lack}{shown}"}
    customized_response_dict["Error"] = error


def _lack(operation_model: Any, response_dict: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an answer; None if it is one."""
    from botocore.parsers import create_parser

    body = response_dict["body"]
    if isinstance(body, bytes) and body.lstrip()[:14].lower().startswith((b"<html", b"<!doctype html")):
        return "but a web page"
    try:
        parsed = create_parser(operation_model.service_model.resolved_protocol).parse(
            response_dict, operation_model.output_shape
        )
    except Exception as error:  # what a parser makes of garbage can be any
        return f"{type(error).__name__} when it is read"
    if not isinstance(parsed, dict):
        return "but nothing"
    missing = [path[0] for path in _NEEDED.get(operation_model.name, ()) if not _has(parsed, path)]
    return f"without {', '.join(missing)}" if missing else None


def _has(parsed: Any, path: tuple[str, ...]) -> bool:
    name, *inner = path
    found = parsed.get(name)
    if found is None:
        return name in _MAY_LACK
    items = found if isinstance(found, list) else [found]
    return all(isinstance(item, dict) and item.get(each) is not None for item in items for each in inner)


def _count_pauses(*, request: Any, **_: Any) -> None:
    """Add up how long a call has not been made, between its attempts."""
    context = request.context
    paused = time.monotonic() - context["smkit_ended"] if "smkit_ended" in context else 0.0
    context["smkit_paused"] = context.get("smkit_paused", 0.0) + paused


def _end_in_time(
    silent_attempts: int,
    /,
    *,
    request_dict: dict[str, Any],
    operation: Any,
    response: tuple[Any, dict[str, Any]] | None = None,
    caught_exception: BaseException | None = None,
    attempts: int,
    **_: Any,
) -> float | None:
    """End a call after a few attempts that got no answer, and after long pauses; return when to repeat it, if at once.

    Nothing is botocore's own judgement.
    """
    from botocore.exceptions import ClientError, ConnectionClosedError

    context = request_dict["context"]
    context["smkit_ended"] = time.monotonic()
    is_late = context.get("smkit_paused", 0.0) > _PATIENCE_SECONDS
    if caught_exception is not None:
        # A connection that was reset is no silence: there is somebody, who may be better in a moment.
        context["smkit_silent"] = context.get("smkit_silent", 0) + (
            not isinstance(caught_exception, ConnectionClosedError)
        )
        if is_late or context["smkit_silent"] >= silent_attempts:
            raise caught_exception
    if response is not None:
        http, parsed = response
        # By its status a failure is told; `_refuse_unreadable` has changed what is parsed alone.
        http.status_code = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", http.status_code)
        if is_late and http.status_code >= 300:
            raise ClientError(parsed, operation.name)
        # What was damaged on the way is sent again, which botocore does not.
        if parsed.get("Error", {}).get("Code") in _DAMAGED and attempts < _DAMAGED_ATTEMPTS:
            return 0.0
    return None
