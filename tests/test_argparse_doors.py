"""The two doors for scripts that were written with argparse: the parser kept, and a class in its place."""

import argparse
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import runtimes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import SECONDS

import smkit


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("data", nargs="?", default="nowhere")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", "-b", type=int, default=32, dest="size")
    parser.add_argument("--learning_rate", "--lr", type=float, default=1e-3)
    parser.add_argument("--use-cuda", type=bool, default=True)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--no-shuffle", action="store_false", dest="shuffle")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--adam", action="store_const", const="adam", default="sgd", dest="optimizer")
    parser.add_argument("--layers", type=int, nargs="+", default=[1])
    parser.add_argument("--betas", type=float, nargs=2, default=[0.9, 0.99])
    parser.add_argument("--tags", nargs="*", default=["a"])
    parser.add_argument("--extra", action="append", type=float)
    parser.add_argument("--names", action="extend", nargs="+")
    parser.add_argument("-v", "--verbose", action="count", default=1)
    parser.add_argument("--scale", nargs="?", type=float, const=2.0, default=1.0)
    parser.add_argument("--max-steps", type=int, default=99)
    parser.add_argument("--schedule", choices=["cosine", "step"], default="step")
    parser.add_argument("--version-name", default="1")
    parser.add_argument("--config", type=json.loads, default=None)
    parser.add_argument("-x", type=int, default=0)
    parser.add_argument("-wd", type=float, default=0.0)
    parser.add_argument("--version", action="version", version="train 1.0")
    return parser


DEFAULTS = vars(make_parser().parse_args([]))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


def changed(*argv: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What differs from the parser's defaults."""
    found = vars(smkit.from_argparse(make_parser(), argv, env or {"SAGEMAKER_BASE_DIR": "nowhere"}))
    assert set(found) == set(DEFAULTS)
    return {name: value for name, value in found.items() if repr(value) != repr(DEFAULTS[name])}


def refusal(*argv: str, env: Mapping[str, str] | None = None) -> str:
    with pytest.raises(smkit.ConfigurationError) as refused:
        changed(*argv, env=env)
    return str(refused.value)


JOBS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"epochs": 5, "batch-size": 64, "lr": 0.1}, {"epochs": 5, "size": 64, "learning_rate": 0.1}),
    ({"batch_size": 64, "learning-rate": -1e-05}, {"size": 64, "learning_rate": -1e-05}),
    ({"b": 64, "x": 7, "wd": -1e-4}, {"size": 64, "x": 7, "wd": -1e-4}),
    ({"lr": float("nan")}, {"learning_rate": float("nan")}),
    ({"use-cuda": False, "amp": True, "no-shuffle": True}, {"use_cuda": False, "amp": True, "shuffle": False}),
    ({"use-cuda": "False", "amp": "no", "no-shuffle": False}, {"use_cuda": False}),
    ({"use-cuda": True, "amp": 1, "ema": True}, {"amp": True}),
    ({"ema": False, "adam": True}, {"ema": False, "optimizer": "adam"}),
    ({"layers": [64, 128], "betas": [-1e-05, 0.5]}, {"layers": [64, 128], "betas": [-1e-05, 0.5]}),
    ({"layers": [64]}, {"layers": [64]}),
    ({"layers": 64}, {"layers": [64]}),
    ({"tags": [], "extra": [], "names": []}, {"tags": [], "extra": [], "names": []}),
    ({"tags": ["-lead"]}, {"tags": ["-lead"]}),
    ({"extra": [-1e-05, 2], "names": ["b", "c d"]}, {"extra": [-1e-05, 2.0], "names": ["b", "c d"]}),
    ({"verbose": 3, "scale": -1e-05}, {"verbose": 3, "scale": -1e-05}),
    ({"verbose": 0}, {"verbose": 0}),
    ({"max-steps": None, "layers": None}, {"max_steps": None, "layers": None}),
    ({"schedule": "cosine", "version-name": "1.10"}, {"schedule": "cosine", "version_name": "1.10"}),
    ({"version-name": ""}, {"version_name": ""}),
    ({"version-name": "--epochs"}, {"version_name": "--epochs"}),
    ({"version-name": "a=b --lr 5"}, {"version_name": "a=b --lr 5"}),
    ({"config": {"a": [1, None]}}, {"config": {"a": [1, None]}}),
    ({"sagemaker_program": "train.py", "_tuning_objective_metric": "loss"}, {}),
]


