"""What makes a server on this machine as far away as one in another region: a proxy that delays.

The server of the tests closes every connection after one answer, and AWS does not: behind the delay there is a second
proxy, which keeps the connections of its callers open.
"""

from __future__ import annotations

import http.client
import http.server
import queue
import socket
import threading
import time
from contextlib import suppress

# TCP's handshake and TLS 1.3's: round trips before the first byte of a request, as at AWS, where all is HTTPS.
HANDSHAKES = 2


class Delay:
    """Listens, and passes all bytes on to a server of this machine, half a round trip late in each direction."""

    def __init__(self, port: int, round_trip: float) -> None:
        self.connections = 0
        self._round_trip = round_trip
        lasting = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (KeepAlive,), {"target": port}))
        threading.Thread(target=lasting.serve_forever, daemon=True).start()
        self._target = lasting.server_address[1]
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            caller, _ = self._listening.accept()
            self.connections += 1
            threading.Thread(target=self._connect, args=(caller,), daemon=True).start()

    def _connect(self, caller: socket.socket) -> None:
        time.sleep(HANDSHAKES * self._round_trip)
        server = socket.create_connection(("127.0.0.1", self._target))
        for end in (caller, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((caller, server), (server, caller)):
            under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=self._take, args=(source, under_way), daemon=True).start()
            threading.Thread(target=self._deliver, args=(target, under_way), daemon=True).start()

    def _take(self, source: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"first"
        while data:
            try:
                data = source.recv(1 << 18)
            except OSError:
                data = b""
            under_way.put((time.monotonic() + self._round_trip / 2, data))

    def _deliver(self, target: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with suppress(OSError):
            while True:
                due, data = under_way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)


class KeepAlive(http.server.BaseHTTPRequestHandler):
    """Passes each request of a lasting connection on in a connection of its own."""

    target: int
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = http.client.HTTPConnection("127.0.0.1", self.target)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            # "100 Continue" has been said here.
            if name.lower() != "expect":
                server.putheader(name, value)
        server.endheaders(body)
        response = server.getresponse()
        data = response.read()
        server.close()
        self.send_response_only(response.status, response.reason)
        length = response.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server asks for
