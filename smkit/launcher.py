"""launch: check everything that can be checked here, then start the job and return its handle.

Nothing is made before all checks have passed, and all problems are reported together. This room does not know how a job
is run.
"""

from __future__ import annotations

import datetime
import difflib
import importlib.util
import logging
import os
import platform
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from smkit import contract
from smkit.errors import ConfigurationError
from smkit.job import Job
from smkit.local import LocalJobs, LocalRun

if TYPE_CHECKING:
    from smkit.hyperparameters import Hyperparameters

_logger = logging.getLogger(__name__)


def launch(
    entry: str,
    *,
    source_dir: str | Path = ".",
    instance_type: str,
    instance_count: int = 1,
    processes_per_host: int = 1,
    inputs: Mapping[str, str | Path] | None = None,
    hyperparameters: Hyperparameters | Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    name: str | None = None,
    output_dir: str | Path = "runs",
    checkpoint_dir: str | Path | None = None,
    wait: bool = False,
) -> Job:
    """Run a training script as SageMaker does, and return its job.

    With `instance_type="local"` the script runs on this machine under the real sagemaker-training toolkit, in a copy of
    `source_dir` that leaves out its `requirements.txt` and `setup.py`, which the toolkit would install into this
    environment. A symbolic link that leads out of `source_dir` is refused. The job goes on when the caller ends.

    Args:
        entry: The script, a `.py` or `.sh` file, as a path relative to `source_dir`.
        source_dir: The folder that the script runs in; version control, caches and virtual environments stay behind.
        instance_type: `"local"`.
        instance_count: How many hosts; several are as many toolkits on this machine, joined by torchrun.
        processes_per_host: How many processes torchrun starts on each host; torchrun starts Python scripts only.
        inputs: Channels: a folder, a file or a `file://` URI for each name. The script reads, and could write, them in
            place; SageMaker would give it a copy.
        hyperparameters: What the script gets on its command line and in `SM_HPS`.
        environment: Further variables of the script.
        name: The job's name; otherwise the script's with the time (UTC) and four random digits.
        output_dir: The folder of all jobs. The job's own folder in it has the job's name.
        checkpoint_dir: One folder for the checkpoints of all hosts, so that a later job goes on from this one's;
            otherwise each host has its own, in the job's folder.
        wait: Return when the job has completed; see `Job.wait`.

    Raises:
        ConfigurationError: All that is wrong with the arguments, the files and this machine; nothing has been made.
        JobError: `wait` is set, and the job failed or was stopped.
    """
    jobs = LocalJobs(_absolute(output_dir))
    checkpoints = None if checkpoint_dir is None else _absolute(checkpoint_dir)
    channels, input_problems = _read_inputs(inputs or {})
    encoded, hyperparameter_problems = _encode(hyperparameters)
    source = _absolute(source_dir).resolve()
    own_folders = [jobs.root, *channels.values(), *filter(None, [checkpoints])]
    left_out, link_problems = _survey(source, source / entry, own_folders)
    run = LocalRun(
        name=name or _new_name(entry),
        entry=entry,
        source_dir=source,
        left_out=left_out,
        instance_count=instance_count,
        processes_per_host=processes_per_host,
        inputs=channels,
        hyperparameters=encoded,
        environment=environment or {},
        checkpoint_dir=checkpoints,
    )
    problems = [
        *_hosts_problems(run, instance_type),
        *_source_problems(run),
        *link_problems,
        *input_problems,
        *hyperparameter_problems,
        *_environment_problems(run.environment),
        *_place_problems(run, jobs.root),
        *_machine_problems(run),
    ]
    if problems:
        raise ConfigurationError.of(
            problems,
            subject=f"the launch of '{entry}'",
            where=f"launch({entry!r}, instance_type={instance_type!r}, ...)",
            fix="change what is named above; nothing has been started",
        )
    for file in _PIP_FILES:
        if (source / file).exists():
            _logger.warning("%s is left out: the toolkit would pip install it into %s", file, sys.prefix)
    jobs.start(run)
    job = Job(run.name, jobs)
    return job.wait() if wait else job


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def _new_name(entry: str) -> str:
    """Return a job name that is valid and new: the script's, the time and four random digits."""
    now = datetime.datetime.now(datetime.timezone.utc)
    end = f"-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    script = re.sub(r"[^A-Za-z0-9]+", "-", Path(entry).stem)[: 63 - len(end)].strip("-")
    return (script or "job") + end


