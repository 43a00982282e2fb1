"""A proxy before the SageMaker of the tests that plays faults: `python -m torture.faulty_proxy UPSTREAM_PORT`.

It speaks HTTP/1.1 over plain sockets, one request a connection, in threads. A plan says from which request on how many
requests of the same action meet which fault; `KINDS` are all there are. Through `/_faults` a plan is made, and what
came by since then is told. It knows neither smkit nor any client. It ends with its standard input.
"""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sagemaker.wire import s3_action

CONTROL = b"/_faults"
SLOW_BYTES_PER_SECOND = 1024
_HANG_SECONDS = 120.0
_LARGEST_HEAD = 64 * 1024


@dataclass
class Answer:
    """An answer of HTTP, whole."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    claimed: int | None = None
    """The Content-Length that is said; None: the true one."""

    def head(self) -> bytes:
        size = len(self.body) if self.claimed is None else self.claimed
        given = {name: value for name, value in self.headers.items() if name not in ("content-length", "connection")}
        # The answer to a HEAD says the length of a body that does not come.
        given["content-length"] = self.headers.get("content-length", str(size)) if not self.body else str(size)
        lines = [f"HTTP/1.1 {self.status} Fault", *(f"{name}: {value}" for name, value in given.items())]
        return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1")


class Exchange:
    """One request as it came, and what can be done with it."""

    def __init__(self, client: socket.socket, head: bytes, begun: bytes, upstream: int) -> None:
        self.client, self._head, self._begun, self._upstream = client, head, begun, upstream
        line, *fields = head.decode("latin-1").split("\r\n")
        self.method, self.target = line.split(" ")[:2]
        self.headers = {
            name.strip().lower(): value.strip() for name, _, value in (text.partition(":") for text in fields)
        }
        self.size = int(self.headers.get("content-length") or 0)
        self._body: bytes | None = None

    @property
    def is_s3(self) -> bool:
        return "/s3/aws4_request" in self.headers.get("authorization", "")

    @property
    def is_json(self) -> bool:
        return "x-amz-target" in self.headers

    def action(self) -> str:
        """Return the action of AWS's API; of the query protocol it stands in the body."""
        if self.is_json:
            return self.headers["x-amz-target"].rpartition(".")[2]
        if self.is_s3:
            path, _, query = self.target.partition("?")
            pairs = (item.partition("=") for item in query.split("&") if item)
            return s3_action(self.method, path, {name: value for name, _, value in pairs}, self.headers)
        found = re.search(rb"(?:^|&)Action=(\w+)", self.body())
        return found[1].decode() if found else self.target

    def body(self) -> bytes:
        """Read the request to its end."""
        if self._body is None:
            self._body = self.read(self.size)
        return self._body

    def read(self, size: int, *, slowly: bool = False) -> bytes:
        """Read the first bytes of the body."""
        if "100-continue" in self.headers.pop("expect", ""):
            self.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        taken = self._begun
        while len(taken) < size:
            more = self.client.recv(256 if slowly else 65536)
            if not more:
                raise ConnectionAbortedError("the client has gone")
            taken += more
            if slowly:
                time.sleep(len(more) / SLOW_BYTES_PER_SECOND)
        return taken

    def forward(self, body: bytes | None = None) -> Answer:
        """Let the server do it, and return its answer."""
        body = self.body() if body is None else body
        if self.is_json and _OURS.encode() in body:
            body = _with_true_token(body)
            self._head = re.sub(rb"(?i:content-length): \d+", b"Content-Length: %d" % len(body), self._head)
        head = re.sub(rb"\r\n(?i:connection|expect): [^\r]*", b"", self._head) + b"\r\nConnection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self._upstream)) as server:
            server.sendall(head + body)
            received = b""
            while more := server.recv(262144):
                received += more
        head, _, body = received.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        pairs = (text.partition(":") for text in fields)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if headers.pop("transfer-encoding", "") == "chunked":
            body = _unchunked(body)
        return Answer(int(line.split(" ")[1]), body, headers)

    def send(self, answer: Answer) -> None:
        self.client.sendall(answer.head() + (b"" if self.method == "HEAD" else answer.body))

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        """Answer as the service of this request puts an error."""
        self.body()
        if self.is_json:
            body, kind = json.dumps({"__type": code, "message": message}), "application/x-amz-json-1.1"
        elif self.is_s3:
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            body, kind = ("" if self.method == "HEAD" else text), "application/xml"
        else:
            inner = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
            body, kind = f"<ErrorResponse>{inner}</ErrorResponse>", "text/xml"
        self.send(Answer(status, body.encode(), {"content-type": kind} | (headers or {})))

    def reset(self) -> None:
        """End the connection as a router does that has forgotten it."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()


def _unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        whole, data = whole + data[:count], data[count + 2 :]
    return whole


# --- the faults -------------------------------------------------------------------------------------------------------

Draw = random.Random
KINDS: dict[str, Callable[[Exchange, Draw], None]] = {}


def _kind(name: str) -> Callable[[Callable[[Exchange, Draw], None]], Callable[[Exchange, Draw], None]]:
    def register(play: Callable[[Exchange, Draw], None]) -> Callable[[Exchange, Draw], None]:
        KINDS[name] = play
        return play

    return register


def _code(exchange: Exchange, s3: str, json_: str, query: str) -> str:
    return s3 if exchange.is_s3 else json_ if exchange.is_json else query


@_kind("500")
def _500(exchange: Exchange, _: Draw) -> None:
    exchange.refuse(500, _code(exchange, "InternalError", "InternalServerException", "InternalFailure"), "We failed.")


@_kind("503 SlowDown")
def _503(exchange: Exchange, _: Draw) -> None:
    exchange.refuse(503, _code(exchange, "SlowDown", "ServiceUnavailable", "ServiceUnavailable"), "Reduce your rate.")


@_kind("throttled")
def _throttled(exchange: Exchange, _: Draw) -> None:
    status = 503 if exchange.is_s3 else 400
    exchange.refuse(status, _code(exchange, "SlowDown", "ThrottlingException", "Throttling"), "Rate exceeded")


@_kind("reset before the body")
def _reset_before(exchange: Exchange, _: Draw) -> None:
    exchange.reset()


@_kind("reset in the body")
def _reset_in_request(exchange: Exchange, draw: Draw) -> None:
    exchange.read(int(exchange.size * draw.random()))
    exchange.reset()


@_kind("reply lost")
def _lost(exchange: Exchange, _: Draw) -> None:
    exchange.forward()
    exchange.reset()


@_kind("reset in the reply")
def _reset_in_reply(exchange: Exchange, draw: Draw) -> None:
    answer = exchange.forward()
    exchange.client.sendall(answer.head() + answer.body[: int(len(answer.body) * draw.random())])
    time.sleep(0.05)
    exchange.reset()


@_kind("reply cut off")
def _cut(exchange: Exchange, draw: Draw) -> None:
    answer = exchange.forward()
    exchange.client.sendall(answer.head() + answer.body[: int(len(answer.body) * draw.random())])


@_kind("reply shortened")
def _shortened(exchange: Exchange, draw: Draw) -> None:
    answer = exchange.forward()
    exchange.send(Answer(answer.status, answer.body[: int(len(answer.body) * draw.random())], answer.headers))


def _flipped(data: bytes, draw: Draw) -> bytes:
    damaged = bytearray(data)
    if damaged:
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


@_kind("bit flipped in an object")
def _flipped_reply(exchange: Exchange, draw: Draw) -> None:
    answer = exchange.forward()
    exchange.send(Answer(answer.status, _flipped(answer.body, draw), answer.headers))


@_kind("bit flipped in what is put")
def _flipped_request(exchange: Exchange, draw: Draw) -> None:
    exchange.send(exchange.forward(_flipped(exchange.body(), draw)))


@_kind("bit flipped in an answer")
def _flipped_answer(exchange: Exchange, draw: Draw) -> None:
    _flipped_reply(exchange, draw)


@_kind("wrong tag and checksum")
def _wrong_tag(exchange: Exchange, draw: Draw) -> None:
    answer = exchange.forward()
    named = [name for name in answer.headers if name == "etag" or name.startswith("x-amz-checksum-")]
    for name in named:
        text = answer.headers[name]
        answer.headers[name] = text.replace(text[3], "0" if text[3] != "0" else "1") if len(text) > 3 else text
    exchange.send(answer)


@_kind("slow reply")
def _slow_reply(exchange: Exchange, _: Draw) -> None:
    answer = exchange.forward()
    data = answer.head() + (b"" if exchange.method == "HEAD" else answer.body)
    for start in range(0, len(data), 256):
        exchange.client.sendall(data[start : start + 256])
        time.sleep(256 / SLOW_BYTES_PER_SECOND)


@_kind("slow request")
def _slow_request(exchange: Exchange, _: Draw) -> None:
    exchange.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    exchange.send(exchange.forward(exchange.read(exchange.size, slowly=True)))


def _hang(exchange: Exchange) -> None:
    # Until the client has had enough.
    exchange.client.settimeout(_HANG_SECONDS)
    while exchange.client.recv(65536):
        pass


@_kind("hang")
def _hang_before(exchange: Exchange, _: Draw) -> None:
    _hang(exchange)


@_kind("hang after the work")
def _hang_after(exchange: Exchange, _: Draw) -> None:
    exchange.forward()
    _hang(exchange)


@_kind("hang in the reply")
def _hang_in_reply(exchange: Exchange, draw: Draw) -> None:
    answer = exchange.forward()
    exchange.client.sendall(answer.head() + answer.body[: int(len(answer.body) * draw.random())])
    _hang(exchange)


@_kind("delivered late")
def _late(exchange: Exchange, _: Draw) -> None:
    # The client has given up when the server gets it.
    exchange.body()
    exchange.reset()
    time.sleep(1.0)
    exchange.forward()


@_kind("delivered twice")
def _twice(exchange: Exchange, draw: Draw) -> None:
    answers = [exchange.forward(), exchange.forward()]
    exchange.send(draw.choice(answers))


@_kind("expired token")
def _expired(exchange: Exchange, _: Draw) -> None:
    code = _code(exchange, "ExpiredToken", "ExpiredTokenException", "ExpiredToken")
    exchange.refuse(400 if exchange.is_json or exchange.is_s3 else 403, code, "The security token has expired")


@_kind("clock skew")
def _skew(exchange: Exchange, _: Draw) -> None:
    if exchange.is_s3:
        text = "The difference between the request time and the current time is too large."
        exchange.refuse(403, "RequestTimeTooSkewed", text)
    else:
        text = "Signature expired: 20261126T010203Z is now earlier than 20261126T052800Z (20261126T053300Z - 5 min.)"
        code = _code(exchange, "", "InvalidSignatureException", "SignatureDoesNotMatch")
        exchange.refuse(400 if exchange.is_json else 403, code, text)


@_kind("403 of another owner")
def _foreign(exchange: Exchange, _: Draw) -> None:
    exchange.refuse(403, _code(exchange, "AccessDenied", "AccessDeniedException", "AccessDenied"), "Access Denied")


@_kind("404")
def _missing(exchange: Exchange, _: Draw) -> None:
    if exchange.action() == "DescribeTrainingJob":
        exchange.refuse(400, "ValidationException", "Requested resource not found.")
    else:
        code = _code(exchange, "NoSuchKey", "ResourceNotFoundException", "NoSuchEntity")
        exchange.refuse(404 if not exchange.is_json else 400, code, "It does not exist.")


@_kind("301 to another region")
def _moved(exchange: Exchange, _: Draw) -> None:
    headers = {"x-amz-bucket-region": "eu-west-1", "location": "http://127.0.0.1:9/"}
    exchange.refuse(301, "PermanentRedirect", "The bucket must be addressed elsewhere.", headers)


_GARBAGE = (
    (b"<html><head><title>Sign in</title></head><body>Guest network<br></body></html>", "text/html"),
    (b"<html><body><p>Welcome</p></body></html>", "text/html"),
    (b"", "application/xml"),
    (b"\x00\xff\xfe" * 50, "application/octet-stream"),
    (b"{}", "application/json"),
    (b"[]", "application/json"),
    (b"null", "application/json"),
    (b'"text"', "application/json"),
    (b'{"unknown": {"deep": [1, 2, 3]}}', "application/json"),
    (b"<Unknown><Member>1</Member></Unknown>", "application/xml"),
)


@_kind("garbage for an answer")
def _garbage(exchange: Exchange, draw: Draw) -> None:
    exchange.body()
    body, kind = draw.choice(_GARBAGE)
    exchange.send(Answer(200, body, {"content-type": kind}))


@_kind("no HTTP")
def _no_http(exchange: Exchange, draw: Draw) -> None:
    exchange.body()
    noise = (
        b"\x16\x03\x01\x02\x00\x01",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\r\n" * 20,
        b"A" * 100_000,
    )
    exchange.client.sendall(draw.choice(noise))


@_kind("error in a 200")
def _error_in_200(exchange: Exchange, draw: Draw) -> None:
    code = draw.choice(["InternalError", "SlowDown"])
    if not exchange.is_json and exchange.method != "HEAD":
        exchange.refuse(200, code, "Please try again.")
    else:
        exchange.refuse(200, "InternalFailure", "Please try again.")


_OURS = "~"
"""What a token has in it that the proxy has made; what stands before is the server's own."""


