"""Jobs on this machine: the real sagemaker-training toolkit, without Docker and without AWS.

A job is a folder with one sub-folder per host, which stands for the host's /opt/ml. The toolkit runs there in a session
of its own and nothing has to stay beside it: all that is asked about a job is read from its folder and from /proc. This
room never imports the toolkit, and does not check again what `launch` has checked.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smkit.contract import BASE_DIR_VARIABLE, MAX_FAILURE_CHARACTERS, JobTree, failure_file, success_file
from smkit.errors import ConfigurationError, JobError
from smkit.job import JobStatus

_PROCESS_FILE = "process.json"
"""Number and start time of a host's toolkit; a job is there when its first host has one."""
_STOPPED_FILE = "stopped"
_GRACE_AFTER_FAILURE_SECONDS = 10.0
_KILL_SECONDS = 5.0
"""How long to go on killing; only a process that hangs in the kernel outlives it."""


@dataclass(frozen=True)
class LocalRun:
    """A job to run on this machine; all paths are absolute, and those in `left_out` stay behind."""

    name: str
    entry: str
    source_dir: Path
    left_out: Collection[Path]
    instance_count: int
    processes_per_host: int
    inputs: Mapping[str, Path]
    hyperparameters: Mapping[str, str]
    environment: Mapping[str, str]
    checkpoint_dir: Path | None

    @property
    def hosts(self) -> Sequence[str]:
        """Names that need no name service: all of 127.0.0.0/8 is this machine. One host has the platform's own name."""
        several = [f"127.0.0.{number}" for number in range(1, self.instance_count + 1)]
        return several if self.instance_count > 1 else ["algo-1"]

    @property
    def uses_torchrun(self) -> bool:
        """Whether torchrun starts the script; the toolkit lets it start Python only."""
        return self.entry.endswith(".py") and self.instance_count * self.processes_per_host > 1


@dataclass(frozen=True)
class LocalJobs:
    """The jobs in the folder `root`; `Job(name, LocalJobs(root))` picks one up again."""

    root: Path
    poll_seconds: float = 0.1

    def start(self, run: LocalRun) -> None:
        """Make the folder of a job and start its hosts.

        Raises:
            ConfigurationError: The system refuses to; then none of the job's processes is left.
        """
        hosts = [_Host(self._folder(run.name) / name) for name in run.hosts]
        try:
            for host in hosts:
                _write_tree(host, run)
            for host in hosts:
                host.start(_environment(host, run))
        except BaseException as error:
            _end(hosts, grace_seconds=0)
            if not isinstance(error, OSError):
                raise
            raise ConfigurationError(
                f"the job cannot be started: {error}",
                where=str(self._folder(run.name)),
                fix="give an output_dir that you may write to and a source_dir that you may read",
            ) from error

    def status(self, name: str) -> JobStatus:
        """Return the state of a job as its folder and /proc tell it; the toolkit's exit status can be 0 after a crash.

        Nothing watches over the hosts while nobody asks, so the look that finds a failed host ends the others, and the
        look that finds the job ended ends what the script has left running, as the end of a container does.
        """
        hosts = self._hosts(name)
        ended = [host for host in hosts if not host.is_running()]
        if len(ended) < len(hosts) and not any(host.failure_reason() for host in ended):
            return "InProgress"
        _end(hosts, grace_seconds=_GRACE_AFTER_FAILURE_SECONDS)
        if any(host.failure_reason() for host in hosts):
            return "Failed"
        return "Stopped" if any(host.was_stopped() for host in hosts) else "Completed"

    def failure_reason(self, name: str) -> str | None:
        """Return the reason of the host that failed first, None unless the job failed."""
        return self._first_failed(name).failure_reason() if self.status(name) == "Failed" else None

    def log_location(self, name: str) -> str:
        """Return the path of the log: of the host that failed first, or a pattern for those of several hosts."""
        if self.status(name) == "Failed":
            return str(self._first_failed(name).log)
        hosts = self._hosts(name)
        return str(hosts[0].log if len(hosts) == 1 else self._folder(name) / "*" / hosts[0].log.name)

    def log_lines(self, name: str) -> Iterator[str | None]:
        """Yield each line of the log once, and None, for ever, whenever there is no further one yet."""
        hosts = self._hosts(name)
        with contextlib.ExitStack() as files:
            logs = [files.enter_context(host.log.open("rb")) for host in hosts]
            while True:
                for host, log in zip(hosts, logs, strict=True):
                    start = log.tell()
                    while (line := log.readline()).endswith(b"\n"):
                        text = line[:-1].decode(errors="replace")
                        yield text if len(hosts) == 1 else f"[{host.base.name}] {text}"
                        start = log.tell()
                    log.seek(start)
                yield None

    def stop(self, name: str, *, grace_seconds: float) -> None:
        """Stop a running job; it is `Stopped` whatever its script makes of SIGTERM."""
        if self.status(name) == "InProgress":
            _end(self._hosts(name), grace_seconds=grace_seconds)

    def model_dirs(self, name: str) -> Sequence[Path]:
        """Return the hosts' model folders."""
        return [host.tree.model_dir for host in self._hosts(name)]

    def _folder(self, name: str) -> Path:
        return self.root.resolve() / name

    def _hosts(self, name: str) -> Sequence[_Host]:
        """Return the hosts of a job that have been started, in the order of their numbers."""
        started = [file.parent for file in self._folder(name).glob(f"*/{_PROCESS_FILE}")]
        if not started:
            near = difflib.get_close_matches(name, (folder.name for folder in self.root.glob("*")))
            raise JobError(
                f"there is no job '{name}'",
                where=str(self.root.resolve()),
                fix=f"did you mean '{near[0]}'?" if near else "give the name and output_dir that launch was given",
            )
        return [_Host(base) for base in sorted(started, key=lambda base: (len(base.name), base.name))]

    def _first_failed(self, name: str) -> _Host:
        return min((host for host in self._hosts(name) if host.failure_reason()), key=lambda host: host.end_time)


