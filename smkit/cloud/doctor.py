"""The doctor: what a launch needs of this machine and of the account, looked at one by one, with what to do about each.

Everything here only reads; a check that fails, or that these credentials may not make, ends no other. This room starts
nothing and shows nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from smkit.cloud.aws import Clients, connect
from smkit.cloud.aws_errors import aws_errors, error_code
from smkit.cloud.images import find_image, image_warnings
from smkit.cloud.pages import pages
from smkit.cloud.role import find_role
from smkit.cloud.service_model import ServiceModel
from smkit.cloud.storage import Storage
from smkit.contract import default_bucket
from smkit.errors import SmkitError, did_you_mean

_DENIED = frozenset({"AccessDenied", "AccessDeniedException"})
State = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """What one look has found.

    Args:
        subject: What was looked at.
        state: `note` where nothing need be wrong: it could not be looked at, or not every launch needs it.
        finding: What there is.
        fix: What to do about it, where something is to be done.
    """

    subject: str
    state: State
    finding: str
    fix: str = ""


@dataclass(frozen=True)
class Wishes:
    """What a launch would be given, and the doctor is to look at; None stands for launch's own choice."""

    instance_type: str | None = None
    role: str | None = None
    bucket: str | None = None
    profile_name: str | None = None
    region: str | None = None


def diagnose(wishes: Wishes) -> Iterator[Check]:
    """Yield what each check finds, as soon as it has found it."""
    yield from _machine(wishes)
    try:
        clients = connect(profile_name=wishes.profile_name, region=wishes.region)
        caller = clients.caller
    except SmkitError as error:
        yield Check("credentials", "problem", error.what, error.fix)
        yield Check("account", "note", "role, bucket, permissions and quota: AWS cannot be asked without credentials")
        return
    kind = "temporary credentials" if ":assumed-role/" in caller else "keys that do not expire"
    profile = f", profile '{clients.profile_name}'" if clients.profile_name else ""
    yield Check("credentials", "ok", f"{caller}: {kind}{profile}")
    yield Check("region", "ok", f"{clients.region}, in account {clients.account}")
    yield from account_checks(clients, wishes)


def account_checks(clients: Clients, wishes: Wishes) -> Iterator[Check]:
    """Yield what the checks of the account find, each of them whatever becomes of the others."""
    checks: dict[str, Callable[[Clients, Wishes], Iterator[Check]]] = {
        "role": _role,
        "bucket": _bucket,
        "permissions": lambda clients, _: permissions(clients),
        "image": _image,
        "quota": _quota,
    }
    for subject, check in checks.items():
        try:
            yield from check(clients, wishes)
        except SmkitError as error:
            if error_code(error) in _DENIED:
                yield Check(
                    subject, "note", f"these credentials may not look at it, which a launch need not: {error.what}"
                )
            else:
                yield Check(subject, "problem", error.what, error.fix)


# --- this machine -----------------------------------------------------------------------------------------------------


def _machine(wishes: Wishes) -> Iterator[Check]:
    version = importlib.metadata.version("smkit")
    yield Check("smkit", "ok", f"{version} on Python {platform.python_version()}")
    yield _toolkit()
    if importlib.util.find_spec("boto3") is None:
        yield Check("boto3", "problem", "is not installed", "pip install 'smkit[launch]'")
        return
    boto3 = importlib.metadata.version("boto3")
    known = ServiceModel.load().enum("ResourceConfig.InstanceType")
    wanted = wishes.instance_type
    if wanted in (None, "local", *known):
        knows = f" and knows {wanted}" if wanted in known else ""
        yield Check("boto3", "ok", f"{boto3}{knows}")
        return
    yield Check(
        "boto3",
        "problem",
        f"{boto3} knows no instance type '{wanted}'{did_you_mean(str(wanted), known)}",
        "correct the name; if the type is younger than this boto3: pip install -U boto3",
    )


