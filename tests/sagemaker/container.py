"""Containers without Docker: a process that is PID 1 of its own namespaces, with /opt/ml of its own."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from sagemaker.tree import Tree

_NAMESPACES = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child")
_ENTER = Path(__file__).with_name("enter_container.sh")
# How SageMaker's images start: with no program of their own, `train`.
TRAIN = str(Path(sys.executable).with_name("train"))


@functools.cache
def namespaces_are_to_be_had() -> bool:
    """Return whether this user may make namespaces and mount in them."""
    trial = [*_NAMESPACES, "mount", "-t", "tmpfs", "none", "/opt"]
    try:
        return subprocess.run(trial, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def write_hosts(tree: Tree, hosts: Sequence[str]) -> None:
    """Write the container's /etc/hosts: the machine's own (torchrun needs its name) and those of the job."""
    lines = [Path("/etc/hosts").read_text().rstrip("\n")]
    lines += [f"127.0.0.{number} {host}" for number, host in enumerate(hosts, 1)]
    (tree.folder / "hosts").write_text("\n".join(lines) + "\n")


class Container:
    """One host's container, running."""

    def __init__(
        self,
        tree: Tree,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        isolated: bool,
        alone: bool = False,
        hidden: Sequence[str] = (),
    ) -> None:
        self._isolated = isolated
        self.tree = tree
        # A job shares the processors of this machine with others, and its threads would wait for each other's.
        environment = {"PATH": _path(), "HOME": str(tree.home), "OMP_NUM_THREADS": "1"} | dict(environment)
        if isolated:
            net = ("--net",) if alone else ()
            environment |= {"ALONE": "yes"} if alone else {}
            start = [*_NAMESPACES, *net, "sh", str(_ENTER), str(tree.folder), sys.prefix, *hidden, "--", *command]
        else:
            command = [word.replace("/opt/ml", str(tree.base)) for word in command]
            for view in tree.views.iterdir():
                channel = tree.base / "input/data" / view.name
                channel.rmdir()
                channel.symlink_to(view)
            # What is installed must not land in the environment that runs the tests.
            packages = str(tree.home / "packages")
            environment |= {"SAGEMAKER_BASE_DIR": str(tree.base), "SM_STUDIO_LOCAL_MODE": "True"}
            environment |= {"PIP_TARGET": packages, "PYTHONPATH": packages}
            # As PID 1 would, a process without a handler of its own ignores SIGTERM.
            start = ["sh", "-c", 'trap "" TERM; exec "$@"', "sh", *command]
        self._process = subprocess.Popen(
            start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    @property
    def output(self) -> IO[bytes]:
        """Standard output and error, as one."""
        assert self._process.stdout is not None
        return self._process.stdout

    def exit_code(self) -> int | None:
        """Return the exit code once PID 1 has ended, and everything in the container with it."""
        code = self._process.poll()
        if code is not None and not self._isolated:
            self._kill_group()
        return code if code is None or code >= 0 else 128 - code

    def terminate(self) -> None:
        """Send SIGTERM to PID 1, and to nothing else."""
        first = self._first_process()
        if first:
            with suppress(ProcessLookupError):
                os.kill(first, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to everything in the container."""
        if not self._isolated:
            self._kill_group()
        elif self._process.poll() is None:
            # `unshare` takes PID 1 with it; were PID 1 killed, `unshare` would complain in the job's output.
            self._process.kill()

    def _first_process(self) -> int:
        # PID 1 is the child of `unshare`, which may be about to make it.
        if not self._isolated:
            return self._process.pid if self._process.poll() is None else 0
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while self._process.poll() is None:
            with suppress(OSError):
                found = children.read_text().split()
                if found:
                    return int(found[0])
            time.sleep(0.005)
        return 0

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _path() -> str:
    return f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
