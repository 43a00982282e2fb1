"""The cloud's face, toured once: no secret in any output, S3's owner in every call, no right more than is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from torture.security import cloud
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.aws, pytest.mark.toolkit, pytest.mark.endurance]


def test_nothing_secret_comes_out_and_no_right_is_too_much(tmp_path: Path) -> None:
    tally = Tally()
    cloud.attack(Campaign(tally, 1, tmp_path))
    assert not tally.failures(), tally.table()
    assert tally.rounds("canaries") >= 25 * 10
    assert tally.rounds("owner of the bucket") >= 20
    assert tally.rounds("policies") >= 50
