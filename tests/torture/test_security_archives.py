"""In short: hostile archives, secrets in a source, words that are orders; of smkit alone, and without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from torture.security import archives, bundles, injection
from torture.tally import Campaign, Tally

pytest.importorskip("pathspec")
pytestmark = pytest.mark.endurance


def test_no_archive_comes_out_of_its_folder(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("what an unpacking takes is measured as Linux counts it")
    tally = Tally()
    archives.attack(Campaign(tally, 1, tmp_path))
    assert not tally.failures(), tally.table()
    assert tally.rounds("hostile archives") >= 45


def test_no_secret_of_a_source_travels(tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    tally = Tally()
    bundles.attack(Campaign(tally, 1, tmp_path, seed=7))
    assert not tally.failures(), tally.table()
    assert tally.rounds("secrets in a source") == 12


def test_no_terminal_obeys_a_job_and_no_hyperparameter_takes_over(tmp_path: Path) -> None:
    tally = Tally()
    injection.words(Campaign(tally, 1, tmp_path))
    assert not tally.failures(), tally.table()
    assert tally.rounds("words that are orders") >= 50
    assert tally.rounds("orders for a terminal") >= 14
