"""In short: pickles that run code, in every file that smkit reads, in one wrapping of four."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.train, pytest.mark.endurance]

from torture.security import pickles  # noqa: E402 - only where there is torch
from torture.tally import Campaign, Tally  # noqa: E402


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    tally = Tally()
    pickles.attack(Campaign(tally, 1, tmp_path))
    assert not tally.failures(), tally.table()
    assert tally.rounds("pickles") >= 90
