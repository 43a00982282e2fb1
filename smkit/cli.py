"""The `smkit` command: its parser, and its edge to the shell.

Standard output carries what was asked for, standard error all else. Exit status: 0, 1 a job failed or was stopped, 2
wrong arguments or settings, 130 Ctrl-C, 141 nobody reads standard output any more. What the commands do is in
`commands`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import smkit
from smkit import report
from smkit.commands import screens
from smkit.contract import INTERRUPTED_EXIT_STATUS
from smkit.errors import ConfigurationError, SmkitError, did_you_mean

_PIPE_CLOSED_EXIT_STATUS = 141
"""128 + SIGPIPE: what a shell reports of a program whose reader has gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default this process's own, and return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        status = _run(words)
        screens.flush()
    except SmkitError as error:
        report.say(_error_text(error))
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_STATUS
    except BrokenPipeError:
        screens.forget_output()
        return _PIPE_CLOSED_EXIT_STATUS
    return status


def _run(words: Sequence[str]) -> int:
    parser, commands = _parser()
    if not words:
        parser.print_help()
        return 0
    if not words[0].startswith("-") and words[0] not in commands:
        raise ConfigurationError(
            f"there is no command '{words[0]}'{did_you_mean(words[0], commands)}",
            where="smkit COMMAND",
            fix=f"one of: {', '.join(commands)}",
        )
    if words[0] == "launch":
        from smkit.commands import launching

        return launching.run(words[1:])
    try:
        arguments = parser.parse_args(words)
    except SystemExit:  # The help or the version has been shown; complaints are errors of smkit.
        return 0
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _error_text(error: SmkitError) -> str:
    lines = [f"{screens.paint('smkit', 'red', sys.stderr)}: {error.what}"]
    for label, text in (("where", error.where), ("fix", error.fix)):
        lead = screens.paint(f"{label}:", "bold", sys.stderr) + " " * (6 - len(label))
        lines.append(f"  {lead}{screens.as_options(text)}")
    return "\n".join(lines)


# --- the parser -------------------------------------------------------------------------------------------------------

_EPILOG = (
    "'smkit COMMAND --help' shows what a command can be given. Exit status: 0; 1 a job failed or was stopped, or the "
    "doctor found a problem; 2 wrong arguments or settings; 130 Ctrl-C. NO_COLOR=1 switches colours off."
)


class _HelpFormatter(argparse.HelpFormatter):
    """Puts descriptions into one column, and the commands under their title without a line that says COMMAND."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        return text.partition("\n")[2] if action.nargs == argparse.PARSER else text


class _Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose complaints are smkit's own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **arguments)

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message, where=self.prog, fix=f"'{self.prog} --help' shows what can be given")


def _parser() -> tuple[_Parser, Sequence[str]]:
    """Return the parser, and the names of the commands."""
    parser = _Parser(
        prog="smkit",
        description="Train with PyTorch on this machine and on Amazon SageMaker, with one script.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    # `launch` reads its own words, for what follows the script is the script's; here it has only its place in the help.
    commands.add_parser("launch", help="run a script as a job, here or on SageMaker", add_help=False)
    _add_jobs(commands)
    _add_commands_on_a_job(commands)
    _add_images(commands)
    _add_doctor(commands)
    _add_policy(commands)
    return parser, list(commands.choices)


class _ShowVersion(argparse.Action):
    """Shows the version; unlike argparse's own action it asks for it only then, which reads the installed files."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        screens.write(f"smkit {smkit.__version__}")
        parser.exit()


def _add_command(commands: Any, name: str, function: Callable[[argparse.Namespace], int], about: str) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(command=function)
    parser.add_argument("--json", action="store_true", help="show one JSON document")
    return parser


def _add_account(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", "--profile-name", dest="profile_name", metavar="NAME", help="AWS profile")
    parser.add_argument("--region", metavar="REGION", help="AWS region")


def _add_output_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", default="runs", metavar="DIR", help="the folder of local jobs (default: runs)")


def _add_jobs(commands: Any) -> None:
    from smkit.commands import jobs

    parser = _add_command(commands, "jobs", jobs.show_jobs, "show the latest jobs, here and on SageMaker")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many at most (default: 20)")
    parser.add_argument("--local", action="store_true", help="only those on this machine; AWS is not asked")
    _add_output_dir(parser)
    _add_account(parser)


def _add_commands_on_a_job(commands: Any) -> None:
    from smkit.commands import jobs

    abouts: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
        "status": (jobs.show_status, "show how a job is doing and what it has left"),
        "logs": (jobs.show_logs, "show a job's log, until it ends"),
        "attach": (jobs.attach_to, "follow a job to its end; the exit status is the job's"),
        "stop": (jobs.stop, "stop a job; what the script has saved by then is kept"),
        "metrics": (jobs.show_metrics, "show the metrics that a job has logged"),
        "download": (jobs.download, "copy what a job has left into a folder"),
    }
    for name, (function, about) in abouts.items():
        parser = _add_command(commands, name, function, about)
        parser.add_argument("name", metavar="NAME", help="the job's name")
        if name == "logs":
            parser.add_argument("--no-follow", action="store_true", help="only the lines that are there now")
        elif name == "metrics":
            parser.add_argument("--tensorboard", metavar="DIR", help="also write a folder that TensorBoard shows")
        elif name == "download":
            parser.add_argument("directory", metavar="DIR", help="the folder, made if missing")
            parser.add_argument(
                "--what",
                choices=("model", "output"),
                default="model",
                help="what the script left as either (default: model)",
            )
        _add_output_dir(parser)
        _add_account(parser)


def _add_images(commands: Any) -> None:
    from smkit.commands import account

    _add_command(commands, "images", account.show_images, "show the training images that launch chooses from")


def _add_doctor(commands: Any) -> None:
    from smkit.commands import account

    parser = _add_command(commands, "doctor", account.show_diagnosis, "check the account and this machine")
    parser.add_argument("--instance-type", metavar="TYPE", help="check the quota and the image of this type, too")
    parser.add_argument("--role", metavar="ROLE", help="the role that jobs act as: an ARN or a name")
    parser.add_argument("--bucket", metavar="BUCKET", help="the bucket for source, data and results")
    _add_account(parser)


def _add_policy(commands: Any) -> None:
    from smkit.cloud.policies import NAMES
    from smkit.commands import account

    parser = _add_command(commands, "policy", account.show_policy, "show an IAM policy of least privilege, filled in")
    about = "; ".join(f"{name}: {who}" for name, who in NAMES.items())
    parser.add_argument("policy", metavar="POLICY", choices=NAMES, help=about)
    parser.add_argument("--role", metavar="ROLE", help="the role that jobs act as: an ARN or a name")
    parser.add_argument("--bucket", metavar="BUCKET", help="the bucket for source, data and results")
    parser.add_argument("--input", metavar="URI", action="append", default=[], help="s3:// address of a channel")
    parser.add_argument("--secret", metavar="REFERENCE", action="append", default=[], help="a secret that jobs read")
    _add_account(parser)