def _with_true_token(body: bytes) -> bytes:
    asked = json.loads(body or b"{}")
    for name in ("nextToken", "NextToken"):
        if _OURS in str(asked.get(name, "")):
            asked[name] = asked[name].partition(_OURS)[0]
            asked = {key: value for key, value in asked.items() if key != name or value}
    return json.dumps(asked).encode()


@_kind("pages without an end")
def _endless_pages(exchange: Exchange, _: Draw) -> None:
    """A list gives the same token again and again."""
    answer = exchange.forward()
    if exchange.is_json and answer.status == 200:
        told = json.loads(answer.body)
        told["NextToken" if any(key[0].isupper() for key in told) else "nextToken"] = f"{_OURS}1"
        answer.body = json.dumps(told).encode()
    elif exchange.is_s3 and b"<ListBucketResult" in answer.body:
        body = re.sub(rb"<IsTruncated>.*?</IsTruncated>", b"", answer.body)
        more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>"
        answer.body = body.replace(b"</ListBucketResult>", more)
    exchange.send(answer)


@_kind("empty pages")
def _empty_pages(exchange: Exchange, draw: Draw) -> None:
    """CloudWatch may answer with nothing although more is to come: pages are empty, and their tokens lead on."""
    asked = json.loads(exchange.body()) if exchange.is_json else {}
    if exchange.action() != "GetLogEvents":
        exchange.send(exchange.forward())
        return
    token = f"{asked.get('nextToken', '').partition(_OURS)[0]}{_OURS}{draw.random()}"
    told = {"events": [], "nextForwardToken": token, "nextBackwardToken": token}
    exchange.send(Answer(200, json.dumps(told).encode(), {"content-type": "application/x-amz-json-1.1"}))


