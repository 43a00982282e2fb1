"""What a run's settings and facts are read from: the job's files, `SM_*`, the command line, config files."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomllib
import yaml
from hypothesis import strategies as st

import smkit
from torture.contract import reference
from torture.contract.examples import Outcome, Verdict, judged
from torture.contract.reference import FIELDS, REFUSE, Meaning, of_text, same, strict_json, unsure


class Fields(smkit.Hyperparameters):
    """The fields of `reference.FIELDS`."""

    lr: float = 0.1
    count: int = 3
    flag: bool = False
    text: str = "t"
    maybe: int | None = None
    kind: Literal["sgd", "adam", "1"] = "sgd"
    layers: list[int] = [1]  # noqa: RUF012 - pydantic copies it
    table: dict[str, float] = {}  # noqa: RUF012 - pydantic copies it


DEEP = ["[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 400 + "1" + "}" * 400, "(" * 5000, "-" * 9000 + "1"]
NASTY = [
    "",
    " ",
    "null",
    "None",
    "true",
    "True",
    "[]",
    "{}",
    "1" * 5000,
    "9" * 400,
    "1e999",
    "NaN",
    "nan",
    "-inf",
    "1_0",
]
NASTY += [
    '"\\ud800"',
    '"a\\u0000b"',
    '{"a": 1, "a": 2}',
    "a=1,a=2",
    "a=1,b",
    "[1,",
    "1,x",
    "[true]",
    "[1.5]",
    "[1, 2.0]",
]
NASTY += [
    "\ufeff1",
    "\u0661",
    "²",
    "0x10",
    "1e3",
    "1.0",
    "1.5",
    "-1e-05",
    " 1",
    "1 ",
    "+1",
    "--1",
    "1/2",
    "yes",
    "off",
    "2",
]
NASTY += [
    "adamm",
    "sgd",
    "'sgd'",
    '"sgd"',
    "{'a': 1}",
    "[1, 2]",
    "(1, 2)",
    "1,2",
    "&a [*a]",
    "x" * 100_000,
    "é\u202e",
    "\udcff",
]
NAMES = [*FIELDS, *FIELDS, *FIELDS]
OTHERS = [
    "epoch",
    "lrr",
    "",
    "-",
    "x" * 70_000,
    "count.a",
    "Lr",
    "text ",
    "\ud800",
    "help",
    "run_dir",
    "channel",
    "config",
    "é",
]

texts = (
    st.sampled_from(NASTY)
    | st.sampled_from(DEEP)
    | st.text(max_size=12)
    | st.integers().map(str)
    | st.floats().map(repr)
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NASTY) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3),
    max_leaves=6,
)
fitting = st.one_of(
    st.tuples(st.just("lr"), st.floats(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just("count"), st.integers()),
    st.tuples(st.just("flag"), st.booleans()),
    st.tuples(st.just("text"), st.text(max_size=20)),
    st.tuples(st.just("maybe"), st.none() | st.integers()),
    st.tuples(st.just("kind"), st.sampled_from(reference.CHOICES)),
    st.tuples(st.just("layers"), st.lists(st.integers(), max_size=3)),
    st.tuples(st.just("table"), st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False), max_size=2)),
)


def pairs_of(some: st.SearchStrategy[Any], encode: Callable[[Any], Any]) -> st.SearchStrategy[list[tuple[str, Any]]]:
    """Names and what is given for them: mostly what fits, sometimes anything, seldom for a name that nothing has."""
    right = fitting.map(lambda pair: (pair[0], encode(pair[1])))
    wrong = st.tuples(st.sampled_from(NAMES) | st.sampled_from(OTHERS), some)
    return st.lists(st.one_of(right, right, wrong), max_size=5)


def loaded(argv: Sequence[str], env: Mapping[str, str], folder: Path) -> smkit.TrainingContext[Fields]:
    """Read a context and save its settings, as a trainer does."""
    context = smkit.TrainingContext.load(Fields, argv, env)
    context.save_settings(folder)
    return context


def settings_of(meanings: Mapping[str, Meaning]) -> dict[str, Any]:
    return {name: default for name, (_, default) in FIELDS.items()} | {
        name: each.value for name, each in meanings.items()
    }


def wrong_settings(context: smkit.TrainingContext[Fields], meanings: Mapping[str, Meaning]) -> str | None:
    """Say which field has another value than the reference gives it, or the default's origin although it was given."""
    for name, value in settings_of(meanings).items():
        mine = getattr(context.hp, name)
        if not same(mine, value):
            return f"{name} is {mine!r:.200}, and means {value!r:.200}"
        if name in meanings and context.origins[name] == "default":
            return f"{name} is said to be the default, and was given"
    return None


