"""The checkpoint store: directories that count whole or not at all, and the choice among them.

A save makes one new directory, never renamed or reused, for the mirror to S3 sees a rename as a deletion and an upload:

    step-000000150-9f3a1c/
        state.json             the structure and the plain values
        tensors.safetensors    the tensors
        manifest.json          last: size and hash of both files, and its own hash

Each file gets its name only when its bytes are on the disk. A directory is a checkpoint if its manifest verifies and
both files are what it says; nothing else is ever trusted, least of all names, times and the order of arrival.
This room does not know what a state means, but for one thing: a model that holds NaN is not saved. It knows no ranks.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smkit.errors import CheckpointError, ConfigurationError
from smkit.manifest import DamageError, Manifest, commit, is_committed, make_directory, remove
from smkit.state import FlatState, flatten, parse_state

logger = logging.getLogger(__name__)

_TREE_FILE = "state.json"
_TENSOR_FILE = "tensors.safetensors"
_DIRECTORY_NAME = re.compile(r"step-([0-9]{9,})-[0-9a-f]{6}")
_MIN_KEEP = 3
_FAILURES_TO_RAISE = 3
_MODEL_KEY = "model"
"""The key of a state below which NaN is refused."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, read and verified; its tensors are in CPU memory."""

    step: int
    directory: Path
    score: float | None
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run in one directory, written by one process at a time.

    Args:
        directory: Where they lie; made by the first save.
        keep: How many of the newest to keep, three or more, besides the one with the best score.

    A state is a nested dict of tensors, numpy arrays, numbers, text, lists and tuples. Tensors that share one memory
    are stored once and share one memory again when loaded. NaN in a tensor below the state's key "model" is refused.
    """

    def __init__(self, directory: Path, *, keep: int = _MIN_KEEP) -> None:
        if keep < _MIN_KEEP:
            raise ConfigurationError(
                f"keep is {keep}, and fewer than {_MIN_KEEP} checkpoints can leave none whole",
                where="CheckpointStore(keep=...)",
                fix=f"keep {_MIN_KEEP} or more",
            )
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._buffers: dict[str, Tensor] = {}
        self._writer: threading.Thread | None = None
        self.saved_step: int | None = None
        """Step of the last checkpoint that this store has brought to the disk."""
        self._failures = 0
        self._error: Exception | None = None
        self._damaged: set[Path] = set()

    def save(self, step: int, state: Mapping[str, Any], *, score: float | None = None) -> Path:
        """Save a state and return its directory once it would survive a power cut.

        Args:
            step: Number of finished training steps.
            state: See the class.
            score: How good the model is; higher is better. One that is not finite counts as none.

        Raises:
            CheckpointError: It could not be written, or must not be; the older checkpoints are as they were.
        """
        self.wait()
        return self._write(self._stage(step, state, score))

    def start(self, step: int, state: Mapping[str, Any], *, score: float | None = None) -> float:
        """Copy a state to CPU memory, begin to write it in the background, and return the seconds that this took.

        At most one save is in flight: this waits for the one before. The process does not wait for the writer when
        it ends, so call `wait` before.

        Raises:
            CheckpointError: The state cannot be kept; or a save before held NaN, or was the third in a row that failed.
        """
        began = time.perf_counter()
        self.wait()
        staged = self._stage(step, state, score)
        self._writer = threading.Thread(
            target=self._write_in_background, args=(staged,), name="smkit-checkpoint", daemon=True
        )
        self._writer.start()
        return time.perf_counter() - began

    @property
    def is_saving(self) -> bool:
        """Whether a save is in flight."""
        return self._writer is not None and self._writer.is_alive()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Return True as soon as no save is in flight, or False after `timeout_seconds`, even if the disk hangs.

        Raises:
            CheckpointError: As `start` does for the saves before.
        """
        writer = self._writer
        if writer is not None:
            writer.join(timeout_seconds)
            if writer.is_alive():
                return False
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint by step, and warn of each one that is passed over.

        Returns:
            None only if there is no manifest in the store at all.

        Raises:
            CheckpointError: There are manifests and not one whole checkpoint, or the newest one is of a newer smkit.
        """
        found = self._read_all()
        return self._first_whole(found, required=any(is_committed(candidate.directory) for candidate in found))

    def best(self) -> Checkpoint | None:
        """Return the whole checkpoint with the highest score (of equal ones the newest), None if none has a score.

        Raises:
            CheckpointError: There are scores, but no checkpoint that has one is whole.
        """
        ranked = sorted(self._read_all(), key=lambda candidate: candidate.score, reverse=True)
        scored = [one for one in ranked if one.score > -math.inf and is_committed(one.directory)]
        return self._first_whole(scored, required=any(candidate.score < math.inf for candidate in scored))

    def _first_whole(self, candidates: Sequence[_Candidate], *, required: bool) -> Checkpoint | None:
        damages: list[str] = []
        checkpoint = None
        for candidate in candidates:
            try:
                checkpoint = candidate.load()
                break
            except DamageError as damage:
                self._damaged.add(candidate.directory)
                damages.append(f"{damage.where}: {damage.what}")
        if checkpoint is None and required:
            raise CheckpointError(
                "there are checkpoints, but none is whole:" + "".join(f"\n  - {text}" for text in damages),
                where=str(self._directory),
                fix="restore one from a copy, or train from the start with an empty checkpoint directory",
            )
        for text in damages:
            logger.warning("checkpoint passed over: %s", text)
        return checkpoint

    def _read_all(self) -> list[_Candidate]:
        try:
            return _find(self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"the checkpoints cannot be listed: {error.strerror}",
                where=str(self._directory),
                fix="make it a directory that this process can read",
            ) from error

    def _stage(self, step: int, state: Mapping[str, Any], score: float | None) -> _Staged:
        if step < 0:
            raise CheckpointError(f"the step is {step}", where="step", fix="count the finished steps from 0")
        flat = flatten(state).copied_to(self._buffers)
        self._buffers = flat.tensors
        return _Staged(step, None if score is None or not math.isfinite(score) else float(score), flat)

    def _write_in_background(self, staged: _Staged) -> None:
        try:
            self._write(staged)
        except _SaveError as failure:
            if self._failures < _FAILURES_TO_RAISE:
                logger.warning("training goes on without this checkpoint: %s", failure)
            else:
                self._error = failure
        except Exception as error:  # `wait` raises it in the caller's thread
            self._error = error

    def _write(self, staged: _Staged) -> Path:
        staged.refuse_nan()
        directory = self._directory / f"step-{staged.step:09d}-{os.urandom(3).hex()}"
        try:
            make_directory(self._directory)
            older = _find(self._directory)
            ordinal = 1 + max((candidate.ordinal for candidate in older), default=0)
            files = {_TREE_FILE: [staged.flat.tree_file()], _TENSOR_FILE: staged.flat.tensor_file()}
            commit(directory, files, step=staged.step, ordinal=ordinal, score=staged.score)
        except OSError as error:
            self._failures += 1
            raise _SaveError.of(error, staged, self._directory) from error
        self._failures = 0
        self.saved_step = staged.step
        self._prune(older, _Candidate.read(directory))
        return directory

    def _prune(self, older: Sequence[_Candidate], newest: _Candidate) -> None:
        """Remove what is not needed any more; called only when `newest` is on the disk."""
        found = sorted([newest, *older], key=lambda candidate: candidate.age, reverse=True)
        whole = [one for one in found if one.looks_whole() and one.directory not in self._damaged]
        kept = [newest, *whole[: self._keep], max(whole, key=lambda one: one.score, default=newest)]
        oldest_kept_age = whole[self._keep - 1].age if len(whole) >= self._keep else (-1, 0)
        for candidate in found:
            is_abandoned = not is_committed(candidate.directory) and candidate.step <= newest.step
            is_superseded = candidate.age < oldest_kept_age and candidate not in kept
            if not candidate.is_ours or not (is_abandoned or is_superseded):
                continue
            try:
                remove(candidate.directory)
            except OSError as error:
                logger.warning("an old checkpoint could not be removed: %s", error)


@dataclass(frozen=True)
class _Staged:
    """A state on its way to the disk."""

    step: int
    score: float | None
    flat: FlatState

    def refuse_nan(self) -> None:
        names = self.flat.names_with_nan(_MODEL_KEY)
        if names:
            raise CheckpointError(
                f"NaN is not saved over a good model; {len(names)} of its tensors hold it: {', '.join(names[:5])}",
                where=f"step {self.step}",
                fix="go on from the last checkpoint with a lower learning rate or with clipped gradients",
            )


@dataclass(frozen=True)
class _Candidate:
    """A directory that bears a checkpoint's name, and its manifest or what is wrong with it."""

    directory: Path
    manifest: Manifest | CheckpointError

    @classmethod
    def read(cls, directory: Path) -> _Candidate:
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
        """Whether it may be removed: neither a link nor of a format that only another version can judge."""
        return isinstance(self.manifest, (Manifest, DamageError)) and not self.directory.is_symlink()

    def looks_whole(self) -> bool:
        return isinstance(self.manifest, Manifest) and self.manifest.sizes_match()

    def load(self) -> Checkpoint:
        if not isinstance(self.manifest, Manifest):
            raise self.manifest
        tree = self.manifest.read_file(_TREE_FILE)
        tensors = self.manifest.read_file(_TENSOR_FILE)
        try:
            state = parse_state(tree, tensors)
        except Exception as error:  # a hash is no signature: a forged file can hold anything
            raise DamageError.of(self.directory, f"does not hold a state ({error!r:.200})") from error
        return Checkpoint(self.step, self.directory, self.manifest.score, state)


