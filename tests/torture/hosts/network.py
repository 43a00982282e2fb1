"""Hosts of a network of their own: a network namespace each, and a switch between them that loses what it is told to.

The switch is a thread of this process. Each host's only interface is a tunnel whose other end is held here, so that
whatever the kernel can do (many a one has no netem), packets can be lost, in one direction too, or come late.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import ipaddress
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path

_TUNNEL = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_NUMBERS = itertools.count()
_LARGEST_PACKET = 65536


def missing() -> str:
    """Return what this machine lacks for such a network; nothing if it can have one."""
    if os.geteuid():
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "there is no program ip (iproute2)"
    try:
        with Network(1):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this machine makes no network namespaces: {error}"


class Network:
    """So many hosts, numbered from 0, with addresses from 10.77.0.1 on, until the block ends.

    Attributes:
        addresses: Of each host.
        interface: The name that each host's interface has there.
    """

    def __init__(self, hosts: int, *, seed: int = 0) -> None:
        self.addresses = [f"10.77.0.{number + 1}" for number in range(hosts)]
        self.interface = "wire0"
        self._name = f"torture-{os.getpid()}-{next(_NUMBERS)}"
        self._numbers = {ipaddress.ip_address(address).packed: i for i, address in enumerate(self.addresses)}
        self._draws = random.Random(seed)
        self._tunnels: list[int] = []
        self._lost: dict[tuple[int, int], float] = {}
        self._seconds_late = (0.0, 0.0)
        self._closing, self._close = os.pipe()
        self._thread = threading.Thread(target=self._switch, name="switch", daemon=True)

    def __enter__(self) -> Network:
        try:
            for number in range(len(self.addresses)):
                self._add(number)
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._close, b".")
        self._thread.join()
        self._remove()

    def namespace(self, host: int) -> Path:
        return Path("/var/run/netns") / f"{self._name}-{host}"

    def within(self, host: int) -> list[str]:
        """Return the words that, put before a command, run it on a host."""
        return ["ip", "netns", "exec", self.namespace(host).name]

    def lose(self, source: int, target: int, share: float = 1.0) -> None:
        """Lose a share of what one host sends to another from now on."""
        self._lost[source, target] = share

    def delay(self, least_seconds: float, most_seconds: float) -> None:
        """Let every packet come so much later from now on."""
        self._seconds_late = (least_seconds, most_seconds)

    def cut(self, host: int) -> None:
        """Lose all that a host sends and is sent, without a word to it."""
        for other in range(len(self.addresses)):
            if other != host:
                self.lose(host, other)
                self.lose(other, host)

    def join(self, host: int) -> None:
        """Undo `cut`."""
        for other in range(len(self.addresses)):
            self.lose(host, other, 0.0)
            self.lose(other, host, 0.0)

    def take_down(self, host: int) -> None:
        """Take a host's interface down, as it sees itself."""
        self._ip(host, "link", "set", self.interface, "down")

    def bring_up(self, host: int) -> None:
        self._ip(host, "link", "set", self.interface, "up")

    def _ip(self, host: int, *words: str) -> None:
        subprocess.run(["ip", "-n", self.namespace(host).name, *words], check=True, capture_output=True, text=True)

    def _add(self, host: int) -> None:
        name = self.namespace(host).name
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True, text=True)
        tunnel = os.open(_TUNNEL, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._tunnels.append(tunnel)
        first_name = f"t{os.getpid()}x{next(_NUMBERS)}"[:15]
        fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("16sH14x", first_name.encode(), _IFF_TUN | _IFF_NO_PI))
        move = ["ip", "link", "set", first_name, "netns", name, "name", self.interface]
        subprocess.run(move, check=True, capture_output=True, text=True)
        self._ip(host, "address", "add", f"{self.addresses[host]}/24", "dev", self.interface)
        self._ip(host, "link", "set", "lo", "up")
        self.bring_up(host)

    def _remove(self) -> None:
        for tunnel in (*self._tunnels, self._closing, self._close):
            os.close(tunnel)
        for host in range(len(self.addresses)):
            if self.namespace(host).exists():
                subprocess.run(["ip", "netns", "del", self.namespace(host).name], check=False)

    def _switch(self) -> None:
        hosts = {tunnel: host for host, tunnel in enumerate(self._tunnels)}
        under_way: list[tuple[float, int, int, bytes]] = []
        order = itertools.count()
        while True:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([*hosts, self._closing], [], [], wait)
            if self._closing in ready:
                return
            for tunnel in ready:
                with contextlib.suppress(OSError):
                    packet = os.read(tunnel, _LARGEST_PACKET)
                    target = self._numbers.get(packet[16:20])
                    if target is None or self._draws.random() < self._lost.get((hosts[tunnel], target), 0.0):
                        continue
                    due = time.monotonic() + self._draws.uniform(*self._seconds_late)
                    heapq.heappush(under_way, (due, next(order), target, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(under_way)
                # One that is down takes nothing.
                with contextlib.suppress(OSError):
                    os.write(self._tunnels[target], packet)
