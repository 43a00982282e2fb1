"""Facts of SageMaker that both wings rely on, each with its source.

Sources: "toolkit" is sagemaker-training 5.1.4 (the program `train` of the training images), "driver" the scripts
that sagemaker-train 1.27 (SDK v3) puts in front of the user's script, "API" the CreateTrainingJob reference as
botocore 1.44 carries it. This room holds names and numbers only: it reads no file and no environment variable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BASE_DIR = Path("/opt/ml")
"""Root of a job's files; the toolkit takes another one from `BASE_DIR_VARIABLE` (toolkit: environment.py)."""
BASE_DIR_VARIABLE = "SAGEMAKER_BASE_DIR"

JOB_NAME_VARIABLES = ("TRAINING_JOB_NAME", "SAGEMAKER_JOB_NAME")
"""The platform sets the first, the toolkit the second."""

MAX_HYPERPARAMETERS = 100
MAX_HYPERPARAMETER_NAME = 256
MAX_HYPERPARAMETER_VALUE = 2500
"""API: HyperParameters. Its prose says 256 characters for a value; the shape that is enforced says 2,500."""
MAX_HYPERPARAMETERS_BYTES = 120_000
"""All together: the toolkit puts them into one environment variable, and Linux allows 128 KiB (E2BIG at 140 KB)."""
MAX_FAILURE_CHARACTERS = 1024
"""API: FailureReason keeps this much of `output/failure`."""
MAX_CHANNELS = 20

JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
CHANNEL_NAME = re.compile(r"[A-Za-z0-9.\-_]{1,64}")
"""API: ChannelName. The v3 driver dies on `-` and `.`, which the toolkit takes."""

MAX_METRIC_LINE_BYTES = 4096
"""PIPE_BUF of Linux: what one `write` puts into a pipe without another process's bytes in between (pipe(7))."""

STOP_DEADLINE_SECONDS = 100.0
"""SIGTERM, 120 s, SIGKILL (API: StopTrainingJob); 20 s are left to the container for its own end."""
STOPPED_EXIT_STATUS = 143
"""128 + SIGTERM. Never 0, which SageMaker reads as Completed."""
INTERRUPTED_EXIT_STATUS = 130

_PLATFORM_HYPERPARAMETER = re.compile(r"sagemaker_.*|_tuning_objective_metric|default_user_module_name")


def default_bucket(region: str, account: str) -> str:
    """Return the name of the bucket that SageMaker's own tools use too (SDK: session.py, default_bucket)."""
    return f"sagemaker-{region}-{account}"


def is_platform_hyperparameter(name: str) -> bool:
    """Whether a hyperparameter is the platform's own; the toolkit hides these from the script, the driver does not."""
    return _PLATFORM_HYPERPARAMETER.fullmatch(name) is not None


_TORCHRUN_OPTIONS = (
    *("duplicate-stderr-filters", "duplicate-stdout-filters", "event-log-handler", "local-addr", "local-ranks-filter"),
    *("log-dir", "logs-specs", "master-addr", "master-port", "max-restarts", "monitor-interval", "no-python"),
    *("node-rank", "nproc-per-node", "numa-binding", "rdzv-backend", "rdzv-conf", "rdzv-endpoint", "rdzv-id"),
    *("run-path", "shutdown-timeout", "signals-to-handle", "start-method", "virtual-local-rank"),
)
"""Of torch 2.13 (torch/distributed/run.py), those of two words: each is there with '-' and with '_'."""


def abbreviates_torchrun_option(name: str) -> bool:
    """Whether torchrun dies of a script's option `--name`, which it takes for an ambiguous abbreviation of its own.

    Python's argparse looked for that after the script's name too, until 3.12.8 and 3.13.1 (cpython issue 58573).
    """
    word = name.replace("_", "-")
    return "-" not in word and any(option.startswith(word) for option in _TORCHRUN_OPTIONS)


