"""Whether a training comes out right, framework by framework: one table of what each of them really did.

    python tests/benchmarks/correctness.py [--only smkit,lightning] [--seed N] [--patience SECONDS]

Every case runs in processes of its own. "With its remedy": the same framework with what its documentation has against
the fault that the row before shows. See `correct_resume.py`, `correct_numbers.py` and `correct_stop.py` for the cases.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import correct_numbers
import correct_resume
import correct_stop
import torch
from frameworks import QUIET_ENVIRONMENT, ROOT, trouble
from report import describe_machine, table

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TITLES = {
    "smkit": "**smkit Trainer**",
    "lightning": "Lightning Trainer",
    "lightning-best": "... with its remedies",
    "accelerate": "Accelerate",
    "accelerate-best": "... with its remedies",
    "huggingface": "Hugging Face Trainer",
    "huggingface-best": "... with its remedies",
    "raw": "PyTorch by hand",
}
NONE = "–"
SETTLING_SECONDS = 1.0


@dataclass(frozen=True)
class Judge:
    """Runs the cases of one contestant, each in a folder of its own."""

    name: str
    folder: Path
    patience: float
    kill_step: int

    def place(self, case: str) -> Path:
        place = self.folder / f"{self.name}-{case}"
        place.mkdir()
        return place

    def start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        environment = os.environ | QUIET_ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        with log.open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def finish(self, process: subprocess.Popen[bytes]) -> int | None:
        """Return the status; None if the process, which then is killed with its children, has outlived our patience."""
        try:
            return process.wait(self.patience)
        except subprocess.TimeoutExpired:
            for pid in [*children(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            return None

    # --- the cases, each of them cells of the table ---

    def resume(self) -> list[str]:
        """Same batches after the resume; the difference of the final weights."""
        if self.name not in correct_resume.RUNS:
            return [NONE, NONE]
        place = self.place("resume")
        for phase in ("whole", "killed", "resumed"):
            command = [sys.executable, str(HERE / "correct_resume.py"), self.name, phase, str(place)]
            status = self.finish(self.start([*command, str(self.kill_step)], place / "log"))
            if status != (-signal.SIGKILL if phase == "killed" else 0):
                return [f"failed: {last_line(place / 'log')}", ""]
        whole, killed, resumed = (
            (place / f"{phase}.jsonl").read_text().splitlines() for phase in ("whole", "killed", "resumed")
        )
        if killed != whole[: len(killed)]:
            return ["two runs differ anyway", ""]
        kept = len(whole) - len(resumed)
        epoch = correct_resume.STEPS_PER_EPOCH
        before = samples(killed[epoch:kept])
        after = samples(resumed[: 2 * epoch - kept])
        batches = "yes" if resumed == whole[kept:] else f"no: {len(before & after)} samples of the epoch twice"
        own, other = (torch.load(place / f"{phase}.pt") for phase in ("resumed", "whole"))
        difference = max(float((own[key] - other[key]).abs().max()) for key in own)
        return [batches, "**bit for bit**" if difference == 0 else f"off by {difference:.2g}"]

    def numbers(self, case: str, launcher: list[str]) -> dict[str, Any] | str:
        """Return what `correct_numbers.py` found, or why there is nothing."""
        if self.name not in correct_numbers.CASES[case]:
            return NONE
        place = self.place(case)
        command = [*launcher, str(HERE / "correct_numbers.py"), self.name, case, str(place)]
        if self.finish(self.start(command, place / "log")) != 0:
            return f"failed: {last_line(place / 'log')}"
        found: dict[str, Any] = json.loads((place / "result-0.json").read_text())
        if launcher != TORCHRUN:
            return found
        other = json.loads((place / "result-1.json").read_text())
        return {**found, "other": other}

    def accumulation(self) -> list[str]:
        found = self.numbers("accumulation", [sys.executable])
        if isinstance(found, str):
            return [found]
        steps = found["errors"]
        right = "" if max(steps) < 1e-6 else f", off by {steps[-1]:.0%}"
        return [f"{found['ratios'][-1]:.4f}{right}"]

    def ragged(self) -> list[str]:
        found = self.numbers("ragged", [sys.executable])
        return [found, ""] if isinstance(found, str) else [f"{found['plain']:.1f}", f"{found['led']:.1f}"]

    def ranks(self) -> list[str]:
        """The mean that both ranks hold and its count; the training loss that rank 0 tells."""
        found = self.numbers("ranks", TORCHRUN)
        if isinstance(found, str):
            return [found, ""]
        counted = "" if found["counted"] is None else f", n = {found['counted']:.0f}"
        other = found["other"]["mean"]
        aside = f"; rank 1: {other:.2f}" if other is not None and abs(other - found["mean"]) > 1e-6 else ""
        loss = "by hand" if found["train_loss"] is None else f"{found['train_loss']:.1f}"
        return [f"{found['mean']:.2f}{counted}{aside}", loss]

    def stop(self, case: str) -> list[str]:
        """SIGTERM to the one process ("one"), to torchrun ("all") or to rank 1 alone ("rank"): status, checkpoint."""
        if self.name not in correct_stop.JOBS:
            return [NONE]
        place = self.place(f"stop-{case}")
        launcher = [sys.executable] if case == "one" else TORCHRUN
        process = self.start([*launcher, str(HERE / "correct_stop.py"), self.name, str(place)], place / "log")
        last = place / f"pid-{0 if case == 'one' else 1}"
        deadline = time.monotonic() + self.patience
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(SETTLING_SECONDS)
        if not last.exists():
            self.finish(process)
            return [f"failed: {last_line(place / 'log')}"]
        began = time.monotonic()
        os.kill(int(last.read_text()) if case == "rank" else process.pid, signal.SIGTERM)
        status = self.finish(process)
        seconds = time.monotonic() - began
        if status is None:
            return [f"hangs for over {self.patience:.0f} s, {left(self.name, place)}"]
        ends = [place / f"status-{rank}" for rank in range(1 if case == "one" else 2)]
        told = [one.read_text() if one.exists() else "killed" for one in ends]
        text = (str(status) if told != ["killed"] else "killed") if case == "one" else f"ranks {' and '.join(told)}"
        return [f"{text}, {left(self.name, place)}, {seconds:.1f} s"]


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    told = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    own = [int(word) for text in told for word in text.split()]
    return own + [grandchild for child in own for grandchild in children(child)]


def samples(lines: list[str]) -> set[int]:
    return {index for line in lines for index in json.loads(line)}


def last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


def left(name: str, place: Path) -> str:
    """Return whether there is a whole checkpoint."""
    framework = name.partition("-")[0]
    if any(place.glob(correct_stop.INCOMPLETE)):
        return "half a checkpoint"
    pattern = correct_stop.CHECKPOINTS.get(framework)
    return "saved" if pattern and any(place.glob(pattern)) else "nothing saved"


COLUMNS: list[tuple[list[str], Callable[[Judge], list[str]]]] = [
    (["killed and resumed: same batches", "final weights"], Judge.resume),
    (["accumulated tail: gradient ÷ true"], Judge.accumulation),
    (["ragged validation, 49.5", "... batch led by another tensor"], Judge.ragged),
    (["2 ranks: mean 50, n = 101", "loss of 1.0 and 3.0"], Judge.ranks),
    (["SIGTERM"], lambda judge: judge.stop("one")),
    (["SIGTERM to torchrun × 2"], lambda judge: judge.stop("all")),
    (["SIGTERM to one rank of 2"], lambda judge: judge.stop("rank")),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(TITLES), help="smkit,lightning,...")
    parser.add_argument("--seed", type=int, help="decides the step of the kill")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds until a process counts as hung")
    options = parser.parse_args()
    kill_step = random.Random(options.seed).randint(correct_resume.SAVED_STEP + 2, 2 * correct_resume.STEPS_PER_EPOCH)
    print(describe_machine(), end="\n\n", flush=True)
    print(f"Killed in step {kill_step} of {correct_resume.STEPS}, in mid-epoch.\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            why = trouble(name.partition("-")[0])
            judge = Judge(name, Path(folder), options.patience, kill_step)
            cells = [why] if why else []
            for header, case in [] if why else COLUMNS:
                print(f"{name}: {header[0]}", file=sys.stderr, flush=True)
                cells += case(judge)
            rows.append([TITLES[name], *cells])
    header = ["framework", *(title for titles, _ in COLUMNS for title in titles)]
    width = len(header)
    print(table(header, [[*row, *[""] * (width - len(row))] for row in rows]))
    return 1 if any(cell.startswith("failed") for row in rows for cell in row) else 0


if __name__ == "__main__":
    sys.exit(main())