# --- what a host is given -------------------------------------------------------------------------------------------


def _write_tree(host: _Host, run: LocalRun) -> None:
    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name) in run.left_out]

    tree = host.tree
    for directory in (tree.config_dir, tree.data_dir, tree.model_dir, tree.output_data_dir):
        directory.mkdir(parents=True)
    shutil.copytree(run.source_dir, tree.code_dir, symlinks=True, ignore=left_out)
    for name, path in run.inputs.items():
        link = tree.data_dir / name
        if path.is_file():
            link.mkdir()
            link /= path.name
        link.symlink_to(path)
    if run.checkpoint_dir is None:
        tree.checkpoint_dir.mkdir()
    else:
        run.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        tree.checkpoint_dir.symlink_to(run.checkpoint_dir)
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    group = {"instance_group_name": "homogeneousCluster", "instance_type": "local", "hosts": run.hosts}
    files: dict[Path, object] = {
        tree.hyperparameters_file: {**run.hyperparameters, **_platform_hyperparameters(run)},
        tree.input_data_config_file: dict.fromkeys(run.inputs, channel),
        tree.checkpoint_config_file: {"LocalPath": str(tree.checkpoint_dir)},
        tree.resource_config_file: {
            "current_host": host.base.name,
            "current_instance_type": "local",
            "current_group_name": "homogeneousCluster",
            "hosts": run.hosts,
            "instance_groups": [group],
            "network_interface_name": "lo",
        },
    }
    for file, content in files.items():
        file.write_text(json.dumps(content))


def _platform_hyperparameters(run: LocalRun) -> dict[str, str]:
    values: dict[str, object] = {
        "sagemaker_program": run.entry,
        "sagemaker_job_name": run.name,
        "sagemaker_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        "sagemaker_container_log_level": logging.INFO,
    }
    if run.uses_torchrun:
        values["sagemaker_torch_distributed_enabled"] = True
        values["sagemaker_mpi_num_of_processes_per_host"] = run.processes_per_host
    return {name: json.dumps(value) for name, value in values.items()}