@_kind("events out of order")
def _disordered(exchange: Exchange, draw: Draw) -> None:
    answer = exchange.forward()
    told = json.loads(answer.body) if exchange.is_json and answer.status == 200 else {}
    if told.get("events"):
        draw.shuffle(told["events"])
        answer.body = json.dumps(told).encode()
    exchange.send(answer)


@_kind("events held back")
def _held_back(exchange: Exchange, draw: Draw) -> None:
    answer = exchange.forward()
    told = json.loads(answer.body) if exchange.is_json and answer.status == 200 else {}
    if told.get("events"):
        told["events"] = [event for event in told["events"] if draw.random() < 0.5]
        answer.body = json.dumps(told).encode()
    exchange.send(answer)


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """From the n-th request on, the next requests of its action meet a fault."""

    kind: str = ""
    first: int = 0
    times: int = 0
    actions: str = ""
    """A regular expression of the actions that can be met; only they are counted."""
    every: bool = False
    """Whether all these actions meet it, and not only that of the first."""
    seed: int = 0
    seen: list[tuple[str, bool]] = field(default_factory=list)
    met: str = ""
    draw: Draw = field(default_factory=Draw)
    lock: Any = field(default_factory=threading.Lock)

    def meets(self, action: str) -> bool:
        with self.lock:
            count = sum(1 for name, _ in self.seen if re.fullmatch(self.actions, name))
            is_it = bool(self.kind) and re.fullmatch(self.actions, action) is not None
            if is_it and not self.met and count >= self.first:
                self.met = action
            is_it = is_it and (self.every or action == self.met) and self.times > 0
            self.times -= is_it
            self.seen.append((action, is_it))
            return is_it

    def told(self) -> dict[str, Any]:
        with self.lock:
            return {"seen": self.seen, "met": self.met}


