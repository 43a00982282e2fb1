"""TrainingContext.load: every source read right, the right one winning, every problem told at once."""

# ruff: noqa: RUF012 - pydantic copies a default

import copy
import enum
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import runtimes
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import SECONDS
from pydantic import BaseModel, Field, SecretStr, ValidationError, computed_field

import smkit

HERE = Path(__file__).parent
CASES = json.loads((HERE / "cases" / "hyperparameters.json").read_text(encoding="utf-8"))["cases"]


class Model(BaseModel, frozen=True, extra="forbid"):
    hidden: int = 8
    act: str = "relu"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Settings(smkit.Hyperparameters):
    epochs: int = Field(default=3, gt=0)
    lr: float = 1e-3
    flag: bool = False
    amp: bool = True
    max_steps: int | None = 99
    layers: list[int] = [1]
    names: list[str] = []
    kw: dict[str, int] = {}
    model: Model = Model()
    opt: Literal["sgd", "adam"] = "sgd"
    color: Color = Color.RED
    path: Path = Path()
    batch_size: int = 32
    q: int = 1
    name: str = "x"


Context = smkit.TrainingContext[Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs as `python train.py` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


def load(*argv: str, env: Mapping[str, str] | None = None, **more: Any) -> Context:
    """Load a context off SageMaker, or with the variables of `env`."""
    return smkit.TrainingContext.load(more.pop("settings", Settings), ["--run-dir", "run", *argv], env or {}, **more)


def refusal(*argv: str, env: Mapping[str, str] | None = None, **more: Any) -> str:
    with pytest.raises(smkit.ConfigurationError) as refused:
        load(*argv, env=env, **more)
    return str(refused.value)


# --- what the script is given -----------------------------------------------------------------------------------------


def check_case(case: Mapping[str, Any], argv: Sequence[str], env: Mapping[str, str]) -> None:
    if "error" in case:
        refusal(*argv, env=env)
        return
    found = load(*argv, env=env).hp.model_dump(mode="json")
    wanted = Settings().model_dump(mode="json")
    for name, value in case["expect"].items():
        first, _, second = name.partition(".")
        if second:
            wanted[first][second] = value
        else:
            wanted[first] = float("nan") if (name, value) == ("lr", "nan") else value
    assert repr(found) == repr(wanted)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_a_command_line_is_read_right_off_sagemaker(case: Mapping[str, Any]) -> None:
    check_case(case, case["argv"], {})


def as_hyperparameter(argv: Sequence[str]) -> tuple[str, str] | None:
    """The name and text that a job would have for one option, if it can: not for `--flag` alone."""
    words = argv[0].split("=", 1) if len(argv) == 1 else argv
    return (words[0].lstrip("-"), words[1]) if len(words) == 2 else None


@pytest.mark.parametrize("start", [runtimes.toolkit, runtimes.driver])
@pytest.mark.parametrize("has_file", [True, False], ids=["hyperparameters.json", "SM_HPS"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if as_hyperparameter(case["argv"])], ids=lambda case: case["case"]
)
def test_a_job_is_read_right(case: Mapping[str, Any], has_file: bool, start: runtimes.Runtime, tmp_path: Path) -> None:
    name, text = as_hyperparameter(case["argv"]) or ("", "")
    if has_file:
        runtimes.write_config(tmp_path, hyperparameters={name: text})
    started = start(tmp_path, {name: text})
    check_case(case, started.argv, started.env)
    check_case(case, [], started.env)  # as the v3 SDK's `command` starts it


@pytest.mark.parametrize("text", ["-lead", "--epochs", "-q", "--", "a --epochs 5", ""])
def test_a_text_of_a_job_may_look_like_an_option(text: str, tmp_path: Path) -> None:
    runtimes.write_config(tmp_path, hyperparameters={"name": json.dumps(text), "q": "2", "epochs": "7"})
    for start in (runtimes.toolkit, runtimes.driver):
        started = start(tmp_path, {"name": json.dumps(text), "q": "2", "epochs": "7"})
        hp = load(*started.argv, env=started.env).hp
        assert (hp.name, hp.q, hp.epochs) == (text, 2, 7)


def test_a_number_that_was_a_text_is_refused_where_its_text_is_gone(tmp_path: Path) -> None:
    started = runtimes.driver(tmp_path, {"name": "1e3"})
    message = "SM_HPS: name is a text, of which only 1000.0 is left; send it as json.dumps(text)"
    assert message in refusal(*started.argv, env=started.env)
    runtimes.write_config(tmp_path, hyperparameters={"name": "1e3"})
    assert load(*started.argv, env=started.env).hp.name == "1e3"


def test_a_list_of_one_may_be_written_without_brackets_everywhere(here: Path) -> None:
    runtimes.write_config(here, hyperparameters={"layers": "64", "names": "007"})
    started = runtimes.driver(here, {"layers": "64", "names": "007"})
    for env, argv in ((started.env, started.argv), ({}, ["--layers", "64", "--names", "007"])):
        hp = load(*argv, env=env).hp
        assert (hp.layers, hp.names) == ([64], ["007"])


@pytest.mark.parametrize(
    ("argv", "expect"),
    [
        (["--layers", "1", "2", "--lr", "1"], {"layers": [1, 2]}),
        (["--layers=1", "--layers=2"], {"layers": [1, 2]}),
        (["--layers", ""], {"layers": []}),
        (["--layers", "(1, 2)"], {"layers": [1, 2]}),
        (["--names", "a, b", "c"], {"names": ["a, b", "c"]}),
        (["--names", "['a', \"it's\"]"], {"names": ["a", "it's"]}),
        (["--kw", "a=1", "--kw", "b=2"], {"kw": {"a": 1, "b": 2}}),
        (["--kw", "{'a': 1}"], {"kw": {"a": 1}}),
        (["--model", "hidden=3, act=1.5"], {"model": Model(hidden=3, act="1.5")}),
        (["--model", '{"hidden": 3}', "--model.act", "gelu"], {"model": Model(hidden=3, act="gelu")}),
        (["--flag", "--no-flag"], {"flag": False}),
        (["--no_amp", "--amp"], {"amp": True}),
        (["--amp", "no", "--flag", "yes"], {"amp": False, "flag": True}),
        (["-q", "2", "-q=3"], {"q": 3}),
        (["--epochs", "5", "--epochs", "6"], {"epochs": 6}),
        (["--epochs", "1e23"], {"epochs": 10**23}),
        (["--color", "BLUE"], {"color": Color.BLUE}),
        (["--max-steps", ""], {"max_steps": None}),
        (["--name=--lr=5"], {"name": "--lr=5"}),
        (["--name", "-"], {"name": "-"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_ways_to_write_a_value(argv: list[str], expect: dict[str, Any]) -> None:
    hp = load(*argv).hp
    assert {name: getattr(hp, name) for name in expect} == expect


@pytest.mark.parametrize("argv", [["--name", "--lr"], ["--name", "-q"], ["--name"], ["--layers", "--name", "x"]])
def test_an_option_never_takes_another_option_for_its_value(argv: list[str]) -> None:
    assert f"{argv[0]} needs a value; write {argv[0]}=VALUE if it begins with '--'" in refusal(*argv)


# --- which source wins ------------------------------------------------------------------------------------------------


def test_the_five_sources_win_in_their_order(here: Path) -> None:
    (here / "low.json").write_text('{"lr": 0.1, "epochs": 10, "batch-size": 10, "q": 10, "name": "file"}')
    (here / "high.json").write_text('{"epochs": 11}')
    runtimes.write_config(here, hyperparameters={"batch_size": "12", "q": "12", "name": '"job"'})
    started = runtimes.toolkit(here, {"batch_size": "12", "q": "12", "name": '"job"'})
    argv = ["--config", "low.json", *started.argv, "--q", "13", "--name", "line", "--config", "high.json"]
    context = load(*argv, env=started.env, overrides={"name": "code"})
    hp = context.hp
    assert (hp.lr, hp.epochs, hp.batch_size, hp.q, hp.name, hp.seed) == (0.1, 11, 12, 13, "code", 0)
    origins = {name: context.origins[name] for name in ("lr", "epochs", "batch_size", "q", "name", "seed")}
    assert origins == {
        "lr": "config file low.json",
        "epochs": "config file high.json",
        "batch_size": "hyperparameters.json",
        "q": "command line",
        "name": "code",
        "seed": "default",
    }


@pytest.mark.parametrize("start", [runtimes.toolkit, runtimes.driver])
def test_an_echo_is_no_override_and_an_override_no_echo(start: runtimes.Runtime, tmp_path: Path) -> None:
    texts = {
        "lr": "1e-3",
        "names": '["a", "b"]',
        "flag": "true",
        "max_steps": "null",
        "kw": '{"b": 1, "a": 2}',
        "q": "5",
    }
    runtimes.write_config(tmp_path, hyperparameters=texts)
    started = start(tmp_path, texts)
    context = load(*started.argv, env=started.env)
    assert {context.origins[name] for name in texts} == {"hyperparameters.json"}
    assert context.hp.names == ["a", "b"]
    assert context.hp.max_steps is None
    context = load(*started.argv, "--lr", "2e-3", "--names", "c", env=started.env)
    assert (context.hp.lr, context.hp.names) == (2e-3, ["c"])
    assert {context.origins[name] for name in ("lr", "names")} == {"command line"}
    assert {context.origins[name] for name in ("flag", "max_steps", "kw", "q")} == {"hyperparameters.json"}


def test_an_override_that_the_other_runtime_would_write_is_an_override(tmp_path: Path) -> None:
    runtimes.write_config(tmp_path, hyperparameters={"name": '"1.10"'})
    started = runtimes.toolkit(tmp_path, {"name": '"1.10"'})
    assert load(*started.argv, env=started.env).hp.name == "1.10"
    assert load(*started.argv, "--name", "1.1", env=started.env).hp.name == "1.1"


def test_hyperparameters_json_goes_before_the_variable_and_off_sagemaker_there_is_no_echo(tmp_path: Path) -> None:
    runtimes.write_config(tmp_path, hyperparameters={"lr": "0.5"})
    started = runtimes.toolkit(tmp_path, {"lr": "0.25"})
    assert load(env=started.env).hp.lr == 0.5
    assert load("--lr", "0.25").origins["lr"] == "command line"


CONFIGS = {
    "a.json": '{"model": {"hidden": 3}, "max_steps": null, "names": ["a"], "path": "p"}',
    "a.toml": 'lr = 0.5\nnames = ["a"]\npath = "p"\n[model]\nhidden = 3\n',
    "a.yaml": "lr: 1e-4\nmodel: {hidden: 3}\nnames: [a]\ncolor: BLUE\npath: p\n",
    "a.yml": "model.hidden: 3\nbatch-size: 64\nnames: a\npath: p\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files_are_json_toml_or_yaml(name: str, here: Path) -> None:
    (here / name).write_text(CONFIGS[name])
    context = load("--config", name)
    assert (context.hp.model, context.hp.names, context.hp.path) == (Model(hidden=3), ["a"], Path("p"))
    assert context.origins["model.hidden"] == f"config file {name}"
    assert context.origins["model.act"] == "default"


def test_a_job_can_name_its_config_file(here: Path) -> None:
    (here / "base.yaml").write_text("lr: 1e-4\nepochs: 7\n")
    (here / "more.yaml").write_text("q: 7\n")
    for config, q in (('"base.yaml"', 1), ('["base.yaml", "more.yaml"]', 7)):
        texts = {"config": config, "epochs": "9"}
        runtimes.write_config(here, hyperparameters=texts)
        started = runtimes.toolkit(here, texts)
        hp = load(*started.argv, env=started.env).hp
        assert (hp.lr, hp.epochs, hp.q) == (1e-4, 9, q)


class Schedule(BaseModel, frozen=True, extra="forbid"):
    kind: str = "cosine"
    warmup: int = 0
    inner: Model = Model(hidden=1)


class Nested(smkit.Hyperparameters):
    schedule: Schedule = Field(default=Schedule(warmup=5, inner=Model(hidden=2, act="gelu")), alias="plan")
    maybe: Schedule | None = None


def test_nested_values_mix_field_by_field_and_keep_the_rest_of_their_default(here: Path) -> None:
    (here / "a.json").write_text('{"schedule": {"kind": "step", "inner": {"act": "silu"}}}')
    env = {"SM_HPS": '{"plan": {"warmup": 7}}', "SAGEMAKER_BASE_DIR": str(here)}
    context = load("--config", "a.json", "--plan.kind", "linear", env=env, settings=Nested)
    assert context.hp.schedule == Schedule(kind="linear", warmup=7, inner=Model(hidden=2, act="silu"))
    assert {name: origin for name, origin in context.origins.items() if name.startswith("schedule")} == {
        "schedule.kind": "command line",
        "schedule.warmup": "SM_HPS",
        "schedule.inner.hidden": "default",
        "schedule.inner.act": "config file a.json",
    }


def test_a_nested_model_that_may_be_none_is_made_by_what_is_given_of_it() -> None:
    assert load(settings=Nested).hp.maybe is None
    assert load("--maybe.inner.hidden", "4", settings=Nested).hp.maybe == Schedule(inner=Model(hidden=4))
    assert load("--maybe", "{}", settings=Nested).hp.maybe == Schedule()
    assert load("--maybe", "{}", "--maybe.warmup", "1", settings=Nested).hp.maybe == Schedule(warmup=1)
    context = load("--maybe.warmup", "1", settings=Nested, overrides={"maybe": None})
    assert (context.hp.maybe, context.origins["maybe.warmup"]) == (None, "code")
    assert load("--schedule", "{}", settings=Nested).hp.schedule == Nested().schedule
    context = load("--plan.warmup", "3", settings=Nested, overrides={"schedule": {}})
    assert context.hp.schedule.warmup == 3


# --- what is wrong is said all at once --------------------------------------------------------------------------------


class Strict(smkit.Hyperparameters):
    """Classify scanned digits with a small network."""

    epochs: int = Field(default=20, ge=1, description="passes over the training data")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="AdamW learning rate at its peak")
    optimizer: Literal["sgd", "adam", "lion"] = "adam"
    layers: list[int] = [64, 128]
    weights: dict[str, float] = {}
    schedule: Schedule = Schedule(warmup=100)
    size: int | Literal["auto"] = "auto"
    amp: bool = True
    note: str = ""
    start: Path | None = None
    token: SecretStr | None = None
    target: str = Field(default="digit", min_length=2, description="name of the label column")
    lambda_: float = Field(default=0.5, alias="lambda", description="weight of the second loss")


class Required(smkit.Hyperparameters):
    target: str = Field(description="name of the label column")
    model: Model


def golden(name: str, text: str, folder: Path) -> None:
    """Compare with the text on file; a missing file is written, to be read and kept."""
    file = HERE / "golden" / f"{name}.txt"
    shown = text.replace(str(folder), "FOLDER").rstrip() + "\n"
    if not file.exists():
        file.write_text(shown, encoding="utf-8")
        pytest.fail(f"{file} was written; read it and run again")
    assert shown == file.read_text(encoding="utf-8")


MISTAKES: dict[str, tuple[list[str], dict[str, str]]] = {
    "typo": (["--learning_rat", "0.1"], {}),
    "wrong-type": (["--epochs", "five"], {}),
    "out-of-range": (["--learning-rate", "3", "--epochs", "0", "--target", "x"], {}),
    "wrong-choice": (["--optimizer", "adamw", "--size", "large"], {}),
    "several-sources": (
        [
            "--epoch",
            "5",
            "--layers",
            "1",
            "x",
            "--schedule.warmup",
            "soon",
            "--config",
            "base.yaml",
            "--note",
            "x",
            "stray",
            "-amp",
        ],
        {"SM_HPS": '{"optimizer": "sdg", "weights": {"a": "heavy"}, "batch-size": 1.5, "hiden": 3}'},
    ),
    "broken-hyperparameters": ([], {"hyperparameters": '{"epochs": '}),
    "broken-variables": ([], {"SM_HPS": "{oops", "SM_HOSTS": "algo-1", "SM_NUM_GPUS": "two", "RANK": "0"}),
    "broken-job-files": (
        [],
        {
            "SM_HPS": "{}",
            "resourceconfig": '{"hosts": "algo-1", "current_host": 1}',
            "inputdataconfig": '{"train": {"TrainingInputMode": "Fast"}}',
            "checkpointconfig": "[]",
        },
    ),
    "bad-channel": (["--channel", "train", "--channel", "test=missing", "--channel", "a b=."], {}),
    "bad-config": (
        ["--config", "missing.yaml", "--config", "notes.txt", "--config", "torn.json", "--config", "list.yaml"],
        {},
    ),
    "unknown-in-config": (["--config", "base.yaml"], {}),
    "secret": (["--token", "hunter2", "--epochs", "x", "--tokn", "hunter2"], {}),
    "empty-place": (["--model-dir", "", "--lr", "1"], {}),
    "not-a-number": (["--learning-rate", "nan"], {}),
    "bool-for-number": ([], {"SM_HPS": '{"epochs": true, "layers": [1, false]}'}),
    "given-twice": (
        ["--config", "twice.yaml", "--weights", '{"a": 1, "a": 2}'],
        {"SM_HPS": '{"epochs": 1, "epochs": 2}'},
    ),
    "yaml-surprises": (["--config", "octal.yaml", "--config", "sixty.yaml", "--config", "bomb.yaml"], {}),
    "very-long": (["--" + "x" * 5000, "y" * 5000, "--epochs", "9" * 5000], {"RANK": "z" * 5000}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained_with_its_source_its_value_and_the_way_out(name: str, here: Path) -> None:
    (here / "base.yaml").write_text("learning_rates: 1e-4\nschedule: {warm-up: 3}\n")
    (here / "notes.txt").write_text("epochs 5")
    (here / "torn.json").write_text("{oops")
    (here / "list.yaml").write_text("- 1\n")
    (here / "twice.yaml").write_text("epochs: 1\nepochs: 2\n")
    (here / "octal.yaml").write_text("epochs: 010\n")
    (here / "sixty.yaml").write_text("epochs: 1:30\n")
    (here / "bomb.yaml").write_text("layers: &a [*a, *a]\n")
    argv, said = MISTAKES[name]
    variables = {key: text for key, text in said.items() if key.isupper()}
    runtimes.write_config(here, **{key: text.encode() for key, text in said.items() if not key.isupper()})
    env = {"SAGEMAKER_BASE_DIR": str(here), **variables}
    text = refusal(*argv, env=env, settings=Strict)
    golden(name, text, here)
    assert "hunter2" not in text


def test_what_is_required_and_missing_is_named(here: Path) -> None:
    golden("required", refusal("--model.act", "gelu", settings=Required), here)


def test_a_part_of_a_value_is_named_by_its_place() -> None:
    class Parts(smkit.Hyperparameters):
        layers: list[int] | None = None
        models: list[Model] = []
        size: int | None = None

    models = '[{"hidden": "wide"}, {"hiden": 1}, 3]'
    text = refusal("--layers", "1", "x", "--models", models, "--size", "big", settings=Parts)
    assert text.splitlines()[1:-2] == [
        "  - command line: layers[1] must be a whole number (got 'x')",
        "  - command line: models[0]['hidden'] must be a whole number (got 'wide')",
        "  - command line: models[1]['hiden'] is an unknown name (got 1)",
        "  - command line: models[2] must be an object, like '{\"a\": 1}' or a=1 (got 3)",
        "  - command line: size must be a whole number or none (got 'big')",
    ]


def test_a_problem_of_the_whole_is_told_in_the_authors_words() -> None:
    class Whole(smkit.Hyperparameters):
        warmup: int = 0

        def model_post_init(self, context: object) -> None:
            if self.warmup > self.epochs:
                raise ValueError("warm-up must end before training does")

    assert "  - warm-up must end before training does\n" in refusal("--warmup", "5", settings=Whole)


@pytest.mark.parametrize("text", ["a=1,b", "a=[1,b=2]", "{'a': }"])
def test_half_a_dict_is_not_guessed_at(text: str) -> None:
    assert "command line: anything " in refusal("--anything", text, settings=Anything)


class Anything(smkit.Hyperparameters):
    anything: dict[str, Any] = {}


def test_two_spellings_of_one_hyperparameter_are_a_problem(here: Path) -> None:
    env = {"SM_HPS": '{"batch-size": 1, "batch_size": 2}', "SAGEMAKER_BASE_DIR": str(here)}
    assert "SM_HPS: 'batch-size' and 'batch_size' are the same hyperparameter; give one" in refusal(env=env)


def test_overrides_in_code_are_checked_like_every_source() -> None:
    text = refusal(overrides={"epochs": 0, "lrr": 1, "model": {"hidden": "wide"}})
    assert "code: epochs must be greater than 0 (got 0)" in text
    assert "code: unknown hyperparameter 'lrr'; did you mean 'lr'?" in text
    assert "code: model.hidden must be a whole number (got 'wide')" in text


# --- as a process -----------------------------------------------------------------------------------------------------

SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_context import Strict
    import smkit
    context = smkit.TrainingContext.load(Strict)
    print("trained with", context.hp.epochs, context.origins["epochs"])
"""


def run_script(here: Path, *argv: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    (here / "train.py").write_text(textwrap.dedent(SCRIPT.format(tests=str(HERE))))
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("SM_", "SAGEMAKER_"))}
    env = {**clean, "COLUMNS": "100", **(env or {})}
    command = [sys.executable, "train.py", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=here, env=env, check=False, timeout=SECONDS)


def test_help_is_printed_with_types_defaults_bounds_and_descriptions(here: Path) -> None:
    done = run_script(here, "--epochs", "five", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    golden("help", done.stdout, here)
    assert not (here / "runs").exists()


def test_a_mistake_ends_the_process_with_status_2_and_its_text_alone(here: Path) -> None:
    done = run_script(here, "--learning_rat", "0.1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"train.py: {(HERE / 'golden' / 'typo.txt').read_text()}"
    assert not (here / "runs").exists()


def test_in_a_job_the_same_text_is_in_the_failure_file(here: Path) -> None:
    texts = {f"unknown{number}": "1" for number in range(30)}
    runtimes.write_config(here, hyperparameters=texts)
    started = runtimes.toolkit(here, texts)
    done = run_script(here, *started.argv, env=started.env)
    failure = (here / "output" / "failure").read_text(encoding="utf-8")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert failure.startswith(
        "30 problems in the settings:\n  - hyperparameters.json: unknown hyperparameter 'unknown0'"
    )
    assert len(failure) == 1024
    beginning, _, end = failure.partition(" ...\n")
    assert done.stderr.startswith(f"train.py: {beginning}")
    assert end.startswith("  where: train.py\n  fix:   correct what is named above")


UNGUARDED = """
import multiprocessing, smkit
context = smkit.TrainingContext.load(smkit.Hyperparameters)
process = multiprocessing.get_context("spawn").Process(target=print)
process.start()
process.join()
print("worker:", process.exitcode)
"""


def test_a_script_that_begins_when_a_worker_process_imports_it_is_told_what_to_do(here: Path) -> None:
    (here / "unguarded.py").write_text(UNGUARDED)
    command = [sys.executable, "unguarded.py", "--run-dir", "run"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SM_")}
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout == "worker: 2\n"
    assert "a worker process imports this script, and the script begins to train when it is imported" in done.stderr
    assert 'fix:   begin it below `if __name__ == "__main__":`' in done.stderr


def test_a_right_job_trains(here: Path) -> None:
    runtimes.write_config(here, hyperparameters={"epochs": "7"})
    started = runtimes.toolkit(here, {"epochs": "7"})
    done = run_script(here, *started.argv, env=started.env)
    assert (done.returncode, done.stdout) == (0, "trained with 7 hyperparameters.json\n")
    assert not (here / "output" / "failure").exists()


def test_importing_and_building_read_nothing(here: Path) -> None:
    poison = {"SM_HPS": "{oops", "SM_HOSTS": "oops", "SM_MODEL_DIR": "oops", "RANK": "oops", "SM_NUM_GPUS": "oops"}
    poison |= {"EPOCHS": "oops", "LR": "oops", "NAME": "oops", "SEED": "oops", "MODEL_DIR": "oops", "RUN_DIR": "oops"}
    poison |= {"HP": "oops", "CHANNELS": "oops", "JOB_NAME": "oops", "SM_HP": "oops", "SM_RANK": "5"}
    code = f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from test_context import Settings
        import smkit
        assert Settings() == Settings(epochs=3, name="x")
        places = dict(model_dir="m", output_dir="o", output_data_dir="d", checkpoint_dir="c")
        context = smkit.TrainingContext[Settings](hp=Settings(), **places)
        assert (str(context.model_dir), context.hosts, context.rank) == ("m", ("localhost",), 0)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), "--nope"]
    env = {**os.environ, **poison}
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=env, check=False, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_variable_of_another_program_is_never_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Generic(smkit.Hyperparameters):
        home: str = "mine"
        path: str = "mine"
        user: str = "mine"

    for name in ("HOME", "PATH", "USER", "EPOCHS", "NAME", "SEED", "HP", "ORIGINS", "JOB_NAME", "CHECKPOINT_DIR"):
        monkeypatch.setenv(name, "theirs")
    context = smkit.TrainingContext.load(Generic, ["--run-dir", "run"])
    assert context.hp == Generic()
    assert context.checkpoint_dir == Path("run/checkpoints")


# --- the context is a value -------------------------------------------------------------------------------------------


def test_a_context_is_frozen_and_its_origins_too() -> None:
    context = load("--layers", "1", "2")
    with pytest.raises(ValidationError, match="frozen"):
        context.rank = 1
    with pytest.raises(TypeError, match="frozen"):
        context.origins["lr"] = "me"  # type: ignore[index]
    with pytest.raises(TypeError, match="frozen"):
        context.hp.layers.append(3)


def test_a_context_can_be_pickled_and_copied_to_another_process(here: Path) -> None:
    context = load("--layers", "1", "2", "--channel", "train=.")
    assert pickle.loads(pickle.dumps(context)) == copy.deepcopy(context) == context
    (here / "context.pickle").write_bytes(pickle.dumps(context))
    code = f"""
        import pickle, sys
        sys.path.insert(0, {str(HERE)!r})
        context = pickle.load(open("context.pickle", "rb"))
        print(context.hp.layers, type(context).__name__, context.channel("train").path)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, check=True, timeout=SECONDS)
    assert done.stdout == "[1, 2] TrainingContext[Settings] .\n"


def test_two_readings_of_one_job_are_equal(here: Path) -> None:
    started = runtimes.toolkit(here, {"epochs": "7"})
    assert load(*started.argv, env=started.env) == load(*started.argv, env=started.env)
    assert load(*started.argv, env=started.env) != load(*started.argv, "--q", "7", env=started.env)


# --- the saved settings -----------------------------------------------------------------------------------------------


class Inner(BaseModel, frozen=True, extra="forbid"):
    width: float = 1.0
    key: SecretStr | None = None


class Saved(smkit.Hyperparameters):
    anything: Any = None
    limit: float | None = Field(default=None, alias="cap")
    tags: set[str] = set()
    color: Color = Color.RED
    inner: Inner = Inner()
    maybe: Inner | None = None
    token: SecretStr = SecretStr("none")
    many: dict[str, list[float | None]] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> float:
        return 2 * self.inner.width


saved: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    anything=st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["1", "null", "[1]"]),
    limit=st.none() | st.floats(allow_nan=False),
    tags=st.sets(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=3),
    color=st.sampled_from(Color),
    inner=st.builds(Inner, width=st.floats(allow_nan=False)),
    maybe=st.none() | st.builds(Inner, width=st.floats(allow_nan=False)),
    many=st.dictionaries(st.sampled_from("abc"), st.lists(st.none() | st.floats(allow_nan=False), max_size=2)),
)


@settings(max_examples=50, deadline=None)
@given(values=saved)
def test_the_saved_settings_are_read_back_by_config(values: dict[str, Any], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("saved")
    context = smkit.TrainingContext.load(Saved, ["--run-dir", str(folder)], {}, overrides=values)
    file = context.save_settings(folder)
    again = smkit.TrainingContext.load(Saved, ["--run-dir", str(folder), "--config", str(file)], {})
    assert again.hp == context.hp
    assert set(again.origins.values()) <= {f"config file {file}", "default"}


def test_secrets_are_never_saved(here: Path) -> None:
    secret = {"token": "hunter2", "inner": {"key": "hunter2", "width": 2.0}}
    context = load(settings=Saved, overrides=secret)
    text = context.save_settings(here).read_text(encoding="utf-8")
    assert "hunter2" not in text + repr(context) + json.dumps(context.settings_document())
    again = load("--config", "settings.json", settings=Saved)
    assert (again.hp.inner.width, again.hp.inner.key, again.origins["inner.width"]) == (
        2.0,
        None,
        "config file settings.json",
    )
