"""The execution role: which one a job gets, where it came from, and how to make one where there is none.

It is looked for where the user would: the argument, SMKIT_ROLE, the notebook's metadata, the caller's own role. This
room changes nothing in the account.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from smkit.cloud.aws import Clients
from smkit.cloud.aws_errors import aws_errors, error_code, is_passing
from smkit.errors import ConfigurationError, SmkitError

ROLE_VARIABLE = "SMKIT_ROLE"
NOTEBOOK_METADATA = Path("/opt/ml/metadata/resource-metadata.json")
"""What SageMaker writes into the notebooks and spaces of Studio (API: ExecutionRoleArn)."""
_ROLE_ARN = re.compile(r"arn:(aws[a-z-]*):iam::(\d{12}):role/[\w+=,.@/-]+", re.ASCII)
_ASSUMED_ROLE = re.compile(r"arn:(aws[a-z-]*):sts::(\d{12}):assumed-role/([\w+=,.@-]+)/.*", re.ASCII)
_ROLE_NAME = re.compile(r"/?((?:[\w+=,.@-]+/)*)([\w+=,.@-]{1,64})", re.ASCII)
_MADE_BY_CONSOLE = "AmazonSageMaker-ExecutionRole-"
"""SageMaker's console puts the roles that it makes below /service-role/."""
_SINGLE_SIGN_ON = "AWSReservedSSO_"


def find_role(
    role: str | None, clients: Clients, *, environ: Mapping[str, str], metadata_file: Path = NOTEBOOK_METADATA
) -> tuple[str, str]:
    """Return the ARN of the role that a job gets, and where it was found.

    Args:
        role: The argument of launch: an ARN, or a role's name.
        clients: Asked who the caller is and for a role's path, each only where it matters.
        environ: The environment, for SMKIT_ROLE.
        metadata_file: Where a notebook's metadata lie.

    Raises:
        ConfigurationError: What was given is no role, or there is none; then with the commands that make one.
    """
    if role:
        return _arn(role, clients, "role of launch"), "argument"
    if environ.get(ROLE_VARIABLE):
        return _arn(environ[ROLE_VARIABLE], clients, ROLE_VARIABLE), ROLE_VARIABLE
    noted = _notebook_role(metadata_file)
    if noted:
        return _arn(noted, clients, str(metadata_file)), "the notebook's metadata"
    assumed = _ASSUMED_ROLE.fullmatch(clients.caller)
    if assumed and not assumed[3].startswith(_SINGLE_SIGN_ON):
        return _named("", assumed[3], clients, "the caller's own role"), "the caller's own role"
    raise _no_role(clients)


def account_of(role_arn: str) -> str:
    """Return the account of a role's ARN, which is the caller's too: no one may pass a role of another account."""
    return role_arn.split(":")[4]


def _arn(given: str, clients: Clients, where: str) -> str:
    """Return the ARN that a user means by a role."""
    found = _ROLE_ARN.fullmatch(given)
    assumed = _ASSUMED_ROLE.fullmatch(given)
    if found and found[1] != clients.partition:
        raise ConfigurationError(
            f"the role '{given}' is of the partition '{found[1]}', and {clients.region} is in '{clients.partition}'",
            where=where,
            fix=f"give a role of the account in {clients.region}, or another region",
        )
    if found:
        return given
    if assumed:
        return _named("", assumed[3], clients, where)
    name = _ROLE_NAME.fullmatch(given)
    if not name:
        raise ConfigurationError(
            f"'{given}' is no role",
            where=where,
            fix=f"give its ARN, arn:{clients.partition}:iam::<account>:role/<name>, or its name; 'aws iam list-roles'",
        )
    return _named(name[1], name[2], clients, where)


def _named(path: str, name: str, clients: Clients, where: str) -> str:
    """Return the ARN of a role by its name, with its path asked of IAM where the name does not say it."""
    if not path:
        try:
            with aws_errors(f"iam get-role {name}", profile_name=clients.profile_name):
                return str(clients.iam.get_role(RoleName=name)["Role"]["Arn"])
        except SmkitError as error:
            if error_code(error) == "NoSuchEntity":
                raise ConfigurationError(
                    f"the account has no role '{name}'", where=where, fix="'aws iam list-roles' shows those that it has"
                ) from error
            if error_code(error) not in ("AccessDenied", "AccessDeniedException") and not is_passing(error):
                raise
        # Who may launch need not be allowed to look at roles, nor reach IAM from a closed network; most have no path.
        path = "service-role/" if name.startswith(_MADE_BY_CONSOLE) else ""
    return f"arn:{clients.partition}:iam::{clients.account}:role/{path}{name}"


def _notebook_role(metadata_file: Path) -> str | None:
    try:
        noted = json.loads(metadata_file.read_bytes())
    except (OSError, ValueError):
        return None
    arn = noted.get("ExecutionRoleArn") if isinstance(noted, dict) else None
    return arn if isinstance(arn, str) and arn else None


def _no_role(clients: Clients) -> ConfigurationError:
    caller = clients.caller
    reason = (
        "SageMaker cannot take over a role of single sign-on"
        if _SINGLE_SIGN_ON in caller
        else "SageMaker needs a role, and a user is none"
    )
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ],
    }
    option = f" --profile {clients.profile_name}" if clients.profile_name else ""
    policy = f"arn:{clients.partition}:iam::aws:policy/AmazonSageMakerFullAccess"
    commands = (
        f"aws iam create-role --role-name SmkitTraining{option} --assume-role-policy-document '{json.dumps(trust)}'",
        f"aws iam attach-role-policy --role-name SmkitTraining{option} --policy-arn {policy}",
        f"export {ROLE_VARIABLE}=SmkitTraining",
    )
    return ConfigurationError(
        f"no role for the job: you are {caller}, and {reason}",
        where=f"role of launch, {ROLE_VARIABLE}, {NOTEBOOK_METADATA}, your own role",
        fix="give the role that your team uses (role=...), or make one, once:\n"
        + "\n".join(f"         {command}" for command in commands)
        + "\n         It reads buckets with 'sagemaker' in their name; for others: AmazonS3ReadOnlyAccess",
    )
