"""The server: records requests, plays the planned faults, answers for training jobs and leaves the rest to moto."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import BaseWSGIServer, make_server

from sagemaker import checksums, other_services
from sagemaker.container import namespaces_are_to_be_had
from sagemaker.settings import Settings
from sagemaker.training_jobs import RefusedError, TrainingJobs
from sagemaker.wire import Answer, Request, error, json_answer, read_request

# The door through which tests turn the knobs; AWS has none of the kind.
CONTROL = "/_tests/"
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 501: "Not Implemented", 503: "Slow Down"}

StartResponse = Callable[..., Any]


class Application:
    """The WSGI application."""

    def __init__(self, folder: Path, endpoint: str, *, isolated: bool) -> None:
        self.settings = Settings()
        self.isolated = isolated and namespaces_are_to_be_had()
        self.jobs = TrainingJobs(self.settings, folder, endpoint, isolated=self.isolated)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._received: list[Request] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path.startswith(CONTROL):
            return _send(self._control(path.removeprefix(CONTROL), environ), start_response)
        if path.startswith("/moto-api"):
            return self._moto(environ, start_response)
        request = read_request(environ)
        with self._lock:
            self._received.append(request)
        if request.caller != "client":
            return self._answer(request, environ, start_response)
        time.sleep(self.settings.latency)
        refusal = self._planned_refusal(request)
        if refusal:
            return _send(refusal, start_response)
        lost = self.settings.use_up("lost_replies", request.action)
        corrupted = self.settings.use_up("corrupted", request.action)
        damage = checksums.refusal_of_damage(request, environ, corrupted=corrupted)
        if damage:
            return _send(damage, start_response)
        answer = self._answer(request, environ, (lambda *_: None) if lost else start_response)
        if lost:
            _drop_connection(answer, environ)
        return [checksums.flip_one_bit(b"".join(answer))] if corrupted else answer

    def _planned_refusal(self, request: Request) -> Answer | None:
        if request.access_key in self.settings.expired_keys:
            json_protocol = bool(request.headers.get("x-amz-target"))
            code = "ExpiredTokenException" if json_protocol else "ExpiredToken"
            status = 400 if json_protocol or request.service == "s3" else 403
            return error(request, code, "The security token included in the request is expired", status)
        if self.settings.use_up("throttled", request.action):
            if request.service == "s3":
                return error(request, "SlowDown", "Please reduce your request rate.", 503)
            code = "ThrottlingException" if request.headers.get("x-amz-target") else "Throttling"
            return error(request, code, "Rate exceeded")
        return None

    def _answer(self, request: Request, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        answer = self._own_answer(request)
        if answer is not None:
            return _send(answer, start_response)
        try:
            return self._moto(environ, start_response)
        except NotImplementedError as missing:
            return _send(error(request, "NotImplemented", f"moto: {missing}", 501), start_response)

    def _own_answer(self, request: Request) -> Answer | None:
        # None: the request is moto's to answer.
        if request.service == "s3":
            return _owner_refusal(request)
        answer = other_services.answer(request, self.settings)
        if answer:
            return answer
        if not self.jobs.answers(request):
            return None
        try:
            return json_answer(self.jobs.actions[request.action](request))
        except RefusedError as refused:
            return error(request, refused.code, str(refused))

    def _control(self, verb: str, environ: dict[str, Any]) -> Answer:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        given = json.loads(body or b"{}")
        if verb == "requests":
            with self._lock:
                return json_answer([request.as_json() for request in self._received])
        if verb == "settings":
            self.settings.change(given)
        elif verb == "interrupt":
            return json_answer({"interrupted": self.jobs.interrupt(given["job"])})
        elif verb == "delivered":
            return json_answer({"delivered": self.jobs.delivered(given["job"])})
        elif verb == "reset":
            self.jobs.forget_all()
            self.settings.restore()
        elif verb == "forget-requests":
            with self._lock:
                self._received.clear()
        elif verb != "state":
            return json_answer({"unknown": verb}, 404)
        return json_answer({"isolated": self.isolated})


def _owner_refusal(request: Request) -> Answer | None:
    expected = request.headers.get("x-amz-expected-bucket-owner")
    owner = s3_backends.bucket_accounts.get(request.bucket)
    if expected and owner and owner[1] != expected:
        return error(request, "AccessDenied", "Access Denied", 403)
    return None


def _send(answer: Answer, start_response: StartResponse) -> Iterable[bytes]:
    headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
    start_response(f"{answer.status} {_REASONS[answer.status]}", headers)
    return [answer.body]


def _drop_connection(answer: Iterable[bytes], environ: dict[str, Any]) -> None:
    b"".join(answer)
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


class _Quiet(MotoRequestHandler):
    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Say nothing: what came in can be asked for."""


def make(port: int, folder: Path, *, isolated: bool) -> tuple[BaseWSGIServer, Application]:
    """Return the server, which listens already, and its application; port 0 takes a free one."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        port = listening.getsockname()[1]
        application = Application(folder, f"http://127.0.0.1:{port}", isolated=isolated)
        server = make_server(
            "127.0.0.1", port, application, threaded=True, request_handler=_Quiet, fd=listening.detach()
        )
    return server, application
