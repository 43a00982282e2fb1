"""What a checkpoint costs the training: the stall, the time until it counts, memory, and the time to go on from it.

    python tests/benchmarks/checkpoint_stall.py [--rounds N] [--saves N] [--only torch,smkit-asynchronous]
        [--folder FOLDER] [--device cuda]

50 million parameters with Adam, 600 MB, one thread. Rounds take every way in turn: one fresh process saves, another one
restores. The disk is idle when a save begins. The first save of a process is told apart from the later ones, for
buffers are made in it. Ratios are taken within a round. Ctrl-C ends the rounds, and what was measured is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path
from statistics import median
from typing import Any

from checkpoint_ways import WAYS
from frameworks import trouble
from report import describe_machine, spread, table
from startup import Row, run, take_turns

BASE = "torch"
PROGRAM = Path(__file__).with_name("checkpoint_ways.py")


def parse_ways(text: str) -> list[str]:
    """Return the names of ways in `text`, with the one that ratios are to."""
    names = text.split(",")
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        raise ArgumentTypeError(f"{', '.join(unknown)}; choose from {', '.join(WAYS)}")
    return list(dict.fromkeys([BASE, *names]))


def measure(names: list[str], rounds: int, saves: int, folder: Path, device: str) -> dict[str, Row]:
    """Return a row for each way."""
    rows = {name: Row([sys.executable, str(PROGRAM), name], trouble(WAYS[name].needs)) for name in names}
    for name, row in rows.items():
        if device == "cuda" and not WAYS[name].knows_gpus:
            row.trouble = "written for the CPU here"

    def once(row: Row) -> dict[str, Any]:
        place = Path(tempfile.mkdtemp(dir=folder))
        found: dict[str, Any] = {}
        try:
            for phase in ("save", "restore"):
                process = run([*row.command, phase, str(place), str(saves), device], folder)
                found |= json.loads(process.output.strip().splitlines()[-1])
        finally:
            shutil.rmtree(place)
        return found

    with contextlib.suppress(KeyboardInterrupt):
        take_turns(rows, rounds, once, first=1)
    return rows


def cells(row: Row, base: Row) -> list[str]:
    """Return the cells of one way."""
    if row.trouble or not row.runs:
        return [row.trouble or "not measured", *[""] * 8]
    found = {key: [one[key] for one in row.runs] for key in row.runs[0]}
    ratios = [own["stall"] / other["stall"] for own, other in zip(row.runs, base.runs, strict=False)]
    return [
        spread(found["first_stall"], digits=3),
        spread(found["stall"], digits=3),
        spread(ratios, digits=3),
        spread(found["total"]),
        f"{median(found['cpu']):.2f}",
        spread(found["restore"]),
        f"{median(found['restore_cpu']):.2f}",
        f"{median(found['memory_mb']):.0f}",
        f"{median(found['extra_mb']):.0f}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each way")
    parser.add_argument("--saves", type=int, default=4, help="saves of one process, the first told apart")
    parser.add_argument("--only", type=parse_ways, default=list(WAYS), help="torch,smkit,...")
    parser.add_argument("--folder", help="where the checkpoints are written; by default where temporary files are")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where model and optimizer lie")
    options = parser.parse_args()
    print(describe_machine(), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(options.only, options.rounds, options.saves, Path(folder), options.device)
    print("Median (least–greatest) over rounds of each process's median; seconds.\n")
    header = ["way", "first stall", "stall", "× `torch.save`", "until it counts", "CPU s of a save"]
    header += ["restore", "restore CPU s", "peak MB", "of it by saving"]
    print(table(header, [[WAYS[name].title, *cells(row, rows[BASE])] for name, row in rows.items()]))
    return 1 if any(row.trouble.startswith("failed") for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
