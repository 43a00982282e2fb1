"""What a caller of `launch` wrote, as one value with launch's own words; and what is wrong with it wherever it runs.

This room knows neither this machine nor SageMaker: what only one of the two refuses is said there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from smkit import contract
from smkit.errors import ConfigurationError
from smkit.inputs import Input
from smkit.secret_references import FORMS, is_misspelled, is_reference

if TYPE_CHECKING:
    from smkit.hyperparameters import Hyperparameters

Vendor = Literal["source", "wheels", "none"]
VENDOR = get_args(Vendor)


@dataclass(frozen=True, kw_only=True)
class LaunchArguments:
    """The arguments of `launch`, each under its own name; see there for what they mean."""

    entry: str
    source_dir: str | Path
    instance_type: str | Sequence[str]
    instance_count: int
    processes_per_host: int | None
    inputs: Mapping[str, str | Path | Input]
    hyperparameters: Hyperparameters | Mapping[str, object] | None
    environment: Mapping[str, str]
    name: str | None
    role: str | None
    profile_name: str | None
    session: Any
    region: str | None
    bucket: str | None
    image_uri: str | None
    framework_version: str | None
    py_version: str | None
    spot: bool
    max_hours: float
    checkpoint_uri: str | None
    keep_alive_minutes: int
    retries: int
    graceful_stop: bool
    metrics: Sequence[str]
    tags: Mapping[str, str]
    vendor: Vendor
    allow_secrets: Sequence[str]
    request: Mapping[str, Any]
    output_dir: str | Path
    checkpoint_dir: str | Path | None

    @property
    def instance_types(self) -> Sequence[str]:
        """The instance types in the order of preference."""
        return [self.instance_type] if isinstance(self.instance_type, str) else list(self.instance_type)

    @property
    def source_folder(self) -> Path:
        return absolute(self.source_dir)


def absolute(path: str | Path) -> Path:
    """Return a path as it is meant by a user of a shell: from the current folder, `~` expanded, links kept."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        # Of a user who is not known there is no home; the path is then what it says.
        return Path(path).absolute()


def new_name(entry: str) -> str:
    """Return a job name that is valid and new: the script's, the time in milliseconds and six random digits."""
    now = datetime.now(timezone.utc)
    end = f"-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}{secrets.token_hex(3)}"
    script = re.sub(r"[^A-Za-z0-9]+", "-", Path(entry).stem)[: 63 - len(end)].strip("-")
    return (script or "job") + end


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def common_problems(arguments: LaunchArguments) -> Iterator[str]:
    """Say what is wrong with the arguments wherever the job runs."""
    if arguments.instance_count < 1:
        yield f"instance_count {arguments.instance_count}: at least 1"
    processes = arguments.processes_per_host
    if processes is not None and processes < 1:
        yield f"processes_per_host {processes}: at least 1"
    elif processes is not None and processes > 1 and not arguments.entry.endswith(".py"):
        yield f"processes_per_host {processes}: torchrun starts Python scripts only, and not '{arguments.entry}'"
    if arguments.name is not None and not contract.JOB_NAME.fullmatch(arguments.name):
        yield f"name '{arguments.name}': 1 to 63 letters, digits and '-', and neither end is '-'"
    if arguments.vendor not in VENDOR:
        yield f"vendor '{arguments.vendor}': one of {', '.join(VENDOR)}"
    yield from _environment_problems(arguments.environment)


def _environment_problems(environment: Mapping[str, object]) -> Iterator[str]:
    for name, value in environment.items():
        if not _VARIABLE.fullmatch(name):
            yield f"environment '{name}': a name has letters, digits and '_', and starts with no digit"
        elif name.startswith(("SM_", "SAGEMAKER_")):
            yield f"environment '{name}': names that start with SM_ or SAGEMAKER_ belong to the platform"
        # The value itself is not shown: it may be a secret.
        if "Secret" in type(value).__name__:
            yield f"environment '{name}': a secret would be readable in the job's description; give it as {FORMS}"
        elif not isinstance(value, str):
            yield f"environment '{name}': a value is a text, not a value of type {type(value).__name__}"
        elif "\0" in value:
            yield f"environment '{name}': a value has no NUL characters"
        elif any("\ud800" <= character <= "\udfff" for character in value):
            yield f"environment '{name}': a value has no half characters (surrogates)"
        elif is_misspelled(value):
            yield f"environment '{name}': begins like a reference to a secret, and is none; write {FORMS}"


def refuse(problems: Sequence[str], arguments: LaunchArguments) -> None:
    """Raise one error with all problems of a launch, if there are any.

    Raises:
        ConfigurationError: There are.
    """
    if problems:
        raise ConfigurationError.of(
            list(dict.fromkeys(problems)),
            subject=f"the launch of '{arguments.entry}'",
            where=f"launch({arguments.entry!r}, instance_type={arguments.instance_type!r}, ...)",
            fix="change what is named above; nothing has been started",
        )


_SECRET_NAME = re.compile(
    r"(.*_)?(SECRET|PASSWORD|PASSWD|TOKEN|API_?KEY|SECRET_?KEY|PRIVATE_?KEY|ACCESS_?KEY)(_.*)?", re.I
)


def environment_warnings(environment: Mapping[str, object]) -> list[str]:
    """Say which variables look like secrets by their names, and hold something else than a reference to one."""
    return [
        f"environment '{name}': looks like a secret, which everybody who may describe the job could read; store it in "
        f"AWS, send {FORMS} and read it with smkit.read_secret('{name}')"
        for name, value in environment.items()
        if _SECRET_NAME.fullmatch(name) and isinstance(value, str) and value and not is_reference(value)
    ]
