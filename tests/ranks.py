"""Run a trainer script in several processes, over and over, end some of them in bad ways, and print what they became.

A process of its own, for it forks: torch is imported once, and each rank is a true process that a true signal ends.
They meet as under torchrun, by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    python tests/ranks.py RUNS

RUNS is JSON: a list of runs, one after the other, each of which is

    {"script": "train.py", "world_size": 2, "arguments": ["--epochs", "3"], "log": "folder",
     "environments": [{}, {}],
     "signals": [{"rank": 1, "signal": 9, "watched": 0, "when": "a text of the watched rank", "after_seconds": 0.1}]}

Without environments, one of each rank, all ranks are of one host.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

# Imported here, once, so that a round begins to train at once.
import tensorboard.summary.writer.event_file_writer  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor
from meeting import forked_agent

import smkit.context
import smkit.trainer  # noqa: F401

SECONDS = 120.0
"""Longer than any of these runs takes."""


def forked(run: dict[str, Any], rank: int, port: int, log: Path) -> int:
    process = os.fork()
    if process:
        # As torchrun, which sends signals to a rank and all that it has started.
        with contextlib.suppress(PermissionError):
            os.setpgid(process, process)
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        size = run["world_size"]
        if size > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        if "environments" in run:
            os.environ |= run["environments"][rank]
        sys.argv = [run["script"], *run["arguments"]]
        sys.path.insert(0, str(Path(run["script"]).parent))
        torch.set_num_threads(1)
        runpy.run_path(run["script"], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


class Signals:
    """The signals that are still to be sent in a run."""

    def __init__(self, orders: list[dict[str, Any]], logs: list[Path], processes: list[int]) -> None:
        self.waiting = [dict(order) for order in orders]
        self._logs, self._processes = logs, processes

    def send_due(self) -> None:
        now = time.monotonic()
        for order in list(self.waiting):
            log = self._logs[order.get("watched", order["rank"])]
            if order.get("when", "") not in (log.read_text(errors="replace") if log.exists() else ""):
                continue
            if now >= order.setdefault("seen", now) + order.get("after_seconds", 0):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._processes[order["rank"]], order["signal"])
                self.waiting.remove(order)


def done(run: dict[str, Any]) -> dict[str, Any]:
    """Do one run; return each rank's status, negative if a signal has ended it, and what it has written."""
    folder = Path(run["log"])
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"rank-{rank}.txt" for rank in range(run["world_size"])]
    for log in logs:
        log.unlink(missing_ok=True)
    agent, port = forked_agent()
    processes = [forked(run, rank, port, log) for rank, log in enumerate(logs)]
    signals = Signals(run.get("signals", []), logs, processes)
    stopped = {order["rank"] for order in signals.waiting if order["signal"] == signal.SIGSTOP}
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while left := set(range(len(processes))) - statuses.keys():
        # Nobody but this process wakes one that was stopped.
        if time.monotonic() > deadline or left <= stopped:
            for rank in left:
                os.killpg(processes[rank], signal.SIGKILL)
        signals.send_due()
        for rank in left:
            pid, status = os.waitpid(processes[rank], os.WNOHANG)
            if pid:
                statuses[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(agent, signal.SIGKILL)
    os.waitpid(agent, 0)
    texts = [log.read_text(errors="replace") for log in logs]
    return {"statuses": [statuses[rank] for rank in range(len(processes))], "texts": texts}


if __name__ == "__main__":
    sys.stdout.write(json.dumps([done(run) for run in json.loads(sys.argv[1])]) + "\n")
