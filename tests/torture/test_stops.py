"""The attack `stops` in short: smkit alone, a few rounds that are forked."""

import dataclasses
import random
from pathlib import Path

import pytest

from torture.stops import attack_smkit
from torture.stops.orders import INT, TERM, Order, orders
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance]

ONCE = ((TERM, 0.0),)
ROUNDS = (
    Order("in a step", "done", 5, 0.004, ONCE),
    Order("several signals", "done", 8, 0.003, ((TERM, 0.0), (TERM, 0.01), (TERM, 0.0))),
    Order("in a save", "saving", 3, 0.002, ((TERM, 0.003), (INT, 0.0))),
    Order("in validation", "validating", 4, 0.002, ((INT, 0.0),), pauses={"validating": 0.005}),
    Order("before a step", "restoring", 1, 0.01, ONCE, pauses={"restoring": 0.02}, has_begun=7),
)


def test_a_run_that_is_stopped_saves_its_last_step_and_goes_on_as_if_it_had_not_been(
    tmp_path: Path, unmeasured: None
) -> None:
    tally = Tally()
    attack_smkit(Campaign(tally, rounds=len(ROUNDS), folder=tmp_path), iter(ROUNDS))
    assert not tally.failures(), tally.table()
    assert sum(tally.rounds(f"stops: {attack}") for attack in {order.attack for order in ROUNDS}) == len(ROUNDS)


def test_every_seed_makes_other_rounds_and_the_same_one_the_same(tmp_path: Path) -> None:
    rounds = [list(orders(Campaign(Tally(), 50, tmp_path, seed))) for seed in (1, 1, 2)]
    assert rounds[0] == rounds[1] != rounds[2]
    assert len({order.attack for order in rounds[0]}) > 12
    later = random.Random(1).choice([order for order in rounds[0] if order.after])
    assert dataclasses.replace(later, after=0.0) != later
