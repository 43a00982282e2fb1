"""The checkpoint store: directories that count whole or not at all, and the choice among them.

A save makes one new directory, never renamed or reused, for the mirror to S3 sees a rename as a deletion and an upload:

    step-000000150-9f3a1c/
        state.json                   the structure and the plain values
        tensors.safetensors          the tensors
        tensors-00001.safetensors    the parts of tensors that only rank 1 holds, where there are such
        manifest.json                last, by rank 0: size and hash of all other files, and its own hash

Each file gets its name only when its bytes are on the disk. A directory is a checkpoint if its manifest verifies and
all files are what it says; nothing else is ever trusted, least of all names, times and the order of arrival.
This room does not know what a state means, but for one thing: a model that holds NaN is not saved.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smkit.disk import make_directory, sync_above, sync_directory, sync_file
from smkit.distributed import Ranks, require_first
from smkit.errors import CheckpointError, ConfigurationError
from smkit.manifest import Entries, commit, is_committed, remove, write_files
from smkit.restoring import TENSOR_FILE, TREE_FILE, Candidate, Checkpoint, Loading, find, part_file
from smkit.space import is_full, shortage
from smkit.state import FlatState, flatten

logger = logging.getLogger(__name__)

_MIN_KEEP = 3
_SLOW_SECONDS = 600.0
"""After which somebody should look at the disk: no checkpoint of a sound one takes so long."""
_FAILURES_TO_RAISE = 3
_SAVES_BETWEEN_MILESTONES = 100
_MILESTONES = 2
"""A mirror that takes longer than there is between two saves may bring none of the newest to S3 before its deletion.
The first save stays, which the mirror had to itself, and long enough for it the newest two of every hundredth."""
_MODEL_KEY = "model"
"""The key of a state below which NaN is refused."""


class CheckpointStore:
    """The checkpoints of one run in one directory, written by one process at a time, or by several together.

    Args:
        directory: Where they lie; made by the first save.
        keep: How many of the newest to keep, three or more. Besides them are kept the one with the best score and, for
            a mirror that is slower than the saves, the very first and two older ones, of every hundred saves the first,
            as long as the disk has room.
        ranks: The processes that save one state together, by default this one alone. All call the same methods in the
            same order; rank 0's state is what is saved, and of tensors of which each rank holds a part (DTensor, as
            FSDP2 makes them), all parts. Hosts may have directories of their own, if what is in one of them gets to the
            others before a run goes on, as SageMaker sees to it.
        mesh: The mesh of those parts: what was saved in parts is loaded in parts. Without one it is loaded whole.
        companions: Files of this host that a state speaks of; they are on the disk, as they are then, before it counts.

    A state is a nested dict of tensors, numpy arrays, numbers, text, lists and tuples. Tensors that share one memory
    are stored once and share one memory again when loaded. NaN in a tensor below the state's key "model" is refused.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = _MIN_KEEP,
        ranks: Ranks | None = None,
        mesh: Any = None,
        companions: Sequence[Path] = (),
    ) -> None:
        if keep < _MIN_KEEP:
            raise ConfigurationError(
                f"keep is {keep}, and fewer than {_MIN_KEEP} checkpoints can leave none whole",
                where="CheckpointStore(keep=...)",
                fix=f"keep {_MIN_KEEP} or more",
            )
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._ranks = ranks or Ranks()
        self._knows_ranks = ranks is not None
        self._mesh = mesh
        self._companions = tuple(companions)
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

        From a GPU the copying itself is in the background too; the state may be changed by what runs there next.

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

    def reserve(self, state: Mapping[str, Any]) -> None:
        """Begin, in the background, to make room in memory for copies of a state like this one.

        The first save then holds the caller up no longer than the others. All ranks need not call it.
        """
        if self._writer is None:
            flat = self._own(flatten(state))
            self._writer = threading.Thread(target=self._reserve, args=(flat,), name="smkit-reserve", daemon=True)
            self._writer.start()

    def _reserve(self, flat: FlatState) -> None:
        # Where there is no room for copies, the first save says so.
        with contextlib.suppress(RuntimeError, MemoryError):
            self._buffers = flat.buffers()

    @property
    def is_saving(self) -> bool:
        """Whether a save, or `reserve`, is under way."""
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
            None only if there is no manifest in the store at all, or only that of the first save, some of whose files
            are not there: the mirror to S3 was cut before there was anything to go on from.

        Raises:
            CheckpointError: There are manifests and not one whole checkpoint, or the newest one is of a newer smkit.
        """
        found, problem = self._read_all()
        required = any(is_committed(one.directory) and not one.never_arrived() for one in found)
        checkpoint = self._first_whole(found, required=required, problem=problem)
        if checkpoint is not None and self._ranks.is_first:
            # The process that wrote it may not have lived until its last name was on the disk.
            with contextlib.suppress(OSError):
                sync_directory(checkpoint.directory)
        return checkpoint

    def best(self) -> Checkpoint | None:
        """Return the whole checkpoint with the highest score (of equal ones the newest), None if none has a score.

        Raises:
            CheckpointError: There are scores, but no checkpoint that has one is whole.
        """
        found, problem = self._read_all()
        ranked = sorted(found, key=lambda candidate: candidate.score, reverse=True)
        scored = [one for one in ranked if one.score > -math.inf and is_committed(one.directory)]
        required = any(candidate.score < math.inf for candidate in scored)
        return self._first_whole(scored, required=required, problem=problem)

    def _offered(self, candidates: Sequence[Candidate]) -> Iterator[Candidate]:
        """Yield the candidates of rank 0 on all ranks, each with its place on this host."""
        offers: Iterator[Candidate] = iter(candidates)
        while True:
            offer = self._ranks.from_first(next(offers, None))
            if offer is None:
                return
            yield offer.at(self._directory / offer.directory.name)

    def _first_whole(
        self, candidates: Sequence[Candidate], *, required: bool, problem: CheckpointError | None
    ) -> Checkpoint | None:
        """Return the first whole one of rank 0's candidates; what rank 0 cannot do is an error on all ranks."""
        required, problem = self._ranks.from_first((required, problem))
        if problem is not None:
            raise problem
        damages: list[str] = []
        checkpoint = None
        for candidate in self._offered(candidates):
            loading = Loading(candidate, self._ranks, self._mesh)
            found = [damage for damage in self._ranks.gathered_patiently(loading.read()) if damage]
            if not found:
                checkpoint = loading.result()
                break
            self._damaged.add(candidate.directory)
            damages.append(found[0])
        if checkpoint is None and required:
            raise CheckpointError(
                "there are checkpoints, but none is whole:" + "".join(f"\n  - {text}" for text in damages),
                where=str(self._directory),
                fix="restore one from a copy, or train from the start with an empty checkpoint directory",
            )
        for text in damages:
            logger.warning("checkpoint passed over: %s", text)
        return checkpoint

    def _read_all(self) -> tuple[list[Candidate], CheckpointError | None]:
        """Return what rank 0 sees, or why it sees nothing; nothing on the other ranks."""
        if not self._ranks.is_first:
            return [], None
        try:
            return find(self._directory), None
        except FileNotFoundError:
            return [], None
        except OSError as error:
            return [], CheckpointError(
                f"the checkpoints cannot be listed: {error.strerror}",
                where=str(self._directory),
                fix="make it a directory that this process can read",
            )

    def _stage(self, step: int, state: Mapping[str, Any], score: float | None) -> _Staged:
        if not self._knows_ranks:
            require_first(
                "its CheckpointStore does not know of the others: all of them would save over each other",
                fix="give it ranks=..., from `with context.join() as ranks`; or let rank 0 alone save",
            )
        if step < 0:
            raise CheckpointError(f"the step is {step}", where="step", fix="count the finished steps from 0")
        problem: CheckpointError | None = None
        try:
            flat = flatten(state)
        except CheckpointError as error:
            flat, problem = flatten({}), error
        # One that only one rank has would leave the others waiting.
        outcomes = self._ranks.gathered_patiently((f"step-{step:09d}-{os.urandom(3).hex()}", problem))
        problem = next((problem for _, problem in outcomes if problem is not None), None)
        if problem is not None:
            raise problem
        flat = self._own(flat).copied_to(self._buffers)
        self._buffers = flat.tensors
        score = None if score is None or not math.isfinite(score) else float(score)
        return _Staged(step, score, flat, self._directory / outcomes[0][0])

    def _own(self, flat: FlatState) -> FlatState:
        """Return what this rank saves of a state: rank 0 all that it has, the others their parts."""
        return flat if self._ranks.is_first else flat.only_parts()

    def _write_in_background(self, staged: _Staged) -> None:
        try:
            self._write(staged)
        except _SaveError as failure:
            if self._failures >= _FAILURES_TO_RAISE:
                self._error = failure
            elif self._ranks.is_first:
                logger.warning("training goes on without this checkpoint: %s", failure)
        except Exception as error:  # `wait` raises it in the caller's thread
            self._error = error

    @contextlib.contextmanager
    def _watched(self, step: int) -> Iterator[None]:
        """Tell of a save that takes very long; the thread that does it may wait for a disk that hangs."""
        saved = "none of this process" if self.saved_step is None else f"that of step {self.saved_step}"
        text = "the checkpoint of step %d is on its way for %.0f minutes: %s is slow or hangs%s; the last one is %s"
        others = ", or where another process saves" if self._ranks.world_size > 1 else ""
        words = (text, step, _SLOW_SECONDS / 60, self._directory, others, saved)
        timer = threading.Timer(_SLOW_SECONDS, logger.warning, words)
        timer.daemon = True
        if self._ranks.is_first:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _write(self, staged: _Staged) -> Path:
        with self._watched(staged.step):
            return self._write_parts(staged)

    def _write_parts(self, staged: _Staged) -> Path:
        """Write this rank's files; when all ranks have, rank 0 writes the manifest, and all learn what came of it."""
        written = self._ranks.gathered_in_background(staged.written(self._ranks.rank))
        problem = next((outcome for outcome in written if isinstance(outcome, CheckpointError)), None)
        superseded: list[str] = []
        if problem is None and self._ranks.is_first:
            entries = {name: entry for files in written if isinstance(files, dict) for name, entry in files.items()}
            try:
                superseded = self._commit(staged, entries)
            except OSError as error:
                _forget(staged.directory)
                problem = _SaveError.of(error, staged)
            except Exception as error:  # whatever it is, the other ranks wait for word
                problem = staged.unexpected(error)
        if isinstance(problem, _FullDiskError) and self._ranks.is_first:
            superseded = self._expendable()
        problem, superseded = self._ranks.gathered_in_background((problem, superseded))[0]
        if problem is not None:
            _forget(staged.directory)
            self._remove(superseded)
            if isinstance(problem, _SaveError):
                self._failures += 1
            raise problem
        if self._failures and self._ranks.is_first:
            logger.warning("checkpoints can be saved again: that of step %d is", staged.step)
        self._failures = 0
        self.saved_step = staged.step
        self._remove(superseded)
        return staged.directory

    def _commit(self, staged: _Staged, entries: Entries) -> list[str]:
        """Make a checkpoint of the files that are there; return the names of those that are not needed any more."""
        older = [one for one in find(self._directory) if one.directory != staged.directory]
        ordinal = 1 + max((candidate.ordinal for candidate in older), default=0)
        if self.saved_step is None:
            # Whoever has made these folders has not waited for their names.
            for path in (staged.directory, *self._companions):
                sync_above(path)
        for file in self._companions:
            # What becomes of them is no reason to do without a checkpoint.
            with contextlib.suppress(OSError):
                sync_file(file)
        commit(staged.directory, entries, step=staged.step, ordinal=ordinal, score=staged.score)
        return self._superseded(older, Candidate.read(staged.directory))

    def _superseded(self, older: Sequence[Candidate], newest: Candidate, *, milestones: int = _MILESTONES) -> list[str]:
        """Return the names of directories to remove; called only when `newest` is on the disk."""
        found = sorted([newest, *older], key=lambda candidate: candidate.age, reverse=True)
        whole = [one for one in found if one.looks_whole() and one.directory not in self._damaged]
        hundredths = [one for one in whole if one.ordinal % _SAVES_BETWEEN_MILESTONES == 1]
        spared = [*hundredths[:milestones], *hundredths[-1:]] if milestones else []
        kept = [newest, *whole[: self._keep], max(whole, key=lambda one: one.score, default=newest), *spared]
        oldest_kept_age = whole[self._keep - 1].age if len(whole) >= self._keep else (-1, 0)
        names = []
        for candidate in found:
            is_abandoned = not is_committed(candidate.directory) and candidate.step <= newest.step
            is_superseded = candidate.age < oldest_kept_age and candidate not in kept
            if candidate.is_ours and (is_abandoned or is_superseded):
                names.append(candidate.directory.name)
        return names

    def _expendable(self) -> list[str]:
        """Return the names of directories that are kept only as long as the disk has room."""
        with contextlib.suppress(OSError):
            found = find(self._directory)
            newest = next((one for one in found if one.looks_whole() and one.directory not in self._damaged), None)
            if newest is not None:
                return self._superseded([one for one in found if one is not newest], newest, milestones=0)
        return []

    def _remove(self, names: Sequence[str]) -> None:
        # One process of each host, for hosts may have directories of their own.
        for name in names if self._ranks.local_rank == 0 else ():
            try:
                remove(self._directory / name)
            except FileNotFoundError:
                # It is another host's.
                continue
            except OSError as error:
                logger.warning("an old checkpoint could not be removed: %s", error)


