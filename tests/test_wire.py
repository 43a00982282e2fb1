"""What is launched is what the script gets: equal, or refused; never silently different."""

import enum
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
import runtimes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, create_model

import smkit
from smkit import wire


class Color(enum.Enum):
    RED = "BLUE"  # one member's value is another's name, on purpose
    BLUE = "red"
    ONE = 1


class Network(BaseModel, frozen=True, extra="forbid"):
    hidden: int = 8
    activation: str = "relu"
    dropout: float | None = None


NASTY = [
    "",
    "null",
    "None",
    "true",
    "1e3",
    "1.10",
    "007",
    "-0",
    " 5 ",
    "NaN",
    "-1e-05",
    "-lead",
    "--epochs",
    "a,b",
    "a=b",
]
NASTY += ["[1,", "['a']", '["a"]', "{", "it's", 'say "hi"', "naïve ☃", "two\nlines", "\\", "a: b", "$HOME `ls`", "0x10"]
texts = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
integers = st.integers() | st.sampled_from([0, -1, 10**18, -(10**400)])
plain = st.none() | st.booleans() | integers | st.floats() | texts
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
options: list[Any] = ["None", 1, "1", True, "sgd", 0]

KINDS: dict[str, tuple[Any, Any, st.SearchStrategy[Any]]] = {
    "int": (int, 0, integers),
    "float": (float, 0.0, st.floats() | st.sampled_from([1e-5, -1e-5, -1e300])),
    "bool": (bool, False, st.booleans()),
    "str": (str, "", texts),
    "optional_int": (int | None, 0, st.none() | integers),
    "optional_str": (str | None, "x", st.none() | texts),
    "list_int": (list[int], [], st.lists(integers, max_size=4)),
    "list_float": (list[float], [], st.lists(st.floats(), max_size=4)),
    "list_str": (list[str], [], st.lists(texts, max_size=4)),
    "dict_int": (dict[str, int], {}, st.dictionaries(texts, integers, max_size=3)),
    "dict_any": (dict[str, Any], {}, st.dictionaries(texts, anything, max_size=3)),
    "any": (Any, 0, anything),
    "literal": (Literal["None", 1, "1", True, "sgd", 0], 0, st.sampled_from(options)),
    "optional_literal": (Literal["None", "null", ""] | None, "", st.sampled_from([None, "None", "null", ""])),
    "model": (Network, Network(), st.builds(Network, hidden=integers, activation=texts)),
    "enum": (Color, Color.ONE, st.sampled_from(Color)),
    "path": (Path, Path(), st.builds(Path, texts)),
    "optional_path": (Path | None, Path(), st.none() | st.builds(Path, texts)),
    "set_str": (set[str], set(), st.sets(texts, max_size=4)),
    "pair": (tuple[int, str], (0, ""), st.tuples(integers, texts)),
    "union": (int | str | list[str], 0, integers | texts | st.lists(texts, max_size=2)),
}
DEFAULTS: dict[str, Any] = {kind: (annotation, default) for kind, (annotation, default, _) in KINDS.items()}
Everything: type[smkit.Hyperparameters] = create_model("Everything", __base__=smkit.Hyperparameters, **DEFAULTS)
everything = st.fixed_dictionaries({kind: strategy for kind, (_, _, strategy) in KINDS.items()})


