"""SageMaker's mirror of the checkpoint folder to S3, cut at a random moment; a new machine begins with what S3 holds.

The folder's history is real: a CheckpointStore, or a peer that saves after each step, has written and deleted it. The
mirror is simulated in virtual time, see `torture.mirror.agent`: in random order or by age, one to four uploads at once,
files read while they are written, deletions mirrored or not, and the upload of a checkpoint taking 0.1 to 3 times as
long as there is between two saves. A round is one cut. smkit saves at the pace of `smkit.cadence`: in one half of the
rounds at one that the user chose, beside a mirror of a quarter of the assumed speed or more; in the other at its own,
beside one that is up to nine times slower than is assumed.

smkit has survived if at every moment after the first whole checkpoint had come to S3 there was one, and the new machine
goes on from the newest there; before that, if it starts anew or refuses. A peer has survived if it goes on with a state
that is that of its step, at a step before which something was in S3. Lost: it cannot go on, or S3 had nothing whole.
Silent: it goes on with wrong values, or from the start though it could not know that there was nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from smkit.cadence import checkpoint_interval
from smkit.errors import CheckpointError
from torture.mirror.agent import ORDERS, Circumstances, Mirror
from torture.mirror.history import Folder, History, history_of_peer, history_of_smkit, whole_step
from torture.subjects import Order, Subject
from torture.tally import Campaign, Outcome

ASSUMED_BYTES_PER_SECOND = 25e6
SAVES = (12, 40, 230)
"""Of smkit in a round; after the last number, what it keeps for a slow mirror is replaced. Few rounds do without."""
MANY_ROUNDS = 100
KINDS = ("no deletions", "deletions, faster than the saves", "deletions, slower than the saves")


def attack(campaign: Campaign) -> None:
    if "smkit" in campaign.subjects:
        history = history_of_smkit(
            campaign.folder / "smkit", SAVES[-1] if campaign.rounds >= MANY_ROUNDS else SAVES[-2]
        )
        for number, (kind, how) in enumerate(rounds(campaign, "smkit")):
            attack_smkit(campaign, history, number, kind, how)
    for name in campaign.subjects:
        if name != "smkit":
            attack_peer(campaign, name)


def rounds(campaign: Campaign, subject: str) -> Iterator[tuple[str, Circumstances]]:
    draw = campaign.draws(f"mirror {subject}")
    for number in range(campaign.rounds):
        kind = KINDS[number % 3]
        fast, slow = 10 ** draw.uniform(-1, 0), draw.uniform(1, 3)
        ratio = {KINDS[0]: draw.choice((fast, slow)), KINDS[1]: fast, KINDS[2]: slow}[kind]
        order, writers = draw.choice(sorted(ORDERS)), draw.randint(1, 4)
        yield kind, Circumstances(ratio, order, writers, kind != KINDS[0], draw.choice((0.0, 0.2)))


def save_times(how: Circumstances, draw: random.Random, saves: int) -> tuple[list[float], float]:
    """Return when smkit saves, and how long an upload takes, if it is so many times slower than smkit saves."""
    assumed_seconds = draw.choice((20.0, 100.0))
    size = int(assumed_seconds * ASSUMED_BYTES_PER_SECOND)
    if draw.random() < 0.5:
        upload_seconds = assumed_seconds * draw.uniform(0.25, 4)
        chosen: float | None = upload_seconds / how.ratio
    else:
        chosen = None
        upload_seconds = how.ratio * checkpoint_interval(None, 0.0, size)
    times = [checkpoint_interval(chosen, 0.0, size)]
    while len(times) < saves:
        times.append(times[-1] + checkpoint_interval(chosen, 0.0, size, uploads_first=len(times) == 1))
    return times, upload_seconds


class Wholeness:
    """Which checkpoints of smkit S3 holds whole; kept up to date from change to change."""

    def __init__(self, history: History) -> None:
        self._final: dict[str, dict[str, bytes]] = {}
        for folder in history.folders:
            for name, content in folder.items():
                self._final.setdefault(name.partition("/")[0], {})[name] = content

    def newest(self, remote: Folder) -> int:
        """Return the newest step, 0 if there is none."""
        names = {name.partition("/")[0] for name in remote}
        whole = [one for one in names if all(remote.get(name) is data for name, data in self._final[one].items())]
        return max((int(name.split("-")[1]) for name in whole), default=0)


def attack_smkit(campaign: Campaign, history: History, number: int, kind: str, how: Circumstances) -> None:
    draw = campaign.draws(f"mirror smkit {number}")
    saves = draw.choice([saves for saves in SAVES if saves <= len(history.folders)])
    times, upload_seconds = save_times(how, draw, saves)
    mirror = Mirror(history, times, upload_seconds, how, draw)
    wholeness = Wholeness(history)
    cut = draw.uniform(times[0], times[-1])
    remote: Folder = {}
    gaps, had, newest = [], False, 0
    for now in mirror.moments():
        if now > cut:
            break
        remote = dict(mirror.remote)
        newest = wholeness.newest(remote)
        gaps += [now] if had and not newest else []
        had = had or newest > 0
    note = f"round {number}, seed {campaign.seed}: {dataclasses.asdict(how)}, cut at {cut:.0f} s of {times[-1]:.0f} s: "
    outcome, text = new_machine(campaign.folder / "new", remote, newest)
    if gaps:
        outcome, text = Outcome.LOST, f"nothing whole was in S3 from {gaps[0]:.0f} s on"
    campaign.tally.count(f"mirror: {kind}", "smkit", outcome, note + text)


def new_machine(folder: Path, remote: Folder, newest: int) -> tuple[Outcome, str]:
    """Let a store find what S3 holds; return what it came to."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # Each one that is passed over is named, and there are many.
    logging.disable(logging.WARNING)
    try:
        step = whole_step(remote, folder)
    except CheckpointError as error:
        return (Outcome.LOST if newest else Outcome.REFUSED), str(error)
    except ValueError as error:
        return Outcome.SILENT, str(error)
    finally:
        logging.disable(logging.NOTSET)
    return (Outcome.SURVIVED if step == newest else Outcome.SILENT), f"step {newest} is whole, and {step} was loaded"


