"""The short form of `hosts`: two hosts, of which one is cut off, or its link is down for a while."""

import dataclasses
from pathlib import Path

import pytest

from torture.hosts import attack
from torture.hosts.faults import faults
from torture.hosts.network import missing
from torture.tally import Campaign, Outcome, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance]

CHOSEN = {"a host cut off, save": Outcome.REFUSED, "a link down for 5 s, step": Outcome.SURVIVED}


def test_a_host_that_is_cut_off_ends_all_and_is_named_and_a_link_that_comes_back_ends_nothing(tmp_path: Path) -> None:
    lack = missing()
    if lack:
        pytest.skip(lack)
    tally = Tally()
    chosen = [dataclasses.replace(fault, layouts=((2, 1),)) for fault in faults() if fault.name in CHOSEN]
    attack(Campaign(tally, 1, tmp_path, seed=3), chosen)
    assert not tally.failures(), "\n".join([tally.table(), *tally.failures()])
    for name, outcome in CHOSEN.items():
        assert tally.counts[name, "smkit"] == {outcome: 1}
