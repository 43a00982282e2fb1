"""Two doors for scripts written with argparse: keep the parser, or swap it for a settings class in one line.

In a job argparse misreads what the runtimes put on the command line: `--flag True` for a store_true, `False` for
`type=bool`, `--lr -1e-05`, a list as one Python literal. `from_argparse` gives the parser the job's own values in the
parser's own dialect. This room knows argparse; no other does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from smkit import report
from smkit.arguments import without_echo
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
    program = Path(sys.argv[0]).name or "script"
    platform = Platform(dict(os.environ if env is None else env), program)
    output_dir = platform.tree.output_dir if platform.is_sagemaker else None
    job = JobValues("job")
    if platform.is_sagemaker:
        job = read_job_values(platform.tree.hyperparameters_file, platform.variables, platform.problems)
    dialect = _Dialect(parser)
    words, preset = dialect.of_job(job, platform.problems)
    if platform.problems:
        error = ConfigurationError.of(
            platform.problems,
            subject="the settings",
            where=f"the job's hyperparameters, for {program}",
            fix="correct them where the job is launched, or add the options to the parser",
        )
        if argv is not None:
            raise error
        sys.exit(report.end(error, program=program, output_dir=output_dir))
    own = dialect.of_user(without_echo(sys.argv[1:] if argv is None else argv, job.values))
    return _parse(parser, [*words, *own], argparse.Namespace(**preset), output_dir)


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
            report.write_failure(output_dir, complaint.getvalue())
        raise
    finally:
        sys.stderr.write(complaint.getvalue())


class _Dialect:
    """What the options of one parser look like when argparse itself can read them right."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        # argparse has no public list of its options; this attribute is the same from Python 3.10 to 3.14.
        self._actions: dict[str, argparse.Action] = parser._option_string_actions  # noqa: SLF001
        self._by_name = {text.lstrip("-").replace("-", "_"): action for text, action in self._actions.items()}

    def of_job(self, job: JobValues, problems: list[str]) -> tuple[list[str], dict[str, Any]]:
        """Return the job's values as words for the parser, and those that are None, which no word can say."""
        words: list[str] = []
        preset: dict[str, Any] = {}
        for name, value in job.values.items():
            action = self._by_name.get(name.replace("-", "_"))
            if action is None:
                if not is_platform_hyperparameter(name):
                    problems.append(f"{job.label}: the script's parser has no option '--{name}'")
            elif value is None or (value == "" and action.type in (int, float)):
                preset[action.dest] = None
            else:
                words += _words(action, value, job.texts.get(name))
        return words, preset

    def of_user(self, argv: Sequence[str]) -> list[str]:
        """Return a user's own arguments, `--lr -1e-05` and `--use-gpu False` put as argparse reads them right."""
        words: list[str] = []
        rest = iter(argv)
        for word in rest:
            name, equals, text = word.partition("=")
            action = self._actions.get(name)
            if action is None or action.nargs is not None:
                words.append(word)
                continue
            if not equals:
                following = next(rest, None)
                if following is None or following in self._actions:
                    words += [word] if following is None else [word, following]
                    continue
                text = following
            words.append(_joined(name, _bool_text(text) if action.type is bool else text))
        return words


def _words(action: argparse.Action, value: Any, text: str | None) -> list[str]:
    """Return the words that make a parser's action take this value."""
    option = max(action.option_strings, key=len)
    if isinstance(action, argparse.BooleanOptionalAction):
        return [next(text for text in action.option_strings if text.startswith("--no-") != _is_true(value))]
    if action.nargs == 0:
        count = value if type(value) is int else int(_is_true(value))
        return [option] * count
    if type(action).__name__ in ("_AppendAction", "_ExtendAction") and isinstance(value, list) and action.nargs is None:
        return [_joined(option, _text_of(item, None, action)) for item in value]
    if action.nargs is not None and action.nargs != "?":
        items = value if isinstance(value, list) else [value]
        return [option, *(_without_exponent(item, _text_of(item, None, action)) for item in items)]
    return [_joined(option, _text_of(value, text, action))]


def _joined(option: str, text: str) -> str:
    return f"{option}={text}" if option.startswith("--") else f"{option}{text}"


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes", "on")


def _bool_text(text: str) -> str:
    """Return what `bool`, which takes every text but the empty one for True, turns into the bool that was meant."""
    return "1" if _is_true(text) else ""


def _text_of(value: Any, text: str | None, action: argparse.Action) -> str:
    if action.type is bool:
        return _bool_text(str(value))
    if isinstance(value, str):
        return value
    if action.type in (None, str) and text is not None:
        return text
    if isinstance(value, bool):
        return str(int(value)) if action.type in (int, float) else str(value)
    return json.dumps(value)


def _without_exponent(value: Any, text: str) -> str:
    """Return `-0.00001` for -1e-05: argparse takes a word like the second for an option."""
    return f"{Decimal(text):f}" if isinstance(value, float) and text.startswith("-") and "e" in text else text
