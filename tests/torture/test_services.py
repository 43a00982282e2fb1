"""A few rounds of the faults of S3, SageMaker and CloudWatch."""

from __future__ import annotations

from pathlib import Path

import pytest

from torture.services import attack_each_deed
from torture.services.world import world
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.aws, pytest.mark.endurance]

KINDS = ("reply lost", "bit flipped in an object", "garbage for an answer")
DEEDS = ("launch", "logs so far", "download plain")
ROUNDS = 2


def test_faults_of_the_services_are_survived_or_said(tmp_path: Path) -> None:
    tally = Tally()
    with world(tmp_path, big_bytes=5_300_000) as made:
        attack_each_deed(Campaign(tally, ROUNDS, tmp_path), made, KINDS, DEEDS)
    assert not tally.failures(), tally.table()
    assert [tally.rounds(kind) for kind in KINDS] == [ROUNDS] * len(KINDS)
