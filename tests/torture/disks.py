"""Disks that are full, broken, read-only, slow, or that hang: what a run says, and whether the next one goes on.

A round lets a run of two epochs meet such a disk, most of them after a first epoch without one, and then gives the same
command again on a sound disk. It has survived if the first run went on all the same. An error that says what, where and
how is `refused`; of a full disk it must say how much is needed and how much there is. Either way the second run must go
on from a checkpoint no older than the last that was called saved, and end with the weights of a run that never met such
a disk, bit by bit; else it is lost, or silent where it ends well with other weights. A run that is asked to stop must
end before the deadline, which is made short here (at full length once it is the true one), with status 143 and, where
that disk is another one, a failure file.

Peers: on a full disk only. One that has ended with whatever error and then goes on is `refused`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torture import faulty_disk
from torture.subjects import HUNG, End, Order, Running, Subject
from torture.tally import Campaign, Outcome

_VALUES = 20_000
"""A checkpoint of 160 kB."""
_CHECKPOINT_BYTES = 170_000
_DISK = "8m"
_DEADLINE_SECONDS = 2.0
_LONG_ROUNDS = 10
"""From so many on there are rounds with the true deadline."""
_TRUE_DEADLINE_SECONDS = 100.0
_SPARE_SECONDS = 10.0
_AMOUNTS = re.compile(r"it needs about [\d,]+ bytes, and there are [\d,]+ bytes|there are [\d,]+ bytes.* free, and")
_ERRORS = {"EDQUOT": errno.EDQUOT, "EROFS": errno.EROFS, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
_FULL = ("No space left on device", "Disk quota exceeded")


def attack(campaign: Campaign) -> None:
    library = faulty_disk.compiled(campaign.folder / "library") if faulty_disk.is_available() else None
    for name in campaign.subjects:
        with Subject(name, library) as subject:
            attacks = Attacks(campaign, subject, has_faulty_disk=library is not None)
            attacks.full_disks()
            if name == "smkit":
                attacks.all_others()


def can_mount() -> bool:
    """Whether file systems can be mounted and frozen here."""
    return os.geteuid() == 0 and all(map(shutil.which, ("mount", "mkfs.ext4", "fsfreeze")))


@contextlib.contextmanager
def mounted(place: Path, *words: str) -> Iterator[Path]:
    """Mount a file system of this round's own."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *words, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    with mounted(place, "--bind", str(place)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        yield


