"""The cloud's face, toured once: no secret in any output, S3's owner named in every call, no right more than is used.

A round of "canaries" is one planted secret looked for in one output: silent if it is there. A round of "owner of the
bucket" is one request to S3: silent if it could name the owner and does not. A round of "policies" is one call that was
made (lost if the policy that smkit prints denies it), or one right of a policy (silent if nothing needs it).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sagemaker.wire import ACCOUNT, Request

from smkit.cloud.policies import Place, policy
from torture.security import tour
from torture.security.policy_engine import Need, allowing, grants, needs
from torture.tally import Campaign, Outcome

_A_ROLE = f"arn:aws:iam::{ACCOUNT}:role/*"
"""The doctor asks what its caller may: a user here, and elsewhere often a role."""
_BY_SAGEMAKER = {
    *("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"),
    *("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"),
    *("cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"),
    *("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject"),
}
"""What SageMaker calls in a job's name (developer guide: "SageMaker AI Roles", CreateTrainingJob), and no test sees."""


def attack(campaign: Campaign) -> None:
    seen = tour.take(campaign.folder)
    for sink, text in seen.sinks.items():
        for name, canary in tour.CANARIES.items():
            outcome = Outcome.SILENT if canary in text else Outcome.SURVIVED
            campaign.tally.count("canaries", "smkit", outcome, f"the {name} in {sink}: {_around(text, canary)}")
    for request in [*seen.requests, *seen.of_doctor]:
        if request.service == "s3":
            outcome = Outcome.SILENT if request.lacks_expected_owner else Outcome.SURVIVED
            campaign.tally.count("owner of the bucket", "smkit", outcome, f"{request.action} {request.path}")
    _judge_policies(campaign, seen)


def _around(text: str, canary: str) -> str:
    start = text.find(canary)
    return repr(text[max(0, start - 60) : start + 40]) if start >= 0 else ""


def _judge_policies(campaign: Campaign, seen: tour.Tour) -> None:
    secrets = ["secretsmanager:token-of-setting", "secretsmanager:token-of-variable"]
    place = Place("aws", "us-east-1", ACCOUNT, seen.bucket, seen.role, secrets=secrets)
    for name, requests in (("doctor", seen.of_doctor), ("launching", seen.requests), ("job", seen.of_jobs)):
        document = policy(name, place)
        used: set[tuple[str, str, str]] = set()
        for need in _distinct(requests):
            found = list(allowing(document, need))
            used.update(found)
            outcome = Outcome.SURVIVED if found else Outcome.LOST
            campaign.tally.count("policies", "smkit", outcome, f"{name} denies {need}")
        for grant in grants(document):
            is_needed = grant in used or (name == "job" and grant[1] in _BY_SAGEMAKER) or grant[2] == _A_ROLE
            outcome = Outcome.SURVIVED if is_needed else Outcome.SILENT
            campaign.tally.count("policies", "smkit", outcome, f"{name} allows what nothing needs: {grant}")


def _distinct(requests: Sequence[Request]) -> Iterable[Need]:
    found = [need for request in requests for need in needs(request)]
    return {json.dumps([need.action, need.resource]): need for need in found}.values()
