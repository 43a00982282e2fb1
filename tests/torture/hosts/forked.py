"""Start many short jobs at the cost of one: agents and ranks are forked from this process, which has torch imported.

An agent does what torchrun does, in few words: it starts its ranks and keeps the store, if its host is the first, ends
all ranks when one has failed, and at the end waits for the other hosts' agents. True processes, for true signals.

It reads orders, a JSON object a line, and answers each by a line `{"agent": number}`; when one has ended it writes
`{"agent": number, "status": ...}`, negative if a signal has ended it. It ends with its input.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import runpy
import select
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

# Imported here, once, so that a round begins to train at once.
import tensorboard.summary.writer.event_file_writer  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor
import torch.nn.parallel

import smkit.context
import smkit.trainer  # noqa: F401

_CLONE_NEWNET = 0x40000000
_LOOK_SECONDS = 0.1
_SECONDS_TO_END = 30.0
_BARRIER = timedelta(seconds=300)


def enter(namespace: str) -> None:
    descriptor = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns", namespace)
    os.close(descriptor)


def run_rank(order: dict[str, Any], local_rank: int) -> None:
    each, host, hosts = order["ranks_per_host"], order["host"], order["hosts"]
    os.environ |= {"RANK": str(host * each + local_rank), "LOCAL_RANK": str(local_rank)}
    os.environ |= {"WORLD_SIZE": str(hosts * each), "LOCAL_WORLD_SIZE": str(each)}
    os.environ |= {"MASTER_ADDR": order["master"], "MASTER_PORT": str(order["port"])}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
    sys.argv = order["script"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_agent(order: dict[str, Any]) -> None:
    enter(order["namespace"])
    os.environ |= order["environment"]
    torch.set_num_threads(1)
    ranks = [forked(lambda local_rank=number: run_rank(order, local_rank)) for number in range(order["ranks_per_host"])]
    # Threads begin here, when all is forked.
    is_first = order["host"] == 0
    store = torch.distributed.TCPStore(order["master"], order["port"], is_master=is_first, wait_for_workers=False)
    statuses: dict[int, int] = {}
    deadline = float("inf")
    while left := set(ranks) - statuses.keys():
        for rank in left:
            process, status = os.waitpid(rank, os.WNOHANG)
            if process:
                statuses[rank] = os.waitstatus_to_exitcode(status)
        if any(statuses.values()) and deadline == float("inf"):
            deadline = time.monotonic() + _SECONDS_TO_END
            send(signal.SIGTERM, ranks, statuses)
        if time.monotonic() > deadline:
            send(signal.SIGKILL, ranks, statuses)
        time.sleep(_LOOK_SECONDS)
    if any(statuses.values()):
        sys.exit(1)
    # The first host may be gone, and the store with it, before another has heard that all have ended. As in torchrun,
    # whatever becomes of this last meeting is no failure of the job.
    with contextlib.suppress(RuntimeError):
        store.set(f"ended/{order['host']}", "")
        store.wait([f"ended/{host}" for host in range(order["hosts"])], _BARRIER)


def send(number: int, ranks: list[int], statuses: dict[int, int]) -> None:
    for rank in set(ranks) - statuses.keys():
        os.kill(rank, number)


def forked(run: Any) -> int:
    process = os.fork()
    if process:
        return process
    try:
        run()
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    # The interpreter of this process comes to its end in every way that it can.
    sys.exit(0)


def start(order: dict[str, Any]) -> int:
    def run() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        run_agent(order)

    return forked(run)


def main() -> None:
    children: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], _LOOK_SECONDS)
        if ready:
            read = os.read(0, 1 << 16)
            if not read:
                return
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                agent = start(json.loads(line))
                children.add(agent)
                say({"agent": agent})
        for child in list(children):
            process, status = os.waitpid(child, os.WNOHANG)
            if process:
                children.remove(child)
                say({"agent": child, "status": os.waitstatus_to_exitcode(status)})


def say(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
