"""From a directory that bears a checkpoint's name to the state that it holds, read and verified by all ranks together.

Names prove nothing: a directory is a candidate, and its manifest decides. This room writes nothing and chooses nothing.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smkit.distributed import Ranks
from smkit.errors import CheckpointError
from smkit.manifest import DamageError, Manifest
from smkit.sharding import Cut, distributed
from smkit.state import parse_tensors, parse_tree, rebuilt

TREE_FILE = "state.json"
TENSOR_FILE = "tensors.safetensors"
_DIRECTORY_NAME = re.compile(r"step-([0-9]{9,})-[0-9a-f]{6}")


def part_file(rank: int) -> str:
    """Return the name of the file of a rank's tensors."""
    return f"tensors-{rank:05d}.safetensors" if rank else TENSOR_FILE


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, read and verified; its tensors are in CPU memory."""

    step: int
    directory: Path
    score: float | None
    state: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A directory that bears a checkpoint's name, and its manifest or what is wrong with it."""

    directory: Path
    manifest: Manifest | CheckpointError

    @classmethod
    def read(cls, directory: Path) -> Candidate:
        try:
            return cls(directory, Manifest.read(directory))
        except CheckpointError as problem:
            return cls(directory, problem)

    @property
    def step(self) -> int:
        return int(self.directory.name.split("-")[1])

    @property
    def ordinal(self) -> int:
        return self.manifest.ordinal if isinstance(self.manifest, Manifest) else 0

    @property
    def age(self) -> tuple[int, float]:
        """Grows from old to new; one with no manifest to order it comes as the newest of its step."""
        return (self.step, self.ordinal or math.inf)

    @property
    def score(self) -> float:
        """Inf if only the damaged manifest would know it, -inf if there is none."""
        if not isinstance(self.manifest, Manifest):
            return math.inf
        return -math.inf if self.manifest.score is None else self.manifest.score

    @property
    def is_ours(self) -> bool:
        """Whether it may be removed: a folder, no link, and not of a format that only another version can judge."""
        is_folder = self.directory.is_dir() and not self.directory.is_symlink()
        return is_folder and isinstance(self.manifest, (Manifest, DamageError))

    def looks_whole(self) -> bool:
        """Whether the files that rank 0 has written are there with their sizes; other hosts can have the others."""
        return isinstance(self.manifest, Manifest) and self.manifest.sizes_match([TREE_FILE, TENSOR_FILE])

    def never_arrived(self) -> bool:
        """Whether it is a store's first save and lacks files: what a mirror has left that was cut."""
        manifest = self.manifest
        if not isinstance(manifest, Manifest) or manifest.ordinal != 1:
            return False
        return not all(os.path.lexists(self.directory / name) for name in manifest.files)

    def at(self, directory: Path) -> Candidate:
        """Return the same directory at its place on another host."""
        manifest = self.manifest
        return replace(
            self, directory=directory, manifest=manifest.at(directory) if isinstance(manifest, Manifest) else manifest
        )


def find(store: Path) -> list[Candidate]:
    """Return all that bears a checkpoint's name, newest first; what is no directory is a candidate that is damaged."""
    with os.scandir(store) as entries:
        named = [Path(entry) for entry in entries if _DIRECTORY_NAME.fullmatch(entry.name)]
    return sorted(map(Candidate.read, named), key=lambda candidate: candidate.age, reverse=True)


class Loading:
    """One checkpoint on its way into memory: rank 0 reads what is whole, and each rank the parts that it is to hold.

    Args:
        candidate: Its directory as it is seen on this host.
        ranks: All of them load it together.
        mesh: Of the parts; None where rank 0 is to put all of them together for the others.
    """

    def __init__(self, candidate: Candidate, ranks: Ranks, mesh: Any) -> None:
        self._candidate = candidate
        self._ranks = ranks
        self._mesh = mesh
        self._tree: Any = None
        self._tensors: dict[str, Tensor] = {}
        self._parts: dict[str, Tensor] = {}

    def read(self) -> str:
        """Read and verify this rank's share of the files; return what is wrong, as `file: what`, or nothing.

        Raises:
            CheckpointError: It is of a newer smkit.
        """
        manifest = self._candidate.manifest
        if isinstance(manifest, DamageError):
            return _damage(manifest)
        if isinstance(manifest, CheckpointError):
            raise manifest
        try:
            self._read(manifest)
        except DamageError as damage:
            return _damage(damage)
        except Exception as error:  # a hash is no signature: a forged file can hold anything
            return f"{self._candidate.directory}: does not hold a state ({error!r:.200})"
        return ""

    def _read(self, manifest: Manifest) -> None:
        if not (self._ranks.is_first or self._mesh is not None):
            return
        self._tree, cuts = parse_tree(manifest.read_file(TREE_FILE))
        files: dict[int, dict[str, Tensor]] = {}
        if self._ranks.is_first:
            files[0] = parse_tensors(manifest.read_file(TENSOR_FILE))
            self._tensors = {name: tensor for name, tensor in files[0].items() if name not in cuts}
        holders = sum(name not in (TREE_FILE, TENSOR_FILE) for name in manifest.files) + 1

        def part(name: str, rank: int) -> Tensor:
            if rank not in files:
                files[rank] = parse_tensors(manifest.read_file(part_file(rank)))
            return files[rank][name]

        for name, cut in cuts.items():
            start, stop = self._bounds(cut)
            self._parts[name] = cut.assembled(holders, start, stop, partial(part, name))
        if self._mesh is not None:
            self._parts = {name: distributed(part, cuts[name], self._mesh) for name, part in self._parts.items()}
        if self._ranks.is_first:
            rebuilt(self._tree, self._tensors | self._parts)

    def _bounds(self, cut: Cut) -> tuple[int, int]:
        if self._mesh is None:
            return 0, cut.shape[cut.dimension]
        return cut.bounds(self._ranks.world_size, self._ranks.rank)

    def result(self) -> Checkpoint:
        """Return the checkpoint, when every rank has read its share without finding a damage."""
        ranks, manifest = self._ranks, self._candidate.manifest
        whole = self._tensors if self._mesh is not None else self._tensors | self._parts
        tree, kinds = ranks.from_first((self._tree, {name: (one.shape, one.dtype) for name, one in whole.items()}))
        if not ranks.is_first:
            whole = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
        ranks.copy_from_first(list(whole.values()))
        parts = {} if self._mesh is None else self._parts
        score = manifest.score if isinstance(manifest, Manifest) else None
        return Checkpoint(self._candidate.step, self._candidate.directory, score, rebuilt(tree, whole | parts))


def _damage(damage: CheckpointError) -> str:
    return f"{damage.where}: {damage.what}"
