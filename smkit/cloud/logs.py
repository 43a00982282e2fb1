"""A job's log in CloudWatch, read so that no line is lost and none given twice.

CloudWatch shows events seconds after they were written, later ones sometimes before earlier ones, and a stream when it
has its first event. So each look reads again what is younger than a window, and gives what it has not given before: the
n-th event of the same time and text is new if only n - 1 have been given. Positions (tokens) are used within one look
only. This room knows streams and events, and nothing else of a job.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smkit.cloud.aws_errors import error_code
from smkit.cloud.connection import Connection
from smkit.cloud.pages import pages
from smkit.errors import JobError
from smkit.log_view import LogLine, traceback_start
from smkit.watching import OutOfReach

GROUP = "/aws/sagemaker/TrainingJobs"
"""User guide: "Amazon SageMaker AI log groups and streams"; a stream is `<job>/algo-<number>-<time>`."""

_WINDOW_SECONDS = 30
_WIDE_WINDOW_SECONDS = 300
_SMALL_PAGE = 1000
"""A page with news and fewer events than this is the stream's end for now; a full one has 10,000, or a megabyte."""
_LAST_EVENTS = 300
_EMPTY_PAGES = 500
_FOUND_SECONDS = 60.0
"""How long a stream that is named is waited for."""
_CONSOLES = {
    "aws": "{region}.console.aws.amazon.com",
    "aws-cn": "console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}


class _Event(NamedTuple):
    timestamp: int
    stream: str
    message: str


def address(region: str, partition: str, name: str) -> str:
    """Return where a person finds the log of the job `name`: the console's address, and the names in CloudWatch."""
    console = _CONSOLES.get(partition, _CONSOLES["aws"]).format(region=region)
    group = GROUP.replace("/", "$252F")
    page = f"logsV2:log-groups/log-group/{group}$3FlogStreamNameFilter$3D{name}$252F"
    return f"https://{console}/cloudwatch/home?region={region}#{page} (log group {GROUP}, streams {name}/...)"


class JobLog(Iterator["LogLine | None"]):
    """The lines of a job's log, each once, those of several hosts by their time; None, whenever there is no news.

    A look that ends with an error can be repeated: it has given what it has given.

    Args:
        connection: Who is asked.
        name: The job's name.
        count_hosts: Returns how many hosts the job has; asked once.
    """

    def __init__(self, connection: Connection, name: str, count_hosts: Callable[[], int]) -> None:
        self._connection = connection
        self._name = name
        self._count_hosts = count_hosts
        self._hosts = 0
        self._streams: dict[str, _Stream] = {}
        self._look: Iterator[LogLine] | None = None

    def __next__(self) -> LogLine | None:
        if self._look is None:
            self._look = self._read()
        look, self._look = self._look, None
        line = next(look, None)
        # Only a look that has raised or come to its end is forgotten.
        self._look = look if line is not None else None
        return line

    def _read(self) -> Iterator[LogLine]:
        self._hosts = self._hosts or self._count_hosts()
        # A host's stream is there from its first line on, and a spot job that starts again has new ones.
        for stream in find_streams(self._connection, self._name):
            self._streams.setdefault(stream, _Stream(stream))
        news = [stream.news(self._connection) for stream in self._streams.values()]
        for event in heapq.merge(*news, key=lambda event: event.timestamp):
            self._streams[event.stream].give(event)
            for text in event.message.removesuffix("\n").split("\n"):
                yield LogLine(
                    text,
                    host=_host(event.stream, self._name),
                    shows_host=self._hosts > 1,
                    seconds=event.timestamp / 1000,
                )


@dataclass
class _Stream:
    name: str
    newest: int | None = None
    quiet_looks: int = 0
    given: Counter[tuple[int, int]] = field(default_factory=Counter)

    def news(self, connection: Connection) -> Iterator[_Event]:
        """Yield the events that have not been given; whoever takes one gives it before asking for the next."""
        request: dict[str, Any] = {"logGroupName": GROUP, "logStreamName": self.name, "startFromHead": True}
        if self.newest is not None:
            request["startTime"] = max(0, self.newest - 1000 * self._window_seconds())
        self.quiet_looks += 1
        seen: Counter[tuple[int, int]] = Counter()
        empty = 0
        while True:
            page = _events(connection, request)
            empty = _require_end(empty, page, request)
            has_news = False
            for found in page["events"]:
                event = _Event(found["timestamp"], self.name, found["message"])
                key = _key(event)
                seen[key] += 1
                if seen[key] > self.given[key]:
                    has_news = True
                    yield event
            # A page can be empty in the middle; at the end the token stays what it was.
            is_end = page["nextForwardToken"] == request.get("nextToken")
            if is_end or (has_news and len(page["events"]) < _SMALL_PAGE):
                return
            request["nextToken"] = page["nextForwardToken"]

    def give(self, event: _Event) -> None:
        """Note that an event has been given."""
        self.given[_key(event)] += 1
        self.quiet_looks = 0
        self.newest = max(self.newest or 0, event.timestamp)

    def _window_seconds(self) -> int:
        """Return how far back to look: far, now and then, when a stream has become quiet, so at a job's end as well."""
        oldest = (self.newest or 0) - 1000 * _WIDE_WINDOW_SECONDS
        for key in [key for key in self.given if key[0] < oldest]:
            del self.given[key]
        is_power_of_two = self.quiet_looks & (self.quiet_looks - 1) == 0
        return _WIDE_WINDOW_SECONDS if self.quiet_looks and is_power_of_two else _WINDOW_SECONDS


def find_streams(connection: Connection, name: str) -> list[str]:
    """Return the streams of a job; there is none before a host has written something."""
    request: dict[str, Any] = {"logGroupName": GROUP, "logStreamNamePrefix": f"{name}/"}
    doing = f"log streams of job '{name}'"

    def page(**token: str) -> Mapping[str, Any]:
        try:
            return connection.ask(doing, lambda clients: clients.logs.describe_log_streams(**request, **token))
        except JobError as error:
            if error_code(error) == "ResourceNotFoundException":
                return {"logStreams": []}
            raise

    found = pages(page, doing, given="nextToken", told="nextToken", kind=JobError)
    return [stream["logStreamName"] for each in found for stream in each["logStreams"]]


def last_words(connection: Connection, name: str, reason: str) -> list[str]:
    """Return the last lines of the host that failed first.

    That is the one with the earliest traceback, for a host that fails takes the others along; without any traceback
    the one that the reason names, else the first.
    """
    ends: list[tuple[float, list[str]]] = []
    for stream in find_streams(connection, name):
        request = {"logGroupName": GROUP, "logStreamName": stream, "limit": _LAST_EVENTS, "startFromHead": False}
        events = _last_page(connection, request)
        texts = [event["message"].removesuffix("\n") for event in events]
        start = traceback_start(texts)
        is_named = re.search(rf"\b{re.escape(_host(stream, name))}\b", reason) is not None
        rank = float("inf") if start is None else events[start]["timestamp"]
        ends.append((-1.0 if start is not None and is_named else rank, texts))
    return min(ends, key=lambda end: end[0], default=(0.0, []))[1]


def _events(connection: Connection, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a page of a stream.

    Raises:
        OutOfReach: CloudWatch names a stream and does not find it.
    """
    doing = f"log stream {request['logStreamName']}"
    try:
        return connection.ask(doing, lambda clients: clients.logs.get_log_events(**request))
    except JobError as error:
        if error_code(error) != "ResourceNotFoundException":
            raise
        raise OutOfReach(
            "CloudWatch does not find a stream that it has named",
            where=doing,
            fix="look again in a minute; somebody may have deleted it",
            patience_seconds=_FOUND_SECONDS,
        ) from error


def _require_end(empty: int, page: Mapping[str, Any], request: Mapping[str, Any]) -> int:
    """Return how many pages in a row have been empty, which any may be in the middle.

    Raises:
        OutOfReach: There have been so many that there seems to be no end.
    """
    if page["events"]:
        return 0
    if empty == _EMPTY_PAGES:
        raise OutOfReach(
            f"CloudWatch has given {empty} empty pages and no end",
            where=f"log stream {request['logStreamName']}",
            fix="look at the log in the console, or repeat in a minute",
        )
    return empty + 1


def _last_page(connection: Connection, request: dict[str, Any]) -> list[dict[str, Any]]:
    empty = 0
    while True:
        page = _events(connection, request)
        empty = _require_end(empty, page, request)
        if page["events"] or page["nextBackwardToken"] == request.get("nextToken"):
            return list(page["events"])
        request["nextToken"] = page["nextBackwardToken"]


def _host(stream: str, name: str) -> str:
    """Return the host of a stream: `algo-1` of `<job>/algo-1-1764111600`."""
    rest = stream.removeprefix(f"{name}/")
    match = re.match(r"algo-\d+", rest)
    return match[0] if match else rest


def _key(event: _Event) -> tuple[int, int]:
    return event.timestamp, hash(event.message)
