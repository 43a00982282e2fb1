"""Clients: the one seam between smkit and AWS, and how it comes to be from a profile, a session or nothing at all.

boto3 is imported when somebody connects, a client made when it is first used, and the caller's identity asked at most
once. Silence of AWS becomes an error in a minute, refusals for the moment are repeated. This room knows no job.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, cast

from smkit.cloud import answers
from smkit.cloud.aws_errors import aws_errors
from smkit.cloud.services import S3, Iam, Logs, SageMaker, Sts
from smkit.errors import ConfigurationError, did_you_mean

ATTEMPTS = 12
"""For a service that answers with "slow down" or an error of its own; botocore's four end in a second or two. Ten such
answers in a row are outlasted, if the pauses between them come to less than a minute."""
SILENT_ATTEMPTS = 3
"""For a service that does not answer at all: three time-outs are a minute, and twelve would be four."""
_POOL_CONNECTIONS = 24
_ELSEWHERE = {"pricing": "us-east-1"}
"""Services that answer for all regions from one place."""
_REREADABLE = frozenset(
    {
        *("env", "shared-credentials-file", "config-file", "custom-process", "assume-role", "sso", "login"),
        *("assume-role-with-web-identity", "container-role", "iam-role"),
    }
)
"""botocore's names of the places that hold renewed credentials later; keys given to a Session are in none of them."""


@dataclass(frozen=True)
class TimeOuts:
    """Seconds until silence counts as a failure, and how often to ask a busy service, and a silent one."""

    connect: float = 5.0
    read: float = 17.0
    attempts: int = ATTEMPTS
    silent_attempts: int = SILENT_ATTEMPTS


_INCIDENTAL = {"pricing": TimeOuts(connect=2.0, read=3.0, attempts=2, silent_attempts=1)}
"""Services whose answer is nice to have, and not waited for."""


@dataclass(frozen=True)
class Clients:
    """What smkit asks AWS through.

    Args:
        region: Where all happens.
        partition: `aws`, `aws-cn` or `aws-us-gov`: the second word of every ARN.
        make: Makes the client of a service by boto3's name.
        renew: Makes these clients anew, with credentials that are read again from where they came.
        profile_name: The profile in use, for messages; None for the default.
        known_account: The account, if it is known without asking.
    """

    region: str
    partition: str
    make: Callable[[str], Any] = field(repr=False)
    renew: Callable[[], Clients] = field(repr=False)
    profile_name: str | None = None
    known_account: str | None = None
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def client(self, service: str) -> Any:
        """Return the client of any service; there is one for each, and threads may share it."""
        with self._lock:
            if service not in self._made:
                try:
                    with aws_errors(f"the client of {service}", profile_name=self.profile_name):
                        self._made[service] = self.make(service)
                except ValueError as error:
                    raise ConfigurationError(
                        f"botocore makes no client of {service}: {error}",
                        where="AWS_ENDPOINT_URL, or ~/.aws/config",
                        fix="an endpoint is a URL such as https://host:443; unset it for AWS's own",
                    ) from error
            return self._made[service]

    @property
    def s3(self) -> S3:
        return cast("S3", self.client("s3"))

    @property
    def sagemaker(self) -> SageMaker:
        return cast("SageMaker", self.client("sagemaker"))

    @property
    def logs(self) -> Logs:
        return cast("Logs", self.client("logs"))

    @property
    def sts(self) -> Sts:
        return cast("Sts", self.client("sts"))

    @property
    def iam(self) -> Iam:
        return cast("Iam", self.client("iam"))

    @property
    def account(self) -> str:
        """The account's twelve digits."""
        return self.known_account or str(self._identity["Account"])

    @property
    def caller(self) -> str:
        """The ARN of whoever these credentials belong to."""
        return str(self._identity["Arn"])

    @property
    def _identity(self) -> Mapping[str, Any]:
        with self._lock:
            if "identity" not in self._made:
                with aws_errors("sts get-caller-identity", profile_name=self.profile_name):
                    self._made["identity"] = self.sts.get_caller_identity()
            return cast("Mapping[str, Any]", self._made["identity"])

    def with_account(self, account: str) -> Clients:
        """Return these clients for an account that is known, from a role's ARN say, so that STS is not asked."""
        same = replace(self, known_account=account)
        same._made.update(self._made)  # noqa: SLF001 - its own kind
        return same

    def reconnect(self) -> Clients:
        """Return fresh clients with credentials read again, after `is_expired`."""
        renewed = self.renew()
        return replace(renewed, known_account=self.known_account)


