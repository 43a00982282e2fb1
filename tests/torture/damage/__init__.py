"""Damage: what a run has left is damaged, forged or exchanged, and the same command is given again.

A round takes a copy of a run that has finished an epoch, does one thing to one of its files or directories, and lets
the run go on for another epoch. It has survived if it went on from the newest whole checkpoint and ended with the very
weights that a run from there ends with, bit by bit; and if, where that was not the newest of all, it has named the
damaged file. An error that says what, where and how is `refused`: for a forged structure that is an answer, for mere
damage with an older checkpoint beside it none. Lost: a fresh start, a refusal without need, a foreign traceback, a run
that never ends or that takes all memory. Silent: other weights, or the older checkpoint without a word.

One round in three is done on a checkpoint in parts too, one in twelve on one that two ranks load, one in five on the
parsed rows of a table, and a few with permissions taken away.

Peers: damage of bits, lengths and whole files of their newest checkpoints, one round in ten; an end with an error is
`lost`, for nothing of theirs will ever get over it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.damage import tables
from torture.damage.forgeries import MANIFESTS, STATES
from torture.damage.mutations import CONTENT, DIRECTORIES, EXCHANGES, Mutation, Scene
from torture.subjects import HUNG, End, Order, Subject
from torture.tally import Campaign, Outcome

_MOST_BYTES = 4 * 2**30
"""Of addresses, more than a run had when it began; each of its threads takes some tens of millions for itself."""
_SECONDS = 120.0
"""A run takes two tenths of one on a quiet machine."""
_PEER_SHARE = 10
_PARTS_SHARE = 3
_PAIRED_SHARE = 12
"""Two processes take ten times as long."""
_WITHOUT_POWER = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
_STEP = re.compile(r"step[-_=]?0*(\d+)|checkpoint[-_]0*(\d+)")


@dataclass(frozen=True)
class Sound:
    """A run that has finished an epoch, and what it comes to when it goes on undamaged.

    Attributes:
        folder: What it has left.
        steps: Of its checkpoints, newest first.
        learned: What a run has learned in the end that goes on from a step.
    """

    folder: Path
    steps: Sequence[int]
    learned: dict[int, str]

    @property
    def store(self) -> Path:
        return self.folder / "checkpoints"


@dataclass(frozen=True)
class Damage:
    """One thing to do to a copy of a run.

    Attributes:
        attack: The row of the table.
        name: What exactly.
        target: The damaged file or directory, below the run's folder.
        do: Does it.
        is_forged: Whether hashes say that all is right.
    """

    attack: str
    name: str
    target: Path
    do: Callable[[Path, Path, random.Random], None]
    is_forged: bool = False


class Patients:
    """Copies of a sound run that are damaged and resumed."""

    def __init__(self, subject: Subject, folder: Path, *, world_size: int = 1, resumed_by: int = 1) -> None:
        self.subject, self._folder, self._resumed_by = subject, folder, resumed_by
        folder.mkdir(parents=True)
        self._settings = ("--strategy", "fsdp") if world_size > 1 else ()
        self._number = 0
        sound = folder / "sound"
        order = Order(sound, folder / "sound.notes", epochs=1, world_size=world_size, settings=self._settings)
        end = subject.start(order).end()
        if end.status != 0:
            raise RuntimeError(f"{subject.name} does not even finish a sound run: {end.text[-2000:]}")
        self.sound = Sound(sound, [], {})
        if subject.name == "smkit":
            steps = sorted((step_of(path) for path in self.sound.store.iterdir()), reverse=True)
            self.sound = Sound(sound, steps, self._learned(steps))
        else:
            end = self.resumed(lambda _: None)
            assert end.notes.began is not None
            assert end.notes.ended is not None
            self.sound = Sound(sound, [end.notes.began.step], {end.notes.began.step: end.notes.ended.learned})

    def _learned(self, steps: Sequence[int]) -> dict[int, str]:
        learned = {}
        for step in steps:
            end = self.resumed(lambda copy, step=step: without_newer(copy / "checkpoints", step))
            began, ended = end.notes.began, end.notes.ended
            if end.status or began is None or ended is None or began.step != step:
                raise RuntimeError(f"an undamaged run does not go on after step {step}: {end.text[-2000:]}")
            learned[step] = ended.learned
        return learned

    def resumed(self, damage: Callable[[Path], None]) -> End:
        """Damage a copy, let it go on for another epoch, and return how that ended."""
        self._number += 1
        copy = self._folder / f"{self._number:05d}"
        shutil.copytree(self.sound.folder, copy)
        damage(copy)
        notes = self._folder / f"{self._number:05d}.notes"
        order = Order(copy, notes, epochs=2, settings=self._settings, world_size=self._resumed_by)
        running = self.subject.start(order)
        for process in running.processes:
            with contextlib.suppress(OSError):
                bound_memory(process)
        end = running.end(_SECONDS)
        let_go(copy)
        for file in self._folder.glob(f"{self._number:05d}.notes*"):
            file.unlink()
        return end


def step_of(directory: Path) -> int:
    return int(directory.name.split("-")[1])


def without_newer(store: Path, step: int) -> None:
    for directory in store.iterdir():
        if step_of(directory) > step:
            shutil.rmtree(directory)


def bound_memory(process: int) -> None:
    status = Path(f"/proc/{process}/status").read_text()
    size = int(status.partition("VmSize:")[2].split()[0]) * 1024
    resource.prlimit(process, resource.RLIMIT_AS, (size + _MOST_BYTES, size + _MOST_BYTES))


def let_go(folder: Path) -> None:
    """Remove a folder, whatever stands in it."""
    for name in (folder, *folder.glob("**/")):
        with contextlib.suppress(OSError):
            name.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def attack(campaign: Campaign) -> None:
    if "smkit" in campaign.subjects:
        on_runs(campaign)
        deny(campaign)
        tables.attack(campaign)
    for name in campaign.subjects:
        if name != "smkit":
            with Subject(name) as subject:
                patients = Patients(subject, campaign.folder / name)
                deck = dealt(of_peer(patients.sound), campaign.draws(f"damage of {name}"))
                for number in range(-(-campaign.rounds // _PEER_SHARE)):
                    treat(campaign, patients, next(deck), number)


def on_runs(campaign: Campaign, *, by_two_ranks: bool = True) -> None:
    """Damage what smkit's runs have left: of one process, and of two, whose checkpoint is in parts."""
    chance = campaign.draws("damage")
    with Subject("smkit") as subject:
        whole = Patients(subject, campaign.folder / "whole")
        parts = Patients(subject, campaign.folder / "parts", world_size=2)
        deck = dealt([*of_checkpoint(whole.sound), *forged(whole.sound), *of_folder(whole.sound)], chance)
        in_parts = dealt(of_checkpoint(parts.sound, "in parts: "), chance)
        for number in range(campaign.rounds):
            treat(campaign, whole, next(deck), number)
            if number % _PARTS_SHARE == 0:
                treat(campaign, parts, next(in_parts), number)
        if by_two_ranks:
            pairs = Patients(subject, campaign.folder / "pairs", world_size=2, resumed_by=2)
            damages = [*of_checkpoint(pairs.sound, "two ranks: "), *forged(pairs.sound, "two ranks: ")]
            by_pairs = dealt(damages, chance)
            for number in range(-(-campaign.rounds // _PAIRED_SHARE)):
                treat(campaign, pairs, next(by_pairs), number)


def dealt(damages: Sequence[Damage], chance: random.Random) -> Iterator[Damage]:
    """Yield all, then all again, in ever new orders."""
    while True:
        yield from chance.sample(damages, len(damages))


def treat(campaign: Campaign, patients: Patients, damage: Damage, number: int) -> None:
    """Do one round and count it."""
    place = campaign.draws(f"{damage.attack} {damage.name} {number}")
    sound = patients.sound

    def do(copy: Path) -> None:
        damage.do(copy / damage.target, _other(copy / damage.target, sound), place)

    end = patients.resumed(do)
    judge = judged if patients.subject.name == "smkit" else judged_peer
    outcome, why = judge(end, sound, damage)
    note = f"round {number}, {damage.name} of {damage.target}: {why}"
    campaign.tally.count(damage.attack, patients.subject.name, outcome, note)


def _other(target: Path, sound: Sound) -> Path:
    """Return the same file or directory of the checkpoint before; of anything else the file itself."""
    store = next((path for path in target.parents if path.name == "checkpoints"), None)
    if store is None or len(sound.steps) < 2:
        return target
    _, *inner = target.relative_to(store).parts
    before = next(path.name for path in sound.store.iterdir() if step_of(path) == sound.steps[1])
    return store.joinpath(before, *inner)


# --- what is damaged --------------------------------------------------------------------------------------------------


def of_checkpoint(sound: Sound, label: str = "checkpoint: ") -> list[Damage]:
    newest = max(sound.store.iterdir(), key=step_of)
    files = sorted(path.relative_to(sound.folder) for path in newest.iterdir())
    damages = [
        Damage(label + attack, name, file, _mutated(mutation))
        for attack, mutations in (CONTENT | EXCHANGES).items()
        for name, mutation in mutations.items()
        for file in files
    ]
    return damages + [
        Damage(label + attack, name, newest.relative_to(sound.folder), _mutated(mutation))
        for attack, mutations in DIRECTORIES.items()
        for name, mutation in mutations.items()
    ]


def _mutated(mutation: Mutation) -> Callable[[Path, Path, random.Random], None]:
    return lambda path, other, chance: mutation(Scene(path, other, chance))


def forged(sound: Sound, label: str = "") -> list[Damage]:
    newest = max(sound.store.iterdir(), key=step_of).relative_to(sound.folder)
    return [
        Damage(
            f"{label}{attack}", name, newest, lambda path, _, chance, forge=forge: forge(path, chance), is_forged=True
        )
        for attack, forgeries in (("hostile manifest", MANIFESTS), ("forged state", STATES))
        for name, forge in forgeries.items()
    ]


def of_folder(sound: Sound) -> list[Damage]:
    """Damage of what a run has left besides: the model, its settings, rows of metrics, TensorBoard's events."""
    files = [path for path in sorted(sound.folder.rglob("*")) if path.is_file() and sound.store not in path.parents]
    failure = Path("output/failure")
    damages = [
        Damage(
            f"run folder: {file.name.split('.')[0] if 'tfevents' in file.name else file.name}",
            f"{attack}, {name}",
            file.relative_to(sound.folder),
            _mutated(mutation),
        )
        for file in files
        for attack, mutations in (CONTENT | EXCHANGES).items()
        if attack != "exchanged"
        for name, mutation in mutations.items()
    ]
    for name, mutation in EXCHANGES["replaced"].items():
        for file in (failure, Path("output/data/metrics.jsonl.part"), Path("model/model.safetensors.part")):

            def plant(path: Path, other: Path, chance: random.Random, mutation: Mutation = mutation) -> None:
                path.write_text("x")
                mutation(Scene(path, other, chance))

            damages.append(Damage(f"run folder: planted {file.name}", name, file, plant))
    return damages


def of_peer(sound: Sound) -> list[Damage]:
    """Damage of the files from which a peer would go on: those of the highest step, or of none."""
    files = [path.relative_to(sound.folder) for path in sorted(sound.folder.rglob("*")) if path.is_file()]
    files = [file for file in files if not file.parts[0].startswith("model")]
    last = [file for file in files if "last" in file.name]
    newest = max((_step_in(file) for file in files), default=-1)
    chosen = last or [file for file in files if _step_in(file) == newest]
    return [
        Damage(f"checkpoint: {attack}", name, file, _mutated(mutation))
        for attack, mutations in CONTENT.items()
        if attack != "grown"
        for name, mutation in mutations.items()
        for file in chosen
    ]


def _step_in(file: Path) -> int:
    found = _STEP.search(str(file))
    return int(next(filter(None, found.groups()))) if found else -1


# --- what came of it --------------------------------------------------------------------------------------------------


def judged(end: End, sound: Sound, damage: Damage) -> tuple[Outcome, str]:
    began, ended, text = end.notes.began, end.notes.ended, end.text
    is_said = damage.target.name in text or damage.target.parent.name in text
    if HUNG in end.statuses:
        return Outcome.LOST, f"it hangs, after: {text[-300:]!r}"
    if "Traceback" in text or any(status not in (0, 1, 2) for status in end.statuses):
        return Outcome.LOST, f"statuses {end.statuses}, {_last_words(text)}"
    if end.status != 0:
        is_clear = "  fix:   " in text and is_said
        needed = damage.is_forged or not damage.attack.partition(": ")[2].startswith(tuple(CONTENT))
        outcome = Outcome.REFUSED if is_clear and needed else Outcome.LOST
        return outcome, f"status {end.status}, {_last_words(text)}"
    if began is None or ended is None or not began.is_sound or not ended.is_sound:
        return Outcome.SILENT, f"it went on with {began} and ended with {ended}"
    if began.step not in sound.steps:
        return Outcome.LOST, f"it began at step {began.step}"
    if ended.learned != sound.learned[began.step]:
        return Outcome.SILENT, f"it went on after step {began.step} to other weights"
    if began.step != sound.steps[0] and not (is_said or _is_gone_without_trace(damage)):
        return Outcome.SILENT, f"it went on after step {began.step} and did not name what was passed over"
    return Outcome.SURVIVED, ""


def _is_gone_without_trace(damage: Damage) -> bool:
    return damage.attack.endswith("directory") and damage.name == "missing"


def judged_peer(end: End, sound: Sound, damage: Damage) -> tuple[Outcome, str]:
    began, ended = end.notes.began, end.notes.ended
    if end.status != 0 or began is None or ended is None:
        return Outcome.LOST, f"status {end.status}, {_last_words(end.text)}"
    if not began.is_sound or not ended.is_sound:
        return Outcome.SILENT, f"it went on with {began.step}, {began.weights}, {began.memory}"
    if began.step == 0:
        return Outcome.SILENT, "it began anew"
    if began.step == sound.steps[0] and ended.learned != sound.learned[began.step]:
        return Outcome.SILENT, "it went on to other weights"
    return Outcome.SURVIVED, ""


def _last_words(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return " / ".join(line.strip() for line in lines[-4:])[-500:]


# --- permission -------------------------------------------------------------------------------------------------------


def deny(campaign: Campaign) -> None:
    """Take the permission to read or write what the run has left; root does without its power to do so all the same."""
    through = _WITHOUT_POWER if os.geteuid() == 0 else ()
    with Subject("smkit", through=through) as subject:
        patients = Patients(subject, campaign.folder / "denied")
        sound = patients.sound
        newest = max(sound.store.iterdir(), key=step_of).relative_to(sound.folder)
        places = [newest, *(path.relative_to(sound.folder) for path in (sound.folder / newest).iterdir())]
        places += [
            Path("checkpoints"),
            Path("output/data/metrics.jsonl"),
            Path("output/data"),
            Path("model/settings.json"),
        ]
        damages = [
            Damage("permission denied", f"mode {mode:o}", place, _with_mode(mode))
            for place in places
            for mode in (0, 0o200, 0o400)
        ]
        damages += [Damage("permission denied", "mode 0 of all", Path("checkpoints"), _all_with_mode)]
        deck = dealt(damages, campaign.draws("permissions"))
        for number in range(min(campaign.rounds // 5 + 1, len(damages))):
            treat(campaign, patients, next(deck), number)


def _with_mode(mode: int) -> Callable[[Path, Path, random.Random], None]:
    return lambda path, other, chance: path.chmod(mode)


def _all_with_mode(path: Path, other: Path, chance: random.Random) -> None:
    for directory in path.iterdir():
        directory.chmod(0)