def _toolkit() -> Check:
    if platform.system() != "Linux":
        return Check("local jobs", "note", f"the toolkit runs on Linux, and this is {platform.system()}")
    if importlib.util.find_spec("sagemaker_pytorch_container") is None:
        fix = "pip install 'smkit[local]', if you want to run jobs on this machine"
        return Check("local jobs", "warning", "the sagemaker-training toolkit is not installed", fix)
    return Check("local jobs", "ok", f"sagemaker-training {importlib.metadata.version('sagemaker-training')}")


# --- the account ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _asking(clients: Clients, call: str) -> Iterator[None]:
    with aws_errors(call, profile_name=clients.profile_name):
        yield


def _role(clients: Clients, wishes: Wishes) -> Iterator[Check]:
    arn, origin = find_role(wishes.role, clients, environ=os.environ)
    name = arn.rpartition("/")[2]
    iam = clients.client("iam")
    with _asking(clients, f"iam get-role {name}"):
        role = iam.get_role(RoleName=name)["Role"]
        policies = [
            *(policy["PolicyName"] for policy in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]),
            *iam.list_role_policies(RoleName=name)["PolicyNames"],
        ]
    if not _trusts_sagemaker(role["AssumeRolePolicyDocument"]):
        yield Check("role", "problem", f"{arn} does not let SageMaker assume it", _trust_command(name))
    elif not policies:
        yield Check(
            "role",
            "problem",
            f"{arn} has no policy, so a job could neither read S3 nor write its log",
            f"aws iam attach-role-policy --role-name {name} "
            f"--policy-arn arn:{clients.partition}:iam::aws:policy/AmazonSageMakerFullAccess",
        )
    else:
        yield Check("role", "ok", f"{arn} ({origin}): {', '.join(policies)}")


def _trusts_sagemaker(document: Mapping[str, Any]) -> bool:
    return any(
        statement.get("Effect") == "Allow"
        and "sagemaker.amazonaws.com" in _list(_services(statement.get("Principal")))
        and {"sts:AssumeRole", "sts:*", "*"} & set(_list(statement.get("Action")))
        for statement in _list(document.get("Statement"))
    )


def _services(principal: Any) -> Any:
    return principal.get("Service") if isinstance(principal, dict) else principal


