"""Jobs on this machine: the real sagemaker-training toolkit, without Docker and without AWS.

A job is a folder with one sub-folder per host, which stands for the host's /opt/ml. Nothing has to stay beside the
toolkit: all that is asked about a job is read from its folder. This room never imports the toolkit, and does not check
again what `launch` has checked.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smkit.artifacts import Artifact, Remains
from smkit.contract import BASE_DIR_VARIABLE
from smkit.errors import ConfigurationError, JobError
from smkit.hosts import PROCESS_FILE, Host, end
from smkit.inputs import GivenInput, Input, local_files
from smkit.job import JobStatus
from smkit.job_cost import Price
from smkit.log_view import LogLine

_GRACE_AFTER_FAILURE_SECONDS = 10.0
_LAST_BYTES = 64 * 1024
"""How much of the end of a log can tell why a host failed."""


@dataclass(frozen=True)
class LocalRun:
    """A job to run on this machine; all paths are absolute, and those in `left_out` stay behind."""

    name: str
    entry: str
    source_dir: Path
    left_out: Collection[Path]
    instance_count: int
    processes_per_host: int
    inputs: Mapping[str, GivenInput]
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

    @property
    def platform_hyperparameters(self) -> dict[str, str]:
        """What the toolkit reads for itself, as JSON."""
        values: dict[str, object] = {
            "sagemaker_program": self.entry,
            "sagemaker_job_name": self.name,
            "sagemaker_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            "sagemaker_container_log_level": logging.INFO,
        }
        if self.uses_torchrun:
            values["sagemaker_torch_distributed_enabled"] = True
            values["sagemaker_mpi_num_of_processes_per_host"] = self.processes_per_host
        return {name: json.dumps(value) for name, value in values.items()}


@dataclass(frozen=True)
class LocalJobs:
    """The jobs in the folder `root`; `Job(name, LocalJobs(root))` picks one up again."""

    root: Path
    poll_seconds: float = 0.1
    stops_on_interrupt: bool = True

    def start(self, run: LocalRun) -> None:
        """Make the folder of a job and start its hosts.

        Raises:
            ConfigurationError: There is a job of this name, or the system refuses to; then neither processes nor files
                of this job are left.
        """
        folder = self._folder(run.name)
        hosts = [Host(folder / name) for name in run.hosts]
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            # Of a folder that is there the processes are another job's, which goes on.
            raise _not_started(folder, error) from error
        try:
            for host in hosts:
                _write_tree(host, run)
            for host in hosts:
                host.start(_environment(host, run))
        except BaseException as error:
            end(hosts, grace_seconds=0)
            # What is there of a job that never was is in the way of the next of its name.
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise _not_started(folder, error) from error

    def status(self, name: str) -> JobStatus:
        """Return the state of a job as its folder and /proc tell it; the toolkit's exit status can be 0 after a crash.

        Nothing watches over the hosts while nobody asks, so the look that finds a failed host ends the others, and the
        look that finds the job ended ends what the script has left running, as the end of a container does.
        """
        hosts = self._hosts(name)
        ended = [host for host in hosts if not host.is_running()]
        if len(ended) < len(hosts) and not any(host.failure_reason() for host in ended):
            return "InProgress"
        end(hosts, grace_seconds=_GRACE_AFTER_FAILURE_SECONDS)
        if any(host.failure_reason() for host in hosts):
            return "Failed"
        return "Stopped" if any(host.was_stopped() for host in hosts) else "Completed"

    def describe(self, name: str) -> Mapping[str, Any]:
        """Return what is known of a job, in the words of DescribeTrainingJob that have an answer here."""
        status = self.status(name)
        hosts = self._hosts(name)
        started = min(host.start_time for host in hosts)
        description: dict[str, Any] = {
            "TrainingJobName": name,
            "TrainingJobStatus": status,
            "SecondaryStatus": "Training" if status == "InProgress" else status,
            "CreationTime": _time(started),
            "TrainingStartTime": _time(started),
            "HyperParameters": _read_object(hosts[0].tree.hyperparameters_file),
            "ResourceConfig": {"InstanceType": "local", "InstanceCount": len(hosts)},
            "ModelArtifacts": {"S3ModelArtifacts": hosts[0].tree.model_dir.as_uri()} if status == "Completed" else {},
        }
        if status != "InProgress":
            ended = max(host.end_time for host in hosts)
            seconds = max(0, round((ended - started) / 1e9))
            description |= {
                "TrainingEndTime": _time(ended),
                "TrainingTimeInSeconds": seconds,
                "BillableTimeInSeconds": seconds,
            }
        if status == "Failed":
            description["FailureReason"] = self._first_failed(name).failure_reason()
        return description

    def list_jobs(self, name_contains: str | None = None, limit: int = 20) -> Sequence[Mapping[str, Any]]:
        """Return the newest jobs of the folder, with those words of their description that ListTrainingJobs has."""
        started = {file.parents[1].name: file.stat().st_mtime_ns for file in self.root.glob(f"*/*/{PROCESS_FILE}")}
        names = sorted((name for name in started if (name_contains or "") in name), key=started.__getitem__)
        words = ("TrainingJobName", "TrainingJobStatus", "SecondaryStatus", "CreationTime", "TrainingEndTime")
        found = (self.describe(name) for name in names[::-1][:limit])
        return [{word: description[word] for word in words if word in description} for description in found]

    def log_location(self, name: str) -> str:
        """Return the path of the log: of the host that failed first, or a pattern for those of several hosts."""
        if self.status(name) == "Failed":
            return str(self._first_failed(name).log)
        hosts = self._hosts(name)
        return str(hosts[0].log if len(hosts) == 1 else self._folder(name) / "*" / hosts[0].log.name)

    def log_lines(self, name: str) -> Iterator[LogLine | None]:
        """Yield each line of the log once, and None, for ever, whenever there is no further one yet."""
        hosts = self._hosts(name)
        with contextlib.ExitStack() as files:
            logs = [files.enter_context(host.log.open("rb")) for host in hosts]
            while True:
                for host, log in zip(hosts, logs, strict=True):
                    start = log.tell()
                    while (line := log.readline()).endswith(b"\n"):
                        text = line[:-1].decode(errors="replace")
                        yield LogLine(text, host=host.base.name, shows_host=len(hosts) > 1)
                        start = log.tell()
                    log.seek(start)
                yield None

    def settle_seconds(self, description: Mapping[str, Any]) -> float:  # noqa: ARG002 - a file is whole at once
        """Return 0: what a process has written is in the file."""
        return 0.0

    def last_words(self, name: str) -> Sequence[str]:
        """Return the end of the log of the host that failed first."""
        with self._first_failed(name).log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_BYTES))
            return log.read().decode(errors="replace").split("\n")

    def stop(self, name: str, *, grace_seconds: float) -> None:
        """Stop a running job; it is `Stopped` whatever its script makes of SIGTERM."""
        if self.status(name) == "InProgress":
            end(self._hosts(name), grace_seconds=grace_seconds)

    def model_dirs(self, name: str) -> Sequence[Path]:
        """Return the hosts' model folders."""
        return [host.tree.model_dir for host in self._hosts(name)]

    @contextlib.contextmanager
    def remains(self, description: Mapping[str, Any], what: Artifact, *, near: Path) -> Iterator[Remains]:  # noqa: ARG002
        """Provide the hosts' own folders."""
        trees = [host.tree for host in self._hosts(description["TrainingJobName"])]
        yield Remains([tree.model_dir if what == "model" else tree.output_data_dir for tree in trees], are_ours=False)

    def prices(self, description: Mapping[str, Any]) -> Mapping[str, Price]:  # noqa: ARG002
        """Return that this machine costs nothing more."""
        return {"local": Price(0.0, "owner of this machine")}

    def _folder(self, name: str) -> Path:
        return self.root.resolve() / name

    def _hosts(self, name: str) -> Sequence[Host]:
        """Return the hosts of a job that have been started, in the order of their numbers."""
        started = [file.parent for file in self._folder(name).glob(f"*/{PROCESS_FILE}")]
        if not started:
            near = difflib.get_close_matches(name, (folder.name for folder in self.root.glob("*")))
            raise JobError(
                f"there is no job '{name}'",
                where=str(self.root.resolve()),
                fix=f"did you mean '{near[0]}'?" if near else "give the name and output_dir that launch was given",
            )
        return [Host(base) for base in sorted(started, key=lambda base: (len(base.name), base.name))]

    def _first_failed(self, name: str) -> Host:
        return min((host for host in self._hosts(name) if host.failure_reason()), key=lambda host: host.end_time)


