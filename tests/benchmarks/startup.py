"""What it costs to start: cold imports, then whole jobs, each in a process of its own.

    python tests/benchmarks/startup.py [--rounds N] [--only imports|jobs]

Rounds take every row in turn, after one round that is thrown away (it compiles bytecode and warms the disk cache).
CPU seconds count from the start of the process. One that needs torch imports it first and reads its clock before and
after the statement, so that the ratio to `import torch` is taken within the process; a job's ratio is taken within a
round. Of all ratios the median is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from frameworks import QUIET_ENVIRONMENT, ROOT, TITLES, trouble
from report import describe_machine, spread, table

HERE = Path(__file__).parent
TORCH = "import torch"
TORCH_FREE = {
    "pass": "bare",
    "import smkit": "bare",
    "from smkit import Hyperparameters": "bare",
}
WITH_TORCH = {
    TORCH: "bare",
    "from smkit import Trainer": "smkit",
    "from smkit import Hyperparameters, Trainer": "smkit",
    "from accelerate import Accelerator": "accelerate",
    "import lightning.pytorch": "lightning",
    "from transformers import Trainer": "huggingface",
}
"""Each statement with the framework that must be installed for it."""
WATCHED = ("torch", "boto3", "pydantic", "tensorboard")
PROBE = f"""
import sys, time
{{first}}
before = time.process_time()
{{statement}}
print(before, time.process_time(), len(sys.modules), *(name for name in {WATCHED!r} if name in sys.modules))
"""
JOBS = ("bare", "smkit", "fabric", "accelerate", "lightning", "huggingface")


@dataclass
class Process:
    """A finished process: its seconds, its greatest memory and what it printed."""

    wall: float
    cpu: float
    memory_mb: float
    started: float
    output: str


@dataclass
class Row:
    """One row of a table: what to run, what came of it, or why nothing did."""

    command: list[str]
    trouble: str
    runs: list[dict[str, Any]] = field(default_factory=list)


def run(command: list[str], folder: Path) -> Process:
    """Run `command` in `folder` to its end.

    Raises:
        RuntimeError: It failed; the message is the last line of its output.
    """
    log = folder / "output.log"
    environment = os.environ | QUIET_ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        started = time.time()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.time() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text()
    if child.returncode != 0:
        raise RuntimeError((text.strip().splitlines() or [f"exit status {child.returncode}"])[-1])
    return Process(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, started, text)


def measure_imports(rounds: int, folder: Path) -> dict[str, Row]:
    """Return a row for each statement."""
    rows = {
        text: Row([sys.executable, "-c", PROBE.format(first=first, statement=text)], trouble(needs))
        for first, statements in (("", TORCH_FREE), (TORCH, WITH_TORCH))
        for text, needs in statements.items()
    }
    if not (ROOT / "smkit" / "__init__.py").exists():
        rows["import smkit"].trouble = "no smkit in this tree"

    def once(row: Row) -> dict[str, Any]:
        process = run(row.command, folder)
        before, after, modules, *loaded = process.output.split()
        seconds = {"before": float(before), "after": float(after), "whole": process.cpu}
        return {**seconds, "modules": int(modules), "loaded": loaded}

    take_turns(rows, rounds, once)
    return rows


def measure_jobs(rounds: int, folder: Path) -> dict[str, Row]:
    """Return a row for each framework."""
    data = folder / "data"
    subprocess.run([sys.executable, HERE / "digits.py", data], check=True)
    rows = {name: Row([sys.executable, str(HERE / "digits_job.py"), name, str(data)], trouble(name)) for name in JOBS}

    def once(row: Row) -> dict[str, Any]:
        process = run([*row.command, tempfile.mkdtemp(dir=folder)], folder)
        told = json.loads(process.output.strip().splitlines()[-1])
        told["first_step"] = told["first_step_time"] - process.started
        return {**told, "wall": process.wall, "cpu": process.cpu, "memory_mb": process.memory_mb}

    take_turns(rows, rounds, once)
    return rows


def take_turns(rows: dict[str, Row], rounds: int, once: Any, *, first: int = 0) -> None:
    """Run every row once per round; round 0, if that is the first, is thrown away."""
    for turn in range(first, rounds + 1):
        for name, row in rows.items():
            if row.trouble:
                continue
            print(f"round {turn} of {rounds}: {name}", file=sys.stderr, flush=True)
            try:
                found = once(row)
            except RuntimeError as error:
                row.trouble = f"failed: {error}"
                continue
            if turn > 0:
                row.runs.append(found)


def print_rows(header: list[str], titled: dict[str, Row], cells: Any) -> None:
    """Print a table; `cells(row)` are those of a row that was measured."""
    empty = [""] * (len(header) - 2)
    print(table(header, [[t, row.trouble, *empty] if row.trouble else [t, *cells(row)] for t, row in titled.items()]))
    print()


def print_imports(rows: dict[str, Row]) -> None:
    """Print the first table."""

    def cells(row: Row) -> list[str]:
        last = row.runs[-1]
        marks = ["yes" if name in last["loaded"] else "–" for name in WATCHED]
        whole, after = ([run[key] for run in row.runs] for key in ("whole", "after"))
        if "torch" in last["loaded"]:
            beyond = spread([run["after"] - run["before"] for run in row.runs], 3)
            against = median(run["after"] / run["before"] for run in row.runs)
        else:
            beyond, against = "", median(after) / median(run["after"] for run in rows[TORCH].runs)
        return [spread(after, 3), beyond, f"{against:.2f}", f"{median(whole):.2f}", f"{last['modules']:,}", *marks]

    print(f"Cold imports, median (least–greatest) of {len(rows[TORCH].runs)} processes; columns at the right: loaded\n")
    titled = {f"`{text}`": row for text, row in rows.items()}
    print_rows(
        ["statement", "CPU s", "of it beyond torch", "× `import torch`", "with exit", "modules", *WATCHED],
        titled,
        cells,
    )


def print_jobs(rows: dict[str, Row]) -> None:
    """Print the second table."""
    bare = rows["bare"]

    def cells(row: Row) -> list[str]:
        timed = (
            f"{median(run[key] for run in row.runs):.2f} (×{ratio(row, bare, key):.2f})"
            for key in ("first_step", "first_step_cpu", "wall", "cpu")
        )
        last = row.runs[-1]
        accuracy = "not told" if last["accuracy"] is None else f"{last['accuracy']:.3f}"
        return [*timed, f"{last['memory_mb']:.0f}", f"{last['modules']:,}", accuracy]

    print(f"Whole jobs, median of {len(bare.runs)} processes, in brackets the ratio to the bare loop\n")
    header = ["framework", "first step s", "first step CPU s", "job s", "job CPU s", "peak MB", "modules", "accuracy"]
    print_rows(header, {TITLES[name]: row for name, row in rows.items()}, cells)


def ratio(row: Row, base: Row, key: str) -> float:
    """Return the median over rounds of the ratio within a round."""
    return median(own[key] / other[key] for own, other in zip(row.runs, base.runs, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each row")
    parser.add_argument("--only", choices=["imports", "jobs"], help="one of the two tables")
    options = parser.parse_args()
    tables = {"imports": (measure_imports, print_imports), "jobs": (measure_jobs, print_jobs)}
    print(describe_machine(), end="\n\n", flush=True)
    failed = False
    for name, (measure, show) in tables.items():
        if options.only in {None, name}:
            with tempfile.TemporaryDirectory() as folder:
                rows = measure(options.rounds, Path(folder))
            show(rows)
            failed = failed or any(row.trouble.startswith("failed") for row in rows.values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
