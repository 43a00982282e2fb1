"""The plan of a job on this machine: what the toolkit will be given, and what this machine lacks for it.

What only SageMaker has (role, bucket, image, spot, ...) is not looked at. This room starts nothing before all checks
have passed.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from smkit import contract
from smkit.documents import is_there
from smkit.inputs import GivenInput, local_files
from smkit.job import Job
from smkit.launch_arguments import LaunchArguments, absolute, refuse
from smkit.local import LocalJobs, LocalRun
from smkit.plan import Plan
from smkit.preparation import Preparation, prepare
from smkit.report import amount, count

_PIP_FILES = ("requirements.txt", "setup.py")
"""The toolkit hands these to pip, which would install into the interpreter that launches."""
_MAX_HOSTS = 254
"""Each has an address of its own, 127.0.0.1 to 127.0.0.254."""
_TORCHRUN_PORT = 7777
"""The toolkit's choice for several hosts, which are one machine here."""


def make_plan(arguments: LaunchArguments, problems: Sequence[str]) -> Plan:
    """Return the plan of a job on this machine.

    Args:
        arguments: What `launch` was given.
        problems: What is wrong with them already.

    Raises:
        ConfigurationError: All that is wrong, together; nothing has been made.
    """
    # Nothing leaves this machine, so that nothing has to be kept from leaving it.
    prepared = prepare(replace(arguments, allow_secrets=["**"]))
    jobs = LocalJobs(absolute(arguments.output_dir))
    run = _run(arguments, prepared)
    refuse(
        [
            *problems,
            *prepared.problems,
            *(problem for given in prepared.inputs for problem in _input_problems(given)),
            *_place_problems(run, jobs.root),
            *_machine_problems(run),
        ],
        arguments,
    )
    files = [(file.path, file.size) for file in prepared.source.files if file.path not in _PIP_FILES]
    left_out = [name for name in _PIP_FILES if (run.source_dir / name).exists()]
    pip = [f"{name} is left out: the toolkit would pip install it into {sys.prefix}" for name in left_out]
    return Plan(
        name=run.name,
        request=_request(run),
        files=files,
        rows=_rows(run, prepared, jobs, files),
        warnings=[*prepared.warnings, *pip],
        estimate=lambda: "nothing: the job runs on this machine",
        start=partial(_start, jobs, run),
    )


def _start(jobs: LocalJobs, run: LocalRun) -> Job:
    jobs.start(run)
    return Job(run.name, jobs)


def _run(arguments: LaunchArguments, prepared: Preparation) -> LocalRun:
    source = prepared.source
    # The folder of the jobs is there when the source is copied, though it may not have been when it was looked through.
    output_dir = absolute(arguments.output_dir)
    behind = {output_dir, output_dir.resolve(), *(source.root / name for name in _PIP_FILES)}
    return LocalRun(
        name=prepared.name,
        entry=arguments.entry,
        source_dir=source.root,
        left_out=source.left_out | behind,
        instance_count=arguments.instance_count,
        processes_per_host=arguments.processes_per_host or 1,
        inputs={given.name: given for given in prepared.inputs},
        hyperparameters=prepared.hyperparameters,
        environment=arguments.environment,
        checkpoint_dir=None if arguments.checkpoint_dir is None else absolute(arguments.checkpoint_dir),
    )


def _request(run: LocalRun) -> dict[str, object]:
    """Return what the toolkit will be given, in the words of CreateTrainingJob."""
    return {
        "TrainingJobName": run.name,
        "HyperParameters": {**run.hyperparameters, **run.platform_hyperparameters},
        "InputDataConfig": [
            {"ChannelName": name, "DataSource": [str(path) for path in given.local_paths]}
            for name, given in run.inputs.items()
        ],
        "ResourceConfig": {"InstanceType": "local", "InstanceCount": run.instance_count},
        "Environment": dict(run.environment),
    }


def _rows(
    run: LocalRun, prepared: Preparation, jobs: LocalJobs, files: Sequence[tuple[str, int]]
) -> list[tuple[str, str, str]]:
    each = "one process" if not run.uses_torchrun else f"torchrun: {run.processes_per_host} per host"
    checkpoints = str(run.checkpoint_dir or "in the job's folder")
    source = f"{count(len(files), 'file')}, {amount(sum(size for _, size in files))}"
    return [
        ("script", run.entry, str(run.source_dir)),
        ("instances", f"{run.instance_count} x local, {each}", "instance_type, instance_count"),
        ("source", source, prepared.origin_text),
        ("hyperparameters", str(len(prepared.hyperparameters)), prepared.check),
        *((f"input {name}", str(given.input.source), "read in place") for name, given in run.inputs.items()),
        ("results", str(jobs.root / run.name), "output_dir"),
        ("checkpoints", checkpoints, "checkpoint_dir"),
    ]


def _input_problems(given: GivenInput) -> Iterator[str]:
    if given.uri:
        yield (
            f"input '{given.name}': a local run does not download '{given.uri}'; "
            "download it (aws s3 sync) and give the folder"
        )
    elif given.input.mode == "Pipe":
        yield f"input '{given.name}': a local run has no pipes; leave out mode='Pipe'"
    elif given.matches or given.input.sharded:
        # Any other folder is shown as it is, however much is in it.
        yield from local_files(given)[1]


def _place_problems(run: LocalRun, output_dir: Path) -> Iterator[str]:
    if is_there(output_dir / run.name):
        yield f"name '{run.name}': {output_dir} holds a job of that name"
    entry = run.source_dir / run.entry
    if output_dir.resolve() in entry.parents and output_dir.resolve().is_relative_to(run.source_dir):
        yield f"output_dir '{output_dir}': holds the script, so that each job would hold all former ones; give another"
    for argument, folder in (("output_dir", output_dir), ("checkpoint_dir", run.checkpoint_dir)):
        if folder is not None and is_there(folder) and not folder.is_dir():
            yield f"{argument} '{folder}': not a folder"


def _machine_problems(run: LocalRun) -> Iterator[str]:
    environment = Path(sys.executable).parent
    if run.instance_count > _MAX_HOSTS:
        yield f"instance_count: at most {_MAX_HOSTS} hosts are to be had of one machine"
    if platform.system() != "Linux":
        yield f"this machine: the toolkit needs Linux, and this is {platform.system()}"
    if not shutil.which("train", path=environment) or not importlib.util.find_spec("sagemaker_pytorch_container"):
        yield f"this machine: the toolkit is not installed in {environment}; pip install 'smkit[local]'"
    if not shutil.which("which"):
        yield "this machine: the toolkit calls the program 'which', and there is none; install it"
    if run.uses_torchrun and not shutil.which("torchrun", path=environment):
        yield f"this machine: torchrun is not installed in {environment}; pip install 'smkit[train]'"
    if run.uses_torchrun and sys.version_info < (3, 12, 8):
        for name in filter(contract.abbreviates_torchrun_option, run.hyperparameters):
            yield (
                f"hyperparameter '{name}': torchrun on this Python takes --{name} for an abbreviation of its own and "
                "dies of it; give it a longer name"
            )
    if run.uses_torchrun and run.instance_count > 1 and _is_taken(_TORCHRUN_PORT):
        yield f"this machine: several hosts meet at port {_TORCHRUN_PORT}, which is taken; wait for the job that has it"


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # As torchrun does; else a connection that lingers after the last job's end would count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
