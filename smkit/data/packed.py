"""Many short texts in two blocks of memory. This room does not know what they name."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from smkit.data.source import fingerprint_of


class PackedPaths:
    """Paths in two blocks of memory: worker processes would copy a list bit by bit, as its objects are counted."""

    def __init__(self, paths: Sequence[str | bytes]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self.content = b"".join(encoded)
        self.offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def digest(self) -> int:
        """Return a number that is another one for other paths."""
        return fingerprint_of([self.offsets.tobytes(), self.content])

    def __getitem__(self, index: int) -> str:
        start, end = self.offsets[index : index + 2].tolist()
        return os.fsdecode(self.content[start:end])

    @classmethod
    def joined(cls, parts: Sequence[PackedPaths]) -> PackedPaths:
        """Return the paths of all `parts`, one after another."""
        whole = cls([])
        whole.content = b"".join([part.content for part in parts])
        whole.offsets = np.cumsum(np.concatenate([[0], *(np.diff(part.offsets) for part in parts)]), dtype=np.int64)
        return whole
