"""What can happen to ranks, to their agents, to hosts and to the network between them."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torture.hosts.job import Job
from torture.hosts.network import Network

FLAP_SECONDS = 5.0
LATE_SECONDS = 20
MEETING_SECONDS = 14.0


@dataclass
class Scene:
    """A job that runs, and whom of it something is to happen to."""

    network: Network
    job: Job
    victim: int
    """A rank; of faults of hosts, one on that host."""
    draws: random.Random

    @property
    def host(self) -> int:
        return self.job.host_of(self.victim)

    def others(self) -> list[int]:
        """Return the other hosts."""
        return [host for host in range(self.job.hosts) if host != self.host]


@dataclass(frozen=True)
class Fault:
    """Something that happens once, when the victim has come to a place.

    Attributes:
        name: In the table.
        place: Of the script.
        happens: What it is; None where the script itself does it, by `own`.
        own: "raise", "stick" or "late": what the script does at the place.
        survives: Whether the run must go on as if nothing had been.
        silences: Who can say nothing any more, or is not heard: a "rank", an "agent", a "host", or nobody.
        victims: From whom the victim is drawn: "any", "first" or "other" than rank 0.
        layouts: From which numbers of hosts and of ranks on each the round is drawn.
        counts: At which of the times that it comes to the place, drawn anew each round.
        is_next_late: Whether the rank after the victim comes late.
    """

    name: str
    place: str
    happens: Callable[[Scene], None] | None = None
    own: str = ""
    survives: bool = False
    silences: str = ""
    victims: str = "any"
    layouts: Sequence[tuple[int, int]] = ((2, 1), (2, 1), (3, 1), (2, 2))
    counts: Sequence[int] = (1,)
    is_next_late: bool = False


def kill(scene: Scene) -> None:
    _signal(scene, signal.SIGKILL)


def stop(scene: Scene) -> None:
    _signal(scene, signal.SIGSTOP)


def _signal(scene: Scene, number: int) -> None:
    process = scene.job.process_of(scene.victim)
    if process is not None:
        os.kill(process, number)


def kill_while_meeting(scene: Scene) -> None:
    time.sleep(MEETING_SECONDS)
    kill(scene)


def kill_agent(scene: Scene) -> None:
    os.kill(scene.job.agents[scene.host].pid, signal.SIGKILL)


def cut(scene: Scene) -> None:
    scene.network.cut(scene.host)


def take_down(scene: Scene) -> None:
    scene.network.take_down(scene.host)


def flap(scene: Scene) -> None:
    scene.network.take_down(scene.host)
    time.sleep(FLAP_SECONDS)
    scene.network.bring_up(scene.host)


def silence_for_a_while(scene: Scene) -> None:
    scene.network.cut(scene.host)
    time.sleep(FLAP_SECONDS)
    scene.network.join(scene.host)


def lose_one_way(scene: Scene) -> None:
    scene.network.lose(scene.host, scene.draws.choice(scene.others()))


def disturb(scene: Scene) -> None:
    """Lose 3 % of all packets in all directions, and let each come 5 to 30 ms late, in another order."""
    for source in range(scene.job.hosts):
        for target in range(scene.job.hosts):
            scene.network.lose(source, target, 0.03)
    scene.network.delay(0.005, 0.03)


_STEPS = tuple(range(3, 25))
_LATER = (1, 2, 3)
_PLACES = {"step": _STEPS, "save": _LATER, "validation": (1, 4, 8), "export": (1,)}


def faults() -> list[Fault]:
    """Return all of them, in the order of the table."""
    found = []
    # The others wait for a third one when it is killed. On the host of the store this would end the meeting for good.
    meeting = Fault("kill -9 of a rank, meeting", "start", kill_while_meeting, silences="rank", is_next_late=True)
    found.append(dataclasses.replace(meeting, victims="other", layouts=((3, 1),)))
    for place, counts in {"preparation": (1,), **_PLACES}.items():
        # Of export only rank 0 knows.
        victims = "first" if place == "export" else "any"
        found.append(Fault(f"kill -9 of a rank, {place}", place, kill, silences="rank", victims=victims, counts=counts))
        found.append(Fault(f"a rank stopped, {place}", place, stop, silences="rank", victims=victims, counts=counts))
        found.append(Fault(f"a rank raises, {place}", place, own="raise", victims=victims, counts=counts))
    for place, counts in _PLACES.items():
        victims = "first" if place == "export" else "any"
        found.append(Fault(f"a host cut off, {place}", place, cut, silences="host", victims=victims, counts=counts))
        found.append(Fault(f"a link down, {place}", place, take_down, silences="host", victims=victims, counts=counts))
    found += [
        Fault("a rank stuck in its own code, step", "step", own="stick", victims="any", counts=_STEPS),
        Fault("torchrun killed, step", "step", kill_agent, silences="agent", counts=_STEPS),
        Fault("torchrun killed, save", "save", kill_agent, silences="agent", counts=_LATER),
        Fault("packets lost one way", "step", lose_one_way, silences="host", counts=_STEPS),
        Fault("a link down for 5 s, step", "step", flap, survives=True, counts=_STEPS),
        Fault("a link down for 5 s, save", "save", flap, survives=True, counts=_LATER),
        Fault("a host cut off for 5 s, step", "step", silence_for_a_while, survives=True, counts=_STEPS),
        Fault("3 % of packets lost, others late", "preparation", disturb, survives=True),
        Fault("a rank 20 s late", "start", own="late", survives=True),
    ]
    return found
