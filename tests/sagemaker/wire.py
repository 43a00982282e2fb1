"""What a request to AWS asks for, and how AWS answers that it will not: the wire formats of its services."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

import botocore.session

ACCOUNT = "123456789012"
REGION = "us-east-1"
# Who sends a request is told by the access key.
KEYS = {"client": "AKIASMKITCLIENT00000", "job": "ASIASMKITJOB00000000", "service": "AKIASMKITSERVICE0000"}
_CALLERS = {key: caller for caller, key in KEYS.items()}

_CREDENTIAL = re.compile(r"(?P<key>[^=/\s]+)/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request")


@dataclass(frozen=True)
class Request:
    """One request as the server received it."""

    service: str
    action: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    region: str
    access_key: str
    caller: str
    size: int
    parameters: Mapping[str, Any]

    @property
    def bucket(self) -> str:
        """The bucket of a request to S3; empty for all others."""
        return self.path.lstrip("/").partition("/")[0] if self.service == "s3" else ""

    @property
    def key(self) -> str:
        """The object's key of a request to S3; empty where there is none."""
        return self.path.lstrip("/").partition("/")[2] if self.service == "s3" else ""

    @property
    def lacks_expected_owner(self) -> bool:
        """Whether the caller of S3 could have said whose bucket it expects, and did not."""
        return (
            self.service == "s3"
            and "x-amz-expected-bucket-owner" not in self.headers
            and self.action in s3_actions_with_owner()
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """An answer of a service."""

    body: bytes
    status: int = 200
    content_type: str = "application/x-amz-json-1.1"


def read_request(environ: dict[str, Any]) -> Request:
    """Read what a request is about; the body of calls to S3 is left unread."""
    headers = {name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items() if name[:5] == "HTTP_"}
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    signed = unquote(headers.get("authorization", "") or query.get("X-Amz-Credential", ""))
    found = _CREDENTIAL.search(signed)
    service, region, key = (found["service"], found["region"], found["key"]) if found else ("", REGION, "")
    method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
    parameters: dict[str, Any] = {}
    size = int(environ.get("CONTENT_LENGTH") or 0)
    if service == "s3":
        action = s3_action(method, path, query, headers)
    else:
        body = environ["wsgi.input"].read(size)
        environ["wsgi.input"] = io.BytesIO(body)
        action, parameters = _named_action(headers.get("x-amz-target", ""), body)
    caller = _CALLERS.get(key, "client")
    return Request(service, action, method, path, query, headers, region, key, caller, size, parameters)


def _named_action(target: str, body: bytes) -> tuple[str, dict[str, Any]]:
    if target:
        return target.rpartition(".")[2], json.loads(body or b"{}")
    form = dict(parse_qsl(body.decode("utf-8", "replace")))
    return form.pop("Action", ""), form


def error(request: Request, code: str, message: str, status: int = 400) -> Answer:
    """Return an error as the service of this request puts it."""
    if request.service == "s3":
        text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        return Answer(b"" if request.method == "HEAD" else text.encode(), status, "application/xml")
    if request.headers.get("x-amz-target"):
        return json_answer({"__type": code, "message": message}, status)
    inner = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
    text = f"<ErrorResponse><Error><Type>Sender</Type>{inner}</Error></ErrorResponse>"
    if request.service == "ec2":
        text = f"<Response><Errors><Error>{inner}</Error></Errors></Response>"
    return Answer(text.encode(), status, "text/xml")


def json_answer(content: Any, status: int = 200) -> Answer:
    """Return this as JSON, times as seconds since 1970."""
    return Answer(json.dumps(content, default=lambda time: time.timestamp()).encode(), status)


@functools.cache
def service_model(service: str) -> Any:
    """Return botocore's model of a service."""
    return botocore.session.get_session().get_service_model(service)


@functools.cache
def s3_actions_with_owner() -> frozenset[str]:
    """Return the actions of S3 that take an expected bucket owner."""
    model = service_model("s3")
    shapes = {name: model.operation_model(name).input_shape for name in model.operation_names}
    return frozenset(name for name, shape in shapes.items() if shape and "ExpectedBucketOwner" in shape.members)


@functools.cache
def _s3_routes() -> list[tuple[int, str, int, frozenset[str], str]]:
    # Each action with what its requests must have, from the most demanding one to the least.
    routes = []
    model = service_model("s3")
    for name in model.operation_names:
        operation = model.operation_model(name)
        path, _, fixed = operation.http["requestUri"].partition("?")
        shape = operation.input_shape
        required = [shape.members[member] for member in shape.required_members] if shape else []
        needs = {item.partition("=")[0] for item in fixed.split("&") if item}
        needs |= {
            member.serialization["name"]
            for member in required
            if member.serialization.get("location") in ("querystring", "header")
        }
        depth = 2 if "{Key" in path else int("{Bucket" in path)
        routes.append((-len(needs), name, depth, frozenset(needs), operation.http["method"]))
    return sorted(routes)


def s3_action(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """Return the action of S3 that a request asks for, by botocore's model (buckets are named in the path)."""
    bucket, _, key = path.lstrip("/").partition("/")
    depth = bool(bucket) + bool(key)
    given = query.keys() | headers.keys()
    for _, name, wanted, needs, its_method in _s3_routes():
        if its_method == method and wanted == depth and needs <= given:
            return name
    return f"{method} {path}"
