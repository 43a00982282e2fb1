"""Policies of least privilege for IAM: who launches, who asks the doctor, and the role that a job acts as.

Each is a file of `policy_files`, with placeholders; here they are filled in. What a policy allows is what smkit, or
SageMaker for a job of smkit's, really calls, and a job may not change the code that later jobs run. This room asks AWS
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

from smkit.cloud.images import image_repositories
from smkit.contract import default_bucket
from smkit.errors import ConfigurationError
from smkit.secret_references import FORMS, resource_of

NAMES = {"launching": "who launches jobs", "job": "the role of a job", "doctor": "who runs 'smkit doctor'"}


@dataclass(frozen=True)
class Place:
    """Where jobs run: what the placeholders stand for.

    Args:
        partition: `aws`, `aws-cn` or `aws-us-gov`.
        region: The region's short name.
        account: The account's twelve digits.
        bucket: The bucket for source, data and results.
        role: The job's role: its name, with its path if it has one.
        inputs: Where channels come from besides: s3:// addresses.
        secrets: References to the secrets that the job reads.
    """

    partition: str
    region: str
    account: str
    bucket: str
    role: str
    inputs: Sequence[str] = ()
    secrets: Sequence[str] = ()


def policy(name: str, place: Place) -> dict[str, Any]:
    """Return a policy of `NAMES`, filled in; a statement about nothing is left out.

    Raises:
        ConfigurationError: An input is no s3:// address, or a secret no reference to one.
    """
    document: dict[str, Any] = json.loads(
        (Path(__file__).with_name("policy_files") / f"{name}.json").read_text(encoding="utf-8")
    )
    texts = {word: getattr(place, word) for word in ("partition", "region", "account", "bucket", "role")}
    # Of another name the bucket must be there.
    is_made = place.bucket == default_bucket(place.region, place.account)
    buckets, objects = _inputs(place)
    secrets = list(dict.fromkeys(_secret(reference, place) for reference in place.secrets))
    lists = {
        "${made_bucket}": ["arn:${partition}:s3:::${bucket}"] if is_made else [],
        "${inputs}": objects,
        "${input_buckets}": buckets,
        "${images}": image_repositories(place.region, place.partition),
        "${secrets}": [arn for arn in secrets if ":ssm:" not in arn],
        "${parameters}": [arn for arn in secrets if ":ssm:" in arn],
    }
    statements = []
    for statement in document["Statement"]:
        given = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        resources = [each for text in given for each in lists.get(text, [text])]
        if resources:
            statements.append(statement | {"Resource": resources if len(resources) > 1 else resources[0]})
    return {**document, "Statement": _filled(statements, texts)}


def _filled(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return Template(value).substitute(texts)
    if isinstance(value, list):
        return [_filled(part, texts) for part in value]
    return {key: _filled(part, texts) for key, part in value.items()}


def _inputs(place: Place) -> tuple[list[str], list[str]]:
    """Return the buckets of the inputs and their objects, as ARNs."""
    buckets: dict[str, None] = {}
    objects: list[str] = []
    for uri in place.inputs:
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc:
            raise ConfigurationError(f"'{uri}' is no s3:// address", where="an input", fix="write s3://bucket/prefix")
        buckets[f"arn:{place.partition}:s3:::{parts.netloc}"] = None
        objects.append(f"arn:{place.partition}:s3:::{parts.netloc}{parts.path.rstrip('/') or ''}/*")
    return [bucket for bucket in buckets if not bucket.endswith(f":::{place.bucket}")], objects


def _secret(reference: str, place: Place) -> str:
    arn = resource_of(reference, partition=place.partition, region=place.region, account=place.account)
    if arn is None:
        raise ConfigurationError("a secret is named by a reference", where="a secret of the job", fix=f"write {FORMS}")
    return arn
