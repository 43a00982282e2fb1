"""A script's own command line, read without the script: what follows `train.py` becomes hyperparameters and channels.

What one would write after `python train.py` is written after `smkit launch train.py`. A word is made a number, a bool
or a list only if that says it to the letter; any other word stays a text, which the script in the job decodes just as
it would have from its command line. This room imports no script; what the script's class says of a value comes later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smkit.sources import read_config
from smkit.wire import Word

_NUMBER = re.compile(r"-(\d|\.\d|inf\b|nan\b)", re.IGNORECASE)

_DECIMAL = re.compile(r"-?\d+\.\d+")


@dataclass
class ScriptArguments:
    """What a script's command line says, as `launch` takes it."""

    hyperparameters: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read(words: Sequence[str], script: str) -> ScriptArguments:
    """Read the words after a script.

    Args:
        words: The command line without the script.
        script: The script's text. An option that it spells itself is its own: `--no-cuda` then is no `--cuda` denied,
            and `--channel` and `--config` are no options of smkit.
    """
    arguments = ScriptArguments()
    given: dict[str, object] = {}
    for name, texts in _options(words, arguments.problems).items():
        if name == "channel" and not _spells(script, name):
            _add_channels(texts, arguments)
        elif name == "config" and not _spells(script, name):
            for file in texts or [""]:
                merge(arguments.hyperparameters, read_file(file, arguments.problems))
        elif not texts and re.match(r"no[-_]", name) and not _spells(script, name):
            given[name[3:]] = False
        else:
            given[name] = _value_of(texts)
    merge(arguments.hyperparameters, given)
    return arguments


def read_file(file: str, problems: list[str]) -> dict[str, object]:
    """Return the hyperparameters in a JSON, TOML or YAML file, or in one saved beside a model."""
    return read_config(Path(file).expanduser(), f"hyperparameters file '{file}'", problems)


def merge(values: dict[str, object], later: Mapping[str, object]) -> None:
    """Put `later` values over `values`; `_` and `-` are the same in a name, and the later spelling stays."""
    for name, value in later.items():
        for other in [other for other in values if other.replace("-", "_") == name.replace("-", "_")]:
            del values[other]
        values[name] = value


def _options(words: Sequence[str], problems: list[str]) -> dict[str, list[str]]:
    """Sort words by the option that they follow; what several uses of one option say is taken together."""
    options: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in words:
        if len(word) > 1 and word.startswith("-") and not _NUMBER.match(word):
            name, equals, value = word.lstrip("-").partition("=")
            current = options.setdefault(name, [])
            if equals:
                current.append(value)
                current = None
        elif current is None:
            problems.append(f"the script's argument '{word}': a job's script gets options only, --name VALUE")
        else:
            current.append(word)
    return options


def _add_channels(texts: Sequence[str], arguments: ScriptArguments) -> None:
    for text in texts or [""]:
        name, equals, place = text.partition("=")
        if name and equals:
            arguments.inputs[name] = place
        else:
            arguments.problems.append(f"--channel '{text}': write NAME=URI, like train=s3://bucket/train")


def _spells(script: str, name: str) -> bool:
    """Whether a script's text has an option of this name: `"--no-cuda"` of argparse, or a field `no_cuda:`."""
    either = "[-_]".join(map(re.escape, re.split("[-_]", name)))
    return re.search(rf"""["']--?{either}["']|^\s+{either}\s*:""", script, re.MULTILINE) is not None


def _value_of(texts: Sequence[str]) -> object:
    """Return the JSON value that is written exactly so, else the text: `0.1` is a number, `1.10` and `1e-3` are texts.

    A field of the script that is a number reads the text as one; a field that is a text must get each character. The
    items of a list stay texts, for nothing tells a list of texts its items' characters once they are numbers.
    """
    if len(texts) != 1:
        return list(texts) or True
    text = Word(texts[0])
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # With an exponent, a number has too many ways to be written and read: 7e16 is a whole number to some.
    is_exact = json.dumps(found) == text and not (isinstance(found, float) and not _DECIMAL.fullmatch(text))
    return found if is_exact and not isinstance(found, str) else text
