"""How SageMaker's two runtimes start a script: the job's files, its variables, its command line.

Rebuilt from the sources of the toolkit (sagemaker-training 5.1.4) and of the driver (sagemaker-train 1.27, SDK v3);
`test_wire.py` pins the toolkit's part to the real package.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOSTS = ("algo-1", "algo-2")
ONE_HOST = {
    "current_host": "algo-1",
    "current_instance_type": "local",
    "current_group_name": "homogeneousCluster",
    "hosts": ["algo-1"],
    "instance_groups": [{"instance_group_name": "homogeneousCluster", "instance_type": "local", "hosts": ["algo-1"]}],
    "network_interface_name": "lo",
}
"""The resourceconfig.json of a job on one host."""
HIDDEN_BY_THE_TOOLKIT = ("_tuning_objective_metric", "default_user_module_name")


@dataclass(frozen=True)
class Start:
    """What the script is started with."""

    argv: list[str]
    env: dict[str, str]


Runtime = Callable[..., Start]


def decoded(texts: Mapping[str, str]) -> dict[str, Any]:
    """What both runtimes make of the texts of hyperparameters.json."""
    return {name: _loads_or_text(text) for name, text in texts.items()}


def _loads_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def toolkit_env_text(value: Any) -> str:
    """`sagemaker_training.mapping.to_env_vars`."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def toolkit_argv(hyperparameters: Mapping[str, Any]) -> list[str]:
    """`sagemaker_training.mapping.to_cmd_args`."""
    words = []
    for name in sorted(hyperparameters):
        value = hyperparameters[name]
        if isinstance(value, dict):
            text = ",".join(f"{key}={item}" for key, item in sorted(value.items()))
        else:
            text = "" if value is None else str(value)
        words += [f"--{name}" if len(name) > 1 else f"-{name}", text]
    return words


def toolkit(base: Path, texts: Mapping[str, str], channels: Sequence[str] = ()) -> Start:
    """A start by the toolkit, as SDK v2 and `smkit.launch` make it."""
    visible = {
        name: value
        for name, value in decoded(texts).items()
        if not name.startswith("sagemaker_") and name not in HIDDEN_BY_THE_TOOLKIT
    }
    argv = toolkit_argv(visible)
    env = _common(base, channels) | {
        "HOSTS": list(HOSTS),
        "HPS": visible,
        "USER_ARGS": argv,
        "USER_ENTRY_POINT": "train.py",
        "MODULE_DIR": f"{base}/code",
        "CURRENT_INSTANCE_GROUP": "homogeneousCluster",
    }
    env |= {f"CHANNEL_{name.upper()}": f"{base}/input/data/{name}" for name in channels}
    env |= {f"HP_{name.upper()}": value for name, value in visible.items()}
    own = {"SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_JOB_NAME": "digits-1", "MASTER_ADDR": "algo-1"}
    return Start(argv, own | {f"SM_{name}": toolkit_env_text(value) for name, value in env.items()})


def driver(base: Path, texts: Mapping[str, str], channels: Sequence[str] = ()) -> Start:
    """A start by the v3 SDK's driver, which decodes a text a second time for the command line."""
    values = decoded(texts)
    argv: list[str] = []
    for name, value in values.items():
        again = _loads_or_text(value) if isinstance(value, str) else value
        argv += [f"--{name}", _driver_text(again)]
    channels = [*channels, "code", "sm_drivers"]
    env = _common(base, channels) | {
        "HOSTS": sorted(HOSTS),
        "HPS": values,
        "SOURCE_DIR": f"{base}/input/data/code",
        "ENTRY_SCRIPT": "train.py",
        "HOST_COUNT": len(HOSTS),
        "MASTER_ADDR": "algo-1",
    }
    env |= {f"CHANNEL_{name.upper()}": f"{base}/input/data/{name}" for name in channels}
    env |= {f"HP_{name.replace('-', '_').upper()}": value for name, value in values.items()}
    own = {"SAGEMAKER_BASE_DIR": str(base), "TRAINING_JOB_NAME": "digits-1"}
    return Start(argv, own | {f"SM_{name}": _driver_text(value) for name, value in env.items()})


def _driver_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _common(base: Path, channels: Sequence[str]) -> dict[str, Any]:
    return {
        "MODEL_DIR": f"{base}/model",
        "OUTPUT_DIR": f"{base}/output",
        "OUTPUT_DATA_DIR": f"{base}/output/data",
        "CHANNELS": list(channels),
        "CURRENT_HOST": "algo-1",
        "CURRENT_INSTANCE_TYPE": "ml.p3.2xlarge",
        "NETWORK_INTERFACE_NAME": "eth0",
        "NUM_CPUS": 8,
        "NUM_GPUS": 1,
        "TRAINING_ENV": {"current_host": "algo-1"},
    }


def write_config(base: Path, **files: Any) -> Path:
    """Write files of `input/config`: `hyperparameters={...}` becomes hyperparameters.json; bytes stay as they are."""
    folder = base / "input" / "config"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{name}.json").write_bytes(data)
    return base
