"""Secrets: a reference travels, the value is read in the job, and neither an error nor a file shows it."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pydantic import BaseModel, Field, SecretBytes, SecretStr

import smkit
from smkit import wire
from smkit.launch_arguments import environment_warnings
from smkit.secret_references import FORMS, is_reference

pytestmark = pytest.mark.aws

CANARY = "canary-7f3a"


class Hub(BaseModel, frozen=True, extra="forbid"):
    url: str = "ssm:/team/token"
    token: SecretStr | None = None


class Settings(smkit.Hyperparameters):
    token: SecretStr = SecretStr("none")
    key: SecretBytes | None = None
    hub: Hub = Hub()
    more: tuple[SecretStr, ...] = ()
    by_host: dict[str, SecretStr] = Field(default_factory=dict)
    note: str = ""


class Standard(smkit.Hyperparameters):
    token: SecretStr = SecretStr("secretsmanager:plain")


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    access: dict[str, Any] = {
        "region_name": "us-west-2",
        "endpoint_url": url,
        "aws_access_key_id": "testing",
        "aws_secret_access_key": "testing",
    }
    secrets, parameters = boto3.client("secretsmanager", **access), boto3.client("ssm", **access)
    for name, text in {
        "plain": f"{CANARY}-plain",
        "team/json": json.dumps({"token": f"{CANARY}-part", "number": 7}),
        "broken": f'{{"{CANARY}',
    }.items():
        secrets.create_secret(Name=name, SecretString=text)
    secrets.create_secret(Name="bytes", SecretBinary=CANARY.encode())
    for name in ("/team/token", "flat"):
        parameters.put_parameter(Name=name, Value=f"{CANARY}-{name}", Type="SecureString")
    yield url
    server.stop()


@pytest.fixture
def aws(service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name, value in {
        "AWS_ENDPOINT_URL": service,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-west-2",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def read(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("THE_SECRET", text)
    return smkit.read_secret("THE_SECRET")


def refusal(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    with pytest.raises(smkit.ConfigurationError) as caught:
        read(text, monkeypatch)
    assert CANARY not in str(caught.value)
    return str(caught.value)


# --- what a reference is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("secretsmanager:hf", True),
        ("secretsmanager:team/hf+a=b@c.d_e-f", True),
        ("secretsmanager:hf#token", True),
        ("secretsmanager:arn:aws:secretsmanager:eu-west-1:123456789012:secret:hf-AbCdEf#token", True),
        ("ssm:/team/hf", True),
        ("ssm:hf", True),
        ("secretsmanager:", False),
        ("secretsmanager:two words", False),
        ("secretsmanager:hf#", False),
        ("secretsmanager:arn:aws:s3:::bucket", False),
        ("ssm:/team//hf", False),
        ("ssm:hf#token", False),
        ("ssm:hf\n", False),
        (" secretsmanager:hf", False),
        ("hf", False),
    ],
)
def test_what_is_a_reference(text: str, is_one: bool) -> None:
    assert is_reference(text) is is_one


# --- what travels ----------------------------------------------------------------------------------------------------


def test_a_reference_travels_as_its_text_and_a_secret_does_not_travel() -> None:
    reference = SecretStr("secretsmanager:plain")
    settings = Settings(token=reference, hub=Hub(token=SecretStr("ssm:flat")), more=(reference,), key=b"ssm:flat")  # type: ignore[arg-type]
    sent = wire.encode(settings)
    assert sent["token"] == '"secretsmanager:plain"'
    assert json.loads(sent["hub"]) == {"url": "ssm:/team/token", "token": "ssm:flat"}
    assert (sent["more"], sent["key"]) == ('["secretsmanager:plain"]', '"ssm:flat"')
    assert wire.encode({"token": reference}) == {"token": '"secretsmanager:plain"'}

    secret = SecretStr(CANARY)
    for values in (Settings(token=secret, hub=Hub(token=secret)), {"token": secret, "hub": {"inner": [secret]}}):
        with pytest.raises(smkit.ConfigurationError, match="token: a secret would be readable") as caught:
            wire.encode(values)
        assert "hub: a secret would be readable" in str(caught.value)
        assert FORMS in str(caught.value)
        assert CANARY not in str(caught.value)


def test_a_default_that_is_a_secret_stays_at_home() -> None:
    assert "token" not in wire.encode(Settings())


def test_variables_with_names_of_secrets_should_be_references() -> None:
    variables = {
        "HF_TOKEN": CANARY,
        "WANDB_API_KEY": CANARY,
        "DB_PASSWORD": CANARY,
        "SAFE_TOKEN": "secretsmanager:hf",
        "TOKENIZERS_PARALLELISM": "false",
        "MONKEY": "1",
    }
    warnings = environment_warnings(variables)
    assert [warning.partition(":")[0] for warning in warnings] == [
        "environment 'HF_TOKEN'",
        "environment 'WANDB_API_KEY'",
        "environment 'DB_PASSWORD'",
    ]
    assert CANARY not in "".join(warnings)
    assert "smkit.read_secret('HF_TOKEN')" in warnings[0]


# --- read in the job -------------------------------------------------------------------------------------------------


def job(base: Path, values: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job with these hyperparameters."""
    for folder in ("input/config", "model", "output/data"):
        (base / folder).mkdir(parents=True)
    (base / "input/config/hyperparameters.json").write_text(json.dumps(values))
    visible = {name: json.loads(value) for name, value in values.items()}
    return {
        "SAGEMAKER_BASE_DIR": str(base),
        "SM_HPS": json.dumps(visible),
        "SM_CURRENT_HOST": "algo-1",
        "SM_HOSTS": '["algo-1"]',
        "AWS_REGION": "us-west-2",
        "TRAINING_JOB_NAME": "secret",
    }


