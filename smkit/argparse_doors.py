"""Two doors for scripts written with argparse: keep the parser, or swap it for a settings class in one line.

In a job argparse misreads what the runtimes put on the command line: `--flag True` for a store_true, `False` for
`type=bool`, `--lr -1e-05`, a list as one Python literal. `from_argparse` gives the parser the job's own values in the
parser's own dialect. This room knows argparse; no other does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from smkit import report
from smkit.arguments import require_texts, without_echo
from smkit.context import TrainingContext
from smkit.contract import is_platform_hyperparameter
from smkit.errors import ConfigurationError
from smkit.facts import Platform
from smkit.hyperparameters import Hyperparameters
from smkit.sources import JobValues, read_job_values

H = TypeVar("H", bound=Hyperparameters)


def parse_args(settings: type[H], argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> H:
    """Return a script's settings: what `parser.parse_args()` becomes when a class takes the parser's place.

    Arguments, errors and exit status are those of `TrainingContext.load`.
    """
    return TrainingContext.load(settings, argv, env).hp


def from_argparse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """Return what `parser.parse_args()` should have returned, in a job as well as off SageMaker.

    Args:
        parser: The script's own parser; it is not changed.
        argv: Arguments without the program's name; None is this process's own command line.
        env: Environment variables; None is this process's own.

    Raises:
        ConfigurationError: The job has hyperparameters that the parser has no option for, or broken files (only if
            `argv` is given; else the process ends with status 2, the text on stderr and in the job's failure file).
        SystemExit: The parser itself refuses a value, with its own message and status 2, or was asked for help.
    """
    require_texts(argv, env, "from_argparse")
    program = Path(sys.argv[0]).name or "script"
    platform = Platform(dict(os.environ if env is None else env), program)
    output_dir = platform.tree.output_dir if platform.is_sagemaker else None
    job = JobValues("job")
    if platform.is_sagemaker:
        job = read_job_values(platform.tree.hyperparameters_file, platform.variables, platform.problems)
    dialect = _Dialect(parser)
    words, preset = dialect.of_job(job, platform.problems)
    given = sys.argv[1:] if argv is None else argv
    own = dialect.of_user(without_echo(given, job.values, job.echo), platform.problems)
    if platform.problems:
        error = ConfigurationError.of(
            platform.problems,
            subject="the settings",
            where=program,
            fix="correct what is named above, or add the option to the parser",
        )
        if argv is not None:
            raise error
        sys.exit(report.end(error, program=program, output_dir=output_dir))
    # An option of several values would swallow a positional argument that comes after it.
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), own))
    return _parse(parser, [*leading, *words, *own[len(leading) :]], argparse.Namespace(**preset), output_dir)


def _parse(
    parser: argparse.ArgumentParser, words: Sequence[str], preset: argparse.Namespace, output_dir: Path | None
) -> argparse.Namespace:
    """Let the parser parse; what it complains of also goes into the job's failure file."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return parser.parse_args(words, preset)
    except SystemExit as end:
        if end.code and output_dir is not None:
            # The complaint itself comes after the usage, which can be longer than what SageMaker shows.
            usage, error, message = complaint.getvalue().rpartition(f"{parser.prog}: error: ")
            report.write_failure(output_dir, f"{error}{message}\n{usage}".strip())
        raise
    finally:
        sys.stderr.write(complaint.getvalue())


_EXPONENT = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")


class _Dialect:
    """What the options of one parser look like when argparse itself can read them right."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        # argparse has no public list of its options; this attribute is the same from Python 3.10 to 3.14.
        self._actions: dict[str, argparse.Action] = parser._option_string_actions  # noqa: SLF001
        self._by_name = {
            text.lstrip(parser.prefix_chars).replace("-", "_"): action
            for text, action in self._actions.items()
            if not _is(action, "_HelpAction", "_VersionAction") and not _is_negation(text, action)
        }

    def of_job(self, job: JobValues, problems: list[str]) -> tuple[list[str], dict[str, Any]]:
        """Return the job's values as words for the parser, and those that no word can say."""
        words: list[str] = []
        preset: dict[str, Any] = {}
        for name, value in job.values.items():
            action = self._by_name.get(name.replace("-", "_"))
            if action is None:
                if not is_platform_hyperparameter(name):
                    problems.append(f"{job.label}: the script's parser has no option '--{name}'")
                continue
            try:
                words += _words(action, value, job.texts.get(name), preset)
            except (ValueError, RecursionError) as error:
                problems.append(f"{job.label}: {name} {error}")
        return words, preset

    def of_user(self, argv: Sequence[str], problems: list[str]) -> list[str]:
        """Return a user's own arguments, `--lr -1e-05` and `--use-gpu False` put as argparse reads them right."""
        words: list[str] = []
        action: argparse.Action | None = None
        for position, word in enumerate(argv):
            if word == "--":
                return [*words, *argv[position:]]
            name, equals, text = word.partition("=")
            is_option = name in self._actions
            if is_option:
                action = self._actions[name]
            try:
                if is_option and equals:
                    words.append(f"{name}={_user_text(action, text)}")
                elif not is_option and words and _is_misread(action, word):
                    words[-1] += f"={_user_text(action, word)}"
                else:
                    words.append(_plain_number(action, word))
            except ValueError as error:
                problems.append(f"command line: {name if is_option else words[-1]} {error}")
            if action is not None and action.nargs in (None, "?") and (equals or not is_option):
                action = None
        return words


def _is(action: argparse.Action, *kinds: str) -> bool:
    # argparse keeps these classes to itself; their names are the same from Python 3.10 to 3.14.
    return any(kind.__name__ in kinds for kind in type(action).__mro__)


def _is_negation(option: str, action: argparse.Action) -> bool:
    """Whether an option is the `--no-x` that BooleanOptionalAction made of `--x`."""
    is_made = isinstance(action, argparse.BooleanOptionalAction) and option.startswith("--no-")
    return is_made and f"--{option[5:]}" in action.option_strings


def _is_misread(action: argparse.Action | None, word: str) -> bool:
    """Whether argparse takes the one value of an option for something else: a number for an option, a text for True."""
    if action is None or action.nargs not in (None, "?"):
        return False
    return _EXPONENT.fullmatch(word) is not None or (action.type is bool and not word.startswith("-"))


def _plain_number(action: argparse.Action | None, word: str) -> str:
    """Return `-0.00001` for -1e-05 among several numbers: argparse takes a word like the second for an option."""
    is_number = action is not None and action.type in (int, float) and _EXPONENT.fullmatch(word)
    return f"{Decimal(word):f}" if is_number else word


def _user_text(action: argparse.Action | None, text: str) -> str:
    return _bool_text(text) if action is not None and action.type is bool else text


def _words(action: argparse.Action, value: Any, text: str | None, preset: dict[str, Any]) -> list[str]:
    """Return the words that make a parser's action take a job's value; what no word can say goes into `preset`.

    Raises:
        ValueError: This action cannot take this value.
    """
    option = max(action.option_strings, key=len)
    if value is None or (value == [] and action.nargs != 0) or (_is(action, "_CountAction") and type(value) is int):
        preset[action.dest] = value
        return []
    if action.nargs == 0:
        return _words_of_flag(action, option, preset, is_on=_is_true(value))
    if isinstance(value, list) and action.nargs is None and _is(action, "_AppendAction"):
        return [f"{option}={_text_of(item, None, action)}" for item in value]
    if isinstance(value, list) and action.nargs not in (None, "?"):
        return _words_of_list(action, option, value)
    return [f"{option}={_text_of(value, text, action)}"]


def _words_of_flag(action: argparse.Action, option: str, preset: dict[str, Any], *, is_on: bool) -> list[str]:
    if isinstance(action, argparse.BooleanOptionalAction):
        return [next(text for text in action.option_strings if _is_negation(text, action) != is_on)]
    if not is_on and _is(action, "_StoreTrueAction"):
        preset[action.dest] = False
    return [option] if is_on else []


def _words_of_list(action: argparse.Action, option: str, value: list[Any]) -> list[str]:
    items = [_text_of(item, None, action) for item in value]
    if len(items) == 1:
        return [f"{option}={items[0]}"]
    items = [_plain_number(action, item) for item in items]
    odd = next((item for item in items if item.startswith("-") and not re.fullmatch(r"-\d*\.?\d+", item)), None)
    if odd is not None:
        raise ValueError(f"holds {odd!r}, which argparse takes for an option")
    return [option, *items]


def _is_true(value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "1", "yes", "on", "t", "y"):
        return True
    if text in ("false", "0", "no", "off", "f", "n", ""):
        return False
    raise ValueError(f"must be true or false (got {value!r})")


def _bool_text(text: str) -> str:
    """Return what `bool`, which takes every text but the empty one for True, turns into the bool that was meant."""
    return "1" if _is_true(text) else ""


def _text_of(value: Any, text: str | None, action: argparse.Action) -> str:
    if action.type is bool:
        return _bool_text(str(value))
    if value == "--":
        raise ValueError("holds '--', which argparse drops")
    if isinstance(value, str):
        return value
    if action.type in (None, str):
        return json.dumps(value) if text is None else text
    if isinstance(value, bool):
        return str(int(value)) if action.type in (int, float) else str(value)
    return json.dumps(value)
