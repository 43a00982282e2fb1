"""The processes that train one model: how they meet, what they tell each other, and what is said when one is lost.

torchrun starts them; `RANK` and `WORLD_SIZE` say so. Small values go through a group on the CPU, so that no exchange of
this room waits for a GPU. It knows neither models nor checkpoints.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from smkit.errors import ConfigurationError, SmkitError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup, Work

T = TypeVar("T")

_MEETING_SECONDS = 900.0
"""Hosts of a job begin minutes apart, and until the first step each prepares its data at its own pace."""
_SAVING_SECONDS = 1800.0
"""A slow disk is no reason to give up a run."""
_LAST_WORDS_SECONDS = 3.0
_HEARING_SECONDS = 0.2
_FAILURE = "failure"
_MEETINGS = "smkit/meetings"
_LOST_CONTACT = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Timed out waiting|[Tt]imeout after|Socket [Tt]imeout|Broken pipe"
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
        self._store: Store | None = None
        self._has_parted = True
        self._quick: ProcessGroup | None = None
        self._patient: ProcessGroup | None = None
        self._background: ProcessGroup | None = None

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
        try:
            _audibly(lambda: ranks._meet(timeout_seconds))
            yield ranks
        except Exception as error:
            if _is_lost_contact(error):
                raise ranks._other_failure(error, f"rank {rank} on host {host}") from error
            ranks._tell(f"rank {rank} on host {host}: {_first_words(error)}")
            raise
        except SystemExit as end:
            if not ranks._has_parted:
                ranks._tell(f"rank {rank} on host {host}: sys.exit({end.code!r}) before the training was done")
            raise
        ranks.part()

    def _meet(self, timeout_seconds: float) -> None:
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
            # torch counts its groups from 0 after each meeting, and would find the addresses of the one before.
            meeting_number = (store.add(_MEETINGS, 1) - 1) // world_size
            self._store = store = PrefixStore(f"smkit/{meeting_number}", store)
            distributed.init_process_group(
                backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_seconds)
            )
        self._quick = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        patience = timedelta(seconds=_SAVING_SECONDS)
        self._patient = distributed.new_group(backend="gloo", timeout=patience)
        # Two threads must not use one group: whose turn it is would differ from rank to rank.
        self._background = distributed.new_group(backend="gloo", timeout=patience)

    def part(self) -> None:
        """Take leave of the others, when all ranks do: at the end, or to leave early as they have agreed.

        After a failure the group is left to the end of the process, for parting could wait for one who is gone. One
        that the script had made itself is left to it.
        """
        if not self._has_parted:
            self._has_parted = True
            distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes what there is one of: metrics, checkpoints, the model."""
        return self.rank == 0

    def gathered(self, value: T) -> list[T]:
        """Return what each process passes, in the order of ranks; all call it at the same place."""
        return self._gathered(value, self._quick)

    def gathered_patiently(self, value: T) -> list[T]:
        """Return what each process passes; wait for it as long as preparing, reading or saving may take."""
        return [value] if self._patient is None else _audibly(lambda: self._gathered(value, self._patient))

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
        return self._gathered(value, self._background)

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
        _audibly(lambda: distributed.broadcast_object_list(values, src=0, group=self._patient))
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

    def _tell(self, text: str) -> None:
        """Leave word for the others of what has failed here; the first word counts."""
        store = self._store
        if store is not None:
            _within(_LAST_WORDS_SECONDS, lambda: store.compare_set(_FAILURE, "", text))

    def _other_failure(self, error: Exception, who: str) -> SmkitError:
        """Return what another process has said before it was gone; if none has, say what is seen here."""
        store = self._store
        said = None if store is None else _within(_LAST_WORDS_SECONDS, lambda: _wait_for_word(store))
        if said is not None:
            return SmkitError(
                f"another process of this run has failed first: {said}",
                where=f"rank {self.rank}",
                fix="mend that; its own log says more",
            )
        self._tell(f"{who} has lost contact to another one: {_first_words(error)}")
        return SmkitError(
            f"another process of this run is gone or stuck, and has not said why ({_first_words(error):.200})",
            where=f"rank {self.rank}",
            fix="look at the logs of the other ranks and hosts: one was killed, ran out of memory or lost its network, "
            "or took another way through a step (a parameter that has no gradient on one rank only wants "
            "`find_unused_parameters = True`); start again with the same folders to go on from the last checkpoint",
        )


def _wait_for_word(store: Store) -> str | None:
    deadline = time.monotonic() + _LAST_WORDS_SECONDS - 1
    while time.monotonic() < deadline:
        if store.check([_FAILURE]):
            return bytes(store.get(_FAILURE)).decode(errors="replace")
        time.sleep(0.1)
    return None


def _audibly(call: Callable[[], T], seconds: float = math.inf) -> T:
    """Return what `call` returns, made in another thread: one that waits within torch would hear no signal.

    Raises:
        TimeoutError: It takes longer than `seconds`.
    """
    outcomes: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcomes.append((call(), None))
        except BaseException as error:  # it is raised where it is waited for
            outcomes.append((None, error))

    deadline = time.monotonic() + seconds
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        if time.monotonic() >= deadline:
            raise TimeoutError
        thread.join(min(_HEARING_SECONDS, seconds))
    value, error = outcomes[0]
    if error is not None:
        raise error
    return cast("T", value)


def _within(seconds: float, call: Callable[[], T]) -> T | None:
    """Return what `call` returns; None if it fails or takes longer, for whoever answers may be gone."""
    with suppress(Exception):
        return _audibly(call, seconds)
    return None


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
