"""Which faults are worth meeting what, and how often in a row; and the record of all rounds."""

from __future__ import annotations

import json
from typing import Any

from torture.services.world import World
from torture.tally import Outcome

ONLY_OF = {
    "bit flipped in an object": "GetObject",
    "bit flipped in what is put": "PutObject|UploadPart",
    "bit flipped in an answer": "(?!GetObject).*",
    "wrong tag and checksum": "GetObject|PutObject|UploadPart|HeadObject",
    "delivered late": "CreateTrainingJob|PutObject|UploadPart|CompleteMultipartUpload|StopTrainingJob",
    "error in a 200": "CompleteMultipartUpload|PutObject|UploadPart|ListObjectsV2|.*TrainingJob",
    "empty pages": "GetLogEvents",
    "events out of order": "GetLogEvents",
    "events held back": "GetLogEvents",
    "pages without an end": "DescribeLogStreams|ListObjectsV2|ListTrainingJobs|ListServiceQuotas",
}
"""Kinds that are of no use to every action."""
WEIGHTED = ("reply lost", "hang after the work", "delivered twice", "delivered late")
"""Kinds that matter most where a job is made."""
TIMES = (1, 1, 2, 3, 10, 10**6)
"""How many requests in a row meet a fault."""


def note_round(world: World, kind: str, place: str, outcome: Outcome, note: str, came: dict[str, Any]) -> None:
    """Write down what happened in a round, for whoever looks into one."""
    with (world.folder / "rounds.jsonl").open("a") as file:
        row = {"kind": kind, "place": place, "outcome": outcome.value, "note": note}
        file.write(json.dumps({name: str(value)[:2000] for name, value in came.items()} | row) + "\n")
