"""A job that the real toolkit runs behind smkit's supervisor, as `launch(graceful_stop=True)` has it started."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from runtimes import ONE_HOST

from smkit import supervisor_program
from smkit.contract import JobTree

BIN = Path(sys.executable).parent


def prepared(base: Path, script: Path, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Make the folder of a job; return the command of its first process, and its variables.

    The settings are those of the command line `arguments`, but for the folders.
    """
    tree = JobTree(base)
    words = dict(zip(arguments[::2], arguments[1::2], strict=False))
    settings = {name.lstrip("-"): value for name, value in words.items() if name.startswith("--") and "=" not in name}
    settings.pop("run-dir", None)
    own = {"program": "train.sh", "region": "us-east-1", "job_name": "stopped"}
    files = {
        tree.hyperparameters_file: settings | {f"sagemaker_{name}": json.dumps(value) for name, value in own.items()},
        tree.checkpoint_config_file: {"LocalPath": str(tree.checkpoint_dir)},
        tree.input_data_config_file: {
            name: {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
            for name in ("train", "validation")
        },
        tree.resource_config_file: ONE_HOST,
    }
    channels = [tree.data_dir / name for name in ("train", "validation")]
    for folder in (tree.config_dir, tree.code_dir, tree.model_dir, tree.output_data_dir, *channels):
        folder.mkdir(parents=True, exist_ok=True)
    for channel in channels:
        (channel / "present").touch()
    for file, content in files.items():
        file.write_text(json.dumps(content))
    shutil.copy(script, tree.code_dir / "train.py")
    wrapper = tree.code_dir / "train.sh"
    # A shell stands between, as it does in many a job.
    wrapper.write_text('#!/bin/sh\npython train.py "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    # The toolkit imports torch if it is there, which is most of its start-up; the script shall have it.
    environment = {
        "SAGEMAKER_BASE_DIR": str(base),
        "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
        "SM_STUDIO_LOCAL_MODE": "True",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{tree.code_dir}:{BIN}:{os.environ['PATH']}",
    }
    return [sys.executable, supervisor_program.__file__], environment
