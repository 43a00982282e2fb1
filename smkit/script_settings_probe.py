"""The process that asks a script's settings class about hyperparameters: it runs the class, and not the script.

Of the file that defines the class only the statements that the class needs are run, so that the class of a script that
imports torch can be asked. torch itself is not to be had here: it takes seconds, and the machine that launches may lack
it. This room reads one question from stdin and writes one answer to stdout; nothing else reaches stdout.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import json
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smkit.annotations import is_secret
from smkit.arguments import options_of
from smkit.errors import SmkitError
from smkit.secret_references import FORMS, is_reference
from smkit.settings import resolve
from smkit.sources import JobValues, job_layer
from smkit.wire import loads_once

_LABEL = "hyperparameters"


def main() -> None:
    """Answer the question on stdin: {"problems": [...], "note": "..."}."""
    question = json.loads(sys.stdin.read())
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        # What the user's module prints is no answer.
        os.dup2(2, 1)
        sys.path[:0] = question["paths"]
        sys.meta_path.insert(0, _NoTorch())
        json.dump(answer(question), answers)


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the class has against the hyperparameters, or a note on why it cannot be asked."""
    try:
        settings = _load(question["module"], question["name"], question["file"])
        problems = _problems(settings, question["texts"])
    except SmkitError as error:
        # The class itself is what smkit refuses, in the job as well.
        return {"problems": [f"{error.where}: {error.what}; {error.fix}"], "note": ""}
    except BaseException as error:  # the user's code may raise anything, SystemExit too
        is_torch = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "torch"
        reason = "needs torch" if is_torch else f"cannot be imported here: {type(error).__name__}: {error}"
        return {"problems": [], "note": f"{question['name']} {reason}"}
    return {"problems": problems, "note": ""}


def _problems(settings: type[Any], texts: Mapping[str, str]) -> list[str]:
    """Read the hyperparameters as the job will: from the texts of hyperparameters.json."""
    options = options_of(settings)
    problems: list[str] = []
    values = {name: loads_once(text) for name, text in texts.items()}
    layer = job_layer(JobValues(_LABEL, values, texts), options, problems)
    problems += resolve(settings, options, [layer]).problems
    problems += [
        f"{name} is a secret, and would be readable in the job's description; send a reference to it: {FORMS}"
        for name, value in layer.values.items()
        if is_secret(options[name].annotation) and _readable(value)
    ]
    # Whether a path is there is for the job's machine to say.
    return [problem.removeprefix(f"{_LABEL}: ") for problem in problems if "does not point to a" not in problem]


def _readable(value: Any) -> bool:
    """Whether a value for a secret is about to travel itself, as a text in a dict can."""
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, str) and not is_reference(item) for item in items)


class _NoTorch(importlib.abc.MetaPathFinder):
    """Refuses torch, whether it is installed or not."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:  # noqa: ARG002
        if fullname.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")


def _load(module: str, name: str, file: str) -> type[Any]:
    tree = ast.parse(Path(file).read_bytes()) if file.endswith(".py") else ast.Module([], [])
    is_here = any(name in _bound(statement) for statement in tree.body)
    if not is_here or file.endswith("__init__.py"):
        found: type[Any] = getattr(importlib.import_module(module), name)
        return found
    package = module.rpartition(".")[0]
    if package:
        importlib.import_module(package)
    # Under another name than that of the script, whose `if __name__ == "__main__"` is none of this room's business.
    slot = types.ModuleType("__script__" if module == "__main__" else module)
    slot.__file__, slot.__package__ = file, package
    sys.modules[slot.__name__] = slot
    exec(compile(_needed(tree, name), file, "exec", dont_inherit=True), slot.__dict__)  # noqa: S102
    defined: type[Any] = slot.__dict__[name]
    return defined


def _needed(tree: ast.Module, name: str) -> ast.Module:
    """Return the statements of a module that the definition of a name needs, in their order."""
    bound = [set(_bound(statement)) for statement in tree.body]
    chosen: set[int] = set()
    wanted = {name}
    while wanted:
        looked_for = wanted.pop()
        for number, names in enumerate(bound):
            if looked_for in names and number not in chosen:
                chosen.add(number)
                wanted |= set(_used(tree.body[number]))
    body = [
        statement
        for number, statement in enumerate(tree.body)
        if number in chosen or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")
    ]
    return ast.Module(body, [])


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement at the top of a module binds there."""
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name


def _used(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement reads, those in annotations written as texts too."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, (ast.AnnAssign, ast.arg)) and node.annotation is not None:
            for part in ast.walk(node.annotation):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from _used_in_text(part.value)


def _used_in_text(text: str) -> Iterator[str]:
    try:
        expression = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return
    yield from (node.id for node in ast.walk(expression) if isinstance(node, ast.Name))