def _encode(hyperparameters: Hyperparameters | Mapping[str, object] | None) -> tuple[dict[str, str], list[str]]:
    if not hyperparameters:
        return {}, []
    from smkit.wire import encode

    try:
        return encode(hyperparameters), []
    except ConfigurationError as error:
        problems = error.what.split("\n  - ")
        return {}, [f"hyperparameter {problem}" for problem in problems[1:]] or problems


def _read_inputs(inputs: Mapping[str, str | Path]) -> tuple[dict[str, Path], list[str]]:
    """Return the path of each channel, and the problems of all the others."""
    paths: dict[str, Path] = {}
    problems: list[str] = []
    variables: dict[str, str] = {}
    for channel, given in inputs.items():
        try:
            paths[channel] = _input_path(given)
        except (ValueError, OSError, RuntimeError) as error:
            problems.append(f"input '{channel}': {error}")
        if not contract.CHANNEL_NAME.fullmatch(channel) or channel.strip(".") == "":
            problems.append(f"input '{channel}': a channel's name has 1 to 64 letters, digits, '.', '-' or '_'")
        other = variables.setdefault(channel.upper(), channel)
        if other != channel:
            problems.append(f"input '{channel}': shares its variable SM_CHANNEL_{channel.upper()} with '{other}'")
    if len(inputs) > contract.MAX_CHANNELS:
        problems.append(f"inputs: a job takes {contract.MAX_CHANNELS} channels, not {len(inputs)}")
    return paths, problems


def _input_path(given: str | Path) -> Path:
    """Return the path that an input names.

    Raises:
        ValueError: It names nothing on this machine.
    """
    text = str(given)
    if text.startswith("s3://"):
        raise ValueError(f"a local run does not download '{text}'; download it (aws s3 sync) and give the folder")
    if text.startswith("file://"):
        uri = urlsplit(text)
        if uri.netloc not in ("", "localhost"):
            raise ValueError(f"'{text}' is on the machine '{uri.netloc}'; write file:///path with three slashes")
        text = unquote(text.removeprefix(f"file://{uri.netloc}"))
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ValueError(f"'{text}' is neither a path nor a file:// URI")
    if not text.strip():
        raise ValueError("the path is empty")
    path = _absolute(text)
    if not path.exists():
        raise ValueError(f"there is no {path}{_suggestion(path.name, _names(path.parent))}")
    return path


