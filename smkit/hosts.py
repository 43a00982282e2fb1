"""A host of a local job: the folder that stands for its /opt/ml, and the processes that run on it.

The toolkit runs in a session of its own; its state is read from the folder's marker files and from /proc, never from
an exit status, which can be 0 after a crash. This room does not know what a job is given.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smkit.contract import BASE_DIR_VARIABLE, MAX_FAILURE_CHARACTERS, JobTree, failure_file, success_file
from smkit.errors import JobError

PROCESS_FILE = "process.json"
"""Number and start time of a host's toolkit; a job is there when its first host has one."""
_STOPPED_FILE = "stopped"
_KILL_SECONDS = 5.0
"""How long to go on killing; only a process that hangs in the kernel outlives it."""


@dataclass(frozen=True)
class Host:
    """The folder that stands for a host's /opt/ml, and the toolkit's process that runs on it."""

    base: Path

    @property
    def tree(self) -> JobTree:
        return JobTree(self.base)

    @property
    def log(self) -> Path:
        """What the script writes, which the toolkit passes on to its own standard output."""
        return self.base / "log.txt"

    @property
    def toolkit_log(self) -> Path:
        """What the toolkit says itself: a hundred lines about the environment, and its own view of a failure."""
        return self.base / "toolkit.txt"

    @property
    def start_time(self) -> int:
        """When the host was started, in nanoseconds."""
        return (self.base / PROCESS_FILE).stat().st_mtime_ns

    @property
    def end_time(self) -> int:
        """When the host ended, in nanoseconds: the moment of its first mark, else of the last line of its log.

        A failure file goes before all others, for it is the only one that the script itself can have written.
        """
        output = self.tree.output_dir
        marks = (failure_file(output), success_file(output), self.base / _STOPPED_FILE)
        return next((mark for mark in marks if mark.exists()), self.log).stat().st_mtime_ns

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the toolkit in a session of its own, where a terminal's Ctrl-C and its end do not reach it."""
        program = str(Path(sys.executable).parent / "train")
        appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        # No Popen: it would complain when it is collected, for nobody here waits for a process that outlives this one.
        pid = os.posix_spawn(
            program,
            [program],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), appending, 0o644),
                (os.POSIX_SPAWN_OPEN, 2, str(self.toolkit_log), appending, 0o644),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE),
        )
        process = _read_process(pid)
        unfinished = self.base / f"{PROCESS_FILE}.new"
        unfinished.write_text(json.dumps({"pid": pid, "started": process.started if process else 0}))
        unfinished.replace(self.base / PROCESS_FILE)

    def toolkit(self) -> _Process | None:
        """Return the toolkit's process if it runs. A later process of the same number has another start time."""
        try:
            identity = json.loads((self.base / PROCESS_FILE).read_text())
            pid, started = int(identity["pid"]), int(identity["started"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            # The script can write here too, and a folder of jobs can come from elsewhere.
            raise JobError(
                f"which process this host is, is not known: {PROCESS_FILE} is not what smkit has written",
                where=str(self.base),
                fix="end the job's processes yourself, and remove the folder",
            ) from error
        process = _read_process(pid)
        if process and process.started != started:
            return None
        if process and process.state == b"Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
            return None
        return process

    def is_running(self) -> bool:
        return self.toolkit() is not None

    def was_stopped(self) -> bool:
        """Whether smkit ended this host; then nothing that it left says why the job ended."""
        return (self.base / _STOPPED_FILE).exists()

    def failure_reason(self) -> str | None:
        """Return why a host that has ended failed, None if it did not.

        A failure file counts even beside `success`, where the script wrote it and then exited with 0. SageMaker would
        call that job Completed, but a script that says that it failed is the one to believe.
        """
        output = self.tree.output_dir
        if self.was_stopped():
            return None
        if failure_file(output).exists():
            text = failure_file(output).read_text(encoding="utf-8", errors="replace")[:MAX_FAILURE_CHARACTERS]
            return text.strip() or "the script left an empty output/failure"
        if not success_file(output).exists():
            return (
                "the toolkit's process is gone and left neither output/success nor output/failure: "
                "it was killed from outside, memory ran out, or the machine was restarted"
            )
        with self.toolkit_log.open(encoding="utf-8", errors="replace") as log:
            if any("Known exception: ExecuteUserScriptError" in line for line in log):
                return "the script crashed in gloo ('gloo::EnforceNotMet'), which the toolkit reports as a success"
        return None


class _Process(NamedTuple):
    pid: int
    parent: int
    state: bytes
    started: int


def end(hosts: Sequence[Host], *, grace_seconds: float) -> None:
    """End all processes of these hosts: SIGTERM to the scripts of those that run, SIGKILL to what is left at the end.

    The toolkit gets no SIGTERM: it would die of it, orphan its script and leave no mark. Nor does torchrun: it would
    hand it on and kill, 30 s later, workers that still save; that its workers end by themselves it takes well.
    """
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    for host in hosts:
        if host.is_running():
            (host.base / _STOPPED_FILE).touch()
    while time.monotonic() < deadline and any(host.is_running() for host in hosts):
        toolkits, children = _toolkits(hosts), _children()
        scripts = _scripts(toolkits, children)
        if asked and toolkits.isdisjoint(children):
            # What a script leaves behind holds its pipes open, and the toolkit reads them to their end.
            _send(signal.SIGKILL, _processes_of(hosts) - toolkits)
        _send(signal.SIGTERM, scripts - asked)
        asked |= scripts
        time.sleep(0.1)
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline and (left := _processes_of(hosts) | _toolkits(hosts)):
        _send(signal.SIGKILL, left)
        time.sleep(0.01)


def _scripts(toolkits: Iterable[int], children: Mapping[int, Sequence[int]]) -> set[int]:
    """Return the processes that SIGTERM is for: the toolkits' children, and for torchrun its workers.

    A shell would die of it or sit on it, so its children stand in for it; other grandchildren are the script's affair.
    """
    scripts: set[int] = set()
    pending = [child for toolkit in toolkits for child in children.get(toolkit, ())]
    while pending:
        pid = pending.pop()
        if _is_torchrun(pid) or (pid in children and _is_shell(pid)):
            pending += children.get(pid, ())
        else:
            scripts.add(pid)
    return scripts


def _children() -> dict[int, list[int]]:
    """Return the numbers of the children of each process that has some."""
    children: dict[int, list[int]] = {}
    for process in _all_processes():
        children.setdefault(process.parent, []).append(process.pid)
    return children


def _toolkits(hosts: Iterable[Host]) -> set[int]:
    return {toolkit.pid for host in hosts if (toolkit := host.toolkit())}


def _processes_of(hosts: Iterable[Host]) -> set[int]:
    """Return all processes that have a host's base folder in their environment, and all that descend from such a one.

    The variable finds orphans and those in sessions of their own; descent finds those that overwrite their
    environment, as setproctitle does.
    """
    marks = {os.fsencode(f"{BASE_DIR_VARIABLE}={host.base}") for host in hosts}
    processes = _all_processes()
    found: set[int] = set()
    more = {pid for pid, *_ in processes if not marks.isdisjoint(_read_proc(pid, "environ").split(b"\0"))}
    while more:
        found |= more
        more = {process.pid for process in processes if process.parent in found} - found
    return found


def _all_processes() -> list[_Process]:
    numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [process for process in map(_read_process, numbers) if process and process.state not in b"ZX"]


def _read_process(pid: int) -> _Process | None:
    # proc(5): the name, in parentheses, can hold anything; the state is field 3, the parent 4, the start time 22.
    fields = _read_proc(pid, "stat").rpartition(b")")[2].split()
    return _Process(pid, parent=int(fields[1]), state=fields[0], started=int(fields[19])) if fields else None


def _read_proc(pid: int, file: str) -> bytes:
    """Return a file of /proc/<pid>, nothing where the process is gone or another user's."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""


def _is_torchrun(pid: int) -> bool:
    words = os.fsdecode(_read_proc(pid, "cmdline")).split("\0")[:3]
    return not {"torchrun", "torch.distributed.run"}.isdisjoint(Path(word).name for word in words)


def _is_shell(pid: int) -> bool:
    try:
        program = Path(f"/proc/{pid}/exe").readlink()
    except OSError:  # It has ended, or is somebody else's.
        return False
    return program.name in ("sh", "bash", "dash", "ksh", "zsh", "busybox")


def _send(number: signal.Signals, processes: Iterable[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
