"""A long training, stopped and killed at random, whose memory, files, threads and disk are watched once a second.

A round is a second. The first half is one life, in which what leaks would grow; in the second half a life ends every
few seconds by SIGTERM, SIGINT or SIGKILL, in which what is left behind would pile up. A life has survived if the peaks
of its last third are those of its first; a stop, if the process ended as it should and the next one went on from the
last committed checkpoint or a later one; the folder, if it holds no more than the checkpoints that are kept and one in
flight.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torture.tally import Campaign, Outcome

SCRIPT = Path(__file__).with_name("soak_script.py")
SETTINGS = ("--epochs", "1000000", "--batch-size", "20", "--log-every-steps", "10", "--validate-every-steps", "100")
SETTINGS += ("--checkpoint-every-seconds", "0.5", "--ema-decay", "0.99", "--monitor-metric", "error")
STATUSES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
WARM_UP_SECONDS = 8
SHORTEST_SAMPLES = 18
"""Of a life whose peaks are compared."""
SLACK = {"memory_mb": 30.0, "files": 8, "threads": 1, "processes": 0}
"""By how much a later peak may exceed an earlier one: the allocator's arenas, the batches that are on their way."""
ROW_BYTES, LIFE_BYTES = 3000, 20_000
"""What a record may take, as JSON and as TensorBoard's events; and an event file of its own for each life."""
KEPT = 3 + 1 + 3 + 1
"""Checkpoints: the newest, the best, the milestones, and one that is being written, or that a kill has left half."""
RUN_ENDS_SECONDS = 120.0


@dataclass(frozen=True)
class Sample:
    """What a run has at one moment: of all its processes together."""

    seconds: float
    life: int
    memory_mb: float
    """Proportional: what processes share is counted once."""
    files: int
    threads: int
    processes: int
    disk_mb: float
    checkpoints: int
    step: int


def processes_below(process: int) -> Iterator[int]:
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from processes_below(int(child))


