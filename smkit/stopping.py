"""Requests to stop: SIGTERM and Ctrl-C become a flag that the loop looks at, with a deadline that nothing can miss.

A handler only sets the flag. SageMaker kills a job 120 s after SIGTERM; if the loop, or a disk that hangs, has not let
go after 100 s, the process ends itself with the right status.
"""

from __future__ import annotations

import os
import signal
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smkit import contract

_LAST_WORDS_SECONDS = 2.0


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal: 143 after SIGTERM, 130 after Ctrl-C. Never 0, which SageMaker takes for success."""
        interrupted = self.signal == signal.SIGINT
        return contract.INTERRUPTED_EXIT_STATUS if interrupted else contract.STOPPED_EXIT_STATUS

    @contextmanager
    def listening(self, *, on_deadline: Callable[[], None]) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests within the block; outside the main thread, where none arrive, do nothing.

        Args:
            on_deadline: Called from another thread, if the block is still running 100 s after the request; the process
                then ends at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        timer = threading.Timer(contract.STOP_DEADLINE_SECONDS, self._end_process, (on_deadline,))
        timer.daemon = True

        def note(number: int, _: types.FrameType | None) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            if self.signal is None:
                self.signal = number
                timer.start()

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            timer.cancel()
            if timer.is_alive():
                # A thread that still runs when the interpreter ends can take the process down with it.
                timer.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_process(self, on_deadline: Callable[[], None]) -> None:
        # What is to be said may hang on the very disk that made the deadline pass.
        last_words = threading.Thread(target=on_deadline, daemon=True)
        last_words.start()
        last_words.join(_LAST_WORDS_SECONDS)
        os._exit(self.exit_status)
