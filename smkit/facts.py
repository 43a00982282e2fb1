"""What the platform says of a run: folders, hosts, hardware, channels, its place among the processes.

Read from `SM_*` variables, the job's files and the command line's options for places, once, by `context`. This room
knows no hyperparameters.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from smkit import contract
from smkit.contract import JobTree
from smkit.documents import is_there, parse_json, printable, read_json_object
from smkit.errors import shown

Texts = Mapping[str, Sequence[str]]
"""The words of the command line by option."""

_PLACES = ("run_dir", "model_dir", "output_data_dir", "checkpoint_dir")


class Channel(BaseModel):
    """One input of a job: a folder of data and how SageMaker provides it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: Path
    input_mode: Literal["File", "FastFile", "Pipe"] = "File"
    """FastFile is reported as File by the platform"""
    s3_distribution: Literal["FullyReplicated", "ShardedByS3Key"] = "FullyReplicated"
    """ShardedByS3Key: this host holds its own part of the data already"""
    record_wrapper: str = "None"
    content_type: str | None = None


class PlatformFacts(BaseSettings):
    """What `SM_*` variables say; a field `x` is the variable `SM_X`."""

    model_config = SettingsConfigDict(
        env_prefix="SM_", frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )

    model_dir: Path
    output_dir: Path
    output_data_dir: Path
    hosts: tuple[str, ...] = Field(("localhost",), min_length=1)
    current_host: str = "localhost"
    current_instance_type: str | None = None
    network_interface_name: str | None = None
    num_cpus: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    num_gpus: int | None = Field(None, ge=0)
    """GPUs of this host as the platform counts them; None off SageMaker"""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from `load` alone: building a context reads nothing."""
        return (init_settings,)


class _Variables(EnvSettingsSource):
    """`SM_*` of a given environment, by the fields of PlatformFacts; a broken one is a problem under its own name."""

    def __init__(self, variables: Mapping[str, str], problems: list[str]) -> None:
        super().__init__(PlatformFacts)
        self.env_vars = {name.lower(): text for name, text in variables.items() if text != "" and name.isupper()}
        self._problems = problems

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ARG002
        return parse_json(value, f"SM_{field_name.upper()}", list, self._problems, is_shown=True)


@dataclass
class Platform:
    """One reading of what the platform says; problems are collected, so that all are reported together."""

    variables: Mapping[str, str]
    program: str
    problems: list[str] = field(default_factory=list)

    @cached_property
    def tree(self) -> JobTree:
        """The job's files, whether or not there is a job."""
        return JobTree(Path(self.variables.get(contract.BASE_DIR_VARIABLE) or contract.BASE_DIR))

    @cached_property
    def is_sagemaker(self) -> bool:
        """Whether a runtime of SageMaker started this process, or it runs bare in a job's container."""
        started = self.variables.get("SM_TRAINING_ENV") or self.variables.get("SM_HPS")
        return bool(started) or is_there(self.tree.hyperparameters_file)

    @cached_property
    def _resources(self) -> dict[str, Any]:
        return self._object(self.tree.resource_config_file)

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        return self._object(self.tree.input_data_config_file)

    def _object(self, file: Path) -> dict[str, Any]:
        return read_json_object(file, self.problems) if is_there(file) else {}

    def read(self, texts: Texts) -> dict[str, Any]:
        """Return the values of the context's own fields, by name."""
        for name, words in texts.items():
            if name in _PLACES and words[-1] == "":
                self.problems.append(f"command line: --{name.replace('_', '-')} is empty; name a folder")
        run_dir = self._run_dir(texts)
        job_name = next(filter(None, map(self.variables.get, contract.JOB_NAME_VARIABLES)), None)
        return {
            **self._facts(texts, run_dir),
            **self._processes(),
            "channels": self._channels(texts),
            "checkpoint_dir": self._checkpoint_dir(texts, run_dir),
            "job_name": None if job_name is None else printable(job_name),
            "is_sagemaker": self.is_sagemaker,
        }

    def _facts(self, texts: Texts, run_dir: Path | None) -> dict[str, Any]:
        """Return folders, hosts and hardware: the job's files, over them `SM_*`, over them the command line."""
        names = set(PlatformFacts.model_fields)
        facts: dict[str, Any] = _folders(JobTree(run_dir) if run_dir else self.tree)
        facts |= {name: self._resources[name] for name in _RESOURCES if name in self._resources}
        stated = _Variables(self.variables, self.problems)()
        facts |= {name: value for name, value in stated.items() if value is not None}
        if "run_dir" in texts and run_dir:
            facts |= _folders(JobTree(run_dir))
        facts |= {name: texts[name][-1] for name in ("model_dir", "output_data_dir") if name in texts}
        try:
            checked = PlatformFacts(**facts)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                name = str(detail["loc"][0])
                variable = f"SM_{name.upper()}"
                in_file = f"{self.tree.resource_config_file.name}: {name}"
                source = variable if self.variables.get(variable) else in_file
                self.problems.append(f"{source} {_wish(detail['msg'])} (got {shown(facts.get(name))})")
            return {}
        return {name: getattr(checked, name) for name in names}

    def _run_dir(self, texts: Texts) -> Path | None:
        """Return the folder of a local run; None in a job, unless one is asked for."""
        if "run_dir" in texts:
            return Path(texts["run_dir"][-1])
        if self.is_sagemaker:
            return None
        if self.variables.get("WORLD_SIZE", "1") != "1":
            self.problems.append("command line: several processes share one run; give them one --run-dir")
        name = Path(self.program).stem.lstrip("-")  # the program of `python -c` is called `-c`
        # Two runs that start in the same second must not share a folder: the second would go on from the first.
        return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"

    def _checkpoint_dir(self, texts: Texts, run_dir: Path | None) -> Path:
        if "checkpoint_dir" in texts:
            return Path(texts["checkpoint_dir"][-1])
        if run_dir is not None:
            return JobTree(run_dir).checkpoint_dir
        configured = self._object(self.tree.checkpoint_config_file).get("LocalPath")
        if configured is None or configured == "":
            return self.tree.checkpoint_dir
        if not isinstance(configured, str) or "\0" in configured:
            name = self.tree.checkpoint_config_file.name
            self.problems.append(f"{name}: LocalPath must be the path of a folder (got {shown(configured)})")
            return self.tree.checkpoint_dir
        return Path(configured)

    def _processes(self) -> dict[str, int]:
        """Return the place among torchrun's processes; `MASTER_ADDR` says nothing, for a plain job has it too."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        if not (self.variables.get("RANK") or self.variables.get("WORLD_SIZE")):
            return {}
        numbers: dict[str, int] = {}
        for name in names:
            text = self.variables.get(name, "")
            if re.fullmatch("[0-9]{1,9}", text):
                numbers[name.lower()] = int(text)
            else:
                self.problems.append(f"{name}: must be a whole number, as torchrun sets it (got {shown(text)})")
        for rank, size in (("rank", "world_size"), ("local_rank", "local_world_size")):
            if rank in numbers and size in numbers and numbers[rank] >= numbers[size]:
                self.problems.append(f"{rank.upper()}: {numbers[rank]} is not below {size.upper()}, {numbers[size]}")
        return numbers

    def _channels(self, texts: Texts) -> tuple[Channel, ...]:
        """Return the job's channels, those given as `--channel NAME=PATH` added or put in their place."""
        channels = {name: self._channel(name, path) for name, path in self._job_channels().items()}
        for word in texts.get("channel", []):
            name, _, path = word.partition("=")
            if not path or not contract.CHANNEL_NAME.fullmatch(name):
                self.problems.append(f"command line: --channel {shown(word)} must be NAME=PATH, like train=data/train")
            elif not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name that no file can have
                self.problems.append(f"command line: --channel {word}: '{path}' does not exist")
            else:
                channels[name] = Channel(name=name, path=Path(path))
        return tuple(channel for channel in channels.values() if channel is not None)

    def _job_channels(self) -> dict[str, Path]:
        """Return the folder of each channel of the job: `SM_CHANNEL_<NAME>`, else the place that the contract names."""
        prefix = "SM_CHANNEL_"
        by_variable = {name: Path(path) for name, path in self.variables.items() if name.startswith(prefix) and path}
        listed = self.variables.get("SM_CHANNELS")
        if listed:
            names = parse_json(listed, "SM_CHANNELS", list, self.problems, is_shown=True) or []
        elif self.is_sagemaker and self._inputs:
            names = list(self._inputs)
        else:
            names = [name[len(prefix) :].lower() for name in by_variable]
        if "SM_SOURCE_DIR" in self.variables:
            # The v3 SDK sends the source and its drivers as two more channels.
            names = [name for name in names if name not in ("code", "sm_drivers")]
        channels: dict[str, Path] = {}
        for name in filter(self._is_name, names):
            # The toolkit keeps hyphens and dots in the variable's name, the v3 driver writes '_'.
            keys = (prefix + name.upper(), prefix + name.upper().replace("-", "_"))
            found = (by_variable[key] for key in keys if key in by_variable)
            channels[name] = next(found, self.tree.data_dir / name)
        return channels

    def _is_name(self, name: object) -> bool:
        """Return whether a channel can have this name; it is a problem if not."""
        is_name = isinstance(name, str) and contract.CHANNEL_NAME.fullmatch(name) is not None
        if not is_name or name in (".", ".."):
            self.problems.append(f"the job's channels: {shown(name)} is no name of a channel")
            return False
        return True

    def _channel(self, name: str, path: Path) -> Channel | None:
        where = f"{self.tree.input_data_config_file.name}: {name}"
        described = self._inputs.get(name, {}) if self.is_sagemaker else {}
        if not isinstance(described, dict):
            self.problems.append(f"{where}: must be an object (got {shown(described)})")
            return None
        # The platform writes what was not chosen as null or as an empty text.
        given = {field: described[key] for field, key in _CHANNEL_KEYS.items() if described.get(key) not in (None, "")}
        try:
            return Channel(name=name, path=path, **given)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                field = str(detail["loc"][0])
                problem = f"{_CHANNEL_KEYS.get(field, field)} {_wish(detail['msg'])}"
                self.problems.append(f"{where}: {problem} (got {shown(given.get(field, name))})")
            return None


_RESOURCES = ("hosts", "current_host", "current_instance_type", "network_interface_name")
"""What resourceconfig.json says."""
_CHANNEL_KEYS = {
    "input_mode": "TrainingInputMode",
    "s3_distribution": "S3DistributionType",
    "record_wrapper": "RecordWrapperType",
    "content_type": "ContentType",
}


def _folders(tree: JobTree) -> dict[str, Any]:
    return {"model_dir": tree.model_dir, "output_dir": tree.output_dir, "output_data_dir": tree.output_data_dir}


def _wish(message: str) -> str:
    wish = re.sub(r"^\w+ should", "must", message.split(", unable", maxsplit=1)[0])
    wish = re.sub(r"^Unable to parse input string as an integer.*", "must be a whole number", wish)
    for theirs, ours in (
        ("a valid integer", "a whole number"),
        ("a valid tuple", "a list"),
        ("a valid string", "a text"),
        (" after validation", ""),
    ):
        wish = wish.replace(theirs, ours)
    return wish
