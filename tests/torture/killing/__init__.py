"""SIGKILL at every moment there is: in a step, in a save, at the start, at the end, before each call to the disk.

A round is one run that is killed, and the run after it, by the same command, as the subject's documentation has it.
It has survived if it went on exactly after the newest step that was committed (what the subject called saved, and, of
smkit, what lay on the disk after the kill), with every value of model and optimizer being the one of that step. It is
lost if it does not start, and silent if it goes on after an older step, or with other values, and says nothing of it.

Of smkit more is asked. It is killed several times over one training; each sample, and what was learned before the
first step of each run, must be what an undisturbed run had at that step; at most the save in flight may be lost; and in
the end the model, the last checkpoint with its random generators, and metrics.jsonl must be the same bit by bit, with
nothing left behind. A life that ends otherwise is counted as lost or silent in its last round.

Where a call to the disk fails instead, the run may end with an error that says how to mend it, or go on and come out
right but for the metrics of which it has said that it cannot write them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture import faulty_disk
from torture.killing.lives import Life, Truth
from torture.subjects import Order, Running, Subject
from torture.tally import Campaign, Outcome

_KILLS = 4
"""In one life, at most."""
_PEER_SHARE = 0.12
"""Of the rounds, for each attack on a peer: their runs are long."""


def attack(campaign: Campaign) -> None:
    disk = faulty_disk.compiled(campaign.folder / "disk") if faulty_disk.is_available() else None
    for name in campaign.subjects:
        with Subject(name, disk) as subject:
            group: _OnOurs | _OnPeer = (_OnOurs if name == "smkit" else _OnPeer)(
                campaign, subject, campaign.folder / name
            )
            group.at_random_moments()
            if disk is not None:
                group.at_each_call()
                group.with_wrong_clocks()


def scatter_times(folder: Path, draws: random.Random) -> None:
    """Give each file and folder a time of its own, up to a year from now in either direction."""
    for path in sorted(folder.rglob("*"), reverse=True):
        moment = time.time() + draws.uniform(-1, 1) * 365 * 86400
        os.utime(path, (moment, moment))


@dataclass(frozen=True)
class _Moment:
    """A kind of moment: what is waited for, and how many seconds after it the kill comes, at most."""

    name: str
    share: float
    event: str = ""
    """A note of the run, a random one of those that it makes; `end`: its last step; empty: the start."""
    seconds: float = 0.0
    """0: as long as an undisturbed run takes."""
    asks_first: bool = False
    """Whether SIGTERM comes first, and the kill in the save that follows."""
    fields: tuple[tuple[str, Any], ...] = ()
    """Of the order."""
    ranks: tuple[int, ...] = ()
    """Who is killed; empty: all."""
    is_alone: bool = False
    """Whether the processes that a killed one has started are left alive."""


_BEST = ("--monitor-metric", "loss", "--ema-decay", "0.9", "--max-grad-norm", "1.0", "--validate-every-steps", "4")
_MOMENTS = (
    _Moment("kill, any moment", 0.30),
    _Moment("kill, starting", 0.08, seconds=0.08),
    _Moment("kill, in a save", 0.18, event="saving", seconds=0.02),
    _Moment("kill, in the save of a SIGTERM", 0.10, event="step", seconds=0.025, asks_first=True),
    _Moment("kill, at the end", 0.08, event="end", seconds=0.04),
    _Moment("kill, with validation and a best model", 0.12, fields=(("settings", _BEST),)),
    _Moment("kill, both of 2 processes", 0.05, fields=(("world_size", 2),)),
    _Moment("kill, one of 2 processes", 0.05, fields=(("world_size", 2),), ranks=(0, 1)),
    _Moment("kill, worker processes left alone", 0.02, fields=(("workers", 1),), is_alone=True),
)


@dataclass(frozen=True)
class _Fault:
    """What is done at a call to the disk, at each that is `stride` after another."""

    name: str
    do: str
    stride: int = 1
    times: int = 1
    only: str = ""
    kills: bool = False


_FAULTS = (
    _Fault("kill before call N", "kill", kills=True),
    _Fault("kill in write N", "torn", only="write", kills=True),
    _Fault("EIO at call N", f"error:{errno.EIO}", stride=2),
    _Fault("ENOSPC at call N", f"error:{errno.ENOSPC}", stride=2),
    _Fault("EROFS from call N on", f"error:{errno.EROFS}", stride=3, times=0),
)


class _OnOurs:
    def __init__(self, campaign: Campaign, subject: Subject, folder: Path) -> None:
        self._campaign, self._subject, self._folder = campaign, subject, folder
        self._truths: dict[tuple[tuple[str, Any], ...], Truth] = {}
        self._lengths: dict[str, float] = {}

    def _truth(self, **fields: Any) -> Truth:
        key = tuple(sorted(fields.items()))
        if key not in self._truths:
            folder = self._folder / f"truth-{len(self._truths)}"
            began = time.monotonic()
            self._truths[key] = Truth.of(
                self._subject, Order(folder / "run", folder / "notes", **{"seconds_per_step": 0.002} | fields)
            )
            self._lengths[folder.name] = time.monotonic() - began
        return self._truths[key]

    @contextlib.contextmanager
    def _life(self, name: str, truth: Truth) -> Iterator[Life]:
        folder = self._folder / name.replace(" ", "-")
        yield Life(self._subject, folder, truth)
        shutil.rmtree(folder, ignore_errors=True)

    def at_random_moments(self) -> None:
        for moment in _MOMENTS:
            rounds = round(moment.share * self._campaign.rounds)
            draws = self._campaign.draws(moment.name)
            life_number = 0
            while (left := rounds - self._campaign.tally.rounds(moment.name)) > 0:
                self._kill_through_a_life(moment, draws, min(left, draws.randint(1, _KILLS)), life_number)
                life_number += 1

    def _kill_through_a_life(self, moment: _Moment, draws: random.Random, kills: int, number: int) -> None:
        truth = self._truth(**dict(moment.fields))
        with self._life(f"{moment.name} {number}", truth) as life:
            for _ in range(kills):
                running = life.start()
                self._strike(moment, running, draws)
                life.end(running, statuses=self._statuses(moment))
            life.finish()
            self._count(moment.name, life, kills, f"life {number}, {kills} kills, seed {self._campaign.seed}")

    def _statuses(self, moment: _Moment) -> tuple[int, ...]:
        # A run may be done before; of two, the one that is left alone ends by itself, with an error.
        return (0, -signal.SIGKILL, *((143,) if moment.asks_first else ()), *((1,) if moment.ranks else ()))

    def _strike(self, moment: _Moment, running: Running, draws: random.Random) -> None:
        length = self._lengths[self._truth(**dict(moment.fields)).order.folder.parent.name]
        after = draws.uniform(0, moment.seconds or length)
        if moment.event == "end":
            running.wait_for("step", running.order.total_steps)
        elif moment.event:
            running.wait_for(moment.event, draws.randint(1, 10))
        if moment.asks_first:
            running.kill(number=signal.SIGTERM)
        time.sleep(after)
        victims = [draws.choice(moment.ranks)] if moment.ranks else range(len(running.processes))
        for rank in victims:
            if moment.is_alone:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running.processes[rank], signal.SIGKILL)
            else:
                running.kill(rank)

    def _count(self, attack: str, life: Life, rounds: int, note: str) -> None:
        """Count the rounds of a life; what was wrong in it is counted once."""
        tally = self._campaign.tally
        for _ in range(rounds - 1):
            tally.count(attack, "smkit", Outcome.SURVIVED)
        tally.count(attack, "smkit", life.outcome(), f"{note}: {life.problems}")

    def at_each_call(self) -> None:
        """Do something at the first call to the disk, then at the second, until a run is over before.

        In a run that begins, and in one that goes on after a kill.
        """
        for fault in _FAULTS:
            stride = max(fault.stride, 360 // self._campaign.rounds)
            for is_resumed in (False, True):
                name = f"{fault.name}, resumed" if is_resumed else fault.name
                number = 1 + self._campaign.draws(name).randrange(stride)
                while self._at_call(name, fault, number, is_resumed=is_resumed):
                    number += stride

    def _half_done(self) -> Path:
        """Return a run that was killed once, and has several checkpoints."""
        folder = self._folder / "half"
        if not folder.exists():
            life = Life(self._subject, folder, self._truth(epochs=1, seconds_per_step=0.0))
            running = life.start(seconds_per_step=0.05)
            running.wait_for("step", 7)
            running.kill()
            life.end(running, statuses=(-signal.SIGKILL,))
            assert not life.problems, life.problems
        return folder / "run"

    def _at_call(self, name: str, fault: _Fault, number: int, *, is_resumed: bool) -> bool:
        """Do one round; return whether the run came as far as that call."""
        with self._life(f"{name} {number}", self._truth(epochs=1, seconds_per_step=0.0)) as life:
            if is_resumed:
                shutil.copytree(self._half_done(), life.run)
            log = life.folder / "calls"
            orders = faulty_disk.orders(life.run, log=log, at=number, do=fault.do, times=fault.times, only=fault.only)
            running = life.start(disk=orders)
            rows, is_refused, is_clean = True, False, True
            if fault.kills:
                life.end(running, statuses=(0, -signal.SIGKILL))
            else:
                rows, is_refused, is_clean = self._judge_fault(life, running)
            fired = any(call.kind == "fired" for call in faulty_disk.read_log(log))
            if fired:
                life.finish(rows=rows, is_clean=is_clean)
                if is_refused and not life.problems:
                    self._campaign.tally.count(name, "smkit", Outcome.REFUSED)
                else:
                    self._count(name, life, 1, f"call {number}")
            return fired

    def _judge_fault(self, life: Life, running: Running) -> tuple[bool, bool, bool]:
        """A run that meets an error of the disk goes on and comes out right, or ends and says why.

        Returns:
            Whether all of its metrics were written, whether it has ended, and whether all could be removed that was to
            be, as far as it has said.
        """
        end = life.end(running, statuses=(0, 1, 2), fails_saves=True)
        # It says what it could not write, and is believed.
        rows = "metrics are not written" not in end.text
        if end.status != 0:
            if "fix:" not in end.text:
                life.problems.append(f"ended without an answer: {end.text[-600:]}")
        elif "checkpoint could not be saved" not in end.text:
            life.compare(rows=rows, is_clean=False)
        return rows, end.status != 0, "could not be removed" not in end.text

    def with_wrong_clocks(self) -> None:
        """Let the clock jump by up to a year in each step, and give all files random times between two runs."""
        name = "wrong clocks and times of files"
        draws = self._campaign.draws(name)
        truth = self._truth()
        for number in range(max(1, self._campaign.rounds // 25)):
            with self._life(f"{name} {number}", truth) as life:
                for _ in range(2):
                    running = life.start(clock=365 * 86400.0)
                    running.wait_for("step", draws.randint(3, 20))
                    running.kill()
                    life.end(running, statuses=(-signal.SIGKILL,))
                    scatter_times(life.run, draws)
                life.finish(clock=365 * 86400.0)
                self._count(name, life, 2, f"life {number}, seed {self._campaign.seed}")


class _OnPeer:
    """The same attacks on a peer; each round has a folder of its own, and one kill."""

    def __init__(self, campaign: Campaign, subject: Subject, folder: Path) -> None:
        self._campaign, self._subject, self._folder = campaign, subject, folder
        self._rounds = max(2, round(_PEER_SHARE * campaign.rounds))

    def _order(self, name: str, **more: Any) -> Order:
        # What is written elsewhere first, and then brought here, is written to this disk, too.
        folder = self._folder / name.replace(" ", "-")
        (folder / "disk" / "tmp").mkdir(parents=True, exist_ok=True)
        environment = {"TMPDIR": str(folder / "disk" / "tmp")}
        order = Order(folder / "disk" / "run", folder / "notes", epochs=2, environment=environment)
        return Order(**vars(order) | more)

    def at_random_moments(self) -> None:
        whole = self._order("whole")
        began = time.monotonic()
        self._subject.start(whole).end()
        length = time.monotonic() - began
        draws = self._campaign.draws(f"{self._subject.name} moments")

        def at_any_moment(running: Running) -> None:
            time.sleep(draws.uniform(0, length))

        def in_a_save(running: Running) -> None:
            # The peers save after each step, and the next step comes after the save.
            running.wait_for("step", draws.randint(2, 12))
            time.sleep(draws.uniform(0, length / whole.total_steps))

        def at_the_end(running: Running) -> None:
            running.wait_for("step", whole.total_steps)
            time.sleep(draws.uniform(0, 0.04))

        moments: dict[str, Callable[[Running], None]] = {
            "kill, any moment": at_any_moment,
            "kill, in a save": in_a_save,
            "kill, at the end": at_the_end,
        }
        for name, wait in moments.items():
            for number in range(self._rounds):
                order = self._order(f"{name} {number}")
                running = self._subject.start(order)
                wait(running)
                running.kill()
                self._go_on(name, order, running, f"round {number}, seed {self._campaign.seed}")

    def at_each_call(self) -> None:
        """As of smkit, but only at some of the calls, for the runs are long."""
        name = "kill before call N"
        draws = self._campaign.draws(f"{self._subject.name} {name}")
        whole = self._order("calls", epochs=1)
        log = whole.notes.with_name("calls")
        disk = whole.folder.parent
        self._subject.start(Order(**vars(whole) | {"disk": faulty_disk.orders(disk, log=log)})).end()
        last = max(call.number for call in faulty_disk.read_log(log))
        for number in sorted(draws.sample(range(1, last + 1), min(last, self._rounds))):
            order = self._order(f"{name} {number}", epochs=1)
            orders = faulty_disk.orders(order.folder.parent, at=number, do="kill")
            running = self._subject.start(Order(**vars(order) | {"disk": orders}))
            self._go_on(name, order, running, f"call {number}")

    def with_wrong_clocks(self) -> None:
        name = "wrong clocks and times of files"
        draws = self._campaign.draws(f"{self._subject.name} {name}")
        for number in range(max(2, self._campaign.rounds // 25)):
            order = self._order(f"{name} {number}", clock=365 * 86400.0)
            running = self._subject.start(order)
            # Between two saves, so that nothing but the times is wrong.
            running.wait_for("committed", draws.randint(3, 12))
            running.kill(number=signal.SIGSTOP)
            running.kill()
            end = running.end()
            scatter_times(order.folder, draws)
            self._judge(name, order, max(end.notes.committed, default=0), f"round {number}")

    def _go_on(self, name: str, order: Order, running: Running, note: str) -> None:
        end = running.end()
        self._judge(name, order, max(end.notes.committed, default=0), note)

    def _judge(self, name: str, order: Order, committed: int, note: str) -> None:
        end = self._subject.start(Order(**vars(order) | {"notes": order.notes.with_name("notes-2")})).end()
        outcome, amiss = end.judged(committed)
        self._campaign.tally.count(name, self._subject.name, outcome, f"{note}: {amiss}")
        shutil.rmtree(order.notes.parent, ignore_errors=True)
