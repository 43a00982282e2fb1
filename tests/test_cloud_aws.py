"""The seam to AWS: how clients come to be, which role a job gets, and what is said when AWS refuses."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import exceptions as botocore_errors
from botocore.exceptions import ClientError
from sagemaker.fixture import SageMaker
from sagemaker.wire import KEYS

from smkit.cloud.aws import TimeOuts, connect
from smkit.cloud.aws_errors import aws_errors, error_code, is_expired, is_passing
from smkit.cloud.connection import Connection
from smkit.cloud.prices import ask_prices
from smkit.cloud.role import account_of, find_role
from smkit.errors import ConfigurationError, JobError

pytestmark = pytest.mark.aws


@pytest.fixture
def profiles(tmp_path: Path, sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credentials file with the profiles `default` and `research`, and no keys in the environment."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    write_profiles(file, KEYS["client"])
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    return file


def write_profiles(file: Path, key: str) -> None:
    text = f"aws_access_key_id = {key}\naws_secret_access_key = secret\n"
    file.write_text(f"[default]\n{text}[research]\n{text}region = eu-west-1\n")


def test_clients_know_region_partition_and_account_and_ask_once(sagemaker: SageMaker) -> None:
    clients = connect()
    assert (clients.region, clients.partition, clients.profile_name) == ("us-east-1", "aws", None)
    assert connect(region="cn-north-1").partition == "aws-cn"
    assert clients.with_account("1" * 12).account == "1" * 12
    assert sagemaker.actions() == []
    assert clients.account == clients.account == sagemaker.account
    assert clients.caller.startswith(f"arn:aws:sts::{sagemaker.account}:")
    assert sagemaker.actions() == ["GetCallerIdentity"]
    (request,) = sagemaker.requests()
    assert "smkit/" in request.headers["user-agent"]
    assert clients.s3 is clients.s3
    assert clients.client("service-quotas").meta.service_model.service_name == "service-quotas"


def test_a_session_is_that_of_boto3_or_of_an_sdk(
    sagemaker: SageMaker, profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect(profile_name="research").region == "us-east-1", "the environment outdoes the profile, as for the CLI"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert connect(profile_name="research").region == "eu-west-1"

    class SdkSession:
        boto_session = boto3.Session(profile_name="research")

    for session in (SdkSession(), SdkSession.boto_session):
        clients = connect(session=session)
        assert (clients.region, clients.profile_name) == ("eu-west-1", "research")
        assert clients.account == sagemaker.account
    assert connect(session=SdkSession(), region="us-west-2").region == "us-west-2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"profile_name": "reserch"},
            "there is no AWS profile 'reserch'; did you mean 'research'?\n"
            "  where: profile_name of launch\n"
            "  fix:   one of: default, research",
        ),
        (
            {"profile_name": "research", "session": object()},
            "both a session and profile_name 'research' were given\n"
            "  where: profile_name and session of launch\n"
            "  fix:   give one of the two; a boto3 Session takes a profile itself: boto3.Session(profile_name=...)",
        ),
        (
            {"session": "research"},
            "the session is of type str\n"
            "  where: session of launch\n"
            "  fix:   give a boto3.Session, or an object that has one as .boto_session",
        ),
        (
            {"region": "EU_WEST_1"},
            "there is no AWS region 'EU_WEST_1'; did you mean 'eu-west-1'?\n"
            "  where: region of launch, or the session, the environment or the profile, where launch was given none\n"
            "  fix:   a region's short name, such as eu-central-1 for Frankfurt",
        ),
    ],
)
def test_arguments_that_lead_nowhere(profiles: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect(**arguments)
    assert str(caught.value) == message


def test_surroundings_that_lead_nowhere(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_PROFILE", "reserch")
        with pytest.raises(ConfigurationError, match="there is no AWS profile 'reserch'; did you") as caught:
            connect()
        assert caught.value.where == "AWS_PROFILE"
    with monkeypatch.context() as patch:
        patch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(ConfigurationError, match="nothing says which AWS region to use") as caught:
            connect()
        assert "launch(region='eu-west-1'), or export AWS_DEFAULT_REGION=eu-west-1, or 'aws con" in caught.value.fix
        patch.setenv("AWS_REGION", "eu-north-1")
        assert connect().region == "eu-north-1"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "boto3", None)
        with pytest.raises(ConfigurationError, match="needs boto3, which is not installed here") as caught:
            connect()
        assert caught.value.fix == "pip install 'smkit[launch]'"
    profiles.write_text("[default\n")
    with pytest.raises(ConfigurationError, match="Unable to parse config file"):
        connect()
    profiles.write_text("")
    with pytest.raises(ConfigurationError, match="no usable AWS credentials: Unable to locate credentials"):
        _ = connect().account


def test_renewed_credentials_are_seen_after_a_reconnect(sagemaker: SageMaker, profiles: Path) -> None:
    sagemaker.settings(expired_keys=["AKIAOLD0000000000000"])
    write_profiles(profiles, "AKIAOLD0000000000000")
    clients = connect(profile_name="research")
    with pytest.raises(ConfigurationError) as caught:
        _ = clients.account
    assert is_expired(caught.value)
    assert str(caught.value) == (
        "the AWS credentials have expired (ExpiredToken): The security token included in the request is expired\n"
        "  where: sts get-caller-identity\n"
        "  fix:   renew them as you got them, or with 'aws sso login --profile research'; then repeat"
    )
    write_profiles(profiles, KEYS["client"])
    renewed = clients.reconnect()
    assert renewed.account == sagemaker.account
    assert (renewed.region, renewed.profile_name) == (clients.region, "research")


def test_keys_that_were_handed_over_stay(sagemaker: SageMaker) -> None:
    session = boto3.Session("AKIAGIVEN00000000000", "secret", region_name="eu-west-1")
    clients = connect(session=session).with_account(sagemaker.account).reconnect()
    assert clients.known_account == sagemaker.account
    _ = clients.caller
    assert sagemaker.requests()[0].access_key == "AKIAGIVEN00000000000"


@pytest.fixture
def silent_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that takes connections and never says a word: its address, and the connections."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connections.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", connections
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in connections:
        connection.close()


def test_silence_is_an_error_after_three_attempts(
    sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch, silent_server: tuple[str, list[socket.socket]]
) -> None:
    address, connections = silent_server
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(ConfigurationError, match="AWS cannot be reached: Read timeout on endpoint URL") as caught:
        _ = connect(time_outs=TimeOuts(connect=1, read=0.2)).account
    assert is_passing(caught.value)
    assert len(connections) == 3


def test_prices_are_not_waited_for(
    sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch, silent_server: tuple[str, list[socket.socket]]
) -> None:
    address, connections = silent_server
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", address)
    assert ask_prices(Connection(connect()), ["ml.g5.xlarge", "ml.g6.xlarge"]) == {}
    assert len(connections) == 1


def test_an_endpoint_that_is_no_url_is_said(sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(ConfigurationError, match=r"no client of sts: Invalid endpoint: not a url\n.*AWS_ENDPOINT_URL"):
        _ = connect().account


def test_a_service_that_is_busy_is_asked_again(sagemaker: SageMaker) -> None:
    sagemaker.settings(throttled={"GetCallerIdentity": 1})
    assert connect().account == sagemaker.account
    assert sagemaker.actions() == ["GetCallerIdentity"] * 2


def refusal(code: str, message: str = "because", operation: str = "PutObject", status: int = 400) -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (
            refusal(
                "AccessDeniedException",
                "User: arn:aws:sts::1:assumed-role/a/b is not authorized to perform: sagemaker:CreateTrainingJob on "
                "resource: arn:aws:sagemaker:x",
            ),
            "arn:aws:sts::1:assumed-role/a/b may not sagemaker:CreateTrainingJob on arn:aws:sagemaker:x: User:",
            "ask for the permission sagemaker:CreateTrainingJob, or use a profile",
        ),
        (
            refusal("AccessDenied", "Access Denied", "ListObjectsV2"),
            "AWS denies ListObjectsV2, which needs s3:ListBucket: Access Denied",
            "'aws sts get-caller-identity --profile p' and ask for s3:ListBucket",
        ),
        (
            refusal("AccessDeniedException", "no", "ListServiceQuotas"),
            "AWS denies ListServiceQuotas: no",
            "ask for the permission to do it",
        ),
        (
            botocore_errors.ConfigParseError(path="~/.aws/config"),
            "Unable to parse config file: ~/.aws/config",
            "mend ~/.aws/config",
        ),
        (refusal("ThrottlingException"), "AWS is throttling PutObject (ThrottlingException)", "wait a minute"),
        (
            refusal("InvalidClientTokenId"),
            "AWS does not accept these credentials here (InvalidClientTokenId): because",
            "your account has not enabled this region",
        ),
        (refusal("RequestTimeTooSkewed"), "AWS refuses the time of this machine", "set this machine's clock"),
        (
            refusal("ResourceLimitExceeded", "The limit is 0", "CreateTrainingJob"),
            "AWS refused CreateTrainingJob (ResourceLimitExceeded): The limit is 0",
            "mend what AWS says",
        ),
        (
            botocore_errors.UnauthorizedSSOTokenError(),
            "the AWS credentials have expired (UnauthorizedSSOTokenError)",
            "'aws sso login --profile p'",
        ),
        (botocore_errors.LoginRefreshRequired(), "the AWS credentials have expired", "'aws login --profile p'"),
        (botocore_errors.NoCredentialsError(), "no usable AWS credentials", "'aws configure' or 'aws sso login'"),
        (
            botocore_errors.EndpointConnectionError(endpoint_url="https://sts.eu-wset-1.amazonaws.com"),
            "AWS cannot be reached: Could not connect to the endpoint URL",
            "the spelling of the region",
        ),
    ],
)
def test_what_aws_refuses_is_said_with_its_cure(error: Exception, what: str, fix: str) -> None:
    with pytest.raises(JobError) as caught, aws_errors("the job 'a'", kind=JobError, profile_name="p"):
        raise error
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == "the job 'a'"
    assert error_code(caught.value) == error_code(error) != ""


def test_errors_of_others_pass_untouched() -> None:
    with pytest.raises(KeyError), aws_errors("anything"):
        raise KeyError("own")
    assert error_code(KeyError("own")) == ""
    assert is_passing(refusal("InternalFailure", status=500))
    assert not is_passing(refusal("ValidationException"))


# The role


def test_a_role_is_looked_for_where_a_user_would(sagemaker: SageMaker, tmp_path: Path) -> None:
    clients = connect()
    metadata = tmp_path / "resource-metadata.json"
    metadata.write_text(json.dumps({"ExecutionRoleArn": "arn:aws:iam::123456789012:role/service-role/Notebook"}))
    variable = {"SMKIT_ROLE": "arn:aws:iam::123456789012:role/FromVariable"}
    argument = "arn:aws:iam::123456789012:role/FromArgument"
    assert find_role(argument, clients, environ=variable, metadata_file=metadata) == (argument, "argument")
    assert find_role(None, clients, environ=variable, metadata_file=metadata) == (variable["SMKIT_ROLE"], "SMKIT_ROLE")
    found = find_role(None, clients, environ={}, metadata_file=metadata)
    assert found == ("arn:aws:iam::123456789012:role/service-role/Notebook", "the notebook's metadata")
    assert account_of(found[0]) == "123456789012"
    assert sagemaker.actions() == [], "an ARN needs nobody to be asked"


class Blind:
    """An IAM that lets nobody look at roles."""

    def get_role(self, **_: Any) -> dict[str, Any]:
        raise refusal("AccessDenied", operation="GetRole")


def test_a_role_may_be_named(sagemaker: SageMaker) -> None:
    clients = connect()
    sagemaker.client("iam").create_role(RoleName="Deep", Path="/team/", AssumeRolePolicyDocument="{}")
    assert find_role("Deep", clients, environ={})[0] == "arn:aws:iam::123456789012:role/team/Deep"
    assert find_role("team/Deep", clients, environ={})[0] == "arn:aws:iam::123456789012:role/team/Deep"
    assert find_role("arn:aws:sts::123456789012:assumed-role/Deep/me", clients, environ={})[0].endswith("team/Deep")
    blind = replace(clients, make=lambda service: Blind() if service == "iam" else clients.client(service))
    assert find_role("Deep", blind, environ={})[0] == "arn:aws:iam::123456789012:role/Deep"
    made_by_console = "AmazonSageMaker-ExecutionRole-20261125T120000"
    found = find_role(made_by_console, blind, environ={})[0]
    assert found == f"arn:aws:iam::123456789012:role/service-role/{made_by_console}"
    with pytest.raises(ConfigurationError, match="the account has no role 'Deeep'"):
        find_role(None, clients, environ={"SMKIT_ROLE": "Deeep"})
    with pytest.raises(ConfigurationError, match="'arn:aws:iam::123456789012:user/me' is no role"):
        find_role("arn:aws:iam::123456789012:user/me", clients, environ={})
    with pytest.raises(ConfigurationError, match="is of the partition 'aws-cn', and us-east-1 is in 'aws'"):
        find_role("arn:aws-cn:iam::123456789012:role/Deep", clients, environ={})


def assumed(sagemaker: SageMaker, role: str) -> boto3.Session:
    """Return the session of somebody who has taken over this role."""
    arn = f"arn:aws:iam::{sagemaker.account}:role/{role}"
    keys = sagemaker.client("sts").assume_role(RoleArn=arn, RoleSessionName="me")["Credentials"]
    return boto3.Session(
        keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], region_name=sagemaker.region
    )


def test_the_callers_own_role_serves_unless_it_is_of_single_sign_on(sagemaker: SageMaker, tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    clients = connect(session=assumed(sagemaker, "SmkitTests"))
    found = find_role(None, clients, environ={}, metadata_file=nowhere)
    assert found == (sagemaker.role, "the caller's own role")
    clients = connect(session=assumed(sagemaker, "AWSReservedSSO_Admin_1"))
    with pytest.raises(ConfigurationError, match="SageMaker cannot take over a role of single sign-on"):
        find_role(None, clients, environ={}, metadata_file=nowhere)


def test_who_has_no_role_gets_the_commands_that_make_one(sagemaker: SageMaker, profiles: Path, tmp_path: Path) -> None:
    (tmp_path / "none").write_text("no JSON")
    with pytest.raises(ConfigurationError) as caught:
        find_role(None, connect(profile_name="research"), environ={}, metadata_file=tmp_path / "none")
    assert str(caught.value) == (
        "no role for the job: you are arn:aws:sts::123456789012:user/moto, and SageMaker needs a role, and a user is "
        "none\n"
        "  where: role of launch, SMKIT_ROLE, /opt/ml/metadata/resource-metadata.json, your own role\n"
        "  fix:   give the role that your team uses (role=...), or make one, once:\n"
        "         aws iam create-role --role-name SmkitTraining --profile research --assume-role-policy-document "
        '\'{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": '
        '"sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}]}\'\n'
        "         aws iam attach-role-policy --role-name SmkitTraining --profile research --policy-arn "
        "arn:aws:iam::aws:policy/AmazonSageMakerFullAccess\n"
        "         export SMKIT_ROLE=SmkitTraining\n"
        "         It reads buckets with 'sagemaker' in their name; for others: AmazonS3ReadOnlyAccess"
    )
