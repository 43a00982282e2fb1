"""The attack `mirror` in short: smkit alone, a few rounds; and what is kept for a slow mirror."""

from pathlib import Path

import pytest

from smkit.cadence import checkpoint_interval
from torture import mirror
from torture.mirror.history import history_of_smkit
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance]


def test_a_new_machine_goes_on_from_whatever_a_mirror_has_brought_to_s3(tmp_path: Path) -> None:
    tally = Tally()
    mirror.attack(Campaign(tally, rounds=45, folder=tmp_path, seed=3))
    assert not tally.failures(), tally.table()
    for kind in mirror.KINDS:
        assert tally.rounds(f"mirror: {kind}") == 15, tally.table()


def test_the_mirror_has_the_first_checkpoint_to_itself() -> None:
    gigabyte = 1_000_000_000
    assert checkpoint_interval(10.0, 0.0, gigabyte) == 10.0
    assert checkpoint_interval(10.0, 0.0, gigabyte, uploads_first=True) == 360.0
    assert checkpoint_interval(None, 0.0, gigabyte) == 120.0
    assert checkpoint_interval(None, 0.0, gigabyte, uploads_first=True) == 360.0
    assert checkpoint_interval(600.0, 0.0, gigabyte, uploads_first=True) == 600.0


def test_a_history_holds_what_the_store_keeps(tmp_path: Path) -> None:
    history = history_of_smkit(tmp_path, 6)
    kept = [{int(name.split("-")[1]) for name in folder} for folder in history.folders]
    assert kept == [{1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4}, {1, 3, 4, 5}, {1, 4, 5, 6}]
