"""A life: one training, run again and again by the same command until it is done, and held against an undisturbed one.

What was committed is learned from two witnesses that know nothing of each other: the notes of the runs, and a look at
the disk between two of them. This module sends no signal.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.subjects import SAMPLES, End, Order, Running, State, Subject
from torture.tally import Outcome

_TIMED = {"time", "train/samples_per_second", "train/data_wait_percent", "train/eta_seconds"}


def committed_steps(run: Path) -> list[int]:
    """Return the steps of smkit's checkpoints that have their last file, from old to new, by a look at the disk."""
    manifests = (run / "checkpoints").glob("step-*/manifest.json")
    return sorted(int(file.parent.name.split("-")[1]) for file in manifests)


def metric_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, but for what the clock says."""
    file = run / "output" / "data" / "metrics.jsonl"
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    return [{name: value for name, value in _row(line).items() if name not in _TIMED} for line in lines]


def _row(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {"step": line}


def artifacts(run: Path) -> dict[str, bytes]:
    """Return what a finished run has left: its model, and its last checkpoint with all random generators."""
    newest = max((file.parent for file in run.glob("checkpoints/step-*/manifest.json")), default=run / "none")
    files = [run / "model" / "model.safetensors", *newest.glob("state.json"), *newest.glob("tensors*.safetensors")]
    contents = {file.name: file.read_bytes() for file in files if file.exists()}
    return {name: _without_metrics(data) if name == "state.json" else data for name, data in contents.items()}


def _without_metrics(tree: bytes) -> bytes:
    """Return a checkpoint's tree but for what it says of records: which of them were still on their way, is chance."""
    content = json.loads(tree)
    content["dict"] = [entry for entry in content["dict"] if entry[0] != "metrics"]
    return json.dumps(content).encode()


def rubbish(run: Path, *, has_saved: bool = True) -> list[str]:
    """Return what no finished run should leave behind, whatever was done to those before it.

    A save that was cut off in the last step is no rubbish: its folder has no manifest, and the next save removes it.
    Nor is what a kill has left half removed, if the run that finished had nothing more to save.
    """
    kept = {"model.safetensors", "settings.json"}
    models = [file for file in (run / "model").rglob("*") if file.name not in kept]
    halves = [file for file in run.rglob("*") if re.search(r"\.part$|\.tmp|^\.smkit", file.name)]
    names = {str(path.relative_to(run)) for path in (*models, *halves)}
    last = f"checkpoints/step-{max(committed_steps(run), default=0):09d}-"
    bare = [folder for folder in (run / "checkpoints").glob("*") if not (folder / "manifest.json").exists()]
    names |= {str(folder.relative_to(run)) for folder in bare if has_saved}
    return sorted(name for name in names if not name.startswith(last))


@dataclass(frozen=True)
class Truth:
    """What a run leaves that nobody has disturbed.

    Attributes:
        order: The run.
        samples: Of each step, for each rank.
        learned: The digest of what was learned before each step, and at the end.
        artifacts: See `artifacts`.
        rows: See `metric_rows`.
    """

    order: Order
    samples: list[list[list[int]]]
    learned: list[str]
    artifacts: dict[str, bytes]
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, subject: Subject, order: Order) -> Truth:
        """Do the run, and see that it is what it should be."""
        end = subject.start(order).end()
        notes = end.notes
        assert end.status == 0, end.text
        assert notes.ended is not None
        samples = [running_samples(order, rank) for rank in range(order.world_size)]
        for epoch in range(order.epochs):
            steps = slice(epoch * order.total_steps // order.epochs, (epoch + 1) * order.total_steps // order.epochs)
            seen = sorted(number for rank in samples for step in rank[steps] for number in step)
            assert seen == list(range(SAMPLES)), f"epoch {epoch}: {seen}"
        left = artifacts(order.folder), metric_rows(order.folder)
        # What is exported can be another model; what was learned in the end, the same command finds again.
        began = subject.start(dataclasses.replace(order, notes=order.notes.with_name("notes-again"))).end().notes.began
        assert began is not None
        assert began.step == order.total_steps
        return cls(order, samples, [*notes.learned, began.learned], *left)


def running_samples(order: Order, rank: int) -> list[list[int]]:
    """Return the samples that a rank has noted, step by step."""
    file = order.notes.with_name(f"{order.notes.name}.{rank}") if rank else order.notes
    lines = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line["samples"] for line in lines if line["event"] == "step"]


