"""Hostile archives, unpacked where smkit unpacks: what a job has left (`Job.download`), beside three others' ways.

A round is one archive. It is silent if something came to lie outside of the folder, or inside as a door to the outside
(a link, a device, a program that runs as its owner); lost if it took too much memory, disk or time, or ended with an
error that is not the subject's own; refused, if it was; survived, if what was unpacked is harmless.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from torture.security import hostile_archives
from torture.security.unpacking import DISK_BYTES, FOREIGN, MEMORY_BYTES, REFUSED, SUBJECTS
from torture.tally import Campaign, Outcome

_TESTS = Path(__file__).parents[2]


def attack(campaign: Campaign) -> None:
    alone = list(campaign.subjects) == ["smkit"]
    for subject in SUBJECTS if not alone else ["smkit"]:
        folder = campaign.folder / "archives"
        folder.mkdir()
        for found in _unpacked(subject, folder, hostile_archives.names(is_short=campaign.rounds < 10)):
            outcome, note = _outcome(subject, found)
            campaign.tally.count("hostile archives", subject, outcome, f"{found['name']}: {note}")
        folder.rmdir()


def _unpacked(subject: str, folder: Path, names: list[str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torture.security.unpacking", subject, str(folder), *names]
    run = subprocess.run(command, cwd=_TESTS, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) == len(names), f"status {run.returncode}: {run.stderr}"
    return found


def _outcome(subject: str, found: dict[str, Any]) -> tuple[Outcome, str]:
    said = str(found["said"])
    if found["escapes"]:
        return Outcome.SILENT, "; ".join(found["escapes"])
    spent = f"{found['seconds']} s, {found['memory'] >> 20} MiB of memory, {found['disk'] >> 20} MiB of disk"
    if found["memory"] > MEMORY_BYTES or found["disk"] > DISK_BYTES or found["status"] < 0:
        return Outcome.LOST, f"status {found['status']}, {spent}, {said[:200]}"
    if any(character in said for character in "\x1b\x07\x00"):
        return Outcome.SILENT, f"a name reaches the terminal as it is: {said[:100]!r}"
    if found["status"] == REFUSED:
        return Outcome.REFUSED, said
    if found["status"] == FOREIGN:
        # Others have no errors of their own for this; a refusal is a refusal.
        return (Outcome.LOST if subject == "smkit" else Outcome.REFUSED), said[:300]
    return Outcome.SURVIVED, spent
