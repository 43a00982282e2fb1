"""Policies of least privilege, filled in; whether they allow what smkit calls: torture/test_security_cloud.py."""

from __future__ import annotations

import dataclasses
import json

import pytest

import smkit
from smkit.cloud.policies import NAMES, Place, policy

PLACE = Place("aws-cn", "cn-north-1", "123456789012", "team-bucket", "service-role/Training")
_WITHOUT_RESOURCE = {"sagemaker:ListTrainingJobs", "pricing:GetProducts", "servicequotas:ListServiceQuotas"}
_WITHOUT_RESOURCE |= {"cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"}


def each(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_filled_in_and_names_a_resource_wherever_there_is_one(name: str) -> None:
    document = policy(name, PLACE)
    assert "$" not in json.dumps(document)
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        assert all("*" not in action for action in each(statement["Action"]))
        if "*" in each(statement["Resource"]):
            assert _WITHOUT_RESOURCE.issuperset(each(statement["Action"]))
        else:
            assert all(resource.startswith("arn:aws-cn:") for resource in each(statement["Resource"]))
        if any(str(action).startswith("s3:") and action != "s3:CreateBucket" for action in each(statement["Action"])):
            assert statement["Condition"] == {"StringEquals": {"s3:ResourceAccount": "123456789012"}}


def test_a_job_reads_its_inputs_and_secrets_and_no_others() -> None:
    inputs = ["s3://lake/images/train/", "s3://lake/texts", "s3://team-bucket/more"]
    secrets = ["secretsmanager:hub#token", "ssm:/team/key"]
    place = Place("aws", "eu-west-1", "123456789012", "team-bucket", "Training", inputs, secrets)
    found = {statement["Sid"]: statement for statement in policy("job", place)["Statement"]}
    assert found["SeeWhatIsThere"]["Resource"] == ["arn:aws:s3:::team-bucket", "arn:aws:s3:::lake"]
    assert found["ReadCodeAndDataAndNeverChangeThem"]["Action"] == "s3:GetObject"
    assert found["ReadCodeAndDataAndNeverChangeThem"]["Resource"][2:] == [
        "arn:aws:s3:::lake/images/train/*",
        "arn:aws:s3:::lake/texts/*",
        "arn:aws:s3:::team-bucket/more/*",
    ]
    assert found["ReadSecrets"]["Resource"] == "arn:aws:secretsmanager:eu-west-1:123456789012:secret:hub-??????"
    assert found["ReadParameters"]["Resource"] == "arn:aws:ssm:eu-west-1:123456789012:parameter/team/key"
    assert not {"ReadSecrets", "ReadParameters"} & {each["Sid"] for each in policy("job", PLACE)["Statement"]}


def test_only_the_default_bucket_may_be_made() -> None:
    default = dataclasses.replace(PLACE, bucket="sagemaker-cn-north-1-123456789012")
    (making,) = (each for each in policy("launching", default)["Statement"] if each["Action"] == "s3:CreateBucket")
    assert making["Resource"] == "arn:aws-cn:s3:::sagemaker-cn-north-1-123456789012"
    assert "CreateBucket" not in json.dumps(policy("launching", PLACE))


@pytest.mark.parametrize(
    ("inputs", "secrets", "words"),
    [(["/data"], [], "'/data' is no s3:// address"), ([], ["hunter2"], "a secret is named by a reference")],
)
def test_what_is_no_address_and_no_reference_is_refused(inputs: list[str], secrets: list[str], words: str) -> None:
    with pytest.raises(smkit.ConfigurationError, match=words) as caught:
        policy("job", Place("aws", "eu-west-1", "123456789012", "team-bucket", "Training", inputs, secrets))
    assert "hunter2" not in str(caught.value)
