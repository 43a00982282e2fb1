"""The attack `power` in short: smkit alone, a few cuts."""

from collections import Counter
from pathlib import Path

import pytest

from torture.power import attack
from torture.tally import Campaign, Outcome, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance, pytest.mark.usefixtures("gcc")]


def test_a_power_cut_takes_nothing_that_was_called_saved(tmp_path: Path) -> None:
    tally = Tally()
    attack(Campaign(tally, rounds=1, folder=tmp_path, seed=6))
    assert not tally.failures(), tally.table()
    assert tally.rounds("power cut, names without their bytes") >= 2, tally.table()
    assert tally.rounds("power cut, nothing that was not synced, at the end") == 2, tally.table()


def test_the_attack_can_tell_loss(tmp_path: Path) -> None:
    """What nobody has synced is lost in a cut, and the harness must say so of plain `torch.save`."""
    tally = Tally()
    attack(Campaign(tally, rounds=8, folder=tmp_path, seed=6, subjects=("torch.save",)))
    found = sum(tally.counts.values(), Counter())
    assert found[Outcome.LOST] + found[Outcome.SILENT] >= 1, tally.table()
