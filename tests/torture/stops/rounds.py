"""Do rounds of stopping: start a training, send it signals, see what it leaves, let it go on to its end.

A process of its own, with torch imported once: most trainings are forked from it, and end as any Python process does,
with all that the interpreter does at its end. Orphans become its children, and it may have a /dev/shm of its own.
It judges nothing; rounds come as lines of JSON and go as lines of JSON.

    python -m torture.stops.rounds
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Imported here, once, so that a run that is forked begins to train at once.
import tensorboard.summary.writer.event_file_writer  # noqa: F401
import torch
import torch._dynamo
import torch.distributed

import smkit.context
import smkit.trainer  # noqa: F401
from smkit.checkpoint import CheckpointStore
from smkit.errors import CheckpointError
from torture.stops.job import prepared
from torture.subjects.server import forked_agent

SCRIPT = Path(__file__).with_name("script.py")
SETTINGS = ("--epochs", "3", "--batch-size", "4", "--seed", "7", "--log-every-steps", "5", "--max-grad-norm", "1.0")
SETTINGS += ("--monitor-metric", "loss", "--checkpoint-every-seconds", "0.05")
ENDS_SECONDS = 120.0
"""What SageMaker gives a job between SIGTERM and SIGKILL."""
ORPHANS_SECONDS = 20.0
SHARED_MEMORY = Path("/dev/shm")
PR_SET_CHILD_SUBREAPER = 36
UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


class Places:
    """The folders and files of a round."""

    def __init__(self, order: dict[str, Any], name: str) -> None:
        self.run = Path(order["folder"]) / "run"
        self.base = Path(order["folder"]) / "job"
        """Of a job that the toolkit runs."""
        self.notes = Path(order["folder"]) / f"{name}-notes"
        self.log = Path(order["folder"]) / f"{name}.log"
        self.temporary = Path(order["folder"]) / f"{name}-tmp"
        self.temporary.mkdir(parents=True)
        self.is_job = order["kind"] == "supervised"
        data = Path(order["folder"]) / "data"
        data.mkdir(exist_ok=True)
        (data / "present").touch()
        self.arguments = [*SETTINGS, *order.get("settings", ()), "--run-dir", str(self.run)]
        self.arguments += [f"--channel={name}={data}" for name in ("train", "validation")]
        self.environment = {"STOPS_NOTES": str(self.notes), "TMPDIR": str(self.temporary)}

    @property
    def checkpoints(self) -> Path:
        return self.base / "checkpoints" if self.is_job else self.run / "checkpoints"

    @property
    def model(self) -> Path:
        return (self.base if self.is_job else self.run) / "model" / "model.safetensors"

    @property
    def failure(self) -> Path:
        return (self.base if self.is_job else self.run) / "output" / "failure"

    def words(self, rank: int = 0) -> list[dict[str, Any]]:
        file = self.notes.with_name(f"{self.notes.name}.{rank}")
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def forked(places: Places, environment: dict[str, str], *, is_aside: bool) -> int:
    """Fork a run. Unless it is aside, its end is that of an interpreter: nothing here may stand around this call."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        with contextlib.suppress(PermissionError):
            os.setpgid(process, process)
        return process
    os.setpgid(0, 0)
    os.dup2(os.open(places.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= places.environment | environment
    tempfile.tempdir = None
    sys.argv = [str(SCRIPT), *places.arguments]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        if is_aside:
            # Most of such a short run's time is what the interpreter does at its end.
            sys.stderr.flush()
            os._exit(int(end.code or 0))
        raise
    raise SystemExit(0)


def rank_environment(rank: int, port: int) -> dict[str, str]:
    variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return variables | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}


def started(command: Sequence[str], places: Places, environment: dict[str, str]) -> int:
    with places.log.open("ab") as log:
        # Forgotten at once: who has ended is seen by waiting for any child.
        return subprocess.Popen(
            command,
            env=os.environ | places.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ).pid


class Running:
    """A training that is under way."""

    def __init__(self, order: dict[str, Any], places: Places, *, is_aside: bool = False) -> None:
        self.order, self.places = order, places
        self.statuses: dict[int, int] = {}
        self._agent: int | None = None
        kind, world_size = order["kind"], order["world_size"]
        pauses = [json.dumps(order["pauses"] | (order.get("pauses_of_1", {}) if rank else {})) for rank in range(2)]
        environment = {"STOPS_PAUSES": pauses[0]}
        script = [sys.executable, str(SCRIPT), *places.arguments]
        if kind == "forked":
            port = 0
            if world_size > 1:
                self._agent, port = forked_agent()
            own = [rank_environment(rank, port) if port else {} for rank in range(world_size)]
            self.leaders = [
                forked(places, {"STOPS_PAUSES": pauses[rank]} | own[rank], is_aside=is_aside)
                for rank in range(world_size)
            ]
            return
        if kind == "torchrun":
            script = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *script[1:]]
        elif kind == "shell":
            script = ["sh", "-c", '"$@"; exit $?', "sh", *script]
        elif kind == "process 1":
            script = [*UNSHARE, *script]
        elif kind == "supervised":
            script, more = prepared(places.base, SCRIPT, places.arguments)
            script, environment = [*UNSHARE, *script], environment | more
        self.leaders = [started(script, places, environment)]

    def look(self) -> None:
        """Note who has ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.statuses[ended[0]] = os.waitstatus_to_exitcode(ended[1])

    @property
    def has_ended(self) -> bool:
        self.look()
        return all(leader in self.statuses for leader in self.leaders)

    def wait_for(self, word: str, count: int) -> bool:
        """Return True once the training has noted so many times what it does; False if it ends before."""
        deadline = time.monotonic() + ENDS_SECONDS
        while sum(one["word"] == word for one in self.places.words()) < count:
            if self.has_ended or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def send(self, number: int) -> None:
        for process in self._targets():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if self.order["to"] == "group" else os.kill)(process, number)

    def _targets(self) -> Iterator[int]:
        kind, to = self.order["kind"], self.order["to"]
        if kind in ("process 1", "supervised"):
            yield from self._children(self.leaders[0])
        elif kind == "torchrun" and to == "rank 1":
            yield self.places.words(1)[0]["process"]
        elif to == "rank 1":
            yield self.leaders[1]
        else:
            yield from (leader for leader in self.leaders if leader not in self.statuses)

    @staticmethod
    def _children(process: int) -> list[int]:
        with contextlib.suppress(OSError):
            return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        return []

    def end(self, seconds: float) -> bool:
        """Wait for the end; return False if it did not come, and was made."""
        deadline = time.monotonic() + seconds
        while not self.has_ended and time.monotonic() < deadline:
            time.sleep(0.002)
        # What stands in front of a training may be gone before it.
        while (
            self.order["kind"] in ("shell", "torchrun") and self._children(os.getpid()) and time.monotonic() < deadline
        ):
            self.look()
            time.sleep(0.002)
        is_in_time = self.has_ended
        for leader in self.leaders if not is_in_time else ():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
        if self._agent is not None:
            os.kill(self._agent, signal.SIGKILL)
        while not self.has_ended:
            time.sleep(0.01)
        return is_in_time

    def orphans(self) -> list[str]:
        """Return the command lines of what outlives the training by long, and end it."""
        deadline = time.monotonic() + ORPHANS_SECONDS
        while True:
            self.look()
            left = self._children(os.getpid())
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.005)
        found = []
        for process in left:
            found.append(Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            os.kill(process, signal.SIGKILL)
        return found


def manifests(checkpoints: Path) -> int:
    """Return the newest step that has a manifest."""
    return max((int(path.parent.name.split("-")[1]) for path in checkpoints.glob("*/manifest.json")), default=0)


def newest(checkpoints: Path) -> int | str:
    """Return the step of the newest whole checkpoint, 0 if there is none, or what is wrong."""
    try:
        found = CheckpointStore(checkpoints).latest()
    except CheckpointError as error:
        return str(error)
    return 0 if found is None else found.step


def done(order: dict[str, Any]) -> dict[str, Any]:
    """Do a round."""
    places = Places(order, "stopped")
    before = set(SHARED_MEMORY.iterdir())
    if order.get("has_begun"):
        # So that there is something to restore, a training was stopped before.
        aside = order | {"kind": "forked", "pauses": {"done": 0.005}, "to": "leader"}
        first = Running(aside, Places(order, "before"), is_aside=True)
        first.wait_for("done", order["has_begun"])
        first.send(signal.SIGTERM)
        first.end(ENDS_SECONDS)
        if order["kind"] == "supervised":
            shutil.move(first.places.run / "checkpoints", places.checkpoints)
    running = Running(order, places)
    was_met = running.wait_for(order["word"], order["count"])
    time.sleep(order["after"])
    committed, began = manifests(places.checkpoints), time.monotonic()
    met_its_end = running.has_ended
    for number, pause in order["signals"]:
        running.send(number)
        time.sleep(pause)
    is_in_time = running.end(ENDS_SECONDS)
    seconds = time.monotonic() - began
    result = {
        "statuses": [running.statuses[leader] for leader in running.leaders],
        "was_met": was_met and not met_its_end,
        "is_in_time": is_in_time,
        "seconds": round(seconds, 2),
        "committed": committed,
        "words": places.words(),
        "words_of_1": places.words(1),
        "newest": newest(places.checkpoints),
        "model": digest(places.model),
        "failure": places.failure.read_text() if places.failure.exists() else None,
        "orphans": running.orphans(),
        "text": places.log.read_text(errors="replace") if places.log.exists() else "",
    }
    result["left"] = [path.name for path in places.temporary.iterdir()]
    result["left_shared"] = [path.name for path in {*SHARED_MEMORY.iterdir()} - before if is_own_memory()]
    return result | resumed(order, places)


def digest(file: Path) -> str | None:
    import xxhash

    return xxhash.xxh3_128(file.read_bytes()).hexdigest() if file.exists() else None


def resumed(order: dict[str, Any], before: Places) -> dict[str, Any]:
    """Let the training go on to its end, and return how that was and what model it came to."""
    places = Places(order | {"kind": "forked"}, "resumed")
    if before.is_job:
        places.run.mkdir(exist_ok=True)
        shutil.rmtree(places.run / "checkpoints", ignore_errors=True)
        if before.checkpoints.exists():
            shutil.move(before.checkpoints, places.run / "checkpoints")
    running = Running(
        order | {"kind": "forked", "pauses": {}, "pauses_of_1": {}, "to": "leader"}, places, is_aside=True
    )
    running.end(ENDS_SECONDS)
    running.orphans()
    return {
        "resumed_status": running.statuses[running.leaders[0]],
        "resumed_model": digest(places.model),
        "resumed_text": places.log.read_text(errors="replace"),
    }


def is_own_memory() -> bool:
    return os.environ.get("STOPS_OWN_MEMORY") == "1"


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("no process here may take care of orphans")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(done(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
