"""What a loop asks of a loader, whatever the data is: batches, steps, a position that can be saved.

This room knows no way to read; `smkit.data.indexed` and `smkit.data.streams` each know one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch.utils.data import DataLoader


class Group(NamedTuple):
    """The micro-batches of one optimizer step."""

    samples: int
    """Of the step, over all micro-batches and ranks."""
    shares: tuple[int, ...]
    """This rank's samples in each micro-batch; 0 where what it is given only keeps it in step with the others."""


class Loader(DataLoader[Any], ABC):
    """This rank's micro-batches of an epoch, from the position to the epoch's end; made by `make_loader`.

    A loop of one's own that accumulates gradients, or that is to resume within an epoch, counts its steps:

        batches = iter(loader)
        for group in loader.groups():            # one optimizer step
            for share in group.shares:           # one micro-batch; its loss weighs share / samples
                loss = training_step(next(batches)) * (share / group.samples)
                loss.backward()
            optimizer.step()
            loader.advance()

    A plain `for batch in loader` works as well; each pass that it makes to the end counts as an epoch. Where several
    ranks average their gradients, as DDP does, the weight is `share * world_size / group.samples`. A rank whose share
    of the epoch's last samples is empty is given those of the others, so that it computes as often as they do; its
    weight is 0.
    """

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch, a short last one included; None for a stream that does not say."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """Epochs that are finished."""

    @property
    @abstractmethod
    def step(self) -> int:
        """Optimizer steps that are finished in the current epoch."""

    @property
    def skipped(self) -> Mapping[int, str]:
        """Samples that could not be read and were replaced by others, each with the reason."""
        return {}

    @abstractmethod
    def describe(self) -> str:
        """Return the data set, and how it is read, in one line."""

    @abstractmethod
    def groups(self) -> Iterator[Group]:
        """Return the micro-batches of each optimizer step that is left of the epoch."""

    @abstractmethod
    def advance(self) -> None:
        """Count one optimizer step as done. What has been fetched does not count: a batch can wait in a queue."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the position, to be saved with the model; the same on all ranks, whatever their number."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; the next `iter` begins there.

        Raises:
            DataError: The number of samples, the seed, the batch size, shuffling or the data is another one.
        """


def describe(dataset: object, samples: str) -> str:
    """Return a data set in one line: its own description if it has one, else its class and size."""
    text = repr(dataset)
    return text if "object at 0x" not in text else f"{type(dataset).__name__}({samples})"
