"""What smkit's own data sets have in common: a whole batch is one indexed read, into memory that the reader is given.

Subclasses know a format; this room knows none, neither who reads nor in which order.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from smkit.data.order import Windows
from smkit.data.threads import usable_cores
from smkit.errors import DataError

LABELS = ("label", "labels", "y", "target", "targets")
"""Names that mark the label among arrays or columns."""

Allocate = Callable[[Sequence[int], torch.dtype], Tensor]
"""Returns a tensor of this shape and type with any content, maybe page-locked: the memory that a batch is read into."""


def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return new memory."""
    return torch.empty(tuple(shape), dtype=dtype)


class Source(Dataset[Any], ABC):
    """A data set that reads whole batches: tuples of tensors `(inputs..., label)`, or dicts of columns by name."""

    classes: tuple[str, ...] = ()
    """Names of the classes, sorted: label i is class i. Empty where labels were numbers from the start."""
    windows: Windows | None = None
    """How it is shuffled where it must be read in sequence to be fast; None where any order is as fast."""
    threads: int | None = None
    """Threads that one read may use; None is one for each core of this process, as worker processes share them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: Tensor, allocate: Allocate) -> Any:
        """Return the batch of the samples `index`, int64 `(k,)` with k >= 1, in that order.

        Several threads never call it at once.

        Args:
            index: Samples, each below `len`.
            allocate: Gives the memory of the batch's tensors.

        Raises:
            SampleError: One sample cannot be read; the others can.
            DataError: The data is not what it was when it was opened.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> int:
        """A number below 2**63 that is another one where the data is: of names and sizes of files, not of all bytes."""

    @property
    def threads_of_read(self) -> int:
        """Threads that a read uses for work that does not need Python's lock."""
        if self.threads is not None:
            return self.threads
        worker = get_worker_info()
        return max(1, usable_cores() // (1 if worker is None else worker.num_workers))

    def batch_bytes(self, samples: int) -> int | None:  # noqa: ARG002
        """Return the size of a batch of `samples` where reading it is one copy in memory; None where it is more work.

        A small copy is quicker done than handed to a thread.
        """
        return None

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Any:
        return self.read(torch.as_tensor(indices, dtype=torch.int64), allocate)

    def __getitem__(self, index: int) -> Any:
        batch = self.read(torch.tensor([range(len(self))[index]]), allocate)
        return (
            {name: column[0] for name, column in batch.items()}
            if isinstance(batch, dict)
            else tuple(column[0] for column in batch)
        )


class SampleError(DataError):
    """One sample that cannot be read.

    Args:
        what: What happened, in one sentence.
        sample: Its index in the data set.
        where: As in every smkit error.
        fix: As in every smkit error.
    """

    def __init__(self, what: str, *, sample: int, where: str, fix: str) -> None:
        super().__init__(what, where=where, fix=fix)
        self.sample = sample

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.what, self.sample, self.where, self.fix))


def _rebuild(what: str, sample: int, where: str, fix: str) -> SampleError:
    return SampleError(what, sample=sample, where=where, fix=fix)


def stray_text(labels: Iterable[str]) -> str | None:
    """Return a text among labels that are else whole numbers, which it would make names of: '10' would sort before '2'.

    Where as many texts as numbers are labels, as in a set of digits and letters, all of them are names.
    """
    names = dict.fromkeys(labels)
    texts = [name for name in names if not (name.isascii() and name.removeprefix("-").isdecimal())]
    return texts[0] if texts and len(texts) < len(names) - len(texts) else None


def fingerprint_of(parts: Iterable[object]) -> int:
    """Return a number below 2**63 made of the texts of `parts`."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = part if isinstance(part, bytes) else str(part).encode(errors="surrogateescape")
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def fingerprint_of_files(root: Path, files: Iterable[str]) -> int:
    """Return a number below 2**63 made of the names and sizes of `files`, which are relative to `root`.

    Times have no say: a job that goes on in another machine has downloaded its files anew.
    """
    return fingerprint_of(part for file in files for part in (file, (root / file).stat().st_size))
