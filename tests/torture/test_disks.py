"""The attack `disks` in short: smkit alone, a round of each kind."""

from pathlib import Path

import pytest

from torture import disks, faulty_disk
from torture.subjects import Subject
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance, pytest.mark.usefixtures("gcc")]


def test_a_bad_disk_costs_no_checkpoint_and_is_told(tmp_path: Path) -> None:
    if not disks.can_mount():
        pytest.skip("only root can mount disks of its own")
    tally = Tally()
    with Subject("smkit", faulty_disk.compiled(tmp_path / "library")) as subject:
        attacks = disks.Attacks(Campaign(tally, 1, tmp_path, seed=6), subject, has_faulty_disk=True)
        attacks.full_disks()
        attacks.errors_of_calls()
        attacks.room_comes_back()
        attacks.frozen()
    assert not tally.failures(), "\n".join([tally.table(), *tally.failures()])
    assert sum(tally.rounds(attack) for attack, _ in tally.counts) == 1 + 4 + 1 + 1
