"""Requests to stop: SIGTERM and Ctrl-C become a flag that the loop looks at, with a deadline that nothing can miss.

A handler only sets the flag. SageMaker kills a job 120 s after SIGTERM; if the loop, or a disk that hangs, has not let
go after 100 s, the process ends itself with the right status.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smkit import contract

_LAST_WORDS_SECONDS = 2.0
_REQUESTS = (signal.SIGTERM, signal.SIGINT)
_OVER = 0
"""What the watch reads in place of a signal's number once it is not needed any more."""


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_obeyed_at_once = False
        """Whether a request ends the block, as long as nobody would come to look at the flag."""

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal: 143 after SIGTERM, 130 after Ctrl-C. Never 0, which SageMaker takes for success."""
        return _exit_status(self.signal)

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
        _end_forked_processes_as_others()
        before = {number: signal.getsignal(number) for number in _REQUESTS}
        with _watched(on_deadline):
            try:
                for number in _REQUESTS:
                    signal.signal(number, self._note)
                yield
            finally:
                for number, handler in before.items():
                    # None: it was not set from Python, and cannot be set from there again.
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _: types.FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal = number
            if self.is_obeyed_at_once:
                raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(self.exit_status)


@contextmanager
def _watched(on_deadline: Callable[[], None]) -> Iterator[None]:
    """End the process if the block is still running 100 s after a request.

    Python's handlers wait until the call in which the main thread is has returned; one that waits, within torch, for a
    lost process or a driver may not. The interpreter writes a signal's number into a pipe at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    is_over = threading.Event()

    def watch() -> None:
        # Others are heard too, of timers or of children for example.
        while (number := os.read(reading, 1)[0]) not in (*_REQUESTS, _OVER):
            pass
        if number != _OVER and not is_over.wait(contract.STOP_DEADLINE_SECONDS):
            _end_process(number, on_deadline)

    thread = threading.Thread(target=watch, name="smkit-deadline", daemon=True)
    thread.start()
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        is_over.set()
        with contextlib.suppress(BlockingIOError):
            os.write(writing, bytes([_OVER]))
        # A thread that still runs when the interpreter ends can take the process down with it.
        thread.join()
        os.close(reading)
        os.close(writing)


def _end_process(number: int, on_deadline: Callable[[], None]) -> None:
    # What is to be said may hang on the very disk that made the deadline pass.
    last_words = threading.Thread(target=on_deadline, daemon=True)
    last_words.start()
    last_words.join(_LAST_WORDS_SECONDS)
    os._exit(_exit_status(number))


def _exit_status(number: int | None) -> int:
    return contract.INTERRUPTED_EXIT_STATUS if number == signal.SIGINT else contract.STOPPED_EXIT_STATUS


@functools.cache
def _end_forked_processes_as_others() -> None:
    """Let SIGTERM end a process that is forked within a block, as multiprocessing does with its own.

    It would inherit a handler that nobody there looks at, and the pipe in which its parent would hear of it. Ctrl-C,
    which a terminal sends to all, stays the parent's affair.
    """
    before = threading.local()

    def keep_waiting() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def let_through() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def hear_alone() -> None:
        if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), StopRequest):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        let_through()

    os.register_at_fork(before=keep_waiting, after_in_parent=let_through, after_in_child=hear_alone)
