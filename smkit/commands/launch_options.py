"""The options of `smkit launch`: launch's own arguments as words of a command line.

The words are sorted here, and whether they are right is for `launch` to say, together with all else; so one mistake
hides no other. This room starts nothing.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smkit.commands import script_command_line
from smkit.sources import read_config

Reader = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class LaunchOption:
    """One option: the argument of launch that it stands for, and how its words become that argument's value."""

    flag: str
    argument: str
    read: Reader
    metavar: str
    description: str

    @property
    def is_switch(self) -> bool:
        """Whether the option stands alone, without a value."""
        return not self.metavar


@dataclass
class LaunchWords:
    """A command line of `smkit launch`, sorted."""

    arguments: dict[str, Any] = field(default_factory=dict)
    script: str | None = None
    script_words: Sequence[str] = ()
    switches: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def _text(words: Sequence[str]) -> str:
    return words[-1]


def _texts(words: Sequence[str]) -> list[str]:
    return list(words)


def _marks(words: Sequence[str]) -> dict[str, bool]:
    return dict.fromkeys(words, True)


def _one_or_more(words: Sequence[str]) -> str | list[str]:
    return words[0] if len(words) == 1 else list(words)


def _switch(_: Sequence[str]) -> bool:
    return True


def _whole(words: Sequence[str]) -> int:
    try:
        return int(words[-1])
    except ValueError:
        raise ValueError(f"'{words[-1]}' is no whole number") from None


def _number(words: Sequence[str]) -> float:
    try:
        return float(words[-1])
    except ValueError:
        raise ValueError(f"'{words[-1]}' is no number") from None


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise ValueError(f"'{word}' is not written NAME=VALUE")
        pairs[name] = text
    return pairs