def memory_mb(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def look(process: int, run: Path, began: float, life: int) -> Sample | None:
    """Return what the run has now; None if a process ended, or a file was removed, in that moment."""
    try:
        tree = list(processes_below(process))
        places = [Path(f"/proc/{each}") for each in tree]
        return Sample(
            time.monotonic() - began,
            life,
            sum(memory_mb(each) for each in tree),
            sum(len(list((place / "fd").iterdir())) for place in places),
            sum(len(list((place / "task").iterdir())) for place in places),
            len(tree),
            sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 1e6,
            len(list((run / "checkpoints").glob("step-*"))),
            last_step(run / "output" / "data" / "metrics.jsonl"),
        )
    except (OSError, StopIteration):
        return None


def last_step(metrics: Path) -> int:
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().splitlines()[:-1]
    return int(json.loads(lines[-1])["step"]) if len(lines) > 1 else 0


def committed_step(run: Path) -> int:
    return max((int(path.parent.name.split("-")[1]) for path in run.glob("checkpoints/*/manifest.json")), default=0)


def trained(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return a life without its start and its first records, in which what it needs is made."""
    begun = next((sample.seconds for sample in samples if sample.step > samples[0].step), math.inf)
    return [sample for sample in samples if sample.seconds > begun + WARM_UP_SECONDS]


def unbounded(samples: Sequence[Sample]) -> list[str]:
    """Return what has a higher peak in the last third of a training than in its first."""
    third = len(samples) // 3
    problems = []
    for name, slack in SLACK.items():
        values = [getattr(sample, name) for sample in samples]
        early, late = max(values[:third]), max(values[-third:])
        if late > early + slack:
            problems.append(f"{name} grew from {early:.0f} to {late:.0f} in {len(samples)} s")
    return problems


class Soak:
    """One run and its lives."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.run = campaign.folder / "run"
        self.data = campaign.folder / "data"
        self.data.mkdir()
        (self.data / "present").touch()
        self.samples: list[Sample] = []
        # Shared memory of its own, as far as this may be had, for others leave theirs in the common one.
        self.memory = Path(tempfile.mkdtemp(prefix="torture-soak-", dir="/dev/shm")) if os.geteuid() == 0 else None
        own_memory = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /dev/shm && exec "$@"', str(self.memory))
        self.room = own_memory if self.memory else ()
        self.began = time.monotonic()

    def count(self, attack: str, problems: Sequence[str], outcome: Outcome = Outcome.SILENT) -> None:
        note = "; ".join(problems)
        self.campaign.tally.count(f"soak: {attack}", "smkit", outcome if problems else Outcome.SURVIVED, note)

    def live(self, life: int, seconds: float, end: signal.Signals) -> None:
        """Let the run live so long, end it, and count what came of it."""
        before, text = committed_step(self.run), self.campaign.folder / f"life-{life}.txt"
        channels = [f"--channel={name}={self.data}" for name in ("train", "validation")]
        command = [*self.room, sys.executable, str(SCRIPT), *SETTINGS, *channels, "--run-dir", str(self.run)]
        with text.open("w") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        first, deadline = len(self.samples), time.monotonic() + seconds
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(1)
            sample = look(process.pid, self.run, self.began, life)
            self.samples += [sample] if sample else []
        process.send_signal(end)
        try:
            status = process.wait(RUN_ENDS_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        said = text.read_text(errors="replace")
        gone_on = re.search(r"goes on after step ([0-9,]+)", said)
        # While it still imports its libraries, a process dies of a signal as any other does.
        allowed = (STATUSES[end], *([] if "  hyperparameter  " in said else [-end]))
        problems = [] if status in allowed else [f"{end.name} after {seconds:.2f} s, status {status}: {said}"]
        if gone_on and int(gone_on[1].replace(",", "")) < before:
            problems.append(f"step {before} was committed, and it {gone_on[0]}")
        if before and "new start" in said:
            problems.append(f"step {before} was committed, and it began again")
        self.count("stop, and go on", problems, Outcome.LOST)
        if len(settled := trained(self.samples[first:])) >= SHORTEST_SAMPLES:
            self.count("memory, files and threads of a life", unbounded(settled))

    def check_disk(self) -> None:
        rows = [
            json.loads(line)["step"]
            for line in (self.run / "output" / "data" / "metrics.jsonl").read_text().splitlines()
        ]
        size = max(_bytes_of(folder) for folder in (self.run / "checkpoints").iterdir())
        lives = self.samples[-1].life + 1
        allowed = KEPT * size + ROW_BYTES * len(rows) + LIFE_BYTES * lives
        most = max(sample.checkpoints for sample in self.samples)
        problems = [f"{most} checkpoints at once"] if most > KEPT else []
        problems += [f"{_bytes_of(self.run):,} bytes, {allowed:,} allowed"] if _bytes_of(self.run) > allowed else []
        problems += [] if rows == sorted(rows) else ["rows of metrics.jsonl are out of order"]
        self.count("disk", problems)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def attack(campaign: Campaign) -> None:
    """Train for `campaign.rounds` seconds; draw what was seen, if there is a place for it."""
    soak, draws = Soak(campaign), campaign.draws("soak")
    soak.live(0, campaign.rounds / 2, signal.SIGTERM)
    longest = max(6.0, min(60.0, campaign.rounds / 12))
    for life in itertools.count(1):
        if time.monotonic() - soak.began >= campaign.rounds:
            break
        # A tenth of the lives end before training has begun.
        soak.live(life, draws.uniform(0.5, longest), draws.choice(list(STATUSES)))
    soak.check_disk()
    time.sleep(2)
    if soak.memory:
        soak.count("left in shared memory", sorted(path.name for path in soak.memory.iterdir()))
        shutil.rmtree(soak.memory)
    if campaign.out:
        campaign.out.mkdir(parents=True, exist_ok=True)
        write(soak.samples, campaign.out / "soak.csv")
        draw(soak.samples, campaign.out / "soak.png")


def write(samples: Sequence[Sample], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(samples[0])))
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Plot the samples over time, one panel for each thing that must stay bounded."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    panels: list[tuple[str, Callable[[Sample], float]]] = [
        ("memory, MB", lambda sample: sample.memory_mb),
        ("open files", lambda sample: sample.files),
        ("threads", lambda sample: sample.threads),
        ("disk, MB", lambda sample: sample.disk_mb),
        ("checkpoints", lambda sample: sample.checkpoints),
        ("step", lambda sample: sample.step),
    ]
    figure, axes = pyplot.subplots(len(panels), 1, sharex=True, figsize=(9, 11), layout="constrained")
    for axis, (title, value) in zip(axes, panels, strict=True):
        axis.plot([each.seconds / 60 for each in samples], [value(each) for each in samples], ".", markersize=1.5)
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes; the first half is one life, in the second half lives end by a signal")
    figure.savefig(path)
