"""References to secrets: what travels in a secret's place, and is looked up where the value is needed.

A job's description, log and settings are readable by many, so a secret itself never travels; its name in AWS Secrets
Manager or in Parameter Store does. No value that is looked up here stands in an error or in a log. This room knows
nothing of hyperparameters, and boto3 only once there is a reference to look up.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from smkit.errors import ConfigurationError
from smkit.redaction import note

FORMS = "'secretsmanager:NAME', 'secretsmanager:NAME#KEY' (one value of a JSON object) or 'ssm:NAME'"

_PREFIX = re.compile(r"(secretsmanager|ssm):")
# API: what CreateSecret and PutParameter allow in a name; a secret of another account is named by its whole ARN.
_SECRET = re.compile(
    r"secretsmanager:(?P<name>(arn:[\w-]+:secretsmanager:[\w-]+:\d{12}:secret:)?[\w/+=.@-]{1,512})(#(?P<key>.+))?",
    re.ASCII,
)
_PARAMETER = re.compile(r"ssm:(?P<name>/?[\w.-]+(/[\w.-]+)*)(?P<key>)", re.ASCII)

_CONNECT_SECONDS = 5
_READ_SECONDS = 10
_ATTEMPTS = 3


def is_reference(text: str) -> bool:
    """Whether a text has the form of a reference."""
    return _match(text) is not None


def is_misspelled(text: str) -> bool:
    """Whether a text begins like a reference and is none."""
    return _PREFIX.match(text) is not None and not is_reference(text)


def resource_of(text: str, *, partition: str, region: str, account: str) -> str | None:
    """Return the ARN of what a reference names, for a policy; None if it is no reference."""
    reference = _match(text)
    if reference is None:
        return None
    service, name = text.partition(":")[0], reference["name"]
    # Secrets Manager adds six characters to the name in an ARN.
    resource = f"parameter/{name.lstrip('/')}" if service == "ssm" else f"secret:{name}-??????"
    return name if name.startswith("arn:") else f"arn:{partition}:{service}:{region}:{account}:{resource}"


def _match(text: str) -> re.Match[str] | None:
    return _SECRET.fullmatch(text) or _PARAMETER.fullmatch(text)


def read_secret(name: str) -> str:
    """Return a secret that an environment variable names: `launch(environment={"HF_TOKEN": "secretsmanager:hf"})`.

    Args:
        name: The variable. If it holds a reference ('secretsmanager:NAME', 'secretsmanager:NAME#KEY', 'ssm:NAME'), the
            secret is read from AWS by the job's role, or with this machine's credentials; anything else is returned
            as it is.

    Raises:
        ConfigurationError: There is no such variable, or the secret cannot be read.
    """
    value = os.environ.get(name)
    if value is None:
        raise ConfigurationError(
            f"there is no environment variable '{name}'",
            where=f"read_secret('{name}')",
            fix=f"launch with environment={{'{name}': 'secretsmanager:NAME'}}; in a shell, set the variable",
        )
    return look_up(value, os.environ)


def look_up(text: str, variables: Mapping[str, str]) -> str:
    """Return the value that a reference stands for; a text that is no reference is returned as it is.

    Args:
        text: The reference.
        variables: Environment variables, which name the region.

    Raises:
        ConfigurationError: The secret cannot be read.
    """
    if not _PREFIX.match(text):
        return text
    reference = _match(text)
    if reference is None:
        raise ConfigurationError(
            "a text begins like a reference to a secret, and is none", where="a secret", fix=f"write {FORMS}"
        )
    service = text.partition(":")[0]
    value = _fetch(service, reference["name"], variables)
    note(value)
    part = _part(value, reference["name"], reference["key"]) if reference["key"] else value
    note(part)
    return part


def _fetch(service: str, name: str, variables: Mapping[str, str]) -> str:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{service}:{name} cannot be looked up without boto3, which is not installed here",
            where=f"the secret {service}:{name}",
            fix="pip install boto3, or add it to requirements.txt beside the script",
        ) from error
    region = name.split(":")[3] if ":" in name else variables.get("AWS_REGION") or variables.get("SAGEMAKER_REGION")
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    try:
        session = boto3.session.Session()
        region = region or session.region_name
        client = session.client(service, region_name=region, config=config)
        if service == "ssm":
            return str(client.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"])
        answer = client.get_secret_value(SecretId=name)
    except ClientError as error:
        _refused(service, name, error.response.get("Error", {}), region or "")
    except BotoCoreError as error:
        _unreachable(service, name, error)
    if "SecretString" not in answer:
        raise _error(service, name, "holds bytes", "store a text; bytes cannot be a setting")
    return str(answer["SecretString"])


def _part(value: str, name: str, key: str) -> str:
    """Return one value of a secret that is a JSON object."""
    try:
        content = json.loads(value)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _error(
            "secretsmanager", name, f"is no JSON object, and '#{key}' asks for a value in one", f"drop '#{key}'"
        )
    if key not in content:
        raise _error("secretsmanager", name, f"has no key '{key}'", "correct what stands after '#'")
    part = content[key]
    return part if isinstance(part, str) else json.dumps(part)


def _refused(service: str, name: str, details: Mapping[str, Any], region: str) -> NoReturn:
    """Say what AWS has against it: a name that is not there, a right that is missing."""
    code, message = details.get("Code", ""), details.get("Message", "")
    if code in ("ResourceNotFoundException", "ParameterNotFound"):
        raise _error(service, name, f"does not exist in {region}", "create it there, or correct the name")
    if code != "AccessDeniedException":
        raise _error(service, name, f"cannot be read: {code}: {message}", "see what AWS says")
    if "kms" in message.lower():
        raise _error(service, name, "cannot be decrypted", f"allow kms:Decrypt on its key to the role; AWS: {message}")
    action = "ssm:GetParameter" if service == "ssm" else "secretsmanager:GetSecretValue"
    caller = re.search(r"arn:([\w-]+):\w+::(\d{12}):[\w-]+/([\w+=,.@/-]+)", message)
    partition, account, who = caller.groups() if caller else ("aws", "*", "")
    arn = resource_of(f"{service}:{name}", partition=partition, region=region, account=account)
    role = f"the role {who.partition('/')[0]}" if who else "the job's role"
    raise _error(service, name, "may not be read", f"allow {action} on {arn} to {role}")


def _unreachable(service: str, name: str, error: Exception) -> NoReturn:
    """Say why AWS could not even be asked."""
    kind = type(error).__name__
    if "Credential" in kind or "Token" in kind:
        fix = "sign in (aws sso login, AWS_PROFILE); a job with network isolation has no credentials: launch it without"
    elif "Region" in kind:
        fix = "set AWS_REGION"
    else:
        fix = (
            f"a job with network isolation, or in a VPC without an endpoint for {service}, reaches no AWS service: "
            f"launch without isolation, or add the endpoint"
        )
    raise _error(service, name, f"cannot be asked for: {error}", fix)


def _error(service: str, name: str, problem: str, fix: str) -> ConfigurationError:
    return ConfigurationError(f"{service}:{name} {problem}", where=f"the secret {service}:{name}", fix=fix)