def _object(words: Sequence[str]) -> dict[str, Any]:
    if not words[-1].lstrip().startswith("{"):
        return _file(words)
    try:
        content: dict[str, Any] = json.loads(words[-1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    return content


def _file(words: Sequence[str]) -> dict[str, Any]:
    problems: list[str] = []
    content = read_config(Path(words[-1]).expanduser(), f"'{words[-1]}'", problems)
    if problems:
        raise ValueError(problems[0])
    return content


def _hyperparameters(words: Sequence[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    problems: list[str] = []
    for file in words:
        script_command_line.merge(values, script_command_line.read_file(file, problems))
    if problems:
        raise ValueError("; ".join(problems))
    return values


GROUPS: dict[str, tuple[LaunchOption, ...]] = {
    "Where it runs": (
        LaunchOption(
            "--instance-type",
            "instance_type",
            _one_or_more,
            "TYPE",
            "local (the default), or a type such as ml.g5.xlarge; of several, the first that is to be had",
        ),
        LaunchOption("--instance-count", "instance_count", _whole, "N", "hosts"),
        LaunchOption("--processes-per-host", "processes_per_host", _whole, "N", "processes of torchrun on each host"),
        LaunchOption("--spot", "spot", _switch, "", "cheaper, and interrupted at any time"),
        LaunchOption("--max-hours", "max_hours", _number, "HOURS", "when SageMaker stops the job"),
        LaunchOption(
            "--keep-alive-minutes", "keep_alive_minutes", _whole, "N", "keep the instances warm for a next job"
        ),
        LaunchOption("--retries", "retries", _whole, "N", "start again after an internal error of SageMaker"),
        LaunchOption("--graceful-stop", "graceful_stop", _switch, "", "deliver SIGTERM to the script on a stop"),
    ),
    "What it gets": (
        LaunchOption("--input", "inputs", _pairs, "NAME=URI", "a channel: s3://, file://, a folder, a file or a glob"),
        LaunchOption("--input-mode", "mode", _pairs, "NAME=MODE", "File (default), FastFile or Pipe"),
        LaunchOption("--input-type", "content_type", _pairs, "NAME=MIME", "content type of a channel"),
        LaunchOption("--input-sharded", "sharded", _marks, "NAME", "each host gets its own part of the channel"),
        LaunchOption(
            "--hyperparameters",
            "hyperparameters",
            _hyperparameters,
            "FILE",
            "JSON, TOML or YAML; options after the script go before it",
        ),
        LaunchOption("--environment", "environment", _pairs, "NAME=VALUE", "a variable of the script (also --env)"),
        LaunchOption("--checkpoint-uri", "checkpoint_uri", _text, "URI", "where checkpoints are mirrored to in S3"),
        LaunchOption("--checkpoint-dir", "checkpoint_dir", _text, "DIR", "where checkpoints of local jobs go"),
        LaunchOption("--output-dir", "output_dir", _text, "DIR", "the folder of local jobs (default: runs)"),
    ),
    "What travels": (
        LaunchOption("--source-dir", "source_dir", _text, "DIR", "the folder that the script runs in (default: .)"),
        LaunchOption("--vendor", "vendor", _text, "HOW", "how smkit travels: source, wheels or none"),
        LaunchOption("--allow-secret", "allow_secrets", _texts, "PATTERN", "files that may travel all the same"),
        LaunchOption("--image-uri", "image_uri", _text, "URI", "a container image of your own"),
        LaunchOption("--framework-version", "framework_version", _text, "VERSION", "PyTorch of the image"),
        LaunchOption("--py-version", "py_version", _text, "VERSION", "Python of the image"),
    ),
    "Whose account": (
        LaunchOption("--profile", "profile_name", _text, "NAME", "AWS profile (also --profile-name)"),
        LaunchOption("--region", "region", _text, "REGION", "AWS region"),
        LaunchOption("--role", "role", _text, "ROLE", "the role that the job acts as: an ARN or a name"),
        LaunchOption("--bucket", "bucket", _text, "BUCKET", "for source, data and results"),
    ),
    "Names and records": (
        LaunchOption("--name", "name", _text, "NAME", "the job's name"),
        LaunchOption("--tag", "tags", _pairs, "KEY=VALUE", "a tag of the job"),
        LaunchOption("--metric", "metrics", _texts, "NAME", "a metric that SageMaker shows as a curve"),
        LaunchOption("--request", "request", _object, "JSON|FILE", "any part of the CreateTrainingJob request"),
    ),
}
SWITCHES = {
    "--dry-run": "check everything, show the plan, and start nothing",
    "--detach": "return when the job has started, its name on standard output (also -d)",
    "--json": "show one JSON document",
    "--help": "show this help and exit (also -h)",
}
_OTHER_SPELLINGS = {
    "--profile-name": "--profile",
    "--env": "--environment",
    "--tags": "--tag",
    "--inputs": "--input",
    "--no-wait": "--detach",
    "-d": "--detach",
    "-h": "--help",
}
INPUT_DETAILS = ("mode", "content_type", "sharded")
"""Options that are no arguments of launch: each says something of a channel, and is an argument of Input."""
_OPTIONS = {option.flag: option for options in GROUPS.values() for option in options}


def sort(argv: Sequence[str]) -> LaunchWords:
    """Sort the words of `smkit launch` into launch's arguments, the script, and the script's own words.

    An option that is none becomes an argument that launch does not have, so that launch can say what it is called.
    """
    sorted_words = LaunchWords()
    texts: dict[str, list[str]] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--" or not word.startswith("-"):
            rest = words if word == "--" else [word, *words]
            sorted_words.script, sorted_words.script_words = (rest[0], rest[1:]) if rest else (None, ())
            break
        flag, equals, value = word.partition("=")
        flag = _OTHER_SPELLINGS.get(flag, flag)
        if flag in SWITCHES:
            sorted_words.switches.add(flag)
            continue
        given = texts.setdefault(flag, [])
        option = _OPTIONS.get(flag)
        if equals:
            given.append(value)
        elif _takes_next(option, words):
            given.append(words.pop(0))
    _read_arguments(texts, sorted_words)
    return sorted_words


def _takes_next(option: LaunchOption | None, words: Sequence[str]) -> bool:
    if not words or (option is not None and option.is_switch):
        return False
    # An option that is none may or may not have a value; a script, or a further option, is not it.
    return option is not None or (not words[0].startswith("-") and not words[0].endswith((".py", ".sh")))


def _read_arguments(texts: dict[str, list[str]], words: LaunchWords) -> None:
    for flag, given in texts.items():
        option = _OPTIONS.get(flag)
        if option is None:
            words.arguments[flag.strip("-").replace("-", "_")] = given
            continue
        if not given and not option.is_switch:
            words.problems.append(f"{flag}: needs a value, {flag} {option.metavar}")
            continue
        try:
            words.arguments[option.argument] = option.read(given)
        except ValueError as error:
            words.problems.append(f"{flag}: {error}")


# --- help -------------------------------------------------------------------------------------------------------------

_USAGE = "usage: smkit launch [options] SCRIPT [the script's own arguments]"
_ABOUT = """\
Run a training script as a job: on this machine, under the real SageMaker toolkit, or on SageMaker.
After the script comes what you would write after `python SCRIPT`:

  smkit launch train.py --epochs 3 --channel train=data/train
  smkit launch --instance-type ml.g5.xlarge --spot train.py --epochs 3 --channel train=s3://bucket/train"""
_INDENT = 32


def help_text(width: int) -> str:
    """Return what `smkit launch --help` shows on a screen of this width."""
    sections = [_USAGE, _ABOUT]
    for title, options in GROUPS.items():
        lines = [_help_of(f"{option.flag} {option.metavar}".strip(), option.description, width) for option in options]
        sections.append("\n".join([f"{title}:", *lines]))
    switches = [_help_of(flag, description, width) for flag, description in SWITCHES.items()]
    sections.append("\n".join(["What is shown:", *switches]))
    sections.append("An option with a name in it is given once for each: --tag team=vision --tag cost=42.")
    return "\n\n".join(sections)


def _help_of(left: str, description: str, width: int) -> str:
    first, *others = textwrap.wrap(description, max(width - _INDENT, 30))
    lead = f"  {left}".ljust(_INDENT)
    lines = [lead + first] if len(lead) == _INDENT else [lead, " " * _INDENT + first]
    return "\n".join([*lines, *(" " * _INDENT + line for line in others)])