def test_a_job_reads_its_secrets(aws: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sent = Settings(
        token=SecretStr("secretsmanager:team/json#token"),
        key=SecretBytes(b"ssm:flat"),
        hub=Hub(token=SecretStr("ssm:/team/token")),
        more=(SecretStr("secretsmanager:plain"),),
        by_host={"a": SecretStr("ssm:flat")},
        note="ssm:flat",
    )
    context = smkit.TrainingContext.load(Settings, [], job(tmp_path / "ml", wire.encode(sent)))
    hp = context.hp
    assert hp.token.get_secret_value() == f"{CANARY}-part"
    assert hp.key == SecretBytes(f"{CANARY}-flat".encode())
    assert hp.hub.token == SecretStr(f"{CANARY}-/team/token")
    assert [item.get_secret_value() for item in hp.more] == [f"{CANARY}-plain"]
    assert hp.by_host == {"a": SecretStr(f"{CANARY}-flat")}
    # Only what the class calls a secret is looked up.
    assert (hp.note, hp.hub.url) == ("ssm:flat", "ssm:/team/token")
    assert pickle.loads(pickle.dumps(context)).hp == hp
    with pytest.raises(TypeError, match="frozen"):
        hp.by_host["a"] = SecretStr("")
    saved = context.save_settings(tmp_path).read_text()
    assert CANARY not in saved + repr(context) + str(hp) + "".join(capfd.readouterr())


def test_a_laptop_reads_them_too(aws: pytest.MonkeyPatch) -> None:
    here = {"AWS_REGION": "us-west-2"}
    assert smkit.parse_args(Settings, ["--token", "secretsmanager:plain"], here).token == SecretStr(f"{CANARY}-plain")
    assert smkit.parse_args(Settings, ["--token", CANARY], {}).token == SecretStr(CANARY)
    assert smkit.parse_args(Standard, [], {"SAGEMAKER_REGION": "us-west-2"}).token == SecretStr(f"{CANARY}-plain")


def test_all_that_cannot_be_read_is_reported_together(aws: pytest.MonkeyPatch) -> None:
    argv = ["--token", "secretsmanager:gone", "--hub.token", "ssm:/gone"]
    with pytest.raises(smkit.ConfigurationError) as caught:
        smkit.parse_args(Settings, argv, {"AWS_REGION": "us-west-2"})
    text = str(caught.value)
    assert "2 problems in the settings" in text
    assert "command line: token: secretsmanager:gone does not exist in us-west-2" in text
    assert "command line: hub.token: ssm:/gone does not exist in us-west-2" in text
    with pytest.raises(smkit.ConfigurationError) as caught:
        smkit.parse_args(Settings, [*argv, "--epochs", "x"], {"AWS_REGION": "us-west-2"})
    assert "gone" not in str(caught.value), "no secret is asked for by a run that cannot begin"


def test_a_variable_is_read_on_request(aws: pytest.MonkeyPatch) -> None:
    assert read("as it is", aws) == "as it is"
    assert read("secretsmanager:plain", aws) == f"{CANARY}-plain"
    assert read("secretsmanager:team/json#number", aws) == "7"
    assert read("ssm:/team/token", aws) == f"{CANARY}-/team/token"
    with pytest.raises(smkit.ConfigurationError, match="there is no environment variable 'NOT_THERE'"):
        smkit.read_secret("NOT_THERE")


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("secretsmanager:gone", "secretsmanager:gone does not exist in us-west-2"),
        ("ssm:/gone", "ssm:/gone does not exist in us-west-2"),
        ("secretsmanager:two words", "begins like a reference to a secret, and is none"),
        ("secretsmanager:plain#token", "secretsmanager:plain is no JSON object, and '#token' asks for a value in one"),
        ("secretsmanager:broken#token", "secretsmanager:broken is no JSON object"),
        ("secretsmanager:team/json#tokn", "secretsmanager:team/json has no key 'tokn'"),
        ("secretsmanager:bytes", "secretsmanager:bytes holds bytes"),
    ],
)
def test_a_secret_that_is_not_there(aws: pytest.MonkeyPatch, text: str, complaint: str) -> None:
    assert complaint in refusal(text, aws)


