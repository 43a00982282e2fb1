"""A proxy that makes a server on this machine as far away as one in another region."""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress

# TCP's handshake and TLS 1.3's: round trips before the first byte of a request, as at AWS, where all is HTTPS.
HANDSHAKES = 2


class Delay:
    """Listens, and passes all bytes on to a port of this machine, half a round trip late in each direction."""

    def __init__(self, port: int, round_trip: float) -> None:
        self.connections = 0
        self._target, self._round_trip = port, round_trip
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
