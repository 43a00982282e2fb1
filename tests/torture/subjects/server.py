"""One subject, imported once; each run of it is forked, a true process that a true signal ends.

    python -m torture.subjects.server NAME

Orders come as lines of JSON: `{"start": [ORDER of each rank], "log": FILE}` forks and answers with the processes' ids,
`{"wait": SECONDS}` waits for their ends, ends those that take longer, and answers with their statuses.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from meeting import forked_agent

from torture.subjects.order import HUNG, Order
from torture.subjects.training import Notes


def run(order: Order, log: str, do: Callable[[Notes], None]) -> None:
    """Do one run in a process that was forked for it, and end with its status."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if order.world_size > 1:
            os.environ |= {"RANK": str(order.rank), "LOCAL_RANK": str(order.rank), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"WORLD_SIZE": str(order.world_size), "LOCAL_WORLD_SIZE": str(order.world_size)}
            os.environ |= {"MASTER_PORT": str(order.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
            os.environ |= {"TORCHELASTIC_RESTART_COUNT": "0"}
        os.environ |= order.environment
        torch.set_num_threads(1)
        order.folder.mkdir(parents=True, exist_ok=True)
        notes = Notes(order)
        tempfile.tempdir = None  # what the server has found before is not what this run's environment says
        notes.set_clock()
        notes.watch_disk()
        do(notes)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


class Server:
    """The runs of one subject, one after the other."""

    def __init__(self, do: Callable[[Notes], None]) -> None:
        self._do = do
        self._processes: list[int] = []
        self._agent: int | None = None

    def start(self, orders: list[str], log: str) -> list[int]:
        read = [Order.from_json(order) for order in orders]
        port = 0
        if len(read) > 1:
            self._agent, port = forked_agent()
        self._processes = []
        for order in read:
            process = os.fork()
            if process == 0:
                run(Order(**vars(order) | {"port": port}), f"{log}.{order.rank}" if order.rank else log, self._do)
            with contextlib.suppress(PermissionError):
                os.setpgid(process, process)
            self._processes.append(process)
        return self._processes

    def wait(self, seconds: float) -> list[int]:
        statuses: dict[int, int] = {}
        deadline, pause = time.monotonic() + seconds, 0.0005
        while left := [process for process in self._processes if process not in statuses]:
            is_late = time.monotonic() > deadline
            for process in left:
                if is_late:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process, signal.SIGKILL)
                ended, status = os.waitpid(process, 0 if is_late else os.WNOHANG)
                if ended:
                    statuses[process] = HUNG if is_late else os.waitstatus_to_exitcode(status)
            time.sleep(pause)
            pause = min(1.5 * pause, 0.01)
        if self._agent is not None:
            os.kill(self._agent, signal.SIGKILL)
            os.waitpid(self._agent, 0)
            self._agent = None
        return [statuses[process] for process in self._processes]


def main() -> None:
    name = sys.argv[1]
    do: Callable[[Notes], None]
    if name == "smkit":
        from torture.subjects.ours import run as do
    else:
        from torture.subjects.peers import RUNS, imported

        imported(name)
        do = RUNS[name]
    server = Server(do)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        answer = server.start(order["start"], order["log"]) if "start" in order else server.wait(order["wait"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
