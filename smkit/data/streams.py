"""Batches of data that can only be read from front to end: an iterable data set, or a DataLoader of the user's own.

A stream has no order of its own to resume in: how it is read from a place on, `smkit.data.reading` knows; this room
counts steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from smkit.data.batches import Group, Loader, describe
from smkit.data.draws import SampleRandom, Transform, generators_of_their_own
from smkit.data.epoch import POSITION, cut, micro_batch_sizes
from smkit.data.fetch import Collate, collate, pin
from smkit.data.reading import Reading, has_state, length_of
from smkit.errors import DataError

Stream = IterableDataset[Any] | DataLoader[Any]


class StreamLoader(Loader):
    """See `Loader`: an optimizer step takes the next samples of the stream, and each rank its share of them.

    Every rank reads the whole stream, so that all take the same number of steps and the batches are the same whatever
    their number. What a stream draws from the process's generators depends on the seed, the epoch and the place alone.

    Args:
        stream: Iterated once each epoch; one sample at a time, or one batch if it is a DataLoader.
        batch_size: Samples of one optimizer step, over all ranks and micro-batches.
        gradient_accumulation_steps: Micro-batches of one optimizer step.
        rank: This process among `world_size`.
        world_size: Processes that train together.
        seed: The run's.
        collate_fn: Makes a batch of samples.
        transform: Makes a batch of a batch.
        pin_memory: Whether batches lie in page-locked memory, if there is a GPU.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int,
        gradient_accumulation_steps: int,
        rank: int,
        world_size: int,
        seed: int,
        collate_fn: Collate | None,
        transform: Transform | None,
        pin_memory: bool,
    ) -> None:
        super().__init__(
            stream.dataset if isinstance(stream, DataLoader) else stream,
            batch_size=None,
            collate_fn=collate_fn or collate,
            pin_memory=pin_memory and torch.cuda.is_available(),
        )
        self._stream: Any = stream
        self._has_state = has_state(stream)
        self._gives_batches = isinstance(stream, DataLoader)
        self._unit = "batches" if self._gives_batches else "samples"
        self._batch_size = batch_size
        self._accumulation = gradient_accumulation_steps
        self._rank, self._world_size = rank, world_size
        self._seed = seed
        self._transform = transform
        self._epoch = self._step = self._samples = self._read = 0
        self._stream_state: Any = None
        self._reading: Reading | None = None
        self._is_elsewhere = False
        self._begin()

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch; None if the stream has no `__len__`."""
        length = length_of(self._stream)
        return None if length is None else -(-length // self._items_of_step)

    @property
    def epoch(self) -> int:
        """Epochs that are finished."""
        return self._epoch

    @property
    def step(self) -> int:
        """Optimizer steps that are finished in the current epoch."""
        return self._step

    def __len__(self) -> int:
        length = length_of(self._stream)
        if length is None:
            raise TypeError(f"{type(self._stream).__name__} has no length")
        if self._gives_batches:
            return length
        whole_steps, rest = divmod(length, self._batch_size)
        return whole_steps * self._accumulation + len(micro_batch_sizes(rest, self._batch_size, self._accumulation))

    def describe(self) -> str:
        """Return the data set in one line, and what a resume costs."""
        length = length_of(self._stream)
        text = describe(self._stream, "no length" if length is None else f"{length:,} {self._unit}")
        return text if self._has_state else f"{text}, read again from its start on resume"

    def groups(self) -> Iterator[Group]:
        """Return the micro-batches of each optimizer step that is left of the epoch."""
        epoch = self._epoch
        while self._epoch == epoch and self._pull():
            parts = (cut(size, self._world_size, self._rank) for size in self._sizes)
            yield Group(sum(self._sizes), tuple(part.stop - part.start for part in parts))

    def advance(self) -> None:
        """Count one optimizer step as done; after the last one of an epoch the position is the next one's start."""
        self._step += 1
        self._samples += sum(self._sizes)
        self._read += len(self._sizes) if self._gives_batches else sum(self._sizes)
        self._stream_state = None
        if self._has_ended or self._step == self.steps_per_epoch:
            self._end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, with what the stream itself says of it if it has a `state_dict`."""
        state: dict[str, Any] = {name: getattr(self, f"_{name}") for name in _POSITION}
        if self._has_state and (self._epoch or self._step):
            state["stream"] = self._state_of_stream()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; the stream is asked to go there, or read again up to there.

        Raises:
            DataError: The seed or the batch size is another one.
        """
        if missing := sorted(set(_POSITION) - state.keys()):
            raise DataError(
                f"no {', '.join(missing)} in {dict(state)!r:.200}",
                where=POSITION,
                fix="pass what `state_dict` has returned",
            )
        for name in ("seed", "batch_size"):
            own = getattr(self, f"_{name}")
            if state[name] != own:
                raise DataError(
                    f"{name} was {state[name]} and is {own} now, so that the position means other samples",
                    where=POSITION,
                    fix=f"set {name}={state[name]}, or start afresh without the checkpoint",
                )
        for name in ("epoch", "step", "samples", "read"):
            setattr(self, f"_{name}", state[name])
        self._stream_state = state.get("stream")
        self._begin()
        self._is_elsewhere = True

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its private iterator class here
        self._begin()
        return self._one_pass()

    def _one_pass(self) -> Iterator[Any]:
        epoch = self._epoch
        while self._waiting or (self._epoch == epoch and self._pull()):
            yield self._waiting.popleft()

    @property
    def _items_of_step(self) -> int:
        return self._accumulation if self._gives_batches else self._batch_size

    def _begin(self) -> None:
        """Forget what was fetched; the next pull begins at the position."""
        self._is_elsewhere = self._is_elsewhere or self._reading is not None
        self._reading = None
        self._waiting: deque[Any] = deque()
        self._sizes: tuple[int, ...] = ()
        self._has_ended = False
        self._pulled = self._step
        self._pulled_samples = self._samples

    def _end_epoch(self) -> None:
        """Begin the next epoch, when this one was read to its end.

        Raises:
            DataError: The end comes later or earlier than the stream's length says.
        """
        if self._reading is not None:
            self._reading.finish()
        self._epoch += 1
        self._step = self._samples = self._read = self._pulled = self._pulled_samples = 0
        self._stream_state = self._reading = None
        self._has_ended = False

    def _state_of_stream(self) -> Any:
        """Return what the stream says of the position that is counted."""
        if self._stream_state is None:
            with generators_of_their_own():
                self._stream_state = self._stream.state_dict()
        return self._stream_state

    def _pull(self) -> bool:
        """Fetch the next step; at the end of the epoch return False, at the start of the next one."""
        if self._pulled == self.steps_per_epoch:
            self._end_epoch()
            return False
        if self._has_state and not self._is_elsewhere:
            self._state_of_stream()
        self._reading = self._reading or self._opened()
        items = self._reading.take(self._items_of_step)
        if not items:
            self._end_epoch()
            return False
        # What a stream says of its place then is the start of the next epoch, for this one was read to its end.
        self._has_ended = len(items) < self._items_of_step
        self._sizes = (
            tuple(map(_count, items))
            if self._gives_batches
            else micro_batch_sizes(len(items), self._batch_size, self._accumulation)
        )
        self._waiting.extend(items if self._gives_batches else self._shares(items))
        self._pulled += 1
        self._pulled_samples += sum(self._sizes)
        return True

    def _opened(self) -> Reading:
        """Return a reading from the position on; the stream is asked to go there only if it stands elsewhere."""
        state = self._stream_state if self._has_state and self._is_elsewhere else None
        self._is_elsewhere = False
        return Reading(
            self._stream,
            self._unit,
            place=self._read,
            state=state,
            seed=self._seed,
            epoch=self._epoch,
            together=1 if self._gives_batches else self._batch_size,
        )

    def _shares(self, samples: Sequence[Any]) -> Iterator[Any]:
        """Yield this rank's batch of each micro-batch."""
        start = 0
        for size in self._sizes:
            part = cut(size, self._world_size, self._rank)
            first, last = start + part.start, start + part.stop
            if first == last:
                # What the other ranks are given stands in for nothing.
                first, last = start, start + size
            start += size
            yield self._batch(samples[first:last], self._pulled_samples + first)

    def _batch(self, samples: Sequence[Any], first: int) -> Any:
        batch = self.collate_fn(list(samples))
        if self._transform is not None:
            places = torch.arange(first, first + len(samples))
            batch = self._transform(batch, SampleRandom(self._seed, self._epoch, places))
        return pin(batch) if self.pin_memory else batch


_POSITION = ("seed", "epoch", "step", "samples", "read", "batch_size")


def _count(batch: Any) -> int:
    """Return how many samples a batch holds: the first length of its first tensor.

    Raises:
        DataError: There is no tensor in it.
    """
    found: Any = batch
    while isinstance(found, (list, tuple, dict)) and found:
        found = next(iter(found.values() if isinstance(found, dict) else found))
    if isinstance(found, Tensor) and found.dim():
        return len(found)
    raise DataError(
        f"a batch is {type(batch).__name__}, and begins with no tensor whose length counts its samples",
        where="the batches of your DataLoader",
        fix="let its collate_fn return a tensor first",
    )