@contextlib.contextmanager
def eaten(folder: Path) -> Iterator[None]:
    """Take all room on a disk, again and again, as soon as there is any."""
    is_over = threading.Event()

    def eat() -> None:
        with (folder / "greedy").open("wb", buffering=0) as file:
            while not is_over.wait(0.001):
                with contextlib.suppress(OSError):
                    while not is_over.is_set():
                        file.write(bytes(4096))

    thread = threading.Thread(target=eat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        (folder / "greedy").unlink()


def filled(folder: Path, left: int) -> Path:
    """Fill a disk up to so many bytes."""
    filler = folder / "filler"
    found = os.statvfs(folder)
    with filler.open("wb") as file:
        file.write(bytes(max(0, found.f_bavail * found.f_frsize - left)))
    return filler


def without_inodes(folder: Path, left: int) -> Path:
    fillers = folder / "fillers"
    fillers.mkdir()
    for number in range(os.statvfs(folder).f_favail - left):
        (fillers / str(number)).touch()
    return fillers


class Attacks:
    """The attacks on one subject."""

    def __init__(self, campaign: Campaign, subject: Subject, *, has_faulty_disk: bool) -> None:
        self._campaign, self._subject, self._has_faulty_disk = campaign, subject, has_faulty_disk
        self._is_ours = subject.name == "smkit"
        self._number = 0
        self._truths: dict[tuple[int, tuple[str, ...]], str] = {}

    # --- a round --------------------------------------------------------------------------------------------------

    def order(self, folder: Path | None = None, **more: object) -> Order:
        """Return the order of a new run, of two epochs."""
        self._number += 1
        place = self._campaign.folder / f"{self._subject.name}-{self._number}"
        return replace(Order(folder or place / "run", place / "notes", epochs=2, values=_VALUES), **more)  # type: ignore[arg-type]

    def half_done(self, order: Order) -> Order:
        """Do the first epoch, without a fault; return the order."""
        end = self._subject.start(replace(order, epochs=1, disk="", notes=order.notes.with_name("first"))).end()
        if end.status:
            raise RuntimeError(f"a run does not end well without a fault: {end.text[-1000:]}")
        return order

    def truth(self, order: Order) -> str:
        """Return what is learned where no disk fails: after both epochs, the second being resumed."""
        kind = (order.world_size, order.settings if order.world_size > 1 else ())
        if kind not in self._truths:
            sound = self.half_done(self.order(world_size=order.world_size, settings=kind[1]))
            ended = self._subject.start(sound).end().notes.ended
            assert ended is not None
            self._truths[kind] = ended.learned
        return self._truths[kind]

    def count(
        self, attack: str, note: str, order: Order, end: End, *, mends: Callable[[], object] = lambda: None
    ) -> None:
        """Judge a run that met a disk, let the next one go on where it has been mended, and count the round."""
        outcome, why = self.judged(end, order)
        mends()
        if outcome in (Outcome.SURVIVED, Outcome.REFUSED):
            again = self._subject.start(replace(order, disk="", notes=order.notes.with_name("again"))).end()
            trouble, reason = self.judged_again(again, end, order)
            if trouble is not None:
                outcome, why = trouble, f"{why}; then: {reason}"
        self._campaign.tally.count(attack, self._subject.name, outcome, f"{note}, seed {self._campaign.seed}: {why}")

    def judged(self, end: End, order: Order) -> tuple[Outcome, str]:
        text = end.text
        if HUNG in end.statuses:
            return Outcome.LOST, f"it hangs after {text[-300:]!r}"
        if end.status == 0:
            ended = end.notes.ended
            if self._is_ours and (ended is None or ended.learned != self.truth(order)):
                return Outcome.SILENT, f"other weights, {ended}"
            return Outcome.SURVIVED, ""
        if not self._is_ours:
            return Outcome.REFUSED, text[-200:]
        if end.status == 128 + signal.SIGTERM or (end.status == -signal.SIGTERM and not end.notes.events):
            # By the signal itself only a run ends that has not begun yet.
            return Outcome.SURVIVED, ""
        if "Traceback" in text or "  fix:   " not in text or any(status not in (0, 1, 2) for status in end.statuses):
            return Outcome.LOST, f"statuses {end.statuses}: {text[-700:]}"
        last = text[text.rfind("train.py") :]
        if any(word in last for word in _FULL) and not _AMOUNTS.search(last):
            return Outcome.LOST, f"it does not say how much is needed and how much there is: {last[-500:]}"
        return Outcome.REFUSED, last

    def judged_again(self, again: End, before: End, order: Order) -> tuple[Outcome | None, str]:
        began, ended = again.notes.began, again.notes.ended
        saved = max(before.notes.committed, default=0)
        if not self._is_ours and again.status == before.status == 0 and began is None and ended is not None:
            # A peer that has nothing left to do does not begin.
            return (None, "") if ended.is_sound else (Outcome.SILENT, f"the next run ends with {ended}")
        if HUNG in again.statuses or again.status or began is None or ended is None:
            return Outcome.LOST, f"the next run ends with {again.statuses}: {again.text[-500:]}"
        if not began.is_sound or not ended.is_sound:
            return Outcome.SILENT, f"the next run goes on with {began}"
        if began.step < saved or (began.step == 0 and saved):
            return Outcome.LOST, f"the next run began at step {began.step}, and step {saved} was called saved"
        if self._is_ours and ended.learned != self.truth(order):
            return Outcome.SILENT, "the next run ended with other weights"
        return None, ""

    # --- full disks -----------------------------------------------------------------------------------------------

    def full_disks(self) -> None:
        if not can_mount():
            return
        draws = self._campaign.draws("full disks")
        kinds = ["filled to the byte", "greedy neighbour", "no inodes", "full /tmp"]
        for number in range(self._campaign.rounds):
            self._on_small_disk(
                kinds[number % len(kinds)], number, draws.randrange(4 * _CHECKPOINT_BYTES), draws.randrange(14)
            )

    def _on_small_disk(self, kind: str, number: int, left: int, inodes: int) -> None:
        place = self._campaign.folder / f"small-{self._subject.name}-{number}"
        with mounted(place, "-t", "tmpfs", "-o", f"size={_DISK},nr_inodes=400", "tmpfs"):
            if kind == "full /tmp":
                order = self.half_done(self.order(environment={"TMPDIR": str(place)}))
            else:
                order = self.half_done(self.order(place / "run", environment={"TMPDIR": str(place)}))
            note = f"round {number}, {left} bytes left"
            if kind == "greedy neighbour":
                with eaten(place):
                    end = self._subject.start(order).end()
                filler = place / "nothing"
            elif kind == "no inodes":
                filler, note = without_inodes(place, inodes), f"round {number}, {inodes} inodes left"
                end = self._subject.start(order).end()
            else:
                filler = filled(place, left if kind == "filled to the byte" else 0)
                end = self._subject.start(order).end()
            self.count(kind, note, order, end, mends=lambda: _remove(filler))

    # --- smkit alone ----------------------------------------------------------------------------------------------

    def all_others(self) -> None:
        if self._has_faulty_disk:
            self.errors_of_calls()
            self.room_comes_back()
            self.one_rank()
            self.hanging()
            self.slow()
        if can_mount():
            self.read_only_places()
            self.frozen()

    def errors_of_calls(self) -> None:
        """Let one call fail, or all from one on, at places all over a run."""
        log = self._campaign.folder / "calls"
        order = self.half_done(self.order())
        self._subject.start(replace(order, disk=faulty_disk.orders(order.folder, log=log))).end()
        last = max(call.number for call in faulty_disk.read_log(log))
        draws = self._campaign.draws("errors of calls")
        faults = [
            (f"{name}, {how}", f"error:{number}", times)
            for name, number in _ERRORS.items()
            for how, times in (("once", 1), ("from then on", 0))
        ]
        faults += [("full from then on", "fill", 0), ("short write", "short", 1)]
        for number in range(4 * self._campaign.rounds):
            name, do, times = faults[number % len(faults)]
            at = draws.randint(1, last)
            order = self.half_done(self.order())
            orders = faulty_disk.orders(order.folder, at=at, do=do, times=times)
            end = self._subject.start(replace(order, disk=orders)).end()
            self.count(f"a call fails: {name}", f"round {number}, call {at}", order, end)

    def room_comes_back(self) -> None:
        """Let one save fail, or two, and then none: that must be said, and saves must go on."""
        draws = self._campaign.draws("room comes back")
        for number in range(max(1, self._campaign.rounds // 3)):
            order = self.half_done(self.order(seconds_per_step=0.02))
            # The first calls are not those of a save, but those that look whether there can be one.
            orders = faulty_disk.orders(
                order.folder / "checkpoints",
                at=draws.randint(6, 12),
                do="error:28",
                times=draws.randint(1, 2),
                only="open,write",
            )
            end = self._subject.start(replace(order, disk=orders)).end()
            if not ("training goes on without" in end.text and "saved again" in end.text):
                end = replace(end, statuses=[99])
            self.count("room comes back", f"round {number}, {orders}", order, end)

    def one_rank(self) -> None:
        """Let the disk of rank 1 be full, once or for good; rank 0's is sound."""
        draws = self._campaign.draws("one rank")
        settings = ("--strategy", "fsdp")
        for number in range(max(1, self._campaign.rounds // 3)):
            order = self.half_done(self.order(world_size=2, settings=settings))
            times = number % 2
            orders = faulty_disk.orders(
                order.folder, at=draws.randint(1, 8), do="error:28", times=times, only="open,write,fsync"
            )
            end = self._subject.start(replace(order, disk=orders, faulty_rank=1)).end()
            if end.status and "rank 1" not in end.text:
                end = replace(end, statuses=[99])
            self.count(f"one rank's disk, {'once' if times else 'for good'}", f"round {number}, {orders}", order, end)

    def hanging(self) -> None:
        """Let a call below a folder never return, and ask the run to stop."""
        draws = self._campaign.draws("hanging")
        for number in range(self._campaign.rounds):
            below = ("checkpoints", "output", "model", ".")[number % 4]
            order = self.half_done(self.order(seconds_per_step=0.01, environment=_with_deadline(_DEADLINE_SECONDS)))
            log = order.notes.with_name("calls")
            orders = faulty_disk.orders(order.folder / below, log=log, at=draws.randint(1, 30), do="hang", times=0)
            running = self._subject.start(replace(order, disk=orders))
            self._wait_until_fired(running, log)
            time.sleep(draws.uniform(0, 0.5))
            has_ended = not running.is_alive()
            running.kill(number=signal.SIGTERM)
            end = running.end(_DEADLINE_SECONDS + _SPARE_SECONDS)
            if not has_ended:
                end = self._with_failure(end, order, is_expected=below in ("checkpoints", "model"))
            self.count(f"hangs: {_named(below)}, SIGTERM", f"round {number}, {orders}", order, end)

    def _wait_until_fired(self, running: Running, log: Path) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and running.is_alive():
            if any(call.kind == "fired" for call in faulty_disk.read_log(log)):
                return
            time.sleep(0.02)

    def _with_failure(self, end: End, order: Order, *, is_expected: bool) -> End:
        """Return an end that cannot be called good if a failure file is missing."""
        is_there = (order.folder / "output" / "failure").is_file()
        stopped = (
            end.status == 128 + signal.SIGTERM
            and "is saved in" not in end.text
            and "nothing was trained" not in end.text
        )
        return replace(end, statuses=[98]) if is_expected and stopped and not is_there else end

    def slow(self) -> None:
        """Let each write take as long as on a disk of 2 MB/s, and ask the run to stop."""
        draws = self._campaign.draws("slow")
        for number in range(max(1, self._campaign.rounds // 3)):
            order = self.half_done(self.order(environment=_with_deadline(20.0)))
            orders = faulty_disk.orders(order.folder, at=1, do=f"slow:{_CHECKPOINT_BYTES // 2}", times=0, only="write")
            running = self._subject.start(replace(order, disk=orders, seconds_per_step=0.02))
            running.wait_for("step", draws.randint(1, 12))
            running.kill(number=signal.SIGTERM)
            end = running.end()
            if end.status == 128 + signal.SIGTERM and "is saved in" not in end.text:
                end = replace(end, statuses=[97])
            self.count("slow, SIGTERM", f"round {number}", order, end)

    def read_only_places(self) -> None:
        for number in range(-(-self._campaign.rounds // 2)):
            below = ("checkpoints", "output", "model", ".")[number % 4]
            order = self.half_done(self.order())
            with read_only(order.folder / below):
                end = self._subject.start(order).end()
            self.count(f"read-only: {_named(below)}", f"round {number}", order, end)

    def frozen(self) -> None:
        """Freeze a file system, in which no signal is heard and nothing can be ended, and ask the run to stop."""
        draws = self._campaign.draws("frozen")
        for number in range(max(1, self._campaign.rounds // 6)):
            seconds = (
                _TRUE_DEADLINE_SECONDS if number == 0 and self._campaign.rounds >= _LONG_ROUNDS else _DEADLINE_SECONDS
            )
            self._freeze(number, (".", "checkpoints")[number % 2], seconds, draws.uniform(0.1, 0.4))

    def _freeze(self, number: int, below: str, seconds: float, wait: float) -> None:
        image = self._campaign.folder / f"image-{number}"
        image.touch()
        os.truncate(image, 32 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
        with mounted(self._campaign.folder / f"ext4-{number}", "-o", "loop", str(image)) as disk:
            more = {"seconds_per_step": 0.02, "environment": _with_deadline(seconds)}
            if below == ".":
                order = self.order(disk / "run", **more)
            else:
                order = self.order(settings=("--checkpoint-dir", str(disk / "checkpoints")), **more)
            order = self.half_done(order)
            running = self._subject.start(order)
            running.wait_for("step", 2)
            subprocess.run(["fsfreeze", "-f", str(disk)], check=True)
            try:
                time.sleep(wait)
                began = time.monotonic()
                running.kill(number=signal.SIGTERM)
                while running.is_alive() and time.monotonic() < began + seconds + _SPARE_SECONDS:
                    time.sleep(0.05)
                is_late = running.is_alive()
                failure = (order.folder / "output" / "failure").is_file() if below != "." else True
            finally:
                subprocess.run(["fsfreeze", "-u", str(disk)], check=True)
            end = running.end()
            if is_late:
                end = replace(end, statuses=[HUNG])
            elif not failure and end.status != 0:
                end = replace(end, statuses=[98])
            self.count(f"frozen: {_named(below)}, SIGTERM", f"round {number}, {seconds:.0f} s", order, end)


def _with_deadline(seconds: float) -> dict[str, str]:
    return {"TORTURE_STOP_DEADLINE_SECONDS": str(seconds)}


def _named(below: str) -> str:
    return "all" if below == "." else below


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