@dataclass
class Life:
    """A training of smkit in a folder of its own, which is to become what `truth` is."""

    subject: Subject
    folder: Path
    truth: Truth
    is_after_cut: bool = False
    """Whether the disk was cut off its power: then the name of a manifest does not prove that it was committed."""
    runs: int = 0
    problems: list[str] = field(default_factory=list)
    """What was wrong, in words; empty: nothing."""
    went_on: bool = False
    """Whether the last run has come as far as its first step."""
    before: int = 0
    """The newest step that was committed before the last run."""

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self, **more: Any) -> Running:
        """Start the same command once more; `more` are fields of `Order` that make no difference to what is trained."""
        self.before = 0 if self.is_after_cut else max(committed_steps(self.run), default=0)
        notes = self.folder / f"notes-{self.runs}"
        self.runs += 1
        return self.subject.start(dataclasses.replace(self.truth.order, folder=self.run, notes=notes, **more))

    def end(self, running: Running, *, statuses: tuple[int, ...] = (0,), fails_saves: bool = False) -> End:
        """Wait for the end of a run, and note what is wrong with it.

        Args:
            running: What `start` has returned.
            statuses: With which rank 0 may end.
            fails_saves: Whether its disk may have refused to take a checkpoint.
        """
        end = running.end()
        newest = max(committed_steps(self.run), default=0)
        self._expect(end.status in statuses, f"status {end.status}: {end.text[-600:]}")
        self._expect("Traceback" not in end.text, f"a traceback: {end.text[-600:]}")
        notes = end.notes
        said = max(notes.committed, default=0)
        self._expect(said <= newest, f"step {said} was called saved, the newest on the disk is {newest}")
        # The save before the last one is done when the last one is begun.
        begun = notes.saving[-2] if len(notes.saving) > 1 else 0
        self._expect(
            fails_saves or begun <= newest,
            f"a save after that of step {begun} was begun, the newest on the disk is {newest}",
        )
        self._expect(self.before <= newest, f"step {self.before} was committed, now the newest is {newest}")
        self.went_on = notes.began is not None
        if notes.began is not None:
            self._judge(notes.began, running.order)
        return end

    def _judge(self, began: State, order: Order) -> None:
        step = began.step
        self._expect(
            self.is_after_cut or step == self.before, f"it went on after step {step}, committed was {self.before}"
        )
        self._expect(began.is_sound, f"the values are not those of step {step}: {began}")
        expected = self.truth.learned[step]
        self._expect(began.learned == expected, f"what was learned by step {step} is not what was learned")
        for rank in range(order.world_size):
            done = running_samples(order, rank)
            expected_samples = self.truth.samples[rank][step : step + len(done)]
            self._expect(done == expected_samples, f"rank {rank} was given other samples after step {step}: {done[:3]}")

    def finish(self, *, rows: bool = True, is_clean: bool = True, **more: Any) -> End:
        """Run it to its end, undisturbed, and compare what it has left with what it should have."""
        end = self.end(self.start(**more))
        if end.status == 0:
            self.compare(rows=rows, is_clean=is_clean, has_saved=bool(end.notes.saving))
        return end

    def outcome(self) -> Outcome:
        """Return what it came to."""
        if not self.problems:
            return Outcome.SURVIVED
        is_lost = any("status" in problem or "was c" in problem for problem in self.problems)
        return Outcome.LOST if is_lost else Outcome.SILENT

    def compare(self, *, rows: bool = True, is_clean: bool = True, has_saved: bool = True) -> None:
        """Compare what is left, bit by bit.

        Args:
            rows: Whether all rows of metrics.jsonl were written.
            is_clean: Whether nothing may be left behind.
            has_saved: Whether the last run has, which removes what those before it left half removed.
        """
        left, expected = artifacts(self.run), self.truth.artifacts
        for name in expected:
            self._expect(left.get(name) == expected[name], f"{name} is not that of an undisturbed run")
        if rows:
            found = metric_rows(self.run)
            steps = [row["step"] for row in found]
            self._expect(found == self.truth.rows, f"metrics.jsonl is not that of an undisturbed run: steps {steps}")
        # A cut can bring back what was removed; the next save removes it again.
        is_clean = is_clean and not self.is_after_cut
        left_behind = rubbish(self.run, has_saved=has_saved) if is_clean else []
        self._expect(not left_behind, f"left behind: {', '.join(left_behind)}")

    def _expect(self, is_so: bool, problem: str) -> None:
        if not is_so:
            self.problems.append(problem)
