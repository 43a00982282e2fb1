"""The rounds: what a training does when signals come, which, when, and how it was started."""

from __future__ import annotations

import dataclasses
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torture.tally import Campaign

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
SLOW_STEPS = {"done": 0.01}


@dataclass(frozen=True)
class Order:
    """A round. `torture.stops.rounds` does it.

    Attributes:
        attack: Its name in the table.
        word: What the training must be doing before the signals come, as `script.py` notes it.
        count: For how many times.
        after: Seconds from then.
        signals: Each with the seconds until the next one.
        to: `leader` (each rank's process), `group` (all that these have started too), `rank 1`.
        kind: How the training is started.
        has_begun: Steps after which it was stopped before; 0: never.
        pauses: How long it takes over what.
        pauses_of_1: The same of rank 1.
        settings: More words on its command line.
    """

    attack: str
    word: str
    count: int
    after: float
    signals: tuple[tuple[int, float], ...]
    to: str = "leader"
    kind: str = "forked"
    world_size: int = 1
    has_begun: int = 0
    pauses: Mapping[str, float] = dataclasses.field(default_factory=lambda: SLOW_STEPS)
    pauses_of_1: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: tuple[str, ...] = ()


def once(draw: random.Random, *, gentle: bool = False) -> tuple[tuple[int, float], ...]:
    return ((draw.choice((TERM, INT) if gentle else (TERM, TERM, INT, KILL)), 0.0),)


def several(draw: random.Random) -> tuple[tuple[int, float], ...]:
    numbers = draw.choice([(TERM, TERM), (TERM, TERM, TERM), (INT, INT), (TERM, INT), (INT, TERM), (INT, INT, INT)])
    return tuple((number, draw.choice((0.0, draw.uniform(0, 0.05)))) for number in numbers)


def in_a_step(draw: random.Random) -> Order:
    return Order("in a step", "done", draw.randint(1, 28), draw.uniform(0, 0.02), once(draw))


def repeatedly(draw: random.Random) -> Order:
    return Order("several signals", "done", draw.randint(1, 28), draw.uniform(0, 0.02), several(draw))


def while_it_saves(draw: random.Random) -> Order:
    return Order("in a save", "saving", draw.randint(2, 8), draw.uniform(0, 0.01), draw.choice((once, several))(draw))


def in_validation(draw: random.Random) -> Order:
    pauses = {"validating": 0.005}
    return Order("in validation", "validating", draw.randint(1, 30), draw.uniform(0, 0.01), once(draw), pauses=pauses)


def in_the_export(draw: random.Random) -> Order:
    word = draw.choice(("exporting", "exported"))
    pauses = {word: 0.02}
    return Order("in the export", word, 1, draw.uniform(0, 0.02), draw.choice((once, several))(draw), pauses=pauses)


def at_the_end(draw: random.Random) -> Order:
    return Order("at the end", "done", 33, draw.uniform(0, 0.1), once(draw), pauses={})


def before_it_trains(draw: random.Random) -> Order:
    word = draw.choice(("joining", "loading", "restoring"))
    pauses = {"loading": 0.02, "restoring": 0.02}
    steps = draw.randint(3, 20) if word == "restoring" else draw.choice((0, 9))
    return Order(f"before a step: {word}", word, 1, draw.uniform(0, 0.03), once(draw), pauses=pauses, has_begun=steps)


def while_it_is_imported(draw: random.Random) -> Order:
    return Order("in the imports", "importing", 1, draw.uniform(0, 4), once(draw), kind="process", has_begun=9)


def with_workers(draw: random.Random) -> Order:
    pauses = SLOW_STEPS | {"workers": 2}
    word, count = draw.choice((("done", draw.randint(1, 25)), ("validating", 3), ("loading", 1)))
    return Order(
        "with data workers",
        word,
        count,
        draw.uniform(0, 0.05),
        once(draw),
        draw.choice(("leader", "group")),
        pauses=pauses,
    )


def two_ranks(draw: random.Random) -> Order:
    word, count = draw.choice((("done", draw.randint(1, 25)), ("validating", draw.randint(1, 9)), ("saving", 2)))
    to = draw.choice(("leader", "leader", "rank 1"))
    signals = once(draw) if to == "leader" else once(draw, gentle=True)
    return Order("two ranks", word, count, draw.uniform(0, 0.05), signals, to, world_size=2)


def ranks_that_join(draw: random.Random) -> Order:
    late = {"joining": 0.3}
    return Order("while ranks join", "joining", 1, draw.uniform(0, 0.6), once(draw), world_size=2, pauses_of_1=late)


def process_1(draw: random.Random) -> Order:
    # Before it listens, the kernel drops signals to a process 1.
    word, count = draw.choice((("loading", 1), ("done", draw.randint(1, 25)), ("validating", 3), ("saving", 2)))
    pauses = SLOW_STEPS | {"loading": 0.05}
    signals = draw.choice((once, several))(draw)
    return Order("as process 1", word, count, draw.uniform(0, 0.05), signals, kind="process 1", pauses=pauses)


def behind_a_shell(draw: random.Random) -> Order:
    gentle = once(draw, gentle=True)
    return Order("behind a shell", "done", draw.randint(1, 25), draw.uniform(0, 0.05), gentle, "group", "shell")


def under_torchrun(draw: random.Random) -> Order:
    word, count = draw.choice((("done", draw.randint(1, 25)), ("validating", 3)))
    to = draw.choice(("leader", "leader", "rank 1"))
    signals = ((draw.choice((TERM, TERM, INT)), 0.0),)
    return Order("under torchrun", word, count, draw.uniform(0, 0.05), signals, to, "torchrun", 2)


def under_the_toolkit(draw: random.Random) -> Order:
    word, count = draw.choice((("importing", 1), ("done", draw.randint(1, 25)), ("validating", 3), ("saving", 2)))
    signals = draw.choice((((TERM, 0.0),), ((TERM, 0.05), (TERM, 0.0))))
    steps = 9 if word == "importing" else 0
    return Order("under the toolkit", word, count, draw.uniform(0, 0.05), signals, kind="supervised", has_begun=steps)


FORKED = (
    *(in_a_step, in_a_step, repeatedly, repeatedly, while_it_saves, while_it_saves, in_validation, in_validation),
    *(in_the_export, in_the_export, at_the_end, before_it_trains, before_it_trains, before_it_trains),
    *(two_ranks, two_ranks, ranks_that_join, with_workers),
)
"""Cheap ones, each as often as it stands here."""
STARTED = (while_it_is_imported, while_it_is_imported, process_1, process_1, behind_a_shell)
TOGETHER = (under_torchrun, under_the_toolkit)
"""What takes many seconds."""


def orders(campaign: Campaign) -> Iterator[Order]:
    """Yield the rounds: of 25, 18 forked, 5 started as a process, and 2 with all that stands in front of one."""
    draw = campaign.draws("stops")
    makers: list[Callable[[random.Random], Order]] = [*FORKED, *STARTED, *TOGETHER]
    for number in range(campaign.rounds):
        if number % len(makers) == 0:
            draw.shuffle(makers)
        yield makers[number % len(makers)](draw)
