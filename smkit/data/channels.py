"""From a channel of a job to the loader of this process: who holds which part of the data decides how it is cut.

A channel is on every host as a whole, or each host has a part of its files (ShardedByS3Key): cutting that once more
among all ranks would show each only a part of a part. This room is the only one of the data's that talks to other
processes, and only where hosts hold different parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import distributed
from torch.utils.data import IterableDataset

from smkit.data.batches import Loader
from smkit.data.indexed import dataset_fingerprint
from smkit.data.loader import make_loader
from smkit.data.source import fingerprint_of
from smkit.distributed import gathered_from_all
from smkit.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class Place:
    """This process among those that train together."""

    host: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


@dataclass(frozen=True)
class _Part:
    """What one process says of its host's part."""

    host: str
    samples: int
    fingerprint: int
    classes: tuple[str, ...]
    problem: str


def channel_loader(
    open_dataset: Callable[[], Any], place: Place, *, is_sharded: bool, where: str, **options: Any
) -> Loader:
    """Return this process's loader of a channel; `options` are those of `make_loader`.

    Of a channel that every host has as a whole, all ranks share each batch. Of one that is sharded, the ranks of a host
    share its part. Counts are gathered from all processes then, so that all do the same number of steps, and a mistake
    on one host ends all of them with its text instead of leaving the others to wait.

    Raises:
        ConfigurationError: The processes cannot talk to each other yet.
        DataError: A host has no sample, parts name different classes, or opening one failed.
    """
    if not is_sharded or place.world_size == 1:
        # Of a sharded channel too: nobody trains together with this process, and its part is all there is.
        return make_loader(
            open_dataset(),
            rank=place.rank,
            world_size=place.world_size,
            local_world_size=place.local_world_size,
            **options,
        )
    if not distributed.is_initialized():
        raise ConfigurationError(
            "each host has a part of this channel (ShardedByS3Key), and the processes cannot tell each other how much",
            where=where,
            fix="call torch.distributed.init_process_group() before the loader is made",
        )
    dataset, parts = _gathered(open_dataset, place)
    _require_usable(parts, where)
    return make_loader(
        dataset,
        rank=place.local_rank,
        world_size=place.local_world_size,
        local_world_size=place.local_world_size,
        shards=[part.samples for part in parts],
        fingerprint=fingerprint_of(part.fingerprint for part in parts),
        **options,
    )


def _gathered(open_dataset: Callable[[], Any], place: Place) -> tuple[Any, list[_Part]]:
    """Return this process's data set, and what each host says of its own, in the order of hosts."""
    dataset: Any = None
    try:
        dataset = open_dataset()
        mine = _Part(place.host, _samples(dataset), dataset_fingerprint(dataset), _classes(dataset), "")
    except DataError as error:
        mine = _Part(place.host, 0, 0, (), str(error))
    # A mistake of any process of a host is the host's.
    by_host = {part.host: part for part in sorted(gathered_from_all(mine), key=lambda part: bool(part.problem))}
    return dataset, [by_host[host] for host in sorted(by_host)]


def _samples(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset):
        raise DataError(
            "a stream of which each host has a part does not say how long it is",
            where=f"data set {type(dataset).__name__}",
            fix="give a data set with `__len__` and `__getitem__`, or a channel that every host has (FullyReplicated)",
        )
    return len(dataset)


def _classes(dataset: Any) -> tuple[str, ...]:
    return tuple(map(str, getattr(dataset, "classes", ())))


def _require_usable(parts: Sequence[_Part], where: str) -> None:
    """Refuse parts that no common training can be made of, on all processes alike."""
    fix = "give the channel as many files of like size as hosts or more, or make it FullyReplicated"
    for part in parts:
        if part.problem:
            raise DataError(f"host {part.host} cannot open its part: {part.problem}", where=where, fix=fix)
        if not part.samples:
            raise DataError(f"host {part.host} has no sample of this channel (ShardedByS3Key)", where=where, fix=fix)
    first, *others = parts
    for part in others:
        if part.classes != first.classes:
            raise DataError(
                f"hosts {first.host} and {part.host} have different classes in their parts: {', '.join(first.classes)} "
                f"and {', '.join(part.classes)}; the same label would mean two things",
                where=where,
                fix="make the channel FullyReplicated, or number the labels in a table",
            )