def connect(
    *,
    profile_name: str | None = None,
    session: Any = None,
    region: str | None = None,
    time_outs: TimeOuts | None = None,
) -> Clients:
    """Return the clients for a profile, for a session, or for what the AWS command line would use here.

    Args:
        profile_name: A profile of ~/.aws/config.
        session: A boto3 Session, or anything that has one as `.boto_session`, such as a Session of a SageMaker SDK.
        region: Goes before that of the session, the environment and the profile.
        time_outs: Seconds until silence counts as a failure.

    Raises:
        ConfigurationError: boto3 is not installed, the arguments contradict each other, there is no such profile, or
            nothing says which region.
    """
    if session is not None and profile_name is not None:
        raise ConfigurationError(
            f"both a session and profile_name '{profile_name}' were given",
            where="profile_name and session of launch",
            fix="give one of the two; a boto3 Session takes a profile itself: boto3.Session(profile_name=...)",
        )
    chosen = _new_session(profile_name) if session is None else _boto_session(session)
    place = region or chosen.region_name or os.environ.get("AWS_REGION")
    if not place:
        raise ConfigurationError(
            "nothing says which AWS region to use",
            where="region of launch",
            fix="launch(region='eu-west-1'), or export AWS_DEFAULT_REGION=eu-west-1, or 'aws configure set region "
            f"eu-west-1{f' --profile {profile_name}' if profile_name else ''}'",
        )
    return _clients(chosen, place, time_outs or TimeOuts())


def _clients(session: Any, region: str, time_outs: TimeOuts) -> Clients:
    def make(service: str) -> Any:
        patience = _INCIDENTAL.get(service, time_outs)
        place = _ELSEWHERE.get(service, region)
        client = session.client(service, region_name=place, config=_config(patience))
        answers.watch(client, silent_attempts=patience.silent_attempts)
        return client

    def renew() -> Clients:
        return _clients(_reread(session), region, time_outs)

    return Clients(region, _partition(session, region), make, renew, _profile(session))


def _config(time_outs: TimeOuts) -> Any:
    from botocore.config import Config

    return Config(
        connect_timeout=time_outs.connect,
        read_timeout=time_outs.read,
        retries={"mode": "adaptive", "total_max_attempts": time_outs.attempts},
        max_pool_connections=_POOL_CONNECTIONS,
        user_agent_extra=f"smkit/{version('smkit')}",
        tcp_keepalive=True,
    )


def _boto_session(given: Any) -> Any:
    session = getattr(given, "boto_session", given)
    if not (callable(getattr(session, "client", None)) and hasattr(session, "region_name")):
        raise ConfigurationError(
            f"the session is of type {type(given).__name__}",
            where="session of launch",
            fix="give a boto3.Session, or an object that has one as .boto_session",
        )
    return session


def _new_session(profile_name: str | None) -> Any:
    try:
        import boto3
        from botocore.exceptions import ProfileNotFound
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"launching on SageMaker needs {error.name}, which is not installed here",
            where="this Python environment",
            fix="pip install 'smkit[launch]'",
        ) from error
    try:
        with aws_errors("~/.aws/config"):
            return boto3.Session(profile_name=profile_name)
    except ConfigurationError as error:
        if not isinstance(error.__cause__, ProfileNotFound):
            raise
    raise _unknown_profile(profile_name)


def _unknown_profile(profile_name: str | None) -> ConfigurationError:
    import botocore.session

    variable = next((name for name in ("AWS_DEFAULT_PROFILE", "AWS_PROFILE") if os.environ.get(name)), "AWS_PROFILE")
    wanted = profile_name or os.environ.get(variable, "")
    # A bare session does not load the profile that is missing.
    profiles = sorted(botocore.session.Session(profile="default").available_profiles)
    return ConfigurationError(
        f"there is no AWS profile '{wanted}'{did_you_mean(wanted, profiles)}",
        where="profile_name of launch" if profile_name else variable,
        fix=f"one of: {', '.join(profiles)}" if profiles else "'aws configure' makes the first one",
    )


def _profile(session: Any) -> str | None:
    """Return the profile that a session was made for by name, not the one that holds without a choice."""
    name = getattr(session, "profile_name", None)
    return None if name in (None, "default") else str(name)


def _reread(session: Any) -> Any:
    """Return a session like this one whose credentials are read anew, or the same where they were handed to it."""
    credentials = session.get_credentials()
    if credentials is not None and credentials.method not in _REREADABLE:
        return session
    name = _profile(session)
    # A profile that is named outdoes keys in the environment, which it does not when a variable chooses it.
    by_variable = name in (os.environ.get("AWS_PROFILE"), os.environ.get("AWS_DEFAULT_PROFILE"))
    return _new_session(None if by_variable else name)


def _partition(session: Any, region: str) -> str:
    from botocore.exceptions import UnknownRegionError

    try:
        return str(session.get_partition_for_region(region))
    except UnknownRegionError as error:
        regions = [name for part in ("aws", "aws-cn", "aws-us-gov") for name in _regions(session, part)]
        raise ConfigurationError(
            f"there is no AWS region '{region}'{did_you_mean(region.lower(), regions)}",
            where="region of launch, or the session, the environment or the profile, where launch was given none",
            fix="a region's short name, such as eu-central-1 for Frankfurt",
        ) from error


def _regions(session: Any, partition: str) -> list[str]:
    return list(session.get_available_regions("sagemaker", partition_name=partition))
