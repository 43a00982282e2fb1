"""The program that stands in front of a job's container as its first process, and hands SIGTERM to the script.

The kernel drops a SIGTERM to a process 1 without a handler, and bash and the toolkit's `train`, which the containers
put there, have none: their script never learns that its job is being stopped. This program starts what the container
would have started, and when SIGTERM comes it sends it to the script's processes: not to the toolkit, which would die
of it and orphan them. It runs with the container's own Python and knows only the standard library of Python 3.8.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SHELLS = ("sh", "bash", "dash", "ksh", "zsh", "busybox")
_LOOK_SECONDS = 0.2
"""How often to look for more processes of the script, once SIGTERM has come."""


class _Process(NamedTuple):
    pid: int
    parent: int
    started: int


def main() -> int:
    """Run the container's training to its end and return its exit status."""
    awaited = {signal.SIGTERM, signal.SIGCHLD}
    # Blocked signals wait in a queue, for process 1 too: nothing is lost between two looks.
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    command = _own_command()
    # No Popen: it would wait for its child, which here is taken leave of with all others.
    child = os.posix_spawnp(command[0], command, os.environ, setsigmask=(), setsigdef=(signal.SIGPIPE,))
    is_stopping = False
    asked: set[_Process] = set()
    while True:
        if is_stopping:
            signal.sigtimedwait(awaited, _LOOK_SECONDS)
            _ask(asked)
        else:
            is_stopping = signal.sigwait(awaited) == signal.SIGTERM
        status = _reap(child)
        if status is not None:
            return status


def _own_command() -> list[str]:
    """Return what the container starts by itself: in AWS's own ones a script that prepares the host and runs `train`.

    That script gives the host the name that the other hosts know, and loads CUDA libraries that fit the driver.
    """
    script = shutil.which("start_with_right_hostname.sh")
    return ["bash", "-m", script, "train"] if script else ["train"]


def _reap(child: int) -> int | None:
    """Take leave of all processes that have ended, orphans too; return the exit status of `child` if it is there."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, outcome = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                status = os.WEXITSTATUS(outcome) if os.WIFEXITED(outcome) else 128 + os.WTERMSIG(outcome)
            elif pid == 0:
                break
    return status


def _ask(asked: set[_Process]) -> None:
    """Send SIGTERM to each process of the script that has not had it; end what the script has left behind."""
    children: dict[int, list[_Process]] = {}
    for process in _processes():
        children.setdefault(process.parent, []).append(process)
    way = _way_to_toolkit(children)
    if not way:
        return
    new = set(_scripts(way[-1], children)) - asked
    asked |= new
    _send(signal.SIGTERM, new)
    if asked and way[-1].pid not in children and os.getpid() == 1:
        # An orphan holds the script's pipes open, and the toolkit reads these to their end.
        _send(signal.SIGKILL, {orphan for orphan in children[1] if orphan != way[0]})


def _way_to_toolkit(children: dict[int, list[_Process]]) -> list[_Process]:
    """Return the processes from a child of this one down to the program `train`, the nearest one of that name."""
    ways = [[child] for child in children.get(os.getpid(), [])]
    for way in ways:
        if "train" in [Path(word).name for word in _words(way[-1].pid)[:2]]:
            return way
        ways += [[*way, child] for child in children.get(way[-1].pid, [])]
    return []


def _scripts(toolkit: _Process, children: dict[int, list[_Process]]) -> Iterator[_Process]:
    """Yield the script's processes: the toolkit's children, and for a shell or torchrun the children of these.

    A shell would die of SIGTERM or sit on it. torchrun would hand it on and kill, 30 s later, workers that still save;
    that its workers end by themselves it takes well. Other grandchildren are the script's own affair.
    """
    pending = list(children.get(toolkit.pid, []))
    while pending:
        process = pending.pop()
        if _is_torchrun(process) or (_is_shell(process) and process.pid in children):
            pending += children.get(process.pid, [])
        else:
            yield process


def _is_torchrun(process: _Process) -> bool:
    return not {"torchrun", "torch.distributed.run"}.isdisjoint(Path(word).name for word in _words(process.pid)[:3])


def _is_shell(process: _Process) -> bool:
    try:
        program = os.readlink(f"/proc/{process.pid}/exe")  # noqa: PTH115 - Path.readlink is of Python 3.9
    except OSError:  # It has ended.
        return False
    return Path(program).name in _SHELLS


def _processes() -> Iterator[_Process]:
    """Yield every process that has not ended."""
    for folder in Path("/proc").iterdir():
        # proc(5): the name, in parentheses, can hold anything; state is field 3, parent 4, start time 22.
        fields = _read(folder / "stat").rpartition(b")")[2].split() if folder.name.isdigit() else []
        if fields and fields[0] not in b"ZX":
            yield _Process(int(folder.name), int(fields[1]), int(fields[19]))


def _words(pid: int) -> list[str]:
    return os.fsdecode(_read(Path(f"/proc/{pid}/cmdline"))).split("\0")


def _read(file: Path) -> bytes:
    """Return a file of a process, nothing where the process is gone."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _send(number: signal.Signals, processes: set[_Process]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


if __name__ == "__main__":
    sys.exit(main())