def _not_started(folder: Path, error: OSError) -> ConfigurationError:
    if isinstance(error, FileExistsError) and folder.is_dir():
        return ConfigurationError(
            f"there is a job '{folder.name}' already", where=str(folder), fix="plan again; a plan starts one job"
        )
    return ConfigurationError(
        f"the job cannot be started: {error}",
        where=str(folder),
        fix="give an output_dir that you may write to and a source_dir that you may read",
    )


def _read_object(file: Path) -> dict[str, Any]:
    """Return a file's JSON object; the script can have removed it."""
    with contextlib.suppress(OSError, ValueError):
        content: dict[str, Any] = json.loads(file.read_text())
        return content
    return {}


def _time(nanoseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.timezone.utc)


# --- what a host is given -------------------------------------------------------------------------------------------


def _write_tree(host: Host, run: LocalRun) -> None:
    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name) in run.left_out]

    tree = host.tree
    for directory in (tree.config_dir, tree.data_dir, tree.model_dir, tree.output_data_dir):
        directory.mkdir(parents=True)
    shutil.copytree(run.source_dir, tree.code_dir, symlinks=True, ignore=left_out)
    number = run.hosts.index(host.base.name)
    for name, given in run.inputs.items():
        _link(given, tree.data_dir / name, number, run.instance_count)
    if run.checkpoint_dir is None:
        tree.checkpoint_dir.mkdir()
    else:
        run.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        tree.checkpoint_dir.symlink_to(run.checkpoint_dir)
    group = {"instance_group_name": "homogeneousCluster", "instance_type": "local", "hosts": run.hosts}
    files: dict[Path, object] = {
        tree.hyperparameters_file: {**run.hyperparameters, **run.platform_hyperparameters},
        tree.input_data_config_file: {name: _channel_facts(given.input) for name, given in run.inputs.items()},
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


def _link(given: GivenInput, channel: Path, number: int, count: int) -> None:
    """Show a host its channel: the folder itself, or a folder of links to the files that it gets."""
    root = given.root
    if root is not None and root.is_dir() and not given.matches and not (given.input.sharded and count > 1):
        channel.symlink_to(root)
        return
    files, _ = local_files(given)
    # As S3 shards: the keys in their order, dealt out to the hosts (API: ShardedByS3Key).
    for relative, file in sorted(files)[number::count] if given.input.sharded else files:
        link = channel / relative
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    channel.mkdir(exist_ok=True)


def _channel_facts(given: Input) -> dict[str, str]:
    """Return what inputdataconfig.json says of a channel; FastFile calls itself File."""
    distribution = "ShardedByS3Key" if given.sharded else "FullyReplicated"
    facts = {"TrainingInputMode": "File", "S3DistributionType": distribution, "RecordWrapperType": "None"}
    return facts if given.content_type is None else {**facts, "ContentType": given.content_type}


def _environment(host: Host, run: LocalRun) -> dict[str, str]:
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