def _list(value: Any) -> Sequence[Any]:
    """Return what IAM writes as one thing or as a list of them as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _trust_command(name: str) -> str:
    policy = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", '
        '"Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
    )
    return f"aws iam update-assume-role-policy --role-name {name} --policy-document '{policy}'"


def _bucket(clients: Clients, wishes: Wishes) -> Iterator[Check]:
    bucket = wishes.bucket or default_bucket(clients.region, clients.account)
    storage = Storage(clients, bucket, clients.account)
    try:
        is_there = storage.is_there()
        if not is_there and (missing := storage.not_there()):
            raise missing
    except SmkitError as error:
        yield Check("bucket", "problem", error.what, error.fix)
        return
    if not is_there:
        yield Check("bucket", "ok", f"{bucket} is not there yet; the first launch makes it")
        return
    yield Check("bucket", "ok", f"{bucket} is yours")
    # Who may upload need not be allowed to look at this.
    with contextlib.suppress(SmkitError):
        if left := storage.unfinished_uploads():
            yield Check(
                "uploads",
                "warning",
                f"of {len(left)} uploads that were cut off, such as '{left[0]}', S3 keeps the parts, and bills them",
                "give the bucket a lifecycle rule with AbortIncompleteMultipartUpload, or abort them one by one with "
                "'aws s3api abort-multipart-upload'",
            )


_ACTIONS = (
    *("sagemaker:CreateTrainingJob", "sagemaker:AddTags", "sagemaker:DescribeTrainingJob"),
    *("sagemaker:StopTrainingJob", "iam:PassRole", "s3:GetObject", "s3:PutObject", "s3:ListBucket"),
    *("logs:DescribeLogStreams", "logs:GetLogEvents"),
)
"""Of a launch, of who follows its job and of who stops it; a job is made with tags, which takes a right of its own."""


def permissions(clients: Clients) -> Iterator[Check]:
    """Ask IAM what it would say to each call of a launch, which makes none of them."""
    caller = clients.caller
    if caller.endswith(":root"):
        yield Check(
            "permissions", "warning", "the root user may do everything", "work as a user or role of fewer rights"
        )
        return
    try:
        denied = _denied_actions(clients, caller)
    except SmkitError as error:
        yield Check("permissions", "note", f"IAM does not tell what these credentials may do ({error_code(error)})")
        return
    if denied:
        # A policy that allows an action on some resources only is a denial to a question that names none.
        yield Check(
            "permissions",
            "warning",
            f"not allowed on every resource: {', '.join(denied)}",
            "if a launch is denied one of these, ask for it on the bucket, role or job that the message names",
        )
    else:
        yield Check("permissions", "ok", f"you may {', '.join(_ACTIONS)}")


def _denied_actions(clients: Clients, caller: str) -> Sequence[str]:
    iam = clients.client("iam")
    with _asking(clients, "iam simulate-principal-policy"):
        if ":assumed-role/" in caller:
            # The ARN of a session lacks the path of the role's, which only IAM knows.
            caller = iam.get_role(RoleName=caller.split("/")[1])["Role"]["Arn"]
        answer = iam.simulate_principal_policy(PolicySourceArn=caller, ActionNames=list(_ACTIONS))
    return [result["EvalActionName"] for result in answer["EvaluationResults"] if result["EvalDecision"] != "allowed"]


def _image(clients: Clients, wishes: Wishes) -> Iterator[Check]:
    types = [wishes.instance_type] if wishes.instance_type not in (None, "local") else ["ml.m5.xlarge"]
    image, problems = find_image(None, None, region=clients.region, instance_types=[str(name) for name in types])
    for problem in problems:
        what, _, fix = problem.rpartition("; ")
        yield Check("image", "problem", what or problem, fix if what else "")
    if image is not None:
        warnings = image_warnings(image, [str(name) for name in types], datetime.now(timezone.utc).date())
        yield Check("image", "ok", f"PyTorch {image.release.version} for {types[0]}: {image.uri}")
        yield from (Check("image", "warning", warning) for warning in warnings)


_USAGES: dict[str, tuple[str, State]] = {
    "training job usage": ("on demand", "problem"),
    "spot training job usage": ("spot", "note"),
    "training warm pool usage": ("warm pool", "note"),
}


def _quota(clients: Clients, wishes: Wishes) -> Iterator[Check]:
    wanted = wishes.instance_type
    if wanted in (None, "local"):
        yield Check("quota", "note", "give --instance-type to see how many instances the account may use at once")
        return
    names = {f"{wanted} for {usage}": about for usage, about in _USAGES.items()}
    found = _quotas(clients, names)
    for name, (usage, weight) in names.items():
        quota = found.get(name)
        subject = f"quota, {usage}"
        if quota is None:
            yield Check(subject, "note", f"there is no quota '{name}'")
        elif "Value" not in quota:
            yield Check(subject, "note", f"AWS does not tell the quota '{name}'")
        elif quota["Value"] > 0:
            yield Check(subject, "ok", f"{quota['Value']:g} x {wanted} at once")
        else:
            fix = (
                "aws service-quotas request-service-quota-increase --service-code sagemaker "
                f"--quota-code {quota['QuotaCode']} --desired-value 1 --region {clients.region}"
            )
            yield Check(subject, weight, f"0 x {wanted}: the account may use none", fix)


def _quotas(clients: Clients, names: Mapping[str, object]) -> dict[str, Any]:
    """Return the quotas of these names; there are some two thousand, and no way to ask for one by its name."""
    service = clients.client("service-quotas")
    doing, found = "service-quotas list-service-quotas --service-code sagemaker", dict[str, Any]()

    def page(**token: str) -> Mapping[str, Any]:
        with _asking(clients, doing):
            answer: Mapping[str, Any] = service.list_service_quotas(ServiceCode="sagemaker", MaxResults=100, **token)
            return answer

    for each in pages(page, doing):
        found |= {quota["QuotaName"]: quota for quota in each["Quotas"] if quota["QuotaName"] in names}
        if len(found) == len(names):
            break
    return found