@pytest.mark.parametrize("start", [runtimes.toolkit, runtimes.driver])
@pytest.mark.parametrize(("job", "expect"), JOBS, ids=[json.dumps(job) for job, _ in JOBS])
def test_a_parser_reads_a_jobs_values_as_they_were_launched(
    job: dict[str, Any], expect: dict[str, Any], start: runtimes.Runtime, here: Path
) -> None:
    texts = {name: json.dumps(value) for name, value in job.items()}
    started = start(here, texts)
    assert repr(changed(*started.argv, env=started.env)) == repr(changed(env=started.env))
    runtimes.write_config(here, hyperparameters=texts)
    found = changed(*started.argv, env=started.env)
    assert {name: repr(value) for name, value in found.items()} == {name: repr(value) for name, value in expect.items()}


def test_a_text_that_the_sdk_sends_bare_keeps_its_spelling(here: Path) -> None:
    texts = {"version-name": "1.10", "epochs": "5"}
    runtimes.write_config(here, hyperparameters=texts)
    started = runtimes.driver(here, texts)
    assert changed(*started.argv, env=started.env) == {"version_name": "1.10", "epochs": 5}


@pytest.mark.parametrize(
    ("argv", "expect"),
    [
        (["--lr", "-1e-05", "--epochs", "5"], {"learning_rate": -1e-05, "epochs": 5}),
        (["--lr=-1e-05", "-x", "5", "-b7"], {"learning_rate": -1e-05, "x": 5, "size": 7}),
        (["--scale", "-1e-05"], {"scale": -1e-05}),
        (["--scale", "--amp"], {"scale": 2.0, "amp": True}),
        (["-wd", "-1e-4"], {"wd": -1e-4}),
        (["--betas", "-1e-05", "-.5", "--layers", "-1", "2"], {"betas": [-1e-05, -0.5], "layers": [-1, 2]}),
        (["--use-cuda", "False"], {"use_cuda": False}),
        (["--use-cuda=no", "--amp"], {"use_cuda": False, "amp": True}),
        (["--use-cuda", "1"], {}),
        (["-vv", "--no-ema", "--no-shuffle"], {"verbose": 3, "ema": False, "shuffle": False}),
        (["here", "--epochs", "5"], {"data": "here", "epochs": 5}),
        (["--epochs", "5", "--", "-1e-05"], {"epochs": 5, "data": "-1e-05"}),
        (["--version-name", "--", "-x"], None),
        (["--tags", "a=b", "c"], {"tags": ["a=b", "c"]}),
        (["--extra", "1", "--extra", "-1e-05"], {"extra": [1.0, -1e-05]}),
        (["--sched", "cosine"], {"schedule": "cosine"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_own_arguments_are_read_as_argparse_should(argv: list[str], expect: dict[str, Any] | None) -> None:
    if expect is None:
        with pytest.raises(SystemExit):
            changed(*argv)
    else:
        assert changed(*argv) == expect


@pytest.mark.parametrize(
    "argv", [["--version-name", "--epochs=5"], ["--lr", "--epochs", "5"], ["--epochs"], ["--lr", "x"]]
)
def test_what_argparse_refuses_stays_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        changed(*argv)
    assert end.value.code == 2
    assert f"train.py: error: argument {argv[0]}" in capsys.readouterr().err.replace("--learning_rate/", "")


@pytest.mark.parametrize("start", [runtimes.toolkit, runtimes.driver])
def test_a_real_override_in_a_job_wins_and_the_echo_does_not(start: runtimes.Runtime, here: Path) -> None:
    texts = {"epochs": "5", "layers": "[64, 128]", "amp": "false", "lr": "-1e-05", "use-cuda": "false"}
    runtimes.write_config(here, hyperparameters=texts)
    started = start(here, texts)
    expect = {"epochs": 5, "layers": [64, 128], "learning_rate": -1e-05, "use_cuda": False}
    assert changed(*started.argv, env=started.env) == expect
    more = changed("here", *started.argv, "--epochs", "9", "--amp", env=started.env)
    assert more == expect | {"epochs": 9, "amp": True, "data": "here"}


def test_a_positional_argument_is_not_swallowed_by_a_list_of_the_job(here: Path) -> None:
    runtimes.write_config(here, hyperparameters={"tags": '["a", "b"]'})
    env = {"SAGEMAKER_BASE_DIR": str(here)}
    assert changed("here", env=env) == {"tags": ["a", "b"], "data": "here"}


@pytest.mark.parametrize(
    ("job", "problem"),
    [
        ({"epoch": 5}, "the script's parser has no option '--epoch'"),
        ({"help": True}, "the script's parser has no option '--help'"),
        ({"version": "1.10"}, "the script's parser has no option '--version'"),
        ({"no-ema": True}, "the script's parser has no option '--no-ema'"),
        ({"size": 5}, "the script's parser has no option '--size'"),
        ({"amp": "banana"}, "amp must be true or false (got 'banana')"),
        ({"use-cuda": [1]}, "use-cuda must be true or false (got '[1]')"),
        ({"adam": "adam"}, "adam must be true or false (got 'adam')"),
        ({"names": ["--epochs", "5"]}, "names holds '--epochs', which argparse takes for an option"),
        ({"version-name": "--"}, "version-name holds '--', which argparse drops"),
        ({"betas": [0.1, float("-inf")]}, "betas holds '-Infinity', which argparse takes for an option"),
    ],
)
def test_a_value_that_the_parser_cannot_take_is_a_problem(job: dict[str, Any], problem: str, here: Path) -> None:
    texts = {name: json.dumps(value) for name, value in job.items()}
    runtimes.write_config(here, hyperparameters=texts)
    started = runtimes.toolkit(here, texts)
    assert f"  - hyperparameters.json: {problem}\n" in refusal(*started.argv, env=started.env)


def test_all_problems_are_told_at_once_and_a_bool_is_no_other_text(here: Path) -> None:
    env = {"SAGEMAKER_BASE_DIR": str(here), "SM_HPS": '{"epoch": 5, "amp": "x"}'}
    assert refusal("--use-cuda", "banana", env=env) == (
        "3 problems in the settings:\n"
        "  - SM_HPS: the script's parser has no option '--epoch'\n"
        "  - SM_HPS: amp must be true or false (got 'x')\n"
        "  - command line: --use-cuda must be true or false (got 'banana')\n"
        "  where: train.py\n"
        "  fix:   correct what is named above, or add the option to the parser"
    )
    assert "SM_HPS: is not JSON" in refusal(env={"SAGEMAKER_BASE_DIR": str(here), "SM_HPS": "{"})


def test_the_parser_is_not_changed_and_required_options_can_come_from_the_job(here: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--on", action="store_true", default=True)
    runtimes.write_config(here, hyperparameters={"target": '"digit"', "on": "false"})
    env = {"SAGEMAKER_BASE_DIR": str(here)}
    assert vars(smkit.from_argparse(parser, [], env)) == {"target": "digit", "on": False}
    assert vars(parser.parse_args(["--target", "x"])) == {"target": "x", "on": True}


SCRIPT = """
    import argparse
    import smkit
    parser = argparse.ArgumentParser(usage="%(prog)s " + "[--an-option-with-a-long-name] " * 50)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--amp", action="store_true")
    print(smkit.from_argparse(parser))
"""


def run_script(here: Path, texts: Mapping[str, str], start: runtimes.Runtime) -> "subprocess.CompletedProcess[str]":
    (here / "train.py").write_text(textwrap.dedent(SCRIPT))
    runtimes.write_config(here, hyperparameters=dict(texts))
    started = start(here, texts)
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("SM_", "SAGEMAKER_"))}
    command = [sys.executable, "train.py", *started.argv]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=here, env=clean | started.env, check=False, timeout=SECONDS
    )


def test_argparses_own_refusal_is_in_the_failure_file_with_the_complaint_first(here: Path) -> None:
    done = run_script(here, {"epochs": "five"}, runtimes.driver)
    complaint = "train.py: error: argument --epochs: invalid int value: 'five'"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith(complaint)
    failure = (here / "output" / "failure").read_text(encoding="utf-8")
    assert failure.startswith(complaint)
    assert len(failure) <= 1024


def test_an_unknown_name_ends_the_process_as_every_mistake_does(here: Path) -> None:
    done = run_script(here, {"epoch": "5"}, runtimes.toolkit)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("train.py: 1 problem in the settings:\n  - hyperparameters.json: the script's parser")
    assert (here / "output" / "failure").read_text(encoding="utf-8") in done.stderr


def test_a_right_job_runs(here: Path) -> None:
    done = run_script(here, {"epochs": "5", "amp": "true"}, runtimes.toolkit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Namespace(epochs=5, amp=True)\n", "")


# --- whatever the job holds: the namespace has it, or it is refused ---------------------------------------------------

texts = st.sampled_from(["", "-x", "--epochs", "-1e-05", "--", "a b", "a=b", "None", "1e3", "@file"]) | st.text(
    max_size=8
)
FAITHFUL: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "epochs": ("epochs", st.none() | st.integers()),
    "lr": ("learning_rate", st.none() | st.floats()),
    "use-cuda": ("use_cuda", st.none() | st.booleans()),
    "amp": ("amp", st.none() | st.booleans()),
    "ema": ("ema", st.none() | st.booleans()),
    "layers": ("layers", st.none() | st.lists(st.integers(), max_size=4)),
    "tags": ("tags", st.none() | st.lists(texts, max_size=3)),
    "extra": ("extra", st.none() | st.lists(st.floats(), max_size=3)),
    "names": ("names", st.none() | st.lists(texts, max_size=3)),
    "verbose": ("verbose", st.integers()),
    "version-name": ("version_name", st.none() | texts),
    "config": ("config", st.none() | st.dictionaries(texts, st.integers() | texts, max_size=2)),
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(job=st.fixed_dictionaries({}, optional={name: strategy for name, (_, strategy) in FAITHFUL.items()}))
@pytest.mark.parametrize("start", [runtimes.toolkit, runtimes.driver])
def test_a_namespace_never_differs_silently_from_the_job(
    job: dict[str, Any], start: runtimes.Runtime, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("job")
    sent = {name: json.dumps(value) for name, value in job.items()}
    runtimes.write_config(base, hyperparameters=sent)
    started = start(base, sent)
    try:
        found = smkit.from_argparse(make_parser(), started.argv, started.env)
    except smkit.ConfigurationError as refused:
        if not any(f"{name} holds '-" in refused.what for name in ("tags", "names", "extra", "version-name")):
            raise
        return
    for name, value in job.items():
        assert repr(getattr(found, FAITHFUL[name][0])) == repr(value), name


# --- a class in the parser's place ------------------------------------------------------------------------------------


class Args(smkit.Hyperparameters):
    learning_rate: float = 1e-3
    amp: bool = False


def test_a_class_takes_the_parsers_place(here: Path) -> None:
    args = smkit.parse_args(Args, ["--learning-rate", "-1e-05", "--amp", "True"], {})
    assert (args.learning_rate, args.amp, args.epochs) == (-1e-05, True, 1)
    with pytest.raises(smkit.ConfigurationError, match="did you mean 'amp'"):
        smkit.parse_args(Args, ["--am"], {})


CALLS: list[Callable[..., Any]] = [smkit.parse_args, smkit.TrainingContext.load]


@pytest.mark.parametrize("call", CALLS)
def test_without_arguments_the_process_is_read(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "5"])
    found = call(Args)
    assert getattr(found, "hp", found).epochs == 5
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "0"])
    with pytest.raises(SystemExit) as end:
        call(Args)
    assert end.value.code == 2
