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
    "s3_uris": set(),
    "annotations": set(),
    "redaction": set(),
    "hyperparameters": {"annotations", "errors"},
    "secret_references": {"errors", "redaction"},
    "documents": set(),
    "wire": {"annotations", "contract", "documents", "errors", "hyperparameters", "secret_references"},
    # the processes that train together: torch
    "life_signs": set(),
    "distributed": {"errors", "life_signs"},
    # reading data: torch, and neither jobs nor models
    "data": set(),
    "data.batches": set(),
    "data.buffers": set(),
    "data.mounts": set(),
    "data.order": set(),
    "data.pixels": {"errors"},
    "data.record_message": set(),
    "data.shards": set(),
    "data.shards.files": {"errors"},
    "data.shards.tar": {"errors"},
    "data.tables": set(),
    "data.tables.decimals": set(),
    "data.threads": set(),
    "data.draws": {"data.order", "errors"},
    "data.epoch": {"data.batches", "data.order", "errors"},
    "data.pipes": {"data.record_message", "errors"},
    "data.source": {"data.order", "data.threads", "errors"},
    "data.labels": {"data.source", "documents", "errors"},
    "data.tables.blocks": {"data.threads", "errors"},
    "data.arrays": {"data.source", "errors"},
    "data.packed": {"data.source"},
    "data.reading": {"data.draws", "data.order", "errors"},
    "data.shards.fields": {"data.pixels", "data.source"},
    "data.tables.columns": {"data.source", "errors"},
    "data.fetch": {"data.arrays", "data.draws", "data.order", "data.source", "errors"},
    "data.images": {"data.labels", "data.packed", "data.pixels", "data.source", "data.threads", "errors"},
    "data.shards.index": {"data.packed", "data.shards.files", "data.shards.tar", "data.source", "errors"},
    "data.tables.cache": {"data.tables.columns", "errors"},
    "data.tables.formats": {"data.tables.blocks", "data.tables.columns", "errors"},
    "data.shards.shards": {
        *("data.order", "data.pixels", "data.shards.fields", "data.shards.files", "data.shards.index"),
        *("data.source", "data.threads", "errors"),
    },
    "data.streams": {"data.batches", "data.draws", "data.epoch", "data.fetch", "data.reading", "errors"},
    "data.tables.arrow_values": {"data.tables.blocks", "data.tables.columns", "data.tables.formats", "errors"},
    "data.tables.libsvm": {
        *("data.tables.blocks", "data.tables.columns", "data.tables.decimals", "data.tables.formats"),
        *("data.threads", "errors"),
    },
    "data.tables.lines": {"data.tables.blocks", "data.tables.columns", "data.tables.formats"},
    "data.tables.recordio": {
        *("data.record_message", "data.tables.blocks", "data.tables.columns", "data.tables.formats", "errors"),
    },
    "data.tables.table": {
        *("data.order", "data.source", "data.tables.blocks", "data.tables.cache", "data.tables.columns"),
        *("data.tables.formats", "data.threads", "errors"),
    },
    "data.fork_server": set(),
    "data.workers": {"data.fetch", "errors"},
    "data.indexed": {
        *("data.batches", "data.buffers", "data.draws", "data.epoch", "data.fetch", "data.source", "data.workers"),
        *("errors",),
    },
    "data.tables.columnar": {
        *("data.tables.arrow_values", "data.tables.blocks", "data.tables.columns", "data.tables.formats", "errors"),
    },
    "data.tables.delimited": {
        *("data.tables.arrow_values", "data.tables.blocks", "data.tables.columns", "data.tables.formats", "errors"),
    },
    "data.tables.json_lines": {
        *("data.tables.arrow_values", "data.tables.blocks", "data.tables.columns", "data.tables.formats", "errors"),
    },
    "data.loader": {
        *("data.batches", "data.draws", "data.epoch", "data.fetch", "data.indexed", "data.source", "data.streams"),
        *("data.threads", "errors"),
    },
    "data.tables.opening": {
        *("data.source", "data.tables.cache", "data.tables.columnar", "data.tables.columns"),
        *("data.tables.delimited", "data.tables.formats", "data.tables.json_lines", "data.tables.libsvm"),
        *("data.tables.lines", "data.tables.recordio", "data.tables.table", "errors"),
    },
    "data.channels": {"data.batches", "data.indexed", "data.loader", "data.source", "distributed", "errors"},
    "data.layouts": {
        *("data.arrays", "data.images", "data.labels", "data.mounts", "data.pipes", "data.shards.shards"),
        *("data.source", "data.tables.opening", "errors"),
    },
    # configuration, torch-free
    "arguments": {"annotations", "contract", "errors", "hyperparameters"},
    "sources": {"annotations", "arguments", "contract", "documents", "wire"},
    "settings": {"annotations", "arguments", "errors", "hyperparameters", "redaction", "sources"},
    "facts": {"contract", "documents", "errors"},
    "report": {"contract", "errors", "redaction"},
    "context": {
        *("annotations", "arguments", "data.batches", "data.channels", "data.draws", "data.layouts", "data.loader"),
        *("distributed", "errors", "facts", "hyperparameters", "report", "secret_references", "settings", "sources"),
    },
    "argparse_doors": {
        *("arguments", "context", "contract", "errors", "facts", "hyperparameters", "report", "sources"),
    },
    # training wing
    "device": {"errors"},
    "agreement": {"distributed"},
    "sharding": set(),
    "space": set(),
    "state": {"errors", "sharding"},
    "disk": set(),
    "manifest": {"disk", "errors"},
    "restoring": {"distributed", "errors", "manifest", "sharding", "state"},
    "checkpoint": {"disk", "distributed", "errors", "manifest", "restoring", "space", "state"},
    "parallel": {"distributed", "errors", "sharding"},
    "event_file": set(),
    "metric_files": {"disk", "event_file"},
    "metrics": {"contract", "errors", "metric_files"},
    "monitor": {"errors"},
    "progress": set(),
    "randomness": set(),
    "stopping": {"contract"},
    "cadence": set(),
    "claim": {"errors"},
    "averaging": {"errors", "sharding"},
    "sameness": {"data.batches", "distributed"},
    "throughput": set(),
    "profiling": {"errors"},
    "backends": set(),
    "recomputation": {"errors"},
    "compilation": set(),
    "explanations": {"compilation", "errors", "report"},
    "preflight": {"errors", "hyperparameters", "space"},
    "export": {"disk", "errors", "space"},
    "validation": {"data.batches", "device", "errors", "metrics", "randomness"},
    "run_state": {
        *("averaging", "cadence", "checkpoint", "data.batches", "device", "distributed", "errors", "metrics"),
        *("monitor", "randomness", "restoring", "sharding", "state"),
    },
    "start_table": {"context", "data.batches", "device", "report"},
    "records": {"metrics", "monitor", "progress"},
    "script": {
        *("context", "data.draws", "data.layouts", "data.loader", "device", "export", "facts", "hyperparameters"),
        *("preflight", "records"),
    },
    "assembly": {
        *("backends", "compilation", "contract", "data.batches", "distributed", "metrics", "monitor", "parallel"),
        *("preflight", "recomputation", "records", "report", "script", "throughput"),
    },
    "trainer": {
        *("agreement", "assembly", "averaging", "backends", "cadence", "checkpoint", "claim", "context", "contract"),
        *("data.batches", "device", "disk", "distributed", "errors", "explanations", "monitor", "parallel"),
        *("preflight", "profiling", "progress", "randomness", "report", "run_state", "sameness", "script"),
        *("sharding", "start_table", "stopping", "validation"),
    },
    # launch wing
    "inputs": {"contract", "errors", "s3_uris"},
    "launch_arguments": {"contract", "errors", "hyperparameters", "inputs", "secret_references"},
    "script_settings_probe": {
        *("annotations", "arguments", "errors", "secret_references", "settings", "sources", "wire"),
    },
    "script_settings": {"hyperparameters", "wire"},
    "supervisor_program": set(),
    "supervisor": set(),
    # what travels as code
    "source": set(),
    "source.credentials": set(),
    "source.ignore_rules": {"errors"},
    "source.nested": set(),
    "source.requirements": set(),
    "source.provenance": {"source.credentials"},
    "source.walk": {"contract", "source.ignore_rules"},
    "source.wheels": {"errors"},
    "source.survey": {"errors", "source.credentials", "source.ignore_rules", "source.nested", "source.walk"},
    "source.archive": {"errors", "source.survey", "source.walk"},
    "source.merge": {"errors", "source.requirements", "source.survey"},
    "source.vendor": {"source.merge", "source.survey", "source.wheels"},
    # jobs, wherever they run
    "log_view": {"report"},
    "artifacts": {"errors"},
    "watching": {"errors", "log_view", "report"},
    "job_cost": {"watching"},
    "metric_rows": {"contract", "errors", "event_file", "log_view", "report"},
    "job": {"artifacts", "errors", "job_cost", "log_view", "metric_rows", "report", "watching"},
    "plan": {"job", "report"},
    "preparation": {
        *("errors", "inputs", "launch_arguments", "script_settings", "source.provenance", "source.survey", "wire"),
    },
    # jobs on SageMaker
    "cloud": set(),
    "cloud.services": set(),
    "cloud.instances": set(),
    "cloud.service_model": {"errors"},
    "cloud.images": {"cloud.instances"},
    "cloud.policies": {"cloud.images", "contract", "errors", "secret_references"},
    "cloud.request": {"cloud.images", "cloud.instances", "contract", "inputs", "launch_arguments"},
    "cloud.request_checks": {
        *("cloud.images", "cloud.instances", "cloud.request", "cloud.service_model", "contract", "launch_arguments"),
    },
    "cloud.aws_errors": {"errors"},
    "cloud.digests": {"errors"},
    "cloud.transfer_line": {"progress", "report"},
    "cloud.answers": set(),
    "cloud.pages": {"errors"},
    "cloud.aws": {"cloud.answers", "cloud.aws_errors", "cloud.services", "errors"},
    "cloud.role": {"cloud.aws", "cloud.aws_errors", "errors"},
    "cloud.object_tags": set(),
    "cloud.download": {"cloud.aws_errors", "cloud.object_tags", "errors"},
    "cloud.storage": {"cloud.aws", "cloud.aws_errors", "cloud.download", "cloud.pages", "contract", "errors"},
    "cloud.uploads": {"cloud.digests", "cloud.storage", "cloud.transfer_line", "errors"},
    "cloud.connection": {"cloud.aws", "cloud.aws_errors", "errors", "watching"},
    "cloud.logs": {"cloud.aws_errors", "cloud.connection", "cloud.pages", "errors", "log_view", "watching"},
    "cloud.prices": {"cloud.connection", "errors", "job_cost", "watching"},
    "cloud.jobs": {
        *("artifacts", "cloud.aws", "cloud.aws_errors", "cloud.connection", "cloud.logs", "cloud.pages"),
        *("cloud.prices", "cloud.storage", "errors", "job_cost", "log_view", "watching"),
    },
    "cloud.submission": {
        *("cloud.aws_errors", "cloud.jobs", "cloud.storage", "cloud.transfer_line", "cloud.uploads", "errors", "job"),
        *("report",),
        *("source.archive", "source.survey"),
    },
    "cloud.cloud_plan": {
        *("cloud.aws", "cloud.connection", "cloud.images", "cloud.instances", "cloud.prices", "cloud.request"),
        *("cloud.request_checks", "cloud.role", "cloud.service_model", "cloud.storage", "cloud.submission"),
        *("cloud.uploads", "contract", "errors", "inputs", "launch_arguments", "plan", "preparation", "report"),
        *("s3_uris", "source.archive", "source.vendor", "supervisor"),
    },
    "cloud.doctor": {
        *("cloud.aws", "cloud.aws_errors", "cloud.images", "cloud.pages", "cloud.role", "cloud.service_model"),
        *("cloud.storage", "contract", "errors"),
    },
    # jobs on this machine
    "hosts": {"contract", "errors"},
    "local": {"artifacts", "contract", "errors", "hosts", "inputs", "job", "job_cost", "log_view"},
    "local_plan": {
        *("contract", "documents", "inputs", "job", "launch_arguments", "local", "plan", "preparation", "report"),
    },
    # the doors
    "estimator_words": {"errors"},
    "argument_types": {"launch_arguments"},
    "launcher": {
        *("argument_types", "cloud.aws", "cloud.cloud_plan", "cloud.jobs", "contract", "errors", "estimator_words"),
        *("hyperparameters", "inputs", "job", "launch_arguments", "local", "local_plan", "plan"),
    },
    # the command line
    "commands": set(),
    "commands.screens": {"errors", "report"},
    "commands.script_command_line": {"sources", "wire"},
    "commands.launch_options": {"commands.script_command_line", "sources"},
    "commands.account": {
        *("cloud.aws", "cloud.doctor", "cloud.images", "cloud.policies", "cloud.role", "commands.screens", "contract"),
    },
    "commands.jobs": {
        *("cloud.aws", "cloud.jobs", "commands.screens", "errors", "job", "launcher", "local", "log_view", "report"),
    },
    "commands.launching": {
        *("commands.jobs", "commands.launch_options", "commands.screens", "commands.script_command_line", "errors"),
        *("inputs", "launcher", "plan"),
    },
    "cli": {
        *(
            "cloud.policies",
            "commands.account",
            "commands.jobs",
            "commands.launching",
            "commands.screens",
            "contract",
            "errors",
        ),
        *("report",),
    },
    "__main__": {"cli"},
}
_ROOMS = list(ALLOWED)
DATA = [room for room in _ROOMS if room.partition(".")[0] == "data"]
TRAINING = [*DATA, "life_signs", "distributed", *_ROOMS[_ROOMS.index("device") : _ROOMS.index("inputs")]]
LIBRARIES = {
    "boto3": {"cloud.aws", "cloud.storage", "secret_references"},
    "botocore": {"cloud.answers", "cloud.aws", "cloud.service_model", "secret_references"},
    "torch": set(TRAINING),
    "pathspec": {"source.ignore_rules"},
    "PIL": {"data.pixels"},
    "simplejpeg": {"data.pixels"},
    "numpy": {*DATA, "randomness", "state"},
    "pyarrow": {"data.tables.arrow_values", "data.tables.columnar", "data.tables.delimited", "data.tables.json_lines"},
    "safetensors": {"data.arrays", "export"},
    "tensorboard": {"event_file"},
    "xxhash": {"data.tables.cache", "manifest"},
    "pydantic": {"annotations", "arguments", "facts", "hyperparameters", "settings", "wire"},
    "pydantic_settings": {"facts"},
    "yaml": {"documents"},
    "tomli": {"documents"},
    "typing_extensions": {"context", "hyperparameters", "settings", "script"},
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
            if (ROOT.parent / module.replace(".", "/")).is_dir() and module.partition(".")[0] == "smkit":
                yield from (f"{module}.{alias.name}" for alias in node.names)
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


# What runs code that somebody else has written, or hands words to a shell.
_RUNS_CODE = {"eval", "exec", "__import__"}
_DANGEROUS = {
    *("os.system", "os.popen", "tempfile.mktemp", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
    *("marshal.loads", "marshal.load", "shelve.open", "runpy.run_path", "pickle.load", "pickle.Unpickler"),
    *("pickle.loads", "yaml.load"),
    *("tarfile.TarFile.extractall", "tarfile.TarFile.extract", "shutil.unpack_archive", "dill.load", "dill.loads"),
}
_EXCEPTIONS = {
    # The user's own settings class, in a process of its own, on the machine of who launches it.
    ("script_settings_probe", "exec"),
    # What it has made itself two lines above, to see whether other processes can take it.
    ("data.workers", "pickle.loads"),
    # A loader made of PyYAML's safe one.
    ("documents", "yaml.load"),
}


def _full_name(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def _dangers(tree: ast.Module) -> Iterator[str]:
    """Yield each call that could run what a file, a hyperparameter or a name says."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _full_name(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        if name in _RUNS_CODE | _DANGEROUS or name.endswith((".extractall", ".unpack_archive")):
            yield name
        elif name == "torch.load" and words.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        elif name in ("np.load", "numpy.load") or words.get("allow_pickle", "False") != "False":
            yield f"{name} with pickles"
        elif words.get("shell", "False") != "False" or name.startswith(("os.spawn", "os.exec", "subprocess.getoutput")):
            yield f"{name} with a shell"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_runs_nothing_that_others_have_written(room: str) -> None:
    assert {danger for danger in _dangers(ROOMS[room]) if (room, danger) not in _EXCEPTIONS} == set()


def test_the_exceptions_are_all_needed() -> None:
    assert {(room, danger) for room, tree in ROOMS.items() for danger in _dangers(tree)} >= _EXCEPTIONS


@pytest.mark.parametrize(
    "code",
    [
        *("eval(text)", "os.system(text)", "tempfile.mktemp()", "yaml.load(text)", "pickle.loads(data)"),
        *("torch.load(file)", "torch.load(file, weights_only=False)", "np.load(file, allow_pickle=True)"),
        *(
            "subprocess.run(text, shell=True)",
            "archive.extractall(folder)",
            "np.lib.format.read_array(f, allow_pickle=x)",
        ),
    ],
)
def test_the_rule_sees(code: str) -> None:
    assert list(_dangers(ast.parse(code)))
