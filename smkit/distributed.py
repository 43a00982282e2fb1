"""The processes that train one model: how they meet, what they tell each other, and what is said when one is lost.

torchrun starts them; `RANK` and `WORLD_SIZE` say so. Small values go through a group on the CPU, so that no exchange of
this room waits for a GPU. It knows neither models nor checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, distributed

from smkit.errors import ConfigurationError, SmkitError
from smkit.life_signs import LifeSigns, audibly

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

T = TypeVar("T")

_MEETING_SECONDS = 900.0
"""Hosts of a job begin minutes apart, and until the first step each prepares its data at its own pace."""
_SAVING_SECONDS = 1800.0
"""A slow disk is no reason to give up a run."""
_MEETINGS = "smkit/meetings"
_LOST_CONTACT = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Timed out waiting|[Tt]imeout after|Socket [Tt]imeout|Broken pipe"
    r"|caused pair closure|(Read|Write) error \[|No route to host|(Network|Host) is unreachable"
)
_TORCHS_OWN_WORDS = re.compile(r"\[/[^]]*\] |\. This is typically caused by a remote worker.*")


class Ranks:
    """This process among those that train together; alone, every exchange is nothing.

    Attributes:
        rank: Its number, from 0.
        world_size: How many there are.
        local_rank: Its number on this host.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._life: LifeSigns | None = None
        self._has_parted = True
        self._quick: ProcessGroup | None = None
        self._patient: ProcessGroup | None = None
        self._background: ProcessGroup | None = None

    joined_here: ClassVar[Ranks | None] = None
    """Those that this process has joined: torch has one group of all of them, too."""

    @classmethod
    @contextmanager
    def joined(
        cls, rank: int, world_size: int, local_rank: int, *, host: str, timeout_seconds: float
    ) -> Iterator[Ranks]:
        """Meet the other processes for a block, and part from them after it.

        An error within the block is told to the others; one that only says that another process is gone is replaced
        by what that process has told.

        Args:
            rank: This process's number.
            world_size: How many processes there are; with one, nothing happens.
            local_rank: Its number on this host.
            host: Its host's name, for what the others are told.
            timeout_seconds: How long to wait for another process in a step before it is given up.

        Raises:
            SmkitError: The processes did not meet, or another one has failed.
        """
        ranks = cls(rank, world_size, local_rank)
        if world_size == 1:
            yield ranks
            return
        who = f"rank {rank} on host {host}"
        try:
            audibly(lambda: ranks._meet(host, timeout_seconds), check=ranks._require_all)
            cls.joined_here = ranks
            yield ranks
        except LostRankError:
            raise
        except Exception as error:
            if _is_lost_contact(error):
                raise ranks._lost(ranks._cause(f"{who} has lost contact: {_first_words(error)}")) from error
            ranks._tell(f"{who}: {_first_words(error)}")
            raise
        except SystemExit as end:
            if not ranks._has_parted:
                ranks._tell(f"{who}: sys.exit({end.code!r}) before the training was done")
            raise
        else:
            ranks.part()
        finally:
            cls.joined_here = None
            ranks._end_signs(says_farewell=ranks._has_parted)

    def _meet(self, host: str, timeout_seconds: float) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        self._has_parted = distributed.is_initialized()
        if not self._has_parted:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            meeting = timedelta(seconds=_MEETING_SECONDS)
            try:
                store, rank, world_size = next(rendezvous("env://", timeout=meeting))
            except ValueError as error:
                raise ConfigurationError(
                    f"this is one of {self.world_size} processes, and cannot find the others: {error}",
                    where="RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT",
                    fix="start them with torchrun, which sets all four",
                ) from error
            except distributed.DistError as error:
                raise self._not_met(_first_words(error)) from error
            # torch counts its groups from 0 after each meeting, and would find the addresses of the one before.
            meeting_number = (store.add(_MEETINGS, 1) - 1) // world_size
            prefix = f"smkit/{meeting_number}"
            self._life = LifeSigns(store, prefix, rank, world_size, host, patience_seconds=timeout_seconds)
            absent = self._life.absent(_MEETING_SECONDS)
            if absent:
                raise self._not_met(f"{absent} has not come within {_MEETING_SECONDS:.0f} s")
            distributed.init_process_group(
                backend,
                store=PrefixStore(prefix, store),
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout_seconds),
            )
        self._quick = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        patience = timedelta(seconds=_SAVING_SECONDS)
        self._patient = distributed.new_group(backend="gloo", timeout=patience)
        # Two threads must not use one group: whose turn it is would differ from rank to rank.
        self._background = distributed.new_group(backend="gloo", timeout=patience)

    def _not_met(self, why: str) -> SmkitError:
        return SmkitError(
            f"the {self.world_size} processes of this run have not all met: {why}",
            where=f"rank {self.rank}",
            fix="look at the logs of the other ranks and hosts: one did not start or ended at once, or its network "
            "does not let it reach the host of rank 0",
        )

    def part(self) -> None:
        """Take leave of the others, when all ranks do: at the end, or to leave early as they have agreed.

        After a failure the group is left to the end of the process, for parting could wait for one who is gone. One
        that the script had made itself is left to it.
        """
        if not self._has_parted:
            self._has_parted = True
            self._end_signs(says_farewell=True)
            distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes what there is one of: metrics, checkpoints, the model."""
        return self.rank == 0

    def gathered(self, value: T) -> list[T]:
        """Return what each process passes, in the order of ranks; all call it at the same place."""
        return self._gathered(value, self._quick)

    def gathered_patiently(self, value: T) -> list[T]:
        """Return what each process passes; wait for it as long as preparing, reading or saving may take.

        Raises:
            LostRankError: One of them is gone; a wait for it would be in vain.
        """
        return [value] if self._patient is None else self._awaited(lambda: self._gathered(value, self._patient))

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Return when every process has come here, as long as preparing may take, if all pass the same facts.

        Args:
            facts: What must be the same on all ranks, by a person's name for it.

        Raises:
            ConfigurationError: On all ranks alike: it names a rank that differs from rank 0, and in what.
        """
        first, *others = self.gathered_patiently(facts)
        for rank, other in enumerate(others, 1):
            differences = [
                f"{name} is {first.get(name)!r:.80}, there {other.get(name)!r:.80}"
                for name in sorted({*first, *other})
                if first.get(name) != other.get(name)
            ]
            if differences:
                raise ConfigurationError(
                    f"rank {rank} is not of the same run as rank 0: {'; '.join(differences[:5])}",
                    where="what the ranks were started with",
                    fix="start all of them with the same code, arguments and data",
                )

    def gathered_in_background(self, value: T) -> list[T]:
        """Return what each process passes, for the one other thread that may exchange something: the one that saves."""
        return [value] if self._background is None else self._awaited(lambda: self._gathered(value, self._background))

    def _gathered(self, value: T, group: ProcessGroup | None) -> list[T]:
        if group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=group)
        return values

    def from_first(self, value: T) -> T:
        """Return what rank 0 passes; waits for it as long as preparing or saving may take."""
        if self._patient is None:
            return value
        values = [value]
        self._awaited(lambda: distributed.broadcast_object_list(values, src=0, group=self._patient))
        return values[0]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, on whatever device, by those of rank 0."""
        for tensor in () if self._patient is None else tensors:
            # gloo knows some dtypes only, but bytes are bytes; and a view is no whole memory.
            values = tensor.contiguous()
            group = None if tensor.is_cuda else self._patient
            distributed.broadcast(values.reshape(-1).view(torch.uint8), src=0, group=group)
            if values is not tensor:
                tensor.copy_(values)

    def begin_maximum(self, numbers: Tensor) -> Work | None:
        """Begin to overwrite `numbers`, in CPU memory, by the largest of all ranks; None alone, where they stand."""
        if self._quick is None:
            return None
        work: Work = distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX, group=self._quick, async_op=True)
        return work

    def _awaited(self, call: Callable[[], T]) -> T:
        """Return what an exchange returns that may take long, as long as all others give signs of life."""
        return audibly(call, check=self._require_all)

    def _require_all(self) -> None:
        word = "" if self._life is None else self._life.word()
        if word:
            raise self._lost(word)

    def _end_signs(self, *, says_farewell: bool) -> None:
        if self._life is not None:
            self._life.close(says_farewell=says_farewell)

    def _tell(self, text: str) -> None:
        """Leave word for the others of what has failed here; the first word counts."""
        if self._life is not None:
            self._life.tell(text)

    def _cause(self, seen: str) -> str:
        return seen if self._life is None else self._life.cause(seen)

    def _lost(self, cause: str) -> LostRankError:
        return LostRankError(
            f"another process of this run has failed first: {cause}",
            where=f"rank {self.rank}",
            fix="mend that; its own log says more. One that says nothing was killed, ran out of memory, is stuck, has "
            "lost its network, or took another way through a step (a parameter that has no gradient on one rank "
            "only wants `find_unused_parameters = True`). Start again with the same folders to go on from the last "
            "checkpoint",
        )


def gathered_from_all(value: T) -> list[T]:
    """Return what each process of torch.distributed passes; where they have joined, as `gathered_patiently` does."""
    ranks = Ranks.joined_here
    if ranks is not None:
        return ranks.gathered_patiently(value)
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def require_first(what: str, fix: str) -> None:
    """Refuse to do by itself, in any process but the first of torch.distributed, what rank 0 does for all.

    Raises:
        ConfigurationError: This is another one.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
        raise ConfigurationError(
            f"this is rank {distributed.get_rank()} of {distributed.get_world_size()}, and {what}",
            where=f"rank {distributed.get_rank()}",
            fix=fix,
        )


class LostRankError(SmkitError):
    """Another process of the run has failed, is gone or stuck: no cause, but what is seen of it here."""


def _is_lost_contact(error: BaseException) -> bool:
    """Whether an error is no cause, but what is seen of another process's end."""
    if isinstance(error, distributed.DistError):
        return True
    return type(error) is RuntimeError and _LOST_CONTACT.search(str(error)) is not None


def _first_words(error: BaseException) -> str:
    if isinstance(error, SmkitError):
        return str(error)
    text = f"{type(error).__name__}: {error}"
    # NCCL says at the end what it is about.
    first, last = text.partition("\n")[0], text.partition("\nLast error:\n")[2].partition("\n")[0]
    return _TORCHS_OWN_WORDS.sub("", f"{last} ({first})" if last else first)
