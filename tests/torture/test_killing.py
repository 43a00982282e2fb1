"""The attack `killing` in short: smkit alone, a few rounds."""

from pathlib import Path

import pytest

from torture.killing import attack
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance, pytest.mark.usefixtures("gcc")]


def test_a_run_that_is_killed_at_any_moment_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    tally = Tally()
    attack(Campaign(tally, rounds=4, folder=tmp_path, seed=6))
    assert not tally.failures(), tally.table()
    for name in ("kill, any moment", "kill, in a save", "kill before call N", "EIO at call N, resumed"):
        assert tally.rounds(name) >= 1, tally.table()