_NEVER_SOURCE = frozenset(
    (".git", ".hg", ".svn", ".nox", ".tox", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")
) | {".ipynb_checkpoints", "__pycache__"}
_PIP_FILES = ("requirements.txt", "setup.py")
"""The toolkit hands these to pip, which would install into the interpreter that launches."""
_TORCHRUN_PORT = 7777
"""The toolkit's choice for several hosts, which are one machine here."""
_ENTRY = re.compile(r"(?![+-])((?!\.{1,2}/)[A-Za-z0-9._+-]+/)*[A-Za-z0-9._+-]*\.(py|sh)")
"""What the toolkit takes (process.py: validate_entry_point), of the two kinds that need no preparation."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _hosts_problems(run: LocalRun, instance_type: str) -> Iterator[str]:
    if instance_type != "local":
        yield f"instance_type '{instance_type}': this version of smkit launches on this machine only; give 'local'"
    if run.instance_count < 1:
        yield f"instance_count {run.instance_count}: at least 1"
    if run.processes_per_host < 1:
        yield f"processes_per_host {run.processes_per_host}: at least 1"
    if run.processes_per_host > 1 and not run.entry.endswith(".py"):
        yield f"processes_per_host {run.processes_per_host}: torchrun starts Python scripts only, and not '{run.entry}'"


def _source_problems(run: LocalRun) -> Iterator[str]:
    source = run.source_dir
    if not source.is_dir():
        yield f"source_dir '{source}': there is no such folder{_suggestion(source.name, _names(source.parent))}"
        return
    if not _ENTRY.fullmatch(run.entry):
        yield (
            f"entry '{run.entry}': a path relative to source_dir, ending in .py or .sh, "
            "of letters, digits, '.', '_', '+', '-' and '/'"
        )
    elif not (source / run.entry).is_file():
        scripts = [str(path.relative_to(source)) for end in ("py", "sh") for path in source.glob(f"*.{end}")]
        yield f"entry '{run.entry}': not in {source}{_suggestion(run.entry, scripts)}"


def _survey(source: Path, entry: Path, own_folders: Iterable[Path]) -> tuple[frozenset[Path], list[str]]:
    """Return what of the source folder stays behind, and the problems of the links that do not.

    Args:
        source: The source folder.
        entry: The script, which never stays behind.
        own_folders: Jobs, checkpoints and channels, which may lie in the source folder and are no source.
    """
    no_source = {path for folder in own_folders for path in (folder, folder.resolve())} - {entry, *entry.parents}
    no_source.update(source / file for file in _PIP_FILES)
    left_out: set[Path] = set()
    problems: list[str] = []
    for folder, folders, files in os.walk(source):
        paths = {Path(folder, name) for name in (*folders, *files)}
        behind = {path for path in paths if path in no_source or path.name in _NEVER_SOURCE or _is_environment(path)}
        folders[:] = [name for name in folders if Path(folder, name) not in behind]
        left_out |= behind
        problems += [
            f"source_dir: the link '{link.relative_to(source)}' leads out of the folder, to {link.readlink()}; "
            "put a copy in its place, or give data as an input"
            for link in sorted(paths - behind)
            if link.is_symlink() and _leads_out(link, source)
        ]
    return frozenset(left_out), problems


def _is_environment(path: Path) -> bool:
    return (path / "pyvenv.cfg").is_file()


def _leads_out(link: Path, source: Path) -> bool:
    return link.readlink().is_absolute() or not Path(os.path.realpath(link)).is_relative_to(source)


def _environment_problems(environment: Mapping[str, object]) -> Iterator[str]:
    for name, value in environment.items():
        if not _VARIABLE.fullmatch(name):
            yield f"environment '{name}': a name has letters, digits and '_', and starts with no digit"
        elif name.startswith(("SM_", "SAGEMAKER_")):
            yield f"environment '{name}': names that start with SM_ or SAGEMAKER_ belong to the platform"
        if not isinstance(value, str) or "\0" in value:
            yield f"environment '{name}': a value is a text without NUL characters, not {value!r}"


def _place_problems(run: LocalRun, output_dir: Path) -> Iterator[str]:
    if not contract.JOB_NAME.fullmatch(run.name):
        yield f"name '{run.name}': 1 to 63 letters, digits and '-', and neither end is '-'"
    elif (output_dir / run.name).exists():
        yield f"name '{run.name}': {output_dir} holds a job of that name"
    if output_dir.resolve() in (run.source_dir / run.entry).parents and output_dir.resolve().is_relative_to(
        run.source_dir
    ):
        yield f"output_dir '{output_dir}': holds the script, so that each job would hold all former ones; give another"
    for argument, folder in (("output_dir", output_dir), ("checkpoint_dir", run.checkpoint_dir)):
        if folder is not None and folder.exists() and not folder.is_dir():
            yield f"{argument} '{folder}': not a folder"


def _suggestion(word: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _machine_problems(run: LocalRun) -> Iterator[str]:
    environment = Path(sys.executable).parent
    if platform.system() != "Linux":
        yield f"this machine: the toolkit needs Linux, and this is {platform.system()}"
    if not shutil.which("train", path=environment) or not importlib.util.find_spec("sagemaker_pytorch_container"):
        yield f"this machine: the toolkit is not installed in {environment}; pip install 'smkit[local]'"
    if not shutil.which("which"):
        yield "this machine: the toolkit calls the program 'which', and there is none; install it"
    if run.uses_torchrun and not shutil.which("torchrun", path=environment):
        yield f"this machine: torchrun is not installed in {environment}; pip install 'smkit[train]'"
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