class Proxy:
    """The proxy, listening."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._plan = Plan()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]

    def serve(self) -> None:
        while True:
            client, _ = self._listening.accept()
            threading.Thread(target=self._serve_one, args=(client,), daemon=True).start()

    def _serve_one(self, client: socket.socket) -> None:
        try:
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                received = b""
                while b"\r\n\r\n" not in received and len(received) < _LARGEST_HEAD:
                    more = client.recv(65536)
                    if not more:
                        return
                    received += more
                head, _, begun = received.partition(b"\r\n\r\n")
                self._exchange(Exchange(client, head, begun, self._upstream))
        except OSError:
            pass  # whichever side has gone, there is nobody left to tell

    def _exchange(self, exchange: Exchange) -> None:
        if exchange.target.encode().startswith(CONTROL):
            told = self._plan.told()
            if given := json.loads(exchange.body() or b"{}"):
                self._plan = Plan(**given, draw=Draw(given.get("seed", 0)))
            exchange.send(Answer(200, json.dumps(told).encode()))
            return
        plan = self._plan
        # "Reset before the body" is over before a body, which names the action in the query protocol alone.
        if plan.meets(exchange.action()):
            KINDS[plan.kind](exchange, plan.draw)
        else:
            exchange.send(exchange.forward())


def plan(endpoint: str, **given: Any) -> dict[str, Any]:
    """Make a plan at a proxy, whose fields are those of `Plan`; return what came by under the one before."""
    with urllib.request.urlopen(f"{endpoint}{CONTROL.decode()}", json.dumps(given).encode(), timeout=60) as answer:
        told: dict[str, Any] = json.loads(answer.read())
        return told


def main() -> None:
    proxy = Proxy(int(sys.argv[1]))
    threading.Thread(target=proxy.serve, daemon=True).start()
    print(f"ready on port {proxy.port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
