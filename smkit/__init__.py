"""One typed training script for your laptop and for Amazon SageMaker.

Public is what can be imported from `smkit` itself; the modules' own paths are not API. Importing this package imports
nothing else: each name loads its module when it is first used (PEP 562), so that `smkit.launch` needs no torch and
`smkit.Trainer` no boto3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smkit.argparse_doors import from_argparse as from_argparse
    from smkit.argparse_doors import parse_args as parse_args
    from smkit.checkpoint import CheckpointStore as CheckpointStore
    from smkit.context import TrainingContext as TrainingContext
    from smkit.data.draws import SampleRandom as SampleRandom
    from smkit.data.layouts import open_dataset as open_dataset
    from smkit.data.loader import make_loader as make_loader
    from smkit.device import Placement as Placement
    from smkit.distributed import Ranks as Ranks
    from smkit.errors import CheckpointError as CheckpointError
    from smkit.errors import ConfigurationError as ConfigurationError
    from smkit.errors import DataError as DataError
    from smkit.errors import JobError as JobError
    from smkit.errors import SmkitError as SmkitError
    from smkit.facts import Channel as Channel
    from smkit.hyperparameters import Hyperparameters as Hyperparameters
    from smkit.inputs import Input as Input
    from smkit.job import Job as Job
    from smkit.launcher import attach as attach
    from smkit.launcher import launch as launch
    from smkit.metrics import MetricLog as MetricLog
    from smkit.plan import Plan as Plan
    from smkit.secret_references import read_secret as read_secret
    from smkit.trainer import Trainer as Trainer

    __version__: str
else:
    _HOMES = {
        "Channel": "facts",
        "CheckpointError": "errors",
        "CheckpointStore": "checkpoint",
        "ConfigurationError": "errors",
        "DataError": "errors",
        "Hyperparameters": "hyperparameters",
        "Input": "inputs",
        "Job": "job",
        "JobError": "errors",
        "MetricLog": "metrics",
        "Placement": "device",
        "Plan": "plan",
        "Ranks": "distributed",
        "SampleRandom": "data.draws",
        "SmkitError": "errors",
        "Trainer": "trainer",
        "TrainingContext": "context",
        "attach": "launcher",
        "from_argparse": "argparse_doors",
        "launch": "launcher",
        "make_loader": "data.loader",
        "open_dataset": "data.layouts",
        "parse_args": "argparse_doors",
        "read_secret": "secret_references",
    }
    _TRAINING_LIBRARIES = ("torch", "numpy", "safetensors", "tensorboard", "xxhash", "simplejpeg", "PIL")

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("smkit")
        if name not in _HOMES:
            raise AttributeError(f"module 'smkit' has no attribute '{name}'")
        from importlib import import_module

        try:
            value = getattr(import_module(f"smkit.{_HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name not in _TRAINING_LIBRARIES:
                raise
            message = f"smkit.{name} needs {error.name}, which is not installed here: pip install 'smkit[train]'"
            raise ModuleNotFoundError(message, name=error.name) from error
        globals()[name] = value
        return value

    def __dir__():
        return [*__all__, "__version__"]

    __all__ = sorted(_HOMES)  # noqa: PLE0605 - the table above is the list
