"""The attack `damage` in short: runs of smkit alone, a few rounds."""

from pathlib import Path

import pytest

from torture import damage
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance]


def test_whatever_befalls_its_files_a_run_goes_on_right_or_says_why_not(tmp_path: Path) -> None:
    tally = Tally()
    damage.on_runs(Campaign(tally, 9, tmp_path, seed=3), by_two_ranks=False)
    assert not tally.failures(), "\n".join([tally.table(), *tally.failures()])
    assert sum(tally.rounds(attack) for attack, _ in tally.counts) == 9 + 3