@pytest.fixture
def denying(aws: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A service that answers with this error, in the words that AWS has for it."""
    answer: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = json.dumps(answer).encode()
            self.send_response(400)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


ROLE = "arn:aws:sts::123456789012:assumed-role/TrainingRole/SageMaker"


@pytest.mark.parametrize(
    ("text", "action", "message", "fix"),
    [
        (
            "secretsmanager:team/hf#token",
            "secretsmanager:GetSecretValue on resource: team/hf",
            "secretsmanager:team/hf may not be read",
            "allow secretsmanager:GetSecretValue on "
            "arn:aws:secretsmanager:us-west-2:123456789012:secret:team/hf-?????? to the role TrainingRole",
        ),
        (
            "ssm:/team/hf",
            "ssm:GetParameter on resource: arn:aws:ssm:us-west-2:123456789012:parameter/team/hf",
            "ssm:/team/hf may not be read",
            "allow ssm:GetParameter on arn:aws:ssm:us-west-2:123456789012:parameter/team/hf to the role TrainingRole",
        ),
        (
            "secretsmanager:hf",
            "kms:Decrypt on resource: arn:aws:kms:us-west-2:123456789012:key/1",
            "secretsmanager:hf cannot be decrypted",
            "allow kms:Decrypt on its key to the role; AWS: User: ",
        ),
    ],
)
def test_a_right_that_is_missing_is_named(
    denying: dict[str, Any], aws: pytest.MonkeyPatch, text: str, action: str, message: str, fix: str
) -> None:
    denying |= {"__type": "AccessDeniedException", "Message": f"User: {ROLE} is not authorized to perform: {action}"}
    complaint = refusal(text, aws)
    assert message in complaint
    assert fix in complaint


def test_any_other_refusal_is_quoted(denying: dict[str, Any], aws: pytest.MonkeyPatch) -> None:
    denying |= {"__type": "ExpiredTokenException", "message": "The security token is expired"}
    assert "ssm:hf cannot be read: ExpiredTokenException: The security token is expired" in refusal("ssm:hf", aws)


def test_a_job_that_reaches_nothing_is_told_why(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "a job with network isolation, or in a VPC without an endpoint for ssm" in refusal("ssm:hf", aws)
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    assert "sign in (aws sso login, AWS_PROFILE); a job with network isolation" in refusal("ssm:hf", aws)
    aws.delenv("AWS_REGION")
    aws.delenv("AWS_DEFAULT_REGION", raising=False)
    assert "set AWS_REGION" in refusal("ssm:hf", aws)