def must(meanings: Mapping[str, Meaning], *, is_broken: bool = False) -> str:
    """Return what a reader must do with settings that mean this."""
    if is_broken or any(each.is_none for each in meanings.values()):
        return "refuse"
    return "accept" if all(each.is_sure for each in meanings.values()) else ""


# --- hyperparameters.json ---------------------------------------------------------------------------------------------


def job_text(value: Any) -> str:
    return json.dumps(value)


def hyperparameters(data: st.DataObject, folder: Path) -> Verdict:
    """The file: whole, of any bytes, of wrong types, with names given twice, a folder or a pipe in its place."""
    file = folder / "input" / "config" / "hyperparameters.json"
    file.parent.mkdir(parents=True)
    env = {"SAGEMAKER_BASE_DIR": str(folder), "SM_TRAINING_ENV": "{}"}
    way = data.draw(
        st.sampled_from(["whole"] * 8 + ["bytes", "cut", "twice", "values", "folder", "pipe", "link", "bom"])
    )
    pairs = data.draw(pairs_of(texts, job_text))
    content = json.dumps(dict(pairs)).encode()
    if way == "twice" and pairs:
        content = (
            "{" + ",".join(f"{json.dumps(name)}: {json.dumps(text)}" for name, text in [*pairs, pairs[0]]) + "}"
        ).encode()
    elif way == "bytes":
        content = data.draw(st.binary(max_size=40) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
    elif way == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif way == "values":
        content = json.dumps(data.draw(st.dictionaries(st.sampled_from(NAMES), values, max_size=3))).encode()
    elif way == "bom":
        content = b"\xef\xbb\xbf" + content
    {
        "folder": file.mkdir,
        "pipe": functools.partial(os.mkfifo, file),
        "link": lambda: file.symlink_to(folder / "gone"),
    }.get(way, lambda: file.write_bytes(content))()
    meanings, is_broken = _meanings_of_file(content)
    is_broken = is_broken or way in ("folder", "pipe", "link")
    return judged(
        lambda: loaded([], env, folder),
        folder,
        is_right=lambda context: wrong_settings(context, meanings),
        must=must(meanings, is_broken=is_broken),
    )


def _meanings_of_file(content: bytes) -> tuple[dict[str, Meaning], bool]:
    try:
        found = strict_json(content.decode("utf-8").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return {}, True
    if not isinstance(found, dict):
        return {}, True
    # The contract has texts; another value is read as the text that it would have been written as.
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
    return _by_field(texts, reference.job_value)


def _by_field(texts: Mapping[str, Any], read: Callable[[str, Any], Meaning]) -> tuple[dict[str, Meaning], bool]:
    """Return what is meant for each field, and whether a name is no field's, or is a field's twice."""
    meanings: dict[str, Meaning] = {}
    is_broken = False
    for given, text in texts.items():
        name = given.replace("-", "_")
        if name == "config":
            return {}, True
        if name not in FIELDS:
            is_broken = is_broken or not given.startswith("sagemaker_")
        elif name in meanings:
            is_broken = True
        else:
            meanings[name] = read(FIELDS[name][0], text)
    return meanings, is_broken


# --- the command line -------------------------------------------------------------------------------------------------

STRAY = [
    "-",
    "--",
    "---",
    "=",
    "x",
    "--=",
    "--=1",
    "-c",
    "--no-lr",
    "--no-flag=1",
    "--lr",
    "--la",
    "-lr",
    "\0",
    "-é",
]


def words_of(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, (list, dict)):
        return json.dumps(value)
    return str(value)


def command_line(data: st.DataObject, folder: Path) -> Verdict:
    """`--name=value` in any order, repeated, abbreviated, beside words that are none."""
    pairs = data.draw(pairs_of(texts, words_of))
    stray = data.draw(st.just([]) | st.just([]) | st.lists(st.sampled_from(STRAY), max_size=2))
    argv = [f"--{name}={text}" for name, text in pairs] + stray
    # Of a folder that is named twice the last one counts, and that is the attack's own.
    meanings, is_broken = _meanings_of_words([pair for pair in pairs if pair[0] != "run_dir"])
    return judged(
        lambda: loaded([*argv, "--run-dir", str(folder / "run")], {"SAGEMAKER_BASE_DIR": str(folder)}, folder),
        folder,
        is_right=lambda context: wrong_settings(context, meanings),
        must=must(meanings, is_broken=is_broken or bool(stray)),
    )


def _meanings_of_words(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, Meaning], bool]:
    """Return what `--name=text` means: the last one counts, the words of a list add up."""
    given: dict[str, list[str]] = {}
    for name, text in pairs:
        given.setdefault(name, []).append(text)
    names = {name: words for name, words in given.items() if name in FIELDS}
    is_broken = len(names) < len(given)
    meanings: dict[str, Meaning] = {}
    for name, words in names.items():
        kind = FIELDS[name][0]
        if len(words) == 1 or kind not in ("wholes", "reals by name"):
            meanings[name] = of_text(kind, words[-1])
        else:
            meanings[name] = _added(kind, words)
    return meanings, is_broken


def _added(kind: str, words: Sequence[str]) -> Meaning:
    parts = [of_text("whole" if kind == "wholes" else kind, word) for word in words]
    if any(part.is_none for part in parts):
        return REFUSE
    if kind == "wholes":
        return unsure([part.value for part in parts])
    return unsure({name: value for part in parts for name, value in part.value.items()})


# --- config files -----------------------------------------------------------------------------------------------------


def config_file(data: st.DataObject, folder: Path) -> Verdict:
    """JSON, TOML and YAML: whole, of any bytes, with anchors that hold themselves or stand for millions of values."""
    ending = data.draw(st.sampled_from([".json", ".yaml", ".yml", ".toml"]))
    file = folder / f"config{ending}"
    way = data.draw(st.sampled_from(["whole"] * 6 + ["bytes", "twice", "cut", "bomb", "folder", "pipe", "endless"]))
    pairs = data.draw(pairs_of(values, lambda value: value))
    content = _written(dict(pairs), ending)
    if way == "bytes":
        content = data.draw(st.binary(max_size=40) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
    elif way == "twice":
        content = content + b"\ncount: 1\ncount: 2\n" if ending.startswith(".y") else b'{"count": 1, "count": 2}'
    elif way == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif way == "bomb":
        content = _bomb(data.draw(st.integers(2, 9)), data.draw(st.sampled_from(["layers", "table", "text", "extra"])))
    make = {
        "folder": file.mkdir,
        "pipe": functools.partial(os.mkfifo, file),
        "endless": lambda: file.symlink_to("/dev/zero"),
    }
    make.get(way, lambda: file.write_bytes(content))()
    meanings, is_broken = _meanings_of_config(content, ending)
    is_broken = is_broken or way in (*make, "bomb")
    return judged(
        lambda: loaded(
            ["--config", str(file), "--run-dir", str(folder / "run")], {"SAGEMAKER_BASE_DIR": "/gone"}, folder
        ),
        folder,
        is_right=lambda context: wrong_settings(context, meanings),
        must=must(meanings, is_broken=is_broken),
    )


def _written(settings: Mapping[str, Any], ending: str) -> bytes:
    if ending == ".toml":
        lines = (f"{json.dumps(name)} = {json.dumps(value)}\n" for name, value in settings.items())
        return "".join(lines).encode("utf-8", "surrogatepass")
    if ending == ".json":
        return json.dumps(settings).encode()
    return yaml.safe_dump(settings, allow_unicode=False).encode("utf-8", "surrogatepass")


def _bomb(levels: int, name: str) -> bytes:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join([*lines, f"{name}: *a{levels - 1}", ""]).encode()


def _meanings_of_config(content: bytes, ending: str) -> tuple[dict[str, Meaning], bool]:
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
        found = {".json": strict_json, ".toml": tomllib.loads}.get(ending, _plain_yaml)(text)
    except (ValueError, RecursionError, LookupError, AttributeError, TypeError):
        return {}, True
    if found is None:
        return {}, False
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        return {}, True
    return _by_field(found, _of_config_value)


def _of_config_value(kind: str, value: Any) -> Meaning:
    found = reference.of_value(kind, value)
    # A text for what is no text is read as on the command line; whether to do so is the reader's choice.
    return unsure(found.value) if isinstance(value, str) and kind != "text" and not found.is_none else found


def _plain_yaml(text: str) -> Any:
    """Return what YAML means where every reader agrees; numbers of base 60 and 8 are taken for errors."""
    try:
        _require_plain(yaml.compose(text, yaml.SafeLoader), (), set())
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _require_plain(node: yaml.Node | None, above: tuple[int, ...], seen: set[int]) -> None:
    if id(node) in above:
        raise ValueError("holds itself")
    if id(node) in seen:
        return
    seen.add(id(node))
    inside = (*above, id(node))
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")):
        digits = node.value.strip("+-").replace("_", "")
        if ":" in digits or (digits.isdecimal() and digits.startswith("0") and len(digits) > 1):
            raise ValueError("a number of base 8 or 60")
    elif isinstance(node, yaml.MappingNode):
        names = [key.value if isinstance(key, yaml.ScalarNode) else id(key) for key, _ in node.value]
        if len(set(names)) < len(names):
            raise ValueError("twice")
        for part in (part for pair in node.value for part in pair):
            _require_plain(part, inside, seen)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _require_plain(part, inside, seen)


# --- the peers --------------------------------------------------------------------------------------------------------


LISTS = ("layers", "table")
"""What the peers have no common way to write."""


def peer_command_line(read: Callable[[Sequence[str]], Mapping[str, Any]], data: st.DataObject, folder: Path) -> Verdict:
    """The examples of `command_line` without lists, for what reads `--name value`; any error is a refusal."""
    # That `null` is nothing is smkit's own way to write it.
    drawn = data.draw(pairs_of(texts, words_of))
    pairs = [pair for pair in drawn if pair[0] not in LISTS and pair != ("maybe", "null")]
    stray = data.draw(st.just([]) | st.just([]) | st.lists(st.sampled_from(STRAY), max_size=2))
    meanings, is_broken = _meanings_of_words(pairs)
    wish = must(meanings, is_broken=is_broken or bool(stray))
    try:
        found = read([f"--{name}={text}" for name, text in pairs] + stray)
    except (SystemExit, ValueError):
        return (Outcome.LOST, "refused what is right") if wish == "accept" else (Outcome.REFUSED, "")
    if wish == "refuse":
        return Outcome.SILENT, f"took it for {dict(found)!r:.300}"
    meant = settings_of(meanings)
    wrong = [name for name, value in meant.items() if name not in LISTS and not same(found.get(name), value)]
    return (Outcome.SILENT, f"{wrong} are other than meant: {dict(found)!r:.300}") if wrong else (Outcome.SURVIVED, "")
