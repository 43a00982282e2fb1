"""The doctor, on an account that has what one may find: each finding, and what it says to do about it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from sagemaker.fixture import SageMaker
from sagemaker.wire import KEYS

from smkit.cli import main
from smkit.cloud.aws import Clients
from smkit.cloud.doctor import Check, Wishes, diagnose, permissions

pytestmark = pytest.mark.aws

GPU = "ml.g5.xlarge"


def found(subject: str, **wishes: Any) -> Check:
    """Return the first finding about a subject; later checks are not made."""
    return next(check for check in diagnose(Wishes(**wishes)) if check.subject == subject)


def test_an_account_that_has_everything(sagemaker: SageMaker) -> None:
    sagemaker.client("iam").put_role_policy(RoleName="SmkitTests", PolicyName="all", PolicyDocument=ALL)
    sagemaker.settings(quotas={f"{GPU} for training job usage": 2, f"{GPU} for spot training job usage": 8})
    wishes = Wishes(instance_type=GPU, role="SmkitTests", bucket=sagemaker.bucket)
    checks = list(diagnose(wishes))
    assert [(check.subject, check.state) for check in checks] == [
        ("smkit", "ok"),
        ("local jobs", "ok"),
        ("boto3", "ok"),
        ("credentials", "ok"),
        ("region", "ok"),
        ("role", "ok"),
        ("bucket", "ok"),
        ("permissions", "ok"),
        ("image", "ok"),
        ("quota, on demand", "ok"),
        ("quota, spot", "ok"),
        ("quota, warm pool", "note"),
    ]
    findings = {check.subject: check.finding for check in checks}
    assert findings["role"] == f"{sagemaker.role} (argument): all"
    assert findings["region"] == f"us-east-1, in account {sagemaker.account}"
    assert findings["quota, spot"] == f"8 x {GPU} at once"
    assert "cu133" in findings["image"]
    changing = {"CreateTrainingJob", "CreateBucket", "PutObject", "CreateRole"}
    assert not changing & set(sagemaker.actions())


ALL = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})


def test_no_quota_comes_with_the_command_that_asks_for_one(sagemaker: SageMaker) -> None:
    sagemaker.settings(quotas={"other": 1, f"{GPU} for training job usage": 0})
    check = found("quota, on demand", instance_type=GPU, role="SmkitTests")
    assert check.state == "problem"
    assert check.finding == f"0 x {GPU}: the account may use none"
    assert check.fix == (
        "aws service-quotas request-service-quota-increase --service-code sagemaker "
        "--quota-code L-00000001 --desired-value 1 --region us-east-1"
    )
    assert found("quota, spot", instance_type=GPU, role="SmkitTests").finding.startswith("there is no quota")


def test_a_role_must_be_sagemakers_and_have_a_policy(sagemaker: SageMaker) -> None:
    iam = sagemaker.client("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": ["ec2.amazonaws.com"]}, "Action": "sts:AssumeRole"}
    iam.create_role(RoleName="Other", AssumeRolePolicyDocument=json.dumps({"Statement": trust}))
    other = found("role", role="Other")
    assert (other.state, other.finding) == (
        "problem",
        f"arn:aws:iam::{sagemaker.account}:role/Other does not let SageMaker assume it",
    )
    command, _, policy = other.fix.partition(" --policy-document ")
    assert command == "aws iam update-assume-role-policy --role-name Other"
    iam.update_assume_role_policy(RoleName="Other", PolicyDocument=policy.strip("'"))
    bare = found("role", role="Other")
    assert bare.finding.endswith("has no policy, so a job could neither read S3 nor write its log")
    assert bare.fix.endswith("--role-name Other --policy-arn arn:aws:iam::aws:policy/AmazonSageMakerFullAccess")
    assert found("role", role="Nobody").state == "problem"
    assert "aws iam create-role" in found("role").fix


def test_a_bucket_is_ours_or_not_there_yet(sagemaker: SageMaker) -> None:
    sagemaker.make_foreign_bucket("theirs")
    sagemaker.client("s3").create_bucket(Bucket="far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert found("bucket", bucket=sagemaker.bucket).finding == "smkit-tests is yours"
    assert found("bucket", bucket="theirs").state == "problem"
    assert "'far' lies in eu-west-1, and the job would run in us-east-1" in found("bucket", bucket="far").finding
    misspelt = found("bucket", bucket="smkit-tsets")
    assert (misspelt.state, misspelt.finding) == ("problem", "there is no bucket 'smkit-tsets' in account 123456789012")
    assert misspelt.fix.startswith("make it with `aws s3 mb s3://smkit-tsets --region us-east-1`; or leave bucket out")
    missing = found("bucket")
    assert (missing.state, missing.finding) == (
        "ok",
        f"sagemaker-us-east-1-{sagemaker.account} is not there yet; the first launch makes it",
    )


def test_uploads_that_were_cut_off_are_told_of(sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    s3, wishes = sagemaker.client("s3"), Wishes(bucket=sagemaker.bucket)
    for key in ("smkit/data/1/big", "others"):
        s3.create_multipart_upload(Bucket=sagemaker.bucket, Key=key)
    # moto says of all uploads that they began in 2010.
    (check,) = [check for check in diagnose(wishes) if check.subject == "uploads"]
    assert check.state == "warning"
    assert "of 1 uploads that were cut off, such as 'smkit/data/1/big', S3 keeps the parts" in check.finding
    assert "AbortIncompleteMultipartUpload" in check.fix
    monkeypatch.setattr("smkit.cloud.storage.timedelta", lambda days: timedelta(days * 10_000))
    assert "uploads" not in {check.subject for check in diagnose(wishes)}


def test_without_credentials_the_machine_is_still_looked_at(
    sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    checks = list(diagnose(Wishes()))
    assert [check.subject for check in checks] == ["smkit", "local jobs", "boto3", "credentials", "account"]
    assert checks[3].state == "problem"
    assert "aws configure" in checks[3].fix
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "region" in found("credentials").finding


def test_expired_credentials_and_instance_types_that_are_none(sagemaker: SageMaker) -> None:
    unknown = found("boto3", instance_type="ml.g5.xlrge")
    assert unknown.finding.endswith(f"knows no instance type 'ml.g5.xlrge'; did you mean '{GPU}'?")
    assert "pip install -U boto3" in unknown.fix
    sagemaker.settings(expired_keys=[KEYS["client"]])
    assert "expired" in found("credentials").finding


class Iam:
    """What IAM can say, which the test server cannot."""

    def __init__(self, **decisions: str) -> None:
        self.decisions = decisions
        self.asked = ""

    def get_role(self, RoleName: str) -> dict[str, Any]:  # noqa: N803 - AWS's own word
        return {"Role": {"Arn": f"arn:aws:iam::123456789012:role/team/{RoleName}"}}

    def simulate_principal_policy(self, PolicySourceArn: str, ActionNames: list[str]) -> dict[str, Any]:  # noqa: N803
        self.asked = PolicySourceArn
        results = [
            {"EvalActionName": name, "EvalDecision": self.decisions.get(name.partition(":")[2], "allowed")}
            for name in ActionNames
        ]
        return {"EvaluationResults": results}


class Sts:
    def __init__(self, caller: str) -> None:
        self.caller = caller

    def get_caller_identity(self) -> dict[str, Any]:
        return {"Account": "123456789012", "Arn": self.caller}


@pytest.mark.parametrize(
    ("caller", "decisions", "state", "finding"),
    [
        ("arn:aws:sts::123456789012:assumed-role/Dev/me", {}, "ok", "you may sagemaker:CreateTrainingJob, "),
        (
            "arn:aws:iam::123456789012:user/me",
            {"PassRole": "implicitDeny", "PutObject": "explicitDeny"},
            "warning",
            "not allowed on every resource: iam:PassRole, s3:PutObject",
        ),
        ("arn:aws:iam::123456789012:root", {}, "warning", "the root user may do everything"),
    ],
)
def test_permissions(caller: str, decisions: dict[str, str], state: str, finding: str) -> None:
    iam = Iam(**decisions)
    services = {"iam": iam, "sts": Sts(caller)}
    clients = Clients("us-east-1", "aws", services.__getitem__, lambda: clients)
    (check,) = permissions(clients)
    assert check.state == state
    assert check.finding.startswith(finding)
    assert iam.asked in ("", "arn:aws:iam::123456789012:role/team/Dev", caller)


def test_the_screen(sagemaker: SageMaker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["doctor", "--role", "Nobody", "--instance-type", GPU]) == 1
    lines = capsys.readouterr().out.split("\n")
    assert "  problem role              the account has no role 'Nobody'" in lines
    assert "                            fix: 'aws iam list-roles' shows those that it has" in lines
    assert lines[-2] == "1 problem, no warnings"
    assert main(["doctor", "--role", "Nobody", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert {"subject", "state", "finding", "fix"} == set(document[0])
