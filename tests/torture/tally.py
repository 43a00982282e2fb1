"""The words in which every attack is counted, and the table of the counts. It knows no attack and no subject."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


class Outcome(Enum):
    """What one round came to."""

    SURVIVED = "survived"
    """It went on, and what it came to is right: no more was done again than since the last committed checkpoint."""
    REFUSED = "refused"
    """It ended with an error that says what, where and how to fix it; what had been committed is still there."""
    LOST = "lost"
    """Something committed cannot be used any more, or an end without an answer: a hang, a foreign traceback."""
    SILENT = "silent"
    """It went on with something wrong and said nothing, or something secret or foreign got through."""


@dataclass
class Tally:
    """How often each subject came to each outcome, attack by attack.

    Args:
        follow: Say each bad round on stderr as it happens; a full run takes hours.
    """

    follow: bool = False
    counts: dict[tuple[str, str], Counter[Outcome]] = field(default_factory=dict)
    notes: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def count(self, attack: str, subject: str, outcome: Outcome, note: str = "") -> None:
        """Count one round; `note` says what happened in it, so that it can be done again (the seed, the round)."""
        key = (attack, subject)
        self.counts.setdefault(key, Counter())[outcome] += 1
        if outcome in (Outcome.LOST, Outcome.SILENT):
            self.notes.setdefault(key, []).append(f"{outcome.value}: {note}")
            if self.follow:
                print(f"{attack}, {subject}: {outcome.value}: {note}", file=sys.stderr, flush=True)

    def failures(self, subject: str = "smkit") -> list[str]:
        """Return what was lost or silent of a subject, a line each."""
        return [
            f"{attack}: {note}" for (attack, name), notes in self.notes.items() if name == subject for note in notes
        ]

    def rounds(self, attack: str, subject: str = "smkit") -> int:
        return self.counts.get((attack, subject), Counter()).total()

    def table(self) -> str:
        """Return the counts as a Markdown table, attack by attack, in the order in which they came."""
        lines = [
            "| attack | subject | rounds | survived | refused | lost | silent |",
            "| :--- | :--- |" + " ---: |" * 5,
        ]
        attacks = list(dict.fromkeys(attack for attack, _ in self.counts))
        for attack in attacks:
            for (name, subject), counts in self.counts.items():
                if name == attack:
                    cells = [str(counts[outcome]) for outcome in Outcome]
                    lines.append(f"| {attack} | {subject} | {counts.total()} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


@dataclass(frozen=True)
class Campaign:
    """What an attack is given: how long, with which seed, on whom, where; and the tally that it fills."""

    tally: Tally
    rounds: int
    folder: Path
    """Empty at first, and the attack's own."""
    seed: int = 0
    subjects: Sequence[str] = ("smkit",)
    """`smkit` and the peers that are to be attacked alike; a group without peers attacks smkit alone."""
    out: Path | None = None
    """Where plots go; None: none are drawn."""

    def draws(self, purpose: str) -> random.Random:
        """Return a generator of its own for each purpose, the same for the same seed."""
        return random.Random(f"{self.seed} {purpose}")
