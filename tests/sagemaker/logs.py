"""A host's output on its way to CloudWatch, where it can be read a while later."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

GROUP = "/aws/sagemaker/TrainingJobs"
_LONGEST = 256 * 1024
_PUT_AT_ONCE = 1000
_TICK = 0.05


class LogStream:
    """Reads the lines of one host, and delivers them to its log stream when they are due."""

    def __init__(
        self,
        output: IO[bytes],
        logs: Any,
        stream: str,
        *,
        delay: Callable[[], float],
        on_line: Callable[[str], None],
        cancelled: threading.Event,
    ) -> None:
        self._output, self._logs, self._stream = output, logs, stream
        self._delay, self._on_line, self._cancelled = delay, on_line, cancelled
        self._written: deque[tuple[float, str]] = deque()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._deliverer = threading.Thread(target=self._deliver, daemon=True)
        self._deliverer.start()

    @property
    def delivered(self) -> bool:
        """Whether all lines of the host's whole life can be read."""
        return not self._deliverer.is_alive()

    def wait_for_delivery(self) -> None:
        """Wait until all lines are delivered, or the job is cancelled."""
        self._deliverer.join()

    def wait_for_end(self) -> None:
        """Wait until all output is read, though not until it is delivered."""
        self._reader.join()

    def _read(self) -> None:
        with self._output:
            for line in self._output:
                text = line.decode("utf-8", "replace").rstrip("\n")
                self._written.append((time.time(), text))
                self._on_line(text)

    def _deliver(self) -> None:
        made = False
        while not self._cancelled.wait(_TICK):
            # In this order: what is read between the two questions is delivered, too.
            ended = not self._reader.is_alive()
            due = time.time() - self._delay()
            ready: list[tuple[float, str]] = []
            while self._written and self._written[0][0] <= due and len(ready) < _PUT_AT_ONCE:
                ready.append(self._written.popleft())
            if ready:
                made = made or self._make_stream()
                self._put(ready)
            if ended and not self._written:
                return

    def _make_stream(self) -> bool:
        # As on AWS, there is no group before an account's first job, and no stream before a host's first line.
        with suppress(self._logs.exceptions.ResourceAlreadyExistsException):
            self._logs.create_log_group(logGroupName=GROUP)
        self._logs.create_log_stream(logGroupName=GROUP, logStreamName=self._stream)
        return True

    def _put(self, lines: list[tuple[float, str]]) -> None:
        # CloudWatch takes no empty message.
        events = [{"timestamp": int(when * 1000), "message": text[:_LONGEST] or " "} for when, text in lines]
        self._logs.put_log_events(logGroupName=GROUP, logStreamName=self._stream, logEvents=events)


class Metrics:
    """The numbers that a job's MetricDefinitions find in its lines."""

    def __init__(self, definitions: list[dict[str, str]], measured: Callable[[str, float], None]) -> None:
        self._patterns = [(item["Name"], re.compile(item["Regex"])) for item in definitions]
        self._measured = measured

    def read(self, line: str) -> None:
        for name, pattern in self._patterns:
            found = pattern.search(line)
            if found:
                with suppress(ValueError, IndexError):
                    self._measured(name, float(found.group(1)))
