"""The line that a person watches while bytes are hashed or uploaded: how many, how fast, how long still.

One line that is drawn again and again on a terminal, a plain line every few seconds elsewhere, nothing if all is done
in a moment. This room moves no bytes.
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time

from smkit.progress import duration
from smkit.report import amount, say

_SILENT_SECONDS = 1.0
_REDRAW_SECONDS = 0.1
_PLAIN_SECONDS = 5.0


class TransferLine:
    """What is said on standard error about one transfer; threads may share it.

    Args:
        doing: The verb and its object: `uploading channel 'train'`.
        total: Bytes in all.
    """

    def __init__(self, doing: str, total: int) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._due = self._start + (_SILENT_SECONDS if self._is_terminal else _PLAIN_SECONDS)
        self._is_drawn = False

    def advance(self, count: int) -> None:
        """Note that `count` further bytes are done, or have to be done again if it is negative."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now < self._due:
                return
            self._due = now + (_REDRAW_SECONDS if self._is_terminal else _PLAIN_SECONDS)
            if self._is_terminal:
                width = shutil.get_terminal_size().columns - 1
                self._write("\r" + self._text(now)[:width] + "\x1b[K")
                self._is_drawn = True
            else:
                say(self._text(now))

    def end(self) -> None:
        """Take the line from the terminal."""
        with self._lock:
            self._due = math.inf
            if self._is_drawn:
                self._write("\r\x1b[K")

    def _text(self, now: float) -> str:
        rate = self._done / max(now - self._start, 1e-9)
        left = duration((self._total - self._done) / rate) if rate > 0 else "-"
        share = f"{amount(self._done)} of {amount(self._total)}"
        return f"{self._doing}: {share} · {amount(rate)}/s · {left} left"

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            # The terminal has gone away; the transfer goes on without it.
            self._due = math.inf
