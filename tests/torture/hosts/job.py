"""A job on hosts of a network: torchrun on each, its ranks, where they are, how and when each process ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torture.hosts.network import Network

PORT = 7777
_LOOK_SECONDS = 0.05


class Agent(Protocol):
    """The process that has started a host's ranks."""

    pid: int

    def poll(self) -> int | None: ...


class ForkedAgent:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def poll(self) -> int | None:
        return self.status


class Starts:
    """Starts agents: torchrun itself, or what `forked.py` forks at a tenth of the cost."""

    def __init__(self, *, forks: bool) -> None:
        self._forks = forks
        self._lock = threading.Lock()
        self._agents: dict[int, ForkedAgent] = {}
        self._started: queue.Queue[ForkedAgent] = queue.Queue()

    def __enter__(self) -> Starts:
        if self._forks:
            program = Path(__file__).with_name("forked.py")
            self._process = subprocess.Popen(
                [sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._forks and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            self._listener.join()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            answer = json.loads(line)
            if "status" in answer:
                self._agents[answer["agent"]].status = answer["status"]
            else:
                self._agents[answer["agent"]] = ForkedAgent(answer["agent"])
                self._started.put(self._agents[answer["agent"]])

    def agent(self, network: Network, order: dict[str, Any], environment: Mapping[str, str]) -> Agent:
        """Start the agent of a host."""
        if self._forks and self._process.stdin is not None:
            namespace = str(network.namespace(order["host"]))
            line = json.dumps({**order, "environment": dict(environment), "namespace": namespace}) + "\n"
            with self._lock:
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
                return self._started.get(timeout=60)
        # The words of sagemaker-training 5.1.4 (torch_distributed.py).
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(order["hosts"])]
        torchrun += ["--nproc_per_node", str(order["ranks_per_host"]), "--master_addr", order["master"]]
        torchrun += ["--master_port", str(order["port"]), "--node_rank", str(order["host"])]
        with Path(order["log"]).open("wb") as log:
            return subprocess.Popen(
                [*network.within(order["host"]), *torchrun, *order["script"]],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


class Job:
    """One start of a script on all hosts.

    Args:
        starts: How.
        network: The hosts.
        folder: A new one, for what its processes write.
        script: And its arguments; "{host}" in them is the host's number.
        ranks_per_host: How many each has.
        environment: Of all of its processes, besides this process's own.
        absent: Hosts that are not started.
    """

    def __init__(
        self,
        starts: Starts,
        network: Network,
        folder: Path,
        script: Sequence[str],
        *,
        ranks_per_host: int = 1,
        environment: Mapping[str, str],
        absent: Sequence[int] = (),
    ) -> None:
        self.folder = folder
        self.ranks_per_host = ranks_per_host
        self.hosts = len(network.addresses)
        (folder / "places").mkdir(parents=True)
        environment = {
            **environment,
            "TORTURE_PLACES": str(folder / "places"),
            "GLOO_SOCKET_IFNAME": network.interface,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "SM_HOSTS": json.dumps([self.name(host) for host in range(self.hosts)]),
        }
        self.agents: dict[int, Agent] = {}
        for host in range(self.hosts):
            order = {
                "host": host,
                "hosts": self.hosts,
                "ranks_per_host": ranks_per_host,
                "log": str(self.log(host)),
                "master": network.addresses[0],
                "port": PORT,
                "script": [word.replace("{host}", str(host)) for word in script],
            }
            if host not in absent:
                own = {**environment, "SM_CURRENT_HOST": self.name(host)}
                self.agents[host] = starts.agent(network, order, own)
        self.ended: dict[int, float] = {}
        """When each agent was seen to have ended, by `time.time()`."""

    @staticmethod
    def name(host: int) -> str:
        return f"algo-{host + 1}"

    def log(self, host: int) -> Path:
        return self.folder / f"host-{host}.txt"

    def host_of(self, rank: int) -> int:
        return rank // self.ranks_per_host

    def places(self, rank: int) -> list[tuple[str, int, float]]:
        """Return the places to which a rank has come, with its process's number and the time."""
        file = self.folder / "places" / f"rank-{rank}"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [(place, int(process), float(then)) for place, process, then in map(str.split, lines)]

    def process_of(self, rank: int) -> int | None:
        places = self.places(rank)
        return places[-1][1] if places else None

    def wait_for(self, rank: int, place: str, count: int, seconds: float) -> bool:
        """Return True when a rank has come to a place so often; False after so many seconds, or if a host has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if sum(at == place for at, *_ in self.places(rank)) >= count:
                return True
            self.look()
            if self.ended:
                return False
            time.sleep(_LOOK_SECONDS)
        return False

    def look(self) -> None:
        """Note which agents have ended."""
        for host, agent in self.agents.items():
            if host not in self.ended and agent.poll() is not None:
                self.ended[host] = time.time()

    def processes(self, host: int | None = None) -> dict[int, str]:
        """Return what runs of this job, or of one of its hosts: numbers and states. Zombies have ended."""
        hosts = list(self.agents) if host is None else [host]
        known = {self.agents[host].pid for host in hosts}
        for rank in range(self.hosts * self.ranks_per_host):
            if self.host_of(rank) in hosts and (process := self.process_of(rank)):
                known.add(process)
        found = {}
        for process in known:
            with contextlib.suppress(OSError):
                state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
                if state not in "ZX":
                    found[process] = state
        return found

    def wait_until_ended(self, hosts: Sequence[int], seconds: float) -> bool:
        """Return whether all processes of these hosts come to their end within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()
            if all(host in self.ended for host in hosts) and not any(self.processes(host) for host in hosts):
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def end(self) -> None:
        """Kill what is left."""
        while processes := self.processes():
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self.look()
            time.sleep(0.01)
        while any(agent.poll() is None for agent in self.agents.values()):
            time.sleep(0.01)
        self.look()
