"""A script's command line, read by `smkit launch`: the job's script must understand what it would have understood."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from runtimes import toolkit, write_config

from smkit.commands.script_command_line import read
from smkit.context import TrainingContext
from smkit.errors import ConfigurationError
from smkit.hyperparameters import Hyperparameters
from smkit.wire import encode


class Settings(Hyperparameters):
    epochs: int = 1
    learning_rate: float = 0.1
    label: str = ""
    note: str | None = None
    amp: bool = True
    limit: int | None = 3
    layers: list[int] = Field([8])
    names: tuple[str, ...] = ()
    weights: dict[str, float] = Field({})
    schedule: Literal["cosine", "none"] | float = "none"


_NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from(["1e-3", "1.10", "007", "1e3", "-.5", "+1", "1_000", ""]),
)
_WORDS = st.one_of(
    _NUMBERS,
    st.sampled_from(
        ["true", "False", "null", "None", "[1, 2]", '["a"]', '{"a": 1}', "a=1,b=2", "a,b", '"x"', "a b", "é"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
)
_OPTIONS = st.one_of(
    st.tuples(st.sampled_from(sorted(Settings.model_fields)), _WORDS).map(lambda pair: [f"--{pair[0]}={pair[1]}"]),
    st.tuples(st.sampled_from(["--epochs", "--learning-rate", "--limit", "--schedule"]), _NUMBERS.filter(bool)).map(
        list
    ),
    st.lists(st.integers(-99, 99).map(str), min_size=1, max_size=4).map(lambda items: ["--layers", *items]),
    st.lists(st.sampled_from(["a", "1", "1.10", "null"]), min_size=1, max_size=3).map(
        lambda items: ["--names", *items]
    ),
    st.sampled_from([["--amp"], ["--no-amp"], ["--no_amp"]]),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(_OPTIONS, max_size=4, unique_by=lambda words: words[0].partition("=")[0].replace("no", "").lstrip("-")[:3])
)
def test_a_job_gets_what_the_script_would_have_got(options: list[list[str]]) -> None:
    words = [word for option in options for word in option]
    arguments = read(words, "")
    assert not arguments.problems
    with tempfile.TemporaryDirectory() as base:
        texts = encode(arguments.hyperparameters)
        start = toolkit(write_config(Path(base), hyperparameters=texts), texts)
        # JSON has numbers where a command line has texts, so that a job may take 0.0 for a bool.
        here = _outcome([*words, f"--run-dir={base}/run"], {})
        assert here in (None, _outcome(start.argv, start.env))


def _outcome(argv: list[str], env: dict[str, str]) -> Settings | None:
    try:
        return TrainingContext.load(Settings, argv, env).hp
    except ConfigurationError:
        return None


@pytest.mark.parametrize("word", ["--monitor_metric=None", "--note=None", "--label=None", "--note=a b", "--label=é"])
def test_a_word_is_no_text_between_quotes(word: str) -> None:
    texts = encode(read([word], "").hyperparameters)
    with tempfile.TemporaryDirectory() as base:
        start = toolkit(write_config(Path(base), hyperparameters=texts), texts)
        assert _outcome(start.argv, start.env) == _outcome([word, f"--run-dir={base}/run"], {})
        # What a program sends as a text is that text.
        quoted = encode({word[2:].partition("=")[0]: "None"})
        start = toolkit(write_config(Path(base), hyperparameters=quoted), quoted)
        found = _outcome(start.argv, start.env)
        assert found is not None
        assert "None" in found.__dict__.values()


@pytest.mark.parametrize(
    ("line", "hyperparameters"),
    [
        ("--epochs 3 --lr=0.1 -x 1", {"epochs": 3, "lr": 0.1, "x": 1}),
        ("--lr 1e-3 --version 1.10", {"lr": "1e-3", "version": "1.10"}),
        ("--lr -1e-05 --shift -1", {"lr": "-1e-05", "shift": -1}),
        ("--layers 64 128 --layers 256", {"layers": ["64", "128", "256"]}),
        ("--amp --no-bias --no_pool", {"amp": True, "bias": False, "pool": False}),
        ("--no-cuda --no-grad 1", {"no-cuda": True, "no-grad": 1}),
        ("--name= --text='a b' --none null", {"name": "", "text": "a b", "none": None}),
        ("--dims [1,2] --opt '{\"a\": 1}'", {"dims": "[1,2]", "opt": {"a": 1}}),
    ],
)
def test_words_become_values(line: str, hyperparameters: dict[str, object]) -> None:
    assert read(shlex.split(line), 'parser.add_argument("--no-cuda")').hyperparameters == hyperparameters


def test_channels_and_files_of_settings_are_no_hyperparameters(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("epochs: 5\nlearning_rate: 1.0e-3\nlabel: one\n")
    (tmp_path / "two.json").write_text('{"label": "two"}')
    files = f"--config {tmp_path}/one.yaml --config {tmp_path}/two.json"
    line = f"{files} --learning-rate 0.5 --channel train=s3://b/x --channel test=d a=b"
    arguments = read(line.split(), "")
    assert arguments.hyperparameters == {"epochs": 5, "label": "two", "learning-rate": 0.5}
    assert arguments.inputs == {"train": "s3://b/x", "test": "d", "a": "b"}
    own = read(line.split(), "add_argument('--config')\nclass Settings:\n    channel: list[str]\n")
    assert own.hyperparameters["channel"] == ["train=s3://b/x", "test=d", "a=b"]
    assert not own.inputs


def test_what_cannot_travel_is_said(tmp_path: Path) -> None:
    arguments = read(["data", "--channel", "train", "--config", str(tmp_path / "none.toml"), "--x=1", "more"], "")
    assert [problem.replace(str(tmp_path), "<tmp>") for problem in arguments.problems] == [
        "the script's argument 'data': a job's script gets options only, --name VALUE",
        "the script's argument 'more': a job's script gets options only, --name VALUE",
        "--channel 'train': write NAME=URI, like train=s3://bucket/train",
        "hyperparameters file '<tmp>/none.toml': does not exist",
    ]