@dataclass(frozen=True)
class _Staged:
    """A state on its way to the disk."""

    step: int
    score: float | None
    flat: FlatState
    directory: Path

    def written(self, rank: int) -> Entries | CheckpointError:
        """Write the files of a rank; return their entries, or why they are not to be had."""
        try:
            self.flat.wait()
            self._refuse_nan()
            make_directory(self.directory.parent)
            if rank == 0:
                files = {TREE_FILE: [self.flat.tree_file()], TENSOR_FILE: self.flat.tensor_file()}
                return write_files(self.directory, files)
            return write_files(self.directory, {part_file(rank): self.flat.tensor_file()}) if self.flat.cuts else {}
        except OSError as error:
            return _SaveError.of(error, self, of_rank=f" of rank {rank}" if rank else "")
        except CheckpointError as error:
            return error
        except Exception as error:  # whatever it is, the other ranks wait for word
            return self.unexpected(error)

    def unexpected(self, error: Exception) -> CheckpointError:
        """Return the error of a save that has failed otherwise than by its disk."""
        return CheckpointError(
            f"the checkpoint of step {self.step} could not be written: {error!r:.200}",
            where=str(self.directory),
            fix="the cause is no fault of the disk; the log of that process says more",
        )

    def _refuse_nan(self) -> None:
        names = self.flat.names_with_nan(_MODEL_KEY)
        if names:
            raise CheckpointError(
                f"NaN is not saved over a good model; {len(names)} of its tensors hold it: {', '.join(names[:5])}",
                where=f"step {self.step}",
                fix="go on from the last checkpoint with a lower learning rate or with clipped gradients",
            )


class _SaveError(CheckpointError):
    """The disk did not take a checkpoint; it may take the next one."""

    @classmethod
    def of(cls, error: OSError, staged: _Staged, of_rank: str = "") -> _SaveError:
        directory = staged.directory.parent
        needed = sum(tensor.nbytes for tensor in staged.flat.tensors.values()) + len(staged.flat.tree_file())
        fix = "check that the directory is there and can be written, and that its disk is sound"
        kind = cls
        if is_full(error):
            fix = "free space on that disk, but leave the newest checkpoints; or give the job a larger volume"
            kind = _FullDiskError
        return kind(
            f"the checkpoint of step {staged.step} could not be saved: {error.strerror or error}; "
            f"{shortage(directory, needed)}",
            where=f"{error.filename or directory}{of_rank}",
            fix=fix,
        )


class _FullDiskError(_SaveError):
    """There was no room for a checkpoint."""


def _forget(directory: Path) -> None:
    with contextlib.suppress(OSError):
        remove(directory)