def _environment(host: _Host, run: LocalRun) -> dict[str, str]:
    """Return the toolkit's variables: those of this process that are not of a job, the job's own, and the user's."""
    jobs_own = r"(SM|SAGEMAKER|TRAINING_JOB|MASTER|TORCHELASTIC)_.*|(.*_)?(RANK|WORLD_SIZE)|AWS_(DEFAULT_)?PROFILE"
    environment = {name: value for name, value in os.environ.items() if not re.fullmatch(jobs_own, name)}
    environment |= {
        BASE_DIR_VARIABLE: str(host.base),
        "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
        "TRAINING_JOB_NAME": run.name,
        "PYTHONUNBUFFERED": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
    if run.instance_count == 1:
        # Nothing resolves `algo-1` here, and the toolkit would wait 15 minutes for it.
        environment["SM_STUDIO_LOCAL_MODE"] = "True"
    return environment | dict(run.environment)


# --- a host and its processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Host:
    """The folder that stands for a host's /opt/ml, and the toolkit's process that runs on it."""

    base: Path

    @property
    def tree(self) -> JobTree:
        return JobTree(self.base)

    @property
    def log(self) -> Path:
        return self.base / "log.txt"

    @property
    def end_time(self) -> int:
        """When the host failed, in nanoseconds: the moment of its failure file, else of the last line of its log."""
        failure = failure_file(self.tree.output_dir)
        return (failure if failure.exists() else self.log).stat().st_mtime_ns

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the toolkit in a session of its own, where a terminal's Ctrl-C and its end do not reach it."""
        program = str(Path(sys.executable).parent / "train")
        # No Popen: it would complain when it is collected, for nobody here waits for a process that outlives this one.
        pid = os.posix_spawn(
            program,
            [program],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE),
        )
        process = _read_process(pid)
        unfinished = self.base / f"{_PROCESS_FILE}.new"
        unfinished.write_text(json.dumps({"pid": pid, "started": process.started if process else 0}))
        unfinished.replace(self.base / _PROCESS_FILE)

    def toolkit(self) -> _Process | None:
        """Return the toolkit's process if it runs. A later process of the same number has another start time."""
        try:
            identity = json.loads((self.base / _PROCESS_FILE).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        process = _read_process(identity["pid"])
        if process and process.started != identity["started"]:
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
        with self.log.open(encoding="utf-8", errors="replace") as log:
            if any("Known exception: ExecuteUserScriptError" in line for line in log):
                return "the script crashed in gloo ('gloo::EnforceNotMet'), which the toolkit reports as a success"
        return None


class _Process(NamedTuple):
    pid: int
    parent: int
    state: bytes
    started: int


def _end(hosts: Sequence[_Host], *, grace_seconds: float) -> None:
    """End all processes of these hosts: SIGTERM to the scripts of those that run, SIGKILL to what is left at the end.

    The toolkit gets no SIGTERM: it would die of it, orphan its script and leave no mark.
    """
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    for host in hosts:
        if host.is_running():
            (host.base / _STOPPED_FILE).touch()
    while time.monotonic() < deadline and any(host.is_running() for host in hosts):
        scripts = _scripts(hosts)
        if asked and not scripts:
            # What a script leaves behind holds its pipes open, and the toolkit reads them to their end.
            _send(signal.SIGKILL, _processes_of(hosts) - _toolkits(hosts))
        _send(signal.SIGTERM, scripts - asked)
        asked |= scripts
        time.sleep(0.1)
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline and (left := _processes_of(hosts) | _toolkits(hosts)):
        _send(signal.SIGKILL, left)
        time.sleep(0.01)


def _scripts(hosts: Iterable[_Host]) -> set[int]:
    """Return the toolkits' children, which SIGTERM is for: scripts and torchrun, which hands it to its workers.

    A shell would die of it or sit on it, so its children stand in for it; other grandchildren are the script's affair.
    """
    children: dict[int, list[int]] = {}
    for process in _all_processes():
        children.setdefault(process.parent, []).append(process.pid)
    scripts: set[int] = set()
    pending = [child for toolkit in _toolkits(hosts) for child in children.get(toolkit, ())]
    while pending:
        pid = pending.pop()
        if pid in children and _is_shell(pid):
            pending += children[pid]
        else:
            scripts.add(pid)
    return scripts


def _toolkits(hosts: Iterable[_Host]) -> set[int]:
    return {toolkit.pid for host in hosts if (toolkit := host.toolkit())}


def _processes_of(hosts: Iterable[_Host]) -> set[int]:
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


def _is_shell(pid: int) -> bool:
    return Path(os.path.realpath(f"/proc/{pid}/exe")).name in ("sh", "bash", "dash", "ksh", "zsh", "busybox")


def _send(number: signal.Signals, processes: Iterable[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
