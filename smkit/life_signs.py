"""Signs of life that ranks give each other at the store where they have met, and the first word of what has failed.

A connection that is cut says nothing, and a process that was killed or stopped says nothing either. So each rank counts
up a number of its own about once a second, and watches that of its neighbour: of any ranks that are gone, one has a
neighbour who is not. What is said first is the cause, and all others repeat it. This room knows no exchange of values.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import distributed

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN = 1.0
_LEAST_PATIENCE_SECONDS = 10.0
"""A busy machine is no reason to call a process dead."""
_LAST_WORDS_SECONDS = 3.0
_FAREWELL_SECONDS = 20.0
"""The network may be slow."""
_HEARING_SECONDS = 0.2
_FAILURE = "failure"
_FAREWELL = 1 << 40
"""Added to the number of a rank that has taken leave."""


class LifeSigns:
    """Those of this rank, and what it sees of the others'.

    Args:
        store: Where the ranks meet.
        prefix: Of all keys.
        rank: This process's number.
        world_size: How many there are.
        host: Its host's name.
        patience_seconds: How long a rank, or the store, may be silent before it is given up.
    """

    def __init__(
        self, store: Store, prefix: str, rank: int, world_size: int, host: str, *, patience_seconds: float
    ) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        self._meeting = PrefixStore(prefix, store)
        self._store = PrefixStore(prefix, _connected_again(store))
        self._rank = rank
        self._world_size = world_size
        self._patience = max(patience_seconds, _LEAST_PATIENCE_SECONDS)
        self._end = threading.Event()
        self._word = ""
        self._answered_at = time.monotonic()
        self._agent = os.getppid() if distributed.is_torchelastic_launched() else None
        self._store.add(f"life/{rank}", 1)
        self._store.set(f"host/{rank}", host)
        self._first_host = ""
        self._says_farewell = False
        self._thread = threading.Thread(target=self._run, name="smkit-life-signs", daemon=True)
        self._thread.start()

    def close(self, *, says_farewell: bool) -> None:
        """Give no more signs; `says_farewell` tells the others that this is no failure."""
        self._says_farewell |= says_farewell and not self._end.is_set()
        self._end.set()
        # A thread that is within torch when the interpreter ends takes the process down with it.
        self._thread.join(_FAREWELL_SECONDS if says_farewell else _LAST_WORDS_SECONDS)

    def absent(self, seconds: float) -> str:
        """Wait until all ranks have come, so long at most; return who has not."""
        ranks = range(self._world_size)
        # Not by the connection that gives the signs, which would have to wait too.
        with suppress(distributed.DistStoreError):
            self._meeting.wait([f"host/{rank}" for rank in ranks], timedelta(seconds=seconds))
            self._first_host = self._host(0)
            return ""
        return self._named([rank for rank in ranks if not self._store.check([f"host/{rank}"])])

    def word(self) -> str:
        """Return what is known to have failed, without waiting; nothing if all is well as far as is known."""
        if self._word:
            return self._word
        silence = time.monotonic() - self._answered_at
        if silence > self._patience and not self._end.is_set():
            return self._of_store(f"has not answered for {silence:.0f} s")
        return ""

    def tell(self, text: str) -> str:
        """Leave word of what has failed, and return the first one of all ranks: the cause, as far as is known."""
        first = within(_LAST_WORDS_SECONDS, lambda: self._store.compare_set(_FAILURE, "", text))
        return bytes(first).decode(errors="replace") if first else text

    def cause(self, seen: str) -> str:
        """Return what another rank has said of a failure; if none says anything, who it is that gives no more signs.

        Args:
            seen: What this rank has seen of it.
        """
        found = within(2 * _LAST_WORDS_SECONDS, self._found)
        if found is None:
            return self._of_store("does not answer")
        word, suspects = found
        own = f"{suspects} ({seen})" if suspects else seen
        return word or self.tell(own)

    def _found(self) -> tuple[str, str]:
        """Return the first word, or else those that are not heard of any more, or have not come to where all wait."""
        store = self._store
        store.set(f"waits/{self._rank}", "")
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        before = {rank: self._count(rank) for rank in others}
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while time.monotonic() < deadline:
            if store.check([_FAILURE]):
                return self._said(), ""
            time.sleep(_HEARING_SECONDS)
        silent = [rank for rank in others if self._count(rank) == before[rank]]
        if silent:
            return "", f"{self._named(silent)} gave no more sign of life"
        busy = [rank for rank in others if not store.check([f"waits/{rank}"])]
        return "", f"{self._named(busy)} did not come to where the others waited" if busy else ""

    def _said(self) -> str:
        return bytes(self._store.get(_FAILURE)).decode(errors="replace")

    def _count(self, rank: int) -> int:
        return self._store.add(f"life/{rank}", 0)

    def _named(self, ranks: list[int]) -> str:
        named = [f"rank {rank} on host {self._host(rank)}" for rank in ranks[:4]]
        return ", ".join(named) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")

    def _host(self, rank: int) -> str:
        key = f"host/{rank}"
        return bytes(self._store.get(key)).decode(errors="replace") if self._store.check([key]) else "unknown"

    def _of_store(self, what: str) -> str:
        host = self._first_host or "of rank 0"
        return (
            f"host {host}, which keeps the store where the ranks have met, {what}: it is gone, or this host is cut off"
        )

    def _run(self) -> None:
        # A store that is gone answers with an error; its silence tells the rest.
        with suppress(Exception):
            self._watch()
        known_since: float | None = None
        while not self._end.wait(_SECONDS_BETWEEN):
            self._stop_if_orphaned()
            if known_since is None and self.word():
                known_since = time.monotonic()
            if known_since is not None and time.monotonic() - known_since > self._patience:
                self._stop(f"{self.word()}; rank {self._rank} is stuck in something else, and stops")
                return
        with suppress(Exception):
            if self._says_farewell:
                self._store.add(f"life/{self._rank}", _FAREWELL)

    def _watch(self) -> None:
        """Give and look for signs until something has failed."""
        neighbour = (self._rank + 1) % self._world_size
        seen, silent_looks = -1, 0
        while not self._word and not self._end.wait(_SECONDS_BETWEEN):
            self._stop_if_orphaned()
            self._store.add(f"life/{self._rank}", 1)
            now = self._count(neighbour)
            # Looks are counted, not seconds: whoever has slept himself must not take the others for dead.
            is_silent = 0 < now == seen < _FAREWELL
            silent_looks = silent_looks + 1 if is_silent else 0
            seen = now
            if silent_looks * _SECONDS_BETWEEN >= self._patience:
                self.tell(f"{self._named([neighbour])} has given no sign of life for {self._patience:.0f} s")
            if self._store.check([_FAILURE]):
                self._word = self._said()
            self._answered_at = time.monotonic()

    def _stop_if_orphaned(self) -> None:
        """Stop, as if asked to, a process whose agent is gone: nobody would end it with the rest of the job."""
        if self._agent is not None and os.getppid() != self._agent:
            self._agent = None
            self._stop(f"torchrun, which has started rank {self._rank}, is gone; the run stops")

    @staticmethod
    def _stop(why: str) -> None:
        logger.warning("%s", why)
        os.kill(os.getpid(), signal.SIGTERM)


def _connected_again(store: Any) -> Store:
    """Return another connection to a store: one that waits for a key keeps whoever else uses it waiting."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return TCPStore(store.host, store.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))


def audibly(call: Callable[[], T], *, check: Callable[[], None] = lambda: None) -> T:
    """Return what `call` returns, made in another thread: one that waits within torch would hear no signal.

    Args:
        call: What may wait.
        check: Called now and then; what it raises ends the waiting.
    """
    outcomes: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcomes.append((call(), None))
        except BaseException as error:  # it is raised where it is waited for
            outcomes.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        check()
        thread.join(_HEARING_SECONDS)
    value, error = outcomes[0]
    if error is not None:
        raise error
    return cast("T", value)


def within(seconds: float, call: Callable[[], T]) -> T | None:
    """Return what `call` returns; None if it fails or takes longer, for whoever answers may be gone."""
    deadline = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() >= deadline:
            raise TimeoutError

    with suppress(Exception):
        return audibly(call, check=check)
    return None
