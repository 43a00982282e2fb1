"""Power cuts, at each call to the disk: of what was not synced, any part can be gone.

Each subject is run once, with all that it writes recorded. A round is one cut after one of the calls, in one of four
ways (see `volume.py`), and the run by the same command on what the cut has left. It has survived if it goes on after a
step that is not older than the newest that the subject had called saved before the cut, with every value being the one
of that step. It is lost if it does not start, silent if it goes on with less or with something else. Of smkit, the end
must besides be that of a run that nobody has disturbed: model, last checkpoint, metrics.jsonl, and no rubbish; also if
the process before it was killed and the cut comes in the one after.

A run that has ended has said that its model is there: after a cut at that moment it must be, bit by bit, before
anything is started again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torture import faulty_disk
from torture.faulty_disk import Call
from torture.killing.lives import Life, Truth
from torture.power.volume import Volume, digest, put
from torture.subjects import Order, Subject
from torture.tally import Campaign, Outcome


def attack(campaign: Campaign) -> None:
    if not faulty_disk.is_available():
        raise RuntimeError("without gcc there is no faulty disk, and nothing can be recorded")
    library = faulty_disk.compiled(campaign.folder / "disk")
    for name in campaign.subjects:
        with Subject(name, library) as subject:
            (_OnOurs if name == "smkit" else _OnPeer)(campaign, subject, campaign.folder / name).attack()


def _cuts(campaign: Campaign, purpose: str) -> dict[str, Callable[[Volume], Mapping[str, bytes]]]:
    draws = campaign.draws(purpose)
    return {
        "power cut, nothing that was not synced": Volume.after_cut_without_the_unsynced,
        "power cut, names without their bytes": Volume.after_cut_with_names_alone,
        "power cut, bytes without their names": Volume.after_cut_with_bytes_alone,
        "power cut, any part of what was not synced": lambda volume: volume.after_cut_by_chance(draws),
    }


def _committed(calls: Sequence[Call]) -> int:
    steps = [int(call.path.split()[1]) for call in calls if call.kind == "mark" and call.path.startswith("committed")]
    return max(steps, default=0)


class _OnOurs:
    def __init__(self, campaign: Campaign, subject: Subject, folder: Path) -> None:
        self._campaign, self._subject, self._folder = campaign, subject, folder
        self._cuts = _cuts(campaign, "smkit")
        self._seen: set[tuple[str, int]] = set()
        self._truth = Truth.of(subject, self._order("truth"))

    def _order(self, name: str, **more: object) -> Order:
        folder = self._folder / name
        fields = {"epochs": 1, "seconds_per_step": 0.02, **more}
        return Order(folder / "disk" / "run", folder / "notes", **fields)  # type: ignore[arg-type]

    def attack(self) -> None:
        calls = self._recorded("whole")
        volume = Volume(self._folder / "whole" / "disk", ["run"])
        self._cut_everywhere("whole", volume, calls)
        # Killed when the last file of its second checkpoint has its name, and that name is not on the disk.
        names = [number for number, call in enumerate(calls) if call.target.endswith("manifest.json")]
        before, volume = calls[: names[1] + 1], Volume(self._folder / "whole" / "disk", ["run"])
        for call in before:
            volume.apply(call)
        disk = self._folder / "killed before" / "disk"
        put(volume.after_kill(), disk)
        volume.begin_process(disk)
        self._cut_everywhere("killed before", volume, self._recorded("killed before"), before)

    def _recorded(self, name: str) -> list[Call]:
        """Do the run, or go on with it; return its calls."""
        order = self._order(name)
        disk, log = order.folder.parent, order.notes.with_name("calls")
        order.folder.mkdir(parents=True, exist_ok=True)
        orders = faulty_disk.orders(disk, log=log, data=True)
        end = self._subject.start(Order(**vars(order) | {"disk": orders})).end()
        assert end.status == 0, end.text
        return faulty_disk.read_log(log)

    def _cut_everywhere(self, name: str, volume: Volume, calls: Sequence[Call], before: Sequence[Call] = ()) -> None:
        stride = max(1, 120 // self._campaign.rounds)
        first = self._campaign.draws(name).randrange(stride)
        for number, call in enumerate(calls):
            volume.apply(call)
            if number % stride == first or number == len(calls) - 1:
                committed = _committed([*before, *calls[: number + 1]])
                for attack, cut in self._cuts.items():
                    self._cut(attack, cut(volume), committed, f"{name}, call {number} ({call.kind} {call.path[-60:]})")
        for attack, cut in self._cuts.items():
            self._cut_at_the_end(attack, cut(volume), name)

    def _cut(self, attack: str, left: Mapping[str, bytes], committed: int, note: str) -> None:
        state = (digest(left), committed)
        if state in self._seen:
            return
        self._seen.add(state)
        life = Life(self._subject, self._folder / "cut", self._truth, is_after_cut=True)
        put(left, life.run.parent)
        end = life.finish()
        began = end.notes.began
        if began is not None and began.step < committed:
            life.problems.append(f"step {committed} was called saved, it went on after {began.step}")
        self._count(attack, life, note)
        shutil.rmtree(life.folder)

    def _cut_at_the_end(self, attack: str, left: Mapping[str, bytes], note: str) -> None:
        """The run has ended, and has said that it is finished."""
        life = Life(self._subject, self._folder / "cut", self._truth, is_after_cut=True)
        put(left, life.run.parent)
        life.compare()
        self._count(f"{attack}, at the end", life, note)
        shutil.rmtree(life.folder)

    def _count(self, attack: str, life: Life, note: str) -> None:
        self._campaign.tally.count(attack, "smkit", life.outcome(), f"{note}: {life.problems}")


class _OnPeer:
    """The same cuts on a peer, at some of the calls, for the runs are long."""

    def __init__(self, campaign: Campaign, subject: Subject, folder: Path) -> None:
        self._campaign, self._subject, self._folder = campaign, subject, folder
        self._cuts = _cuts(campaign, subject.name)

    def _order(self, name: str) -> Order:
        # What is written elsewhere first, and then brought here, is written to this disk, too.
        folder = self._folder / name
        temporary = folder / "disk" / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        return Order(folder / "disk" / "run", folder / "notes", epochs=1, environment={"TMPDIR": str(temporary)})

    def attack(self) -> None:
        whole = self._order("whole")
        disk, log = whole.folder.parent, whole.notes.with_name("calls")
        orders = faulty_disk.orders(disk, log=log, data=True)
        self._subject.start(Order(**vars(whole) | {"disk": orders})).end()
        calls = faulty_disk.read_log(log)
        draws = self._campaign.draws(f"{self._subject.name} calls")
        wanted = sorted(draws.sample(range(len(calls)), min(len(calls), max(1, self._campaign.rounds // 4))))
        volume = Volume(disk, ["run", "tmp"])
        for number, call in enumerate(calls):
            volume.apply(call)
            if number in wanted:
                for attack, cut in self._cuts.items():
                    self._cut(attack, cut(volume), _committed(calls[: number + 1]), f"call {number}")
        models = {
            f"run/{file.relative_to(whole.folder)}": file.read_bytes()
            for found in whole.folder.glob("model*")
            for file in (found.rglob("*") if found.is_dir() else [found])
        }
        assert models, "it has left no model"
        for attack, cut in self._cuts.items():
            left = cut(volume)
            missing = [name for name, content in models.items() if left.get(name) != content]
            outcome = Outcome.SILENT if missing else Outcome.SURVIVED
            self._campaign.tally.count(f"{attack}, at the end", self._subject.name, outcome, ", ".join(missing))

    def _cut(self, attack: str, left: Mapping[str, bytes], committed: int, note: str) -> None:
        order = self._order("cut")
        put(left, order.folder.parent)
        end = self._subject.start(order).end()
        outcome, amiss = end.judged(committed)
        self._campaign.tally.count(attack, self._subject.name, outcome, f"{note}: {amiss}")
        shutil.rmtree(order.notes.parent)
