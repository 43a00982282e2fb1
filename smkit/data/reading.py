"""One epoch's reading of a stream: from a place on, with random numbers of the place, and whole.

A stream is an iterable data set, of which an item is a sample, or a DataLoader, of which it is a batch. This room knows
neither steps nor ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any

from smkit.data.draws import generators_of_their_own, seed_global_generators
from smkit.data.order import derive_seed
from smkit.errors import DataError

logger = logging.getLogger(__name__)

_END = object()


def length_of(stream: Any) -> int | None:
    """Return the length of a stream, or None; a DataLoader over a stream without one has a `__len__` that raises."""
    if not isinstance(stream, Sized):
        return None
    try:
        return len(stream)
    except TypeError:
        return None


def has_state(stream: Any) -> bool:
    """Return whether a stream can say where it stands, and go there."""
    return hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict")


class Reading:
    """Reads the items of one epoch.

    Whatever it draws from the process's generators depends on the seed, the epoch and the place, and the process does
    not notice.

    Args:
        stream: What is iterated.
        unit: What an item is called, in the plural.
        place: Items that were read before.
        state: What the stream said of that place; None reads again what was read, unless `place` is 0.
        seed: The run's.
        epoch: Counted from 0.
        together: Items that are read at a time; the places where random numbers begin anew.

    Raises:
        DataError: There are fewer items than were read before.
    """

    def __init__(self, stream: Any, unit: str, *, place: int, state: Any, seed: int, epoch: int, together: int) -> None:
        self.place = place
        self._stream = stream
        self._key = (seed, epoch)
        self._together = together
        self._epoch = epoch
        self._name = f"data set {type(stream).__name__}"
        with generators_of_their_own():
            if state is not None:
                stream.load_state_dict(state)
            seed_global_generators(derive_seed(*self._key))
            self._items: Iterator[Any] = iter(stream)
        if place and state is None:
            self._read_again(unit)

    def take(self, count: int) -> list[Any]:
        """Return the next `count` items, fewer at the end."""
        items: list[Any] = []
        with generators_of_their_own():
            for start in range(self.place, self.place + count, self._together):
                seed_global_generators(derive_seed(*self._key, start))
                items += islice(self._items, min(self._together, self.place + count - start))
        self.place += len(items)
        return items

    def finish(self) -> None:
        """Read on to the end, where a stream gets ready for the next time.

        Raises:
            DataError: The end comes later or earlier than the stream's length says, or there was nothing at all.
        """
        with generators_of_their_own():
            goes_on = next(self._items, _END) is not _END
        length = length_of(self._stream)
        if not self.place and not goes_on:
            raise DataError(
                f"the stream has given nothing in epoch {self._epoch + 1}",
                where=self._name,
                fix="check the data, and let `__iter__` begin anew each time: a generator can be read once only",
            )
        if goes_on or (length is not None and length != self.place):
            raise DataError(
                f"its length is {length}, and it {'goes on' if goes_on else 'has ended'} after {self.place}",
                where=self._name,
                fix="let `__len__` count what `__iter__` gives, or leave it out and set max_steps",
            )

    def _read_again(self, unit: str) -> None:
        before, self.place = self.place, 0
        logger.warning(
            "reading %d %s again to get to where the run was, for %s has no state_dict",
            before,
            unit,
            type(self._stream).__name__,
        )
        while self.place < before:
            if not self.take(min(self._together, before - self.place)):
                raise DataError(
                    f"{before} {unit} had been read, and now there are {self.place}",
                    where=self._name,
                    fix="bring back the data that the run began with, or start afresh without the checkpoint",
                )
