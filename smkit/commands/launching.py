"""`smkit launch`: words to a call of launch, and what is shown of the plan or of the job.

All that is wrong with the words, and all that `launch` finds wrong, is reported together, in the words of the command
line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smkit.commands import launch_options, screens, script_command_line
from smkit.commands.jobs import follow
from smkit.commands.launch_options import LaunchWords
from smkit.errors import ConfigurationError
from smkit.inputs import Input
from smkit.launcher import launch
from smkit.plan import Plan


def run(argv: Sequence[str]) -> int:
    """Launch, or show the plan; return the exit status.

    Raises:
        ConfigurationError: Everything that is wrong.
        JobError: The job failed or was stopped.
    """
    words = launch_options.sort(argv)
    if "--help" in words.switches:
        screens.write(launch_options.help_text(screens.width()))
        return 0
    entry, arguments = _arguments(words)
    plan = _plan(entry, arguments, words)
    as_json = "--json" in words.switches
    if "--dry-run" in words.switches:
        screens.write_json(_document(plan)) if as_json else _show(plan)
        return 0
    for warning in plan.warnings:
        sys.stderr.write(f"{screens.paint('warning', 'yellow', sys.stderr)}: {warning}\n")
    job = plan.start()
    if "--detach" in words.switches:
        screens.write_json({"name": job.name, "status": job.status}) if as_json else screens.write(job.name)
        return 0
    sys.stderr.write(f"job {screens.paint(job.name, 'bold', sys.stderr)}\n")
    follow(job, as_json=as_json)
    return 0


def _arguments(words: LaunchWords) -> tuple[str, dict[str, Any]]:
    """Return the script and the arguments of launch; what is wrong is added to the problems of `words`."""
    arguments = dict(words.arguments)
    arguments.setdefault("instance_type", "local")
    entry = _entry(words, arguments.get("source_dir", "."))
    script = script_command_line.read(words.script_words, _text_of(Path(arguments.get("source_dir", "."), entry)))
    words.problems += script.problems
    hyperparameters = arguments.pop("hyperparameters", {})
    script_command_line.merge(hyperparameters, script.hyperparameters)
    if hyperparameters:
        arguments["hyperparameters"] = hyperparameters
    details = {name: arguments.pop(name, {}) for name in launch_options.INPUT_DETAILS}
    inputs = _inputs({**arguments.pop("inputs", {}), **script.inputs}, details, words.problems)
    if inputs:
        arguments["inputs"] = inputs
    return entry, arguments


def _entry(words: LaunchWords, source_dir: str) -> str:
    """Return the script as launch wants it: relative to the source folder, where it lies in that."""
    if words.script is None:
        words.problems.append("the script is missing: smkit launch [options] train.py [the script's own options]")
        return ""
    folder, script = Path(source_dir).expanduser().absolute(), Path(words.script).expanduser()
    is_elsewhere = script.is_absolute() or not (folder / script).is_file()
    if is_elsewhere and script.absolute().is_relative_to(folder) and script.is_file():
        return str(script.absolute().relative_to(folder))
    return words.script


def _text_of(script: Path) -> str:
    try:
        return script.expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _inputs(
    sources: Mapping[str, str], details: Mapping[str, Mapping[str, Any]], problems: list[str]
) -> dict[str, str | Input]:
    """Return each channel's source, or an Input where more is said of it."""
    flags = {option.argument: option.flag for options in launch_options.GROUPS.values() for option in options}
    problems += [
        f"{flags[detail]} {channel}: there is no --input of that name"
        for detail, channels in details.items()
        for channel in channels
        if channel not in sources
    ]
    inputs: dict[str, str | Input] = {}
    for name, source in sources.items():
        said = {detail: channels[name] for detail, channels in details.items() if name in channels}
        inputs[name] = Input(source, **said) if said else source
    return inputs


def _plan(entry: str, arguments: Mapping[str, Any], words: LaunchWords) -> Plan:
    problems: list[str] = list(words.problems)
    try:
        plan = launch(entry, dry_run=True, **arguments)
    except ConfigurationError as error:
        if not error.problems:
            raise
        # Of a script that is missing, launch would say so once more.
        problems += [problem for problem in error.problems if entry or not problem.startswith("entry ")]
    else:
        if not problems:
            return plan
    raise ConfigurationError.of(
        [_in_words_of_the_command(problem) for problem in problems],
        subject=f"the launch of '{entry}'" if entry else "the launch",
        # Without the words themselves: a secret can be one of them.
        where=f"smkit launch {entry}".rstrip(),
        fix="change what is named above; nothing has been made, uploaded or started",
    )


def _in_words_of_the_command(problem: str) -> str:
    """Return a problem of an argument of launch as one of the option that stands for it."""
    argument = re.match(r"[a-z_]+(?=[ :])", problem)
    for options in launch_options.GROUPS.values():
        for option in options:
            if argument and option.argument == argument[0] and "_" in option.argument:
                return option.flag + problem[argument.end() :]
    return problem


def _show(plan: Plan) -> None:
    rows = [("job", plan.name)]
    for what, value, origin in plan.rows:
        rows.append((what, f"{value}  {screens.paint(f'({origin})', 'dim', sys.stdout)}"))
    screens.write(screens.facts([*rows, ("cost", plan.estimate())]))
    for warning in plan.warnings:
        screens.write(f"{screens.paint('warning', 'yellow', sys.stdout)}: {warning}")
    screens.write("  nothing has been made, uploaded or started")


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "request": plan.request,
        "files": [{"path": path, "size": size} for path, size in plan.files],
        "resolved": [{"what": what, "value": value, "from": origin} for what, value, origin in plan.rows],
        "estimate": plan.estimate(),
        "warnings": list(plan.warnings),
    }
