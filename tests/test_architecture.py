"""The law of imports, read from the code: downwards only, no circle, each foreign library in its own rooms."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smkit

ROOT = Path(smkit.__file__).parent

# Who may import whom; a room that is not here has no door. Read top to bottom: nothing below is imported from above.
ALLOWED = {
    # ground floor
    "errors": set(),
    "contract": set(),
    "annotations": set(),
    "hyperparameters": {"annotations", "errors"},
    "wire": {"annotations", "contract", "errors", "hyperparameters"},
    # configuration, torch-free
    "arguments": {"annotations", "contract", "hyperparameters"},
    "sources": {"annotations", "arguments", "contract", "wire"},
    "settings": {"annotations", "arguments", "hyperparameters", "sources"},
    "facts": {"contract", "sources"},
    "report": {"contract", "errors"},
    "context": {"annotations", "arguments", "errors", "facts", "hyperparameters", "report", "settings", "sources"},
    "argparse_doors": {
        *("arguments", "context", "contract", "errors", "facts", "hyperparameters", "report", "sources"),
    },
    # training wing
    "data": set(),
    "data.order": {"errors"},
    "data.labels": {"errors"},
    "data.images": {"data.labels", "errors"},
    "data.layouts": {"data.images", "data.labels", "errors"},
    "data.fetch": {"data.layouts", "data.order", "errors"},
    "data.loader": {"data.fetch", "data.order", "errors"},
    "device": {"errors"},
    "state": {"errors"},
    "manifest": {"errors"},
    "checkpoint": {"errors", "manifest", "state"},
    "metrics": {"contract", "errors"},
    "monitor": {"errors"},
    "progress": set(),
    "randomness": set(),
    "stopping": {"contract"},
    "cadence": set(),
    "preflight": {"errors", "hyperparameters"},
    "export": {"errors"},
    "validation": {"data.loader", "device", "errors", "metrics", "randomness", "stopping"},
    "run_state": {
        *("cadence", "checkpoint", "data.loader", "device", "errors", "metrics", "monitor", "randomness", "state"),
    },
    "trainer": {
        *("cadence", "checkpoint", "context", "contract", "data.layouts", "data.loader", "device", "errors", "facts"),
        *("hyperparameters", "metrics", "monitor", "preflight", "progress", "randomness", "report", "run_state"),
        *("export", "stopping", "validation"),
    },
    # launch wing
    "job": {"errors"},
    "hosts": {"contract"},
    "local": {"contract", "errors", "hosts", "job"},
    "launcher": {"contract", "errors", "hyperparameters", "job", "local", "wire"},
}
TRAINING = [*list(ALLOWED)[list(ALLOWED).index("data") : list(ALLOWED).index("job")]]
LIBRARIES = {
    "torch": set(TRAINING),
    "PIL": {"data.images"},
    "simplejpeg": {"data.images"},
    "numpy": {"data.fetch", "data.images", "data.layouts", "randomness", "state"},
    "safetensors": {"data.layouts", "export"},
    "tensorboard": {"metrics"},
    "xxhash": {"manifest"},
    "pydantic": {"annotations", "arguments", "facts", "hyperparameters", "settings", "wire"},
    "pydantic_settings": {"facts"},
    "yaml": {"sources"},
    "tomli": {"sources"},
    "typing_extensions": {"context", "hyperparameters", "settings", "trainer"},
}


def rooms() -> dict[str, ast.Module]:
    """The syntax tree of every module but the face, by its name below smkit."""
    trees = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in a file: lazily and for types only as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            module = str(node.module)
            if module == "smkit":
                yield from (f"smkit.{alias.name}" for alias in node.names)
            else:
                yield module


ROOMS = rooms()


def test_every_room_is_in_the_plan() -> None:
    assert set(ROOMS) == set(ALLOWED)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_plan_allows(room: str) -> None:
    own = {name.removeprefix("smkit.") for name in imports(ROOMS[room]) if name.startswith("smkit.")}
    assert own <= ALLOWED[room]


def test_the_plan_leads_downwards_only() -> None:
    above: set[str] = set()
    for room in reversed(ALLOWED):
        above.add(room)
        assert not ALLOWED[room] & above, room


@pytest.mark.parametrize("room", ROOMS)
def test_a_library_is_imported_only_where_it_lives(room: str) -> None:
    foreign = (
        {name.partition(".")[0] for name in imports(ROOMS[room])} - {"smkit", "tomllib"} - set(sys.stdlib_module_names)
    )
    assert foreign <= {library for library, homes in LIBRARIES.items() if room in homes}


def test_the_plan_has_no_right_that_nobody_uses() -> None:
    for room, tree in ROOMS.items():
        own = {name.removeprefix("smkit.") for name in imports(tree) if name.startswith("smkit.")}
        assert ALLOWED[room] == own, room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_fits_in_the_head(room: str) -> None:
    assert ast.get_docstring(ROOMS[room])
    path = ROOT.joinpath(*room.split("."))
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    assert text.count("\n") <= 470


def test_no_room_bears_the_name_of_something_public() -> None:
    # `smkit/launch.py` would take the place of the function `smkit.launch` as soon as somebody imported it.
    assert not set(smkit.__all__) & set(ROOMS)


def modules_after(code: str) -> set[str]:
    """Top-level modules of a fresh process that has run this code."""
    show = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(run.stdout.split())


def test_importing_smkit_imports_nothing_else() -> None:
    assert not {"torch", "boto3", "pydantic", "yaml", "numpy", "tensorboard"} & modules_after("import smkit")


def test_the_launch_wing_needs_no_torch() -> None:
    code = "from smkit import launch, Job, Hyperparameters, TrainingContext, parse_args, from_argparse"
    assert not {"torch", "boto3", "tensorboard", "sagemaker_training"} & modules_after(code)


@pytest.mark.train
def test_the_training_wing_needs_neither_boto3_nor_pydantic_nor_tensorboard_to_be_imported() -> None:
    after = modules_after("from smkit import Trainer, Placement, CheckpointStore, MetricLog, make_loader, open_dataset")
    assert "torch" in after
    assert not {"boto3", "pydantic_settings", "tensorboard", "sagemaker_training"} & after
