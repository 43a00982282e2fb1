"""How many threads this process may use, and a loop in them; what is done there this room does not know."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[int], None], count: int, threads: int) -> None:
    """Call `work` for each position below `count`, in `threads` threads at most.

    Raises:
        Exception: What `work` has raised; positions that were not begun by then are left out.
    """
    threads = min(threads, count)

    def every(start: int) -> None:
        for position in range(start, count, threads):
            work(position)

    if threads > 1:
        # Threads of one call outlive neither a fork nor a pickle, and cost less than decoding one image.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(every, range(threads)))
    else:
        for position in range(count):
            work(position)
