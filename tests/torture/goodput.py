"""A training on spot instances: interrupted by a random trace, and the share of the time that it keeps.

A round is a second. The run saves every three seconds; after twenty of these intervals on average, but at random, it is
interrupted, every second time with notice (SIGTERM), else without (SIGKILL), and started again at once.

An interruption has survived if the run goes on after the step that it had finished, where it was given notice, and
after the last step that was saved where not, which must not be older than a few intervals. What it costs is measured
from the time of each step, and printed: the steps done again, the seconds from the start of a process to its first step
and from a notice to the end, and what the saves add to the steps. From these comes the share of the time that is kept
(ETTR) if the same happens at intervals of a minute.
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torture.soak import committed_step
from torture.tally import Campaign, Outcome

SCRIPT = Path(__file__).with_name("goodput_script.py")
INTERVAL_SECONDS = 3.0
INTERVALS = 20
"""Between two interruptions, on average."""
MOST_INTERVALS = 5
"""Without a save; the machine may be busy."""
TRUE_INTERVAL_SECONDS = 60.0
"""smkit's own shortest."""
SETTINGS = ("--epochs", "1000000", "--batch-size", "20")
ENDS = (signal.SIGKILL, signal.SIGTERM)
WITHIN_SECONDS = 120.0


@dataclass
class Life:
    """One process, from its start to its interruption."""

    started: float
    steps: list[tuple[int, float]] = field(default_factory=list)
    """Of each step how many were finished before it, and when it began."""
    saved: int = 0
    """The last step that was saved when it was interrupted."""
    end: signal.Signals = signal.SIGKILL
    leaving_seconds: float = 0.0
    """From the interruption to the end of the process."""

    @classmethod
    def lived(cls, run: Path, data: Path, seconds: float, end: signal.Signals) -> Life:
        """Start the run, and interrupt it so many seconds after its first step."""
        record = data.with_name(f"steps-{time.monotonic_ns()}")
        settings = [*SETTINGS, f"--checkpoint-every-seconds={INTERVAL_SECONDS}"]
        command = [sys.executable, str(SCRIPT), *settings, f"--channel=train={data}", "--run-dir", str(run)]
        life = cls(time.time(), end=end)
        with record.with_suffix(".log").open("w") as log:
            process = subprocess.Popen(
                command, env={**os.environ, "TORTURE_STEPS": str(record)}, stdout=log, stderr=log
            )
        deadline = time.monotonic() + WITHIN_SECONDS
        while not record.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(seconds)
        interrupted = time.monotonic()
        process.send_signal(end)
        status = process.wait(WITHIN_SECONDS)
        life.leaving_seconds = time.monotonic() - interrupted
        lines = record.read_text().splitlines() if record.exists() else []
        if status != (143 if end == signal.SIGTERM else -signal.SIGKILL) or not lines:
            raise RuntimeError(f"status {status} after {end.name}: {record.with_suffix('.log').read_text()[-2000:]}")
        life.steps = [(int(step), float(then)) for step, then in map(str.split, lines)]
        life.saved = committed_step(run)
        return life

    @property
    def reached(self) -> int:
        """The step that was begun last, by its number."""
        return self.steps[-1][0] + 1


def attack(campaign: Campaign) -> None:
    """Train for `campaign.rounds` seconds, and print what the interruptions and the saves have cost."""
    lives = interrupted_lives(campaign)
    if campaign.tally.follow:
        print("\n".join(["", *costs(lives)]), flush=True)


def interrupted_lives(campaign: Campaign) -> list[Life]:
    """Train and interrupt for so many seconds, once in each way at least, and count what came of it."""
    run, data = campaign.folder / "run", campaign.folder / "data"
    data.mkdir()
    (data / "present").touch()
    draws, deadline = campaign.draws("goodput"), time.monotonic() + campaign.rounds
    lives: list[Life] = []
    while time.monotonic() < deadline or len(lives) <= len(ENDS):
        seconds = min(draws.expovariate(1 / (INTERVALS * INTERVAL_SECONDS)), max(1.0, deadline - time.monotonic()))
        lives.append(Life.lived(run, data, seconds, ENDS[len(lives) % 2]))
        if len(lives) > 1:
            outcome, note = judged(lives[-2], lives[-1])
            campaign.tally.count(f"interrupted, {lives[-2].end.name}", "smkit", outcome, note)
    return lives


def judged(before: Life, after: Life) -> tuple[Outcome, str]:
    """Return what came of an interruption: whether the next process went on where it should."""
    first = after.steps[0][0]
    # The step that had begun when the notice came is finished first.
    wanted = before.reached if before.end == signal.SIGTERM else before.saved
    end = before.steps[-1][1]
    # After a notice all is saved, and no step comes after that.
    unsaved = end - next((then for step, then in before.steps if step >= before.saved), end)
    if unsaved > MOST_INTERVALS * INTERVAL_SECONDS:
        return Outcome.LOST, f"{before.end.name} in step {before.reached}: nothing was saved for {unsaved:.0f} s"
    if first == wanted:
        return Outcome.SURVIVED, ""
    return Outcome.LOST, f"{before.end.name} in step {before.reached}, step {before.saved} saved: went on after {first}"


def costs(lives: list[Life]) -> Iterator[str]:
    """Yield a line for each thing that was measured."""
    gaps = [gap for life in lives for gap in _gaps(life)]
    usual = statistics.median(gaps)
    whole = lives[-1].steps[-1][1] - lives[0].started
    yield f"goodput: {len(lives)} lives in {whole:.0f} s, {lives[-1].reached} steps of {usual * 1000:.1f} ms kept"
    starts = statistics.median(life.steps[0][1] - life.started for life in lives)
    # A process is killed at any moment between two saves.
    again = [
        before.reached - after.steps[0][0]
        for before, after in itertools.pairwise(lives)
        if before.end == signal.SIGKILL
    ]
    lost = statistics.fmean(again) * usual / INTERVAL_SECONDS if again else 0.5
    intervals = sum(life.steps[-1][1] - life.steps[0][1] for life in lives) / INTERVAL_SECONDS
    stall = sum(gap - usual for gap in gaps if gap > 2 * usual) / intervals
    leaving = statistics.fmean(life.leaving_seconds for life in lives if life.end == signal.SIGTERM)
    yield f"goodput: from a notice to the end {leaving:.1f} s"
    yield f"goodput: what a save, and the noise of the machine, add to the steps of an interval: {stall * 1000:.0f} ms"
    yield f"goodput: kept at this pace {lives[-1].reached * usual / whole:.1%}"
    between = INTERVALS * TRUE_INTERVAL_SECONDS
    for name, kills in (("all of them kills", 1.0), ("half of them with notice", 0.5)):
        interruption = kills * lost * TRUE_INTERVAL_SECONDS + (1 - kills) * leaving + starts
        kept = 1 - stall / TRUE_INTERVAL_SECONDS - interruption / between
        yield f"goodput: kept with a save a minute and an interruption in {between / 60:.0f} min, {name}: {kept:.1%}"


def _gaps(life: Life) -> list[float]:
    times = [then for _, then in life.steps]
    return [later - earlier for earlier, later in itertools.pairwise(times)]
