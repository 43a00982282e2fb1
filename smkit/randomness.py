"""The random generators of a process: seeded once, saved in a checkpoint, put back on resume.

Generators are the process's own (torch, Python, numpy if it is there): whatever a user's step draws from is covered.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def seed_all(seed: int) -> None:
    """Seed every generator of this process; the numpy one only if the script has imported numpy."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed % 2**32)


def rank_seed(seed: int, rank: int, step: int) -> int:
    """Return a seed of a rank's own: two that drew the same dropout masks would see half the noise."""
    digest = hashlib.blake2b(f"{seed} {rank} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_state() -> dict[str, Any]:
    """Return the state of every generator, as tensors and plain values."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if "numpy" in sys.modules:
        import numpy as np

        state["numpy"] = np.random.get_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator back; one that this process lacks, or the state does, is left alone."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "numpy" in state:
        import numpy as np

        np.random.set_state(state["numpy"])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put every generator back at the end of a block: whatever it drew, the training never notices."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)
