"""The short form of `goodput`: a few interruptions, and no word about time."""

from pathlib import Path

import pytest

from torture import goodput
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance]


def test_a_notice_costs_no_step_and_a_kill_those_since_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goodput, "INTERVAL_SECONDS", 0.3)
    monkeypatch.setattr(goodput, "MOST_INTERVALS", 100)
    tally = Tally()
    lives = goodput.interrupted_lives(Campaign(tally, 1, tmp_path, seed=6))
    assert not tally.failures(), "\n".join([tally.table(), *tally.failures()])
    assert len(tally.counts) == 2, tally.table()
    assert any(0 < life.saved < life.reached for life in lives)
    assert any("kept at this pace" in line for line in goodput.costs(lives))
