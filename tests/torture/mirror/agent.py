"""A mirror from a folder to S3, in virtual time: what SageMaker's agent may do, as far as anybody knows.

It uploads what is new or changed, in some order, each file by itself and as it was when it was read; a file that is
just being written it may have read half. It deletes from S3 what is gone from the folder, later and in any order, or
never. Nothing of it is documented; so it takes every freedom.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torture.mirror.history import Folder, History

ORDERS: dict[str, Callable[[random.Random, list[str], dict[str, int]], str]] = {
    "random": lambda draw, names, born: draw.choice(names),
    "oldest": lambda draw, names, born: min(names, key=lambda name: (born[name], draw.random())),
    "newest": lambda draw, names, born: max(names, key=lambda name: (born[name], draw.random())),
}


@dataclass(frozen=True)
class Circumstances:
    """How a mirror is in a round.

    Attributes:
        ratio: Time that the upload of one checkpoint takes, over the time between two saves.
        order: Of the uploads.
        writers: Uploads at once; together they are no faster than one.
        deletes: Whether what is deleted here is deleted there.
        half: How probable it is, in each save, that a file is read while it is written.
    """

    ratio: float
    order: str
    writers: int
    deletes: bool
    half: float


class Mirror:
    """A mirror beside a history, from nothing on.

    Args:
        history: What lies in the folder after each save.
        times: When each save is there; as many as there shall be.
        upload_seconds: How long all files of one checkpoint take.
        how: See there.
        draw: Decides all the rest.
    """

    def __init__(
        self, history: History, times: Sequence[float], upload_seconds: float, how: Circumstances, draw: random.Random
    ) -> None:
        self._history, self._times, self._how, self._draw = history, times, how, draw
        self._seconds_per_byte = upload_seconds / sum(map(len, history.folders[0].values()))
        self._between_looks = times[-1] / len(times) / 3
        self._local: Folder = {}
        self._born: dict[str, int] = {}
        self._under_way: list[tuple[float, str, bytes]] = []
        self.remote: dict[str, bytes] = {}
        """What a new machine would be given."""

    def moments(self) -> Iterator[float]:
        """Yield the time after each change of `remote`, without an end."""
        saves = itertools.chain(enumerate(self._times), itertools.repeat((0, math.inf)))
        number, save_time = next(saves)
        look_time = now = 0.0
        while True:
            self._begin(now)
            upload_time = min(self._under_way)[0] if self._under_way else math.inf
            now = min(save_time, upload_time, look_time)
            if now == save_time:
                self._save(number)
                number, save_time = next(saves)
            elif now == upload_time:
                done = min(self._under_way)
                self._under_way.remove(done)
                self.remote[done[1]] = done[2]
            else:
                self._delete()
                look_time = now + self._draw.expovariate(1 / self._between_looks)
            yield now

    def _begin(self, now: float) -> None:
        """Begin uploads, until there are as many as there may be."""
        begun = {name for _, name, _ in self._under_way}
        waiting = [
            name for name, content in self._local.items() if self.remote.get(name) is not content and name not in begun
        ]
        while waiting and len(self._under_way) < self._how.writers:
            name = ORDERS[self._how.order](self._draw, waiting, self._born)
            waiting.remove(name)
            seconds = (len(self._local[name]) + 1) * self._seconds_per_byte * self._how.writers
            self._under_way.append((now + seconds, name, self._local[name]))

    def _save(self, number: int) -> None:
        folder = self._history.folders[number]
        half = self._history.half_written(number)
        if half and self._draw.random() < self._how.half:
            name = self._draw.choice(sorted(half))
            self.remote[name] = half[name][: self._draw.randrange(len(half[name]) + 1)]
        self._born |= {name: number for name, content in folder.items() if self._local.get(name) is not content}
        self._local = folder

    def _delete(self) -> None:
        gone = [name for name in self.remote if name not in self._local]
        for name in gone if self._how.deletes else ():
            if self._draw.random() < 0.7:
                del self.remote[name]