def encoded(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that `encode` does not refuse, and what it makes of them."""
    try:
        return dict(values), wire.encode(Everything(**values))
    except smkit.ConfigurationError as refusal:
        lines = refusal.what.split("\n  - ")[1:]
        if not all("\\x00" in line or "characters as JSON" in line for line in lines):
            raise
        refused = {line.partition(":")[0] for line in lines}
        return encoded({name: value for name, value in values.items() if name not in refused})


def is_same(one: Any, other: Any) -> bool:
    """Equal and of one type at every depth; not a number is itself here, and a dict has no order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other or repr(one) == repr(other)


@settings(max_examples=100, deadline=None)
@given(values=everything)
@pytest.mark.parametrize("start", [runtimes.toolkit, runtimes.driver])
def test_a_script_gets_what_was_launched_or_the_launch_is_refused(
    values: dict[str, Any], start: runtimes.Runtime
) -> None:
    sent, sent_texts = encoded(values)
    with TemporaryDirectory() as folder:
        base = Path(folder)
        started = start(base, sent_texts)
        without_file = smkit.TrainingContext.load(Everything, started.argv, started.env)
        runtimes.write_config(base, hyperparameters=sent_texts)
        with_file = smkit.TrainingContext.load(Everything, started.argv, started.env)
    for context, label in ((without_file, "SM_HPS"), (with_file, "hyperparameters.json")):
        for name, value in sent.items():
            assert is_same(getattr(context.hp, name), getattr(Everything(**{name: value}), name)), name
        assert set(context.origins.values()) <= {label, "default"}
        assert {context.origins[name] for name in sent if name != "model"} == {label}


# --- the command line alone: what a runtime's echo means where the job's own values are out of reach ------------------


def is_lost(kind: str, value: Any, start: runtimes.Runtime) -> bool:
    """The known losses of an echo: why a script should read the job's values, as `TrainingContext.load` does."""
    is_text = isinstance(value, (str, Path))
    if "literal" in kind or (kind in ("any", "union") and is_text):
        return True  # "1" and 1, "null" and None: a text is the one or the other, where both are allowed
    if kind in ("optional_str", "optional_path") and str(value) in ("None", "null", ""):
        return True
    if start is runtimes.driver:
        # It decodes a text a second time: "1.10" is 1.1 before the script sees it, and '"a"' is a.
        return is_text and runtimes.decoded({"": str(value)})[""] != str(value)
    if kind == "dict_int":
        return any(set(key) & set(",=") or key.strip() != key for key in value)
    return kind in ("any", "dict_any", "model")  # a dict is key=value,... without quotes


def read(pairs: dict[str, str], run_dir: str) -> smkit.Hyperparameters:
    """Read a command line; take away from `pairs` what is refused."""
    words = [word for name, text in pairs.items() for word in (f"--{name}", text)]
    try:
        return smkit.TrainingContext.load(Everything, [*words, "--run-dir", run_dir], {}).hp
    except smkit.ConfigurationError as refusal:
        refused = [name for name in pairs if f"command line: {name}" in refusal.what]
        for name in refused:
            del pairs[name]
        if not refused:
            raise
    return read(pairs, run_dir)


@settings(max_examples=70, deadline=None)
@given(values=everything)
@pytest.mark.parametrize("start", [runtimes.toolkit, runtimes.driver])
def test_an_echo_alone_is_read_right_or_refused_but_for_the_known_losses(
    values: dict[str, Any], start: runtimes.Runtime, run_dir: str
) -> None:
    sent, sent_texts = encoded(values)
    argv = start(Path("base"), {name: sent_texts[name] for name in sent}).argv
    pairs = {
        name[2:]: text for name, text in zip(argv[::2], argv[1::2], strict=True) if not text.startswith(("--", "-h"))
    }
    hp = read(pairs, run_dir)
    for name in pairs:
        if not is_lost(name, sent[name], start):
            assert is_same(getattr(hp, name), getattr(Everything(**{name: sent[name]}), name)), name


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("run"))


# --- encode -----------------------------------------------------------------------------------------------------------


def refusal(hyperparameters: Any) -> str:
    with pytest.raises(smkit.ConfigurationError) as refused:
        wire.encode(hyperparameters)
    return str(refused.value)


def test_every_value_is_sent_as_json() -> None:
    values = {"lr": 1e-05, "name": "a b", "amp": True, "nothing": None, "layers": (64, 128), "color": Color.BLUE}
    assert wire.encode(values) == {
        "lr": "1e-05",
        "name": '"a b"',
        "amp": "true",
        "nothing": "null",
        "layers": "[64, 128]",
        "color": '"red"',
    }


