"""The public names: the same list for a running program, for a type checker and for the reader of this file."""

import ast
import importlib.util
import pickle
from pathlib import Path

import pytest

import smkit

PUBLIC = {
    "Channel",
    "CheckpointError",
    "CheckpointStore",
    "ConfigurationError",
    "DataError",
    "Hyperparameters",
    "Input",
    "Job",
    "JobError",
    "MetricLog",
    "Placement",
    "Plan",
    "Ranks",
    "SampleRandom",
    "SmkitError",
    "Trainer",
    "TrainingContext",
    "attach",
    "from_argparse",
    "launch",
    "make_loader",
    "open_dataset",
    "parse_args",
    "read_secret",
}
TRAINING = {
    "CheckpointStore",
    "MetricLog",
    "Placement",
    "Ranks",
    "SampleRandom",
    "Trainer",
    "make_loader",
    "open_dataset",
}
HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_the_public_names_are_these() -> None:
    assert set(smkit.__all__) == PUBLIC
    assert set(dir(smkit)) == PUBLIC | {"__version__"}


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(smkit.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_has_a_docstring_and_can_be_imported(name: str) -> None:
    if name in TRAINING and not HAS_TORCH:
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'smkit\[train\]'"):
            getattr(smkit, name)
    else:
        assert getattr(smkit, name).__doc__


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lanch'"):
        smkit.lanch  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_stands_once() -> None:
    from importlib.metadata import version

    assert smkit.__version__ == version("smkit")


def test_a_message_is_never_as_long_as_a_value() -> None:
    value = "a" * 3000 + "z" * 67_000
    error = smkit.ConfigurationError.of(
        [f"name '{value}': too long", "short"], subject="it", where=value, fix="mend it"
    )
    for text in (error.what, error.where, *error.problems):
        assert all(len(line) < 2100 for line in text.split("\n"))
    assert "name 'aaa" in error.what
    assert "zzz': too long\n  - short" in error.what
    assert "characters) zzz" in error.where
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
