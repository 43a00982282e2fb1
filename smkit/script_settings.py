"""A launch's hyperparameters, checked by the script's own settings class before anything is uploaded.

The script is read, not run: the class that its `Trainer[...]`, `TrainingContext.load(...)` or `parse_args(...)` names
stands in its text. A process of its own (`script_settings_probe`) then asks that class. Where the class is not found
or needs torch, nothing is wrong; a note says what was not checked. This room runs none of the user's code itself.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smkit.hyperparameters import Hyperparameters
from smkit.wire import encode

_SECONDS = 20.0
"""What a class may take to be imported."""
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from smkit import script_settings_probe as probe; "
_DOORS = ("smkit.TrainingContext.load", "smkit.parse_args")


@dataclass(frozen=True)
class Checked:
    """What the script's own class says of the hyperparameters: problems, or a note on why it was not asked."""

    problems: tuple[str, ...] = ()
    note: str = ""


def check(source_root: Path, entry: str, hyperparameters: Hyperparameters | Mapping[str, object]) -> Checked:
    """Ask the settings class of a script whether it would take these hyperparameters in a job.

    Args:
        source_root: The folder that travels.
        entry: The script, relative to it.
        hyperparameters: What launch was given; it can be encoded.
    """
    texts = encode(hyperparameters)
    if not entry.endswith(".py"):
        return _unchecked(f"{entry} is no Python script")
    if "config" in texts:
        return _unchecked("the job also reads config files")
    script = source_root / entry
    try:
        names = _Names(ast.parse(script.read_bytes()))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return _unchecked(f"{entry} cannot be read: {error}")
    found = set(names.settings_classes())
    if len(found) != 1:
        several = ", ".join(sorted(found))
        return _unchecked(f"{entry} has several: {several}" if found else f"{entry} has no settings class")
    module, _, name = found.pop().rpartition(".")
    place = {"module": module or "__main__", "name": name, "file": str(_file_of(module, script, source_root) or "")}
    return _ask({**place, "paths": [str(script.parent), str(source_root)], "texts": texts}, source_root)


def _unchecked(reason: str) -> Checked:
    return Checked(note=f"hyperparameters are not checked against the script's settings class: {reason}")


class _Names:
    """What the names in a script stand for."""

    def __init__(self, tree: ast.Module) -> None:
        self._nodes = list(ast.walk(tree))
        self._imported: dict[str, str] = {}
        for node in self._nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root = alias.name.partition(".")[0]
                    self._imported[alias.asname or root] = alias.name if alias.asname else root
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                for alias in node.names:
                    self._imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def settings_classes(self) -> Iterator[str]:
        """Yield the class of each use of smkit, as `module.Name`, or `Name` where the script itself defines it."""
        for node in self._nodes:
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if self._is(base, "smkit.Trainer"):
                        yield "smkit.Hyperparameters"
                    elif isinstance(base, ast.Subscript) and self._is(base.value, "smkit.Trainer"):
                        yield from self._named(base.slice)
            elif isinstance(node, ast.Call) and self._is(node.func, *_DOORS):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "settings"]
                yield from self._named((node.args or given or [node])[0])

    def _named(self, node: ast.expr) -> Iterator[str]:
        name = self._name(node)
        if name is not None:
            yield name

    def _is(self, node: ast.expr, *names: str) -> bool:
        return self._name(node) in names

    def _name(self, node: ast.expr) -> str | None:
        """Return the full name that an expression like `a.b.C` stands for."""
        if isinstance(node, ast.Name):
            return self._imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = self._name(node.value)
            return owner and f"{owner}.{node.attr}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            return self._imported.get(node.value, node.value)
        return None


def _file_of(module: str, script: Path, source_root: Path) -> Path | None:
    """Return the file of a module of the source; None for one that is installed."""
    if not module:
        return script
    parts = module.split(".")
    files = (
        folder.joinpath(*parts[:-1], end)
        for folder in (script.parent, source_root)
        for end in (f"{parts[-1]}.py", f"{parts[-1]}/__init__.py")
    )
    return next((file for file in files if file.is_file()), None)


def _ask(question: Mapping[str, object], source_root: Path) -> Checked:
    environment = {
        # A class that looks for AWS, or for a job around it, finds neither.
        name: value
        for name, value in os.environ.items()
        if not re.match(r"AWS_|SM_|SAGEMAKER_|TRAINING_JOB_|PYTHONSTARTUP", name)
    }
    path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - '' is the current folder
    try:
        run = subprocess.run(  # noqa: S603 - this program itself
            [sys.executable, "-B", "-c", f"{_PROGRAM} probe.main()", json.dumps(path)],
            input=json.dumps(question),
            cwd=source_root,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _unchecked(f"importing {question['name']} takes more than {_SECONDS:.0f} s")
    try:
        answer = json.loads(run.stdout)
    except ValueError:
        last = run.stderr.strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
        return _unchecked(f"{question['name']} cannot be imported here: {last[0]}")
    problems = tuple(f"hyperparameters: {problem}" for problem in answer["problems"])
    return _unchecked(answer["note"]) if answer["note"] else Checked(problems)
