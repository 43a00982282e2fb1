"""The short form of the soak: two minutes."""

from pathlib import Path

import pytest

from torture import soak
from torture.tally import Campaign, Tally

pytestmark = [pytest.mark.train, pytest.mark.endurance]


def test_two_minutes_with_stops_leave_memory_files_threads_and_disk_bounded(tmp_path: Path) -> None:
    tally = Tally()
    soak.attack(Campaign(tally, 120, tmp_path, seed=6))
    assert not tally.failures(), "\n".join([tally.table(), *tally.failures()])
    assert tally.rounds("soak: memory, files and threads of a life") >= 1
    assert tally.rounds("soak: stop, and go on") >= 4