class _SaveError(CheckpointError):
    """The disk did not take a checkpoint; it may take the next one."""

    @classmethod
    def of(cls, error: OSError, staged: _Staged, directory: Path) -> _SaveError:
        needed = sum(tensor.nbytes for tensor in staged.flat.tensors.values()) + len(staged.flat.tree_file())
        fix = "check that the directory is there and can be written, and that its disk is sound"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free space on that disk, but leave the newest checkpoints; or give the job a larger volume"
        return cls(
            f"the checkpoint of step {staged.step} could not be saved: {error.strerror or error}; "
            f"it needs about {needed:,} bytes, and there are {_free(directory)} free",
            where=str(error.filename or directory),
            fix=fix,
        )


def _find(store: Path) -> list[_Candidate]:
    """Return every directory and link that bears a checkpoint's name, newest first."""
    with os.scandir(store) as entries:
        named = [Path(entry) for entry in entries if _DIRECTORY_NAME.fullmatch(entry.name) and not entry.is_file()]
    return sorted(map(_Candidate.read, named), key=lambda candidate: candidate.age, reverse=True)


def _free(directory: Path) -> str:
    for place in (directory, *directory.parents):
        with contextlib.suppress(OSError):
            status = os.statvfs(place)
            files = f" and {status.f_favail:,} files" if status.f_files else ""
            return f"{status.f_bavail * status.f_frsize:,} bytes{files}"
    return "unknown"