def test_all_that_cannot_travel_is_refused_at_once() -> None:
    loop: list[Any] = []
    loop.append(loop)
    text = refusal(
        {
            "sagemaker_program": "train.py",
            "bad name": 1,
            "n" * 257: 1,
            "nul": "a\0b",
            "half": ["\ud800"],
            "keys": {"inner": {1: "a"}},
            "things": {1, 2},
            "loop": loop,
            "huge": 10**5000,
            "long": "x" * 2499,
            "token": SecretStr("hunter2"),
            "batch-size": 1,
            "Batch_Size": 2,
        }
    )
    assert "12 problems in the hyperparameters" in text
    for line in (
        "sagemaker_program: names of this kind belong to the platform",
        "bad name: a name is letters, digits",
        "SageMaker takes names of 256 characters",
        "nul: the character '\\x00' cannot stand in an environment variable",
        "half: the character '\\ud800' cannot stand",
        "keys: the key 1 is not a text",
        "things: a set has no JSON form",
        "loop: has no JSON form",
        "huge: has no JSON form",
        "long: 2501 characters as JSON, and SageMaker takes 2500",
        "token: a secret would be readable",
        "Batch_Size: shares its SM_HP_ variable and its option with 'batch-size'",
    ):
        assert line in text
    assert "hunter2" not in text


def test_a_job_takes_so_many_hyperparameters_and_so_much_text() -> None:
    assert "91 hyperparameters, and a job takes 90" in refusal({f"name{number}": number for number in range(91)})
    assert "bytes together, and a job takes 120000" in refusal({f"name{number}": "x" * 2400 for number in range(60)})


class Odd(smkit.Hyperparameters):
    anything: Any = None
    hidden: int = Field(default=1, exclude=True)
    key: SecretStr | None = None
    data: bytes = b""


def test_a_setting_that_would_come_back_as_something_else_is_refused() -> None:
    text = refusal(Odd(anything=Path("a"), key=SecretStr("hunter2"), data=b"\xff"))
    assert "hidden: is left out of every dump by Field(exclude=True); drop that" in text
    assert "key: a secret would be readable" in text
    assert "data: has no JSON form" in text
    assert "hunter2" not in text

    class Plain(smkit.Hyperparameters):
        anything: Any = None

    assert "anything: (1, 2) would reach the script as [1, 2]" in refusal(Plain(anything=(1, 2)))
    assert "anything: {1: 'a'} would reach the script as {'1': 'a'}" in refusal(Plain(anything={1: "a"}))


def test_a_setting_that_the_script_would_refuse_is_refused() -> None:
    class Even(smkit.Hyperparameters):
        number: int = Field(default=2, multiple_of=2)

    broken = Even.model_construct(**{**dict(Even()), "number": 3})
    assert "number: would be refused by the script: Input should be a multiple of 2" in refusal(broken)


# --- the rebuilt runtimes are the real ones ---------------------------------------------------------------------------


@pytest.mark.toolkit
@settings(max_examples=200, deadline=None)
@given(values=st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,5}", fullmatch=True), anything, max_size=5))
def test_the_rebuilt_toolkit_renders_as_the_real_one(values: dict[str, Any]) -> None:
    mapping = importlib.import_module("sagemaker_training.mapping")
    sent = json.loads(json.dumps(values))
    assert runtimes.toolkit_argv(sent) == mapping.to_cmd_args(sent)
    assert {f"SM_{name.upper()}": runtimes.toolkit_env_text(value) for name, value in sent.items()} == (
        mapping.to_env_vars(sent)
    )


@pytest.mark.toolkit
def test_the_rebuilt_toolkit_hides_the_names_that_the_real_one_hides() -> None:
    params = importlib.import_module("sagemaker_training.params")
    hidden = {name for name in params.SAGEMAKER_HYPERPARAMETERS if not name.startswith(params.SAGEMAKER_PREFIX)}
    assert hidden == set(runtimes.HIDDEN_BY_THE_TOOLKIT)