@dataclass(frozen=True)
class JobTree:
    """Where a job's files lie below `base` (toolkit: environment.py; user guide: "training storage folders")."""

    base: Path

    @property
    def config_dir(self) -> Path:
        return self.base / "input" / "config"

    @property
    def hyperparameters_file(self) -> Path:
        """A JSON object whose values are all strings."""
        return self.config_dir / "hyperparameters.json"

    @property
    def resource_config_file(self) -> Path:
        """Hosts, the current host, instance type and network interface."""
        return self.config_dir / "resourceconfig.json"

    @property
    def input_data_config_file(self) -> Path:
        """One object per channel: TrainingInputMode, S3DistributionType, RecordWrapperType, ContentType."""
        return self.config_dir / "inputdataconfig.json"

    @property
    def checkpoint_config_file(self) -> Path:
        """`{"LocalPath": ...}`; there only if the job has a CheckpointConfig. No variable names it."""
        return self.config_dir / "checkpointconfig.json"

    @property
    def data_dir(self) -> Path:
        """One folder per channel."""
        return self.base / "input" / "data"

    @property
    def code_dir(self) -> Path:
        """The user's source; current directory and `sys.path[0]` of the script."""
        return self.base / "code"

    @property
    def model_dir(self) -> Path:
        """Uploaded as model.tar.gz once, at the end."""
        return self.base / "model"

    @property
    def output_dir(self) -> Path:
        return self.base / "output"

    @property
    def output_data_dir(self) -> Path:
        """Uploaded as output.tar.gz once, at the end."""
        return self.base / "output" / "data"

    @property
    def checkpoint_dir(self) -> Path:
        """Default LocalPath of a CheckpointConfig: mirrored to S3 both ways while the job runs, deletions too."""
        return self.base / "checkpoints"


def failure_file(output_dir: Path) -> Path:
    """Return the file whose first 1,024 characters become FailureReason; the runtimes keep an existing one."""
    return output_dir / "failure"


def success_file(output_dir: Path) -> Path:
    """Return the toolkit's marker of success; its exit status is none, for that can be 0 after a failure."""
    return output_dir / "success"


def tensorboard_dir(output_dir: Path) -> Path:
    """Return the default LocalPath of a TensorBoardOutputConfig, mirrored to S3 while the job runs."""
    return output_dir / "tensorboard"


_METRIC_LINE = re.compile(r"\[metrics\] step=(?P<step>-?\d+) epoch=(?P<epoch>-?\d+) (?P<values>.*)", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]\d+)?|nan|-?inf", re.ASCII)


def metric_line(step: int, epoch: int, values: Mapping[str, float]) -> str:
    """Return the one line that carries a metric record to CloudWatch; `metric_regex` reads it back.

    The toolkit cuts partial writes into several lines, so a record is written by ONE `write` of this line, newline
    included, and stays below the 4,096 bytes that a pipe takes in one piece.
    """
    fields = " ".join(f"{name}={format_number(value)}" for name, value in values.items())
    return f"[metrics] step={step} epoch={epoch} {fields}\n"


def metric_lines(step: int, epoch: int, values: Mapping[str, float]) -> list[str]:
    """Return the metric lines of a record, as many as it takes to keep each below what a pipe takes in one piece."""
    lines: list[str] = []
    part: dict[str, float] = {}
    for name, value in values.items():
        if part and len(metric_line(step, epoch, {**part, name: value}).encode()) > MAX_METRIC_LINE_BYTES:
            lines.append(metric_line(step, epoch, part))
            part = {}
        part[name] = value
    return [*lines, metric_line(step, epoch, part)]


def parse_metric_line(line: str) -> tuple[int, int, dict[str, float]] | None:
    """Return step, epoch and values of a metric line, whatever stands before its mark; None for any other line."""
    match = _METRIC_LINE.search(line)
    if match is None:
        return None
    values: dict[str, float] = {}
    for part in match["values"].rstrip().split(" "):
        name, equals, number = part.rpartition("=")
        if not (name and equals and _NUMBER.fullmatch(number)):
            return None
        values[name] = float(number)
    return int(match["step"]), int(match["epoch"]), values


def metric_regex(name: str) -> str:
    """Return the regular expression of a MetricDefinition that reads the metric `name` from a metric line."""
    return rf"\[metrics\].* {re.escape(name)}=([-+0-9.e]+|nan|-?inf)(?: |$)"


def format_number(value: float) -> str:
    """Return six significant digits, as short as they can be, in a form that `float` and CloudWatch both read."""
    return "nan" if math.isnan(value) else f"{value:.6g}"