def attack_peer(campaign: Campaign, name: str) -> None:
    with Subject(name) as subject:
        folder = campaign.folder / name.replace(".", "-")
        history = history_of_peer(subject, folder / "recorded")
        for number, (kind, how) in enumerate(rounds(campaign, name)):
            draw = campaign.draws(f"mirror {name} {number}")
            times = [float(save) for save in range(1, len(history.folders) + 1)]
            mirror = Mirror(history, times, how.ratio, how, draw)
            cut = draw.uniform(1.0, times[-1])
            remote: Folder = {}
            for now in mirror.moments():
                if now > cut:
                    break
                remote = dict(mirror.remote)
            outcome, text = peer_on_new_machine(subject, folder / str(number), remote)
            note = f"round {number}, seed {campaign.seed}: {dataclasses.asdict(how)}, cut at {cut:.1f}: {text}"
            campaign.tally.count(f"mirror: {kind}", name, outcome, note)


def peer_on_new_machine(subject: Subject, folder: Path, remote: Folder) -> tuple[Outcome, str]:
    for name, content in remote.items():
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    running = subject.start(Order(folder / "run", folder / "notes"))
    running.wait_for("began")
    running.kill()
    end = running.end()
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
    if end.notes.began is None:
        lines = [line for line in end.text.splitlines() if line.strip()]
        return Outcome.LOST, f"it cannot go on: {lines[-1] if lines else end.status:.200}"
    if not end.notes.began.is_sound:
        return Outcome.SILENT, f"it goes on with wrong values: {end.notes.began}"
    if end.notes.began.step == 0 and remote:
        return Outcome.SILENT, f"it starts anew beside {sorted(remote)[:4]}"
    return Outcome.SURVIVED, ""
