"""Many examples of one kind, each tried where it can do no harm: in a process of its own, with a clock and a bound.

A kind draws an example by hypothesis and says what came of it. A chunk of them runs in a forked process; what kills or
hangs that process is counted for the example that it was at. This room knows no kind.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from smkit.contract import MAX_FAILURE_CHARACTERS, failure_file
from smkit.errors import SmkitError
from smkit.report import write_failure
from torture.tally import Campaign, Outcome

CHUNK = 250
SECONDS = 20.0
"""Of one example; most take a millisecond. The machine may be busy."""
MOST_BYTES = 3 << 30
"""Of address space above what the process has when it begins."""
MOST_RESIDENT = 1 << 30

Verdict = tuple[Outcome, str]
Kind = Callable[[st.DataObject, Path], Verdict]
"""Draws an example, tries it in an empty folder, and says what came of it."""


class HangError(BaseException):
    """An example has had its time."""


def run(campaign: Campaign, attack: str, kind: Kind, rounds: int, subject: str = "smkit") -> None:
    """Try examples of a kind and count them; the note of a bad one says its chunk, its number and what it was."""
    for first in range(0, rounds, CHUNK):
        count = min(CHUNK, rounds - first)
        name = f"{campaign.seed}-{attack}-{subject}-{first}"
        for number, (outcome, note) in enumerate(_chunk(kind, name, count, campaign.folder)):
            campaign.tally.count(attack, subject, outcome, f"chunk {name}, example {number}: {note}"[:2000])


def judged(call: Callable[[], Any], folder: Path, *, is_right: Callable[[Any], str | None], must: str = "") -> Verdict:
    """Return what came of a call: a right value, a refusal in whole sentences, or something else.

    Args:
        call: What is tried.
        folder: Where a failure file can be written.
        is_right: Says what is wrong with the value that was returned, None if nothing is.
        must: "refuse" where any value would be wrong, "accept" where a refusal would be.
    """
    try:
        value = call()
    except SmkitError as error:
        if must == "accept":
            return Outcome.LOST, f"refused what is right: {error}"
        if problem := _problem_of(error, folder):
            return Outcome.LOST, problem
        return Outcome.REFUSED, ""
    if must == "refuse":
        return Outcome.SILENT, f"took it for {value!r:.300}"
    problem = is_right(value)
    return (Outcome.SILENT, problem) if problem else (Outcome.SURVIVED, "")


def _problem_of(error: SmkitError, folder: Path) -> str | None:
    """Say what a failure file would lack of what, where and fix."""
    file = failure_file(folder)
    file.unlink(missing_ok=True)
    write_failure(folder, str(error))
    text = file.read_text(encoding="utf-8")
    file.unlink()
    if not (error.what.strip() and error.where.strip() and error.fix.strip()):
        return f"an error without what, where or fix: {error!r}"
    if len(text) > MAX_FAILURE_CHARACTERS or "\n  where: " not in text or "\n  fix:   " not in text:
        return f"a failure file of {len(text)} characters without where or fix: {text[-300:]}"
    if len(str(error)) > 100_000:
        return f"a message of {len(str(error)):,} characters"
    return None


def _chunk(kind: Kind, name: str, count: int, folder: Path) -> Iterator[Verdict]:
    """Yield what came of each example of a chunk; fewer, if one of them ends the process."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        os.close(reading)
        _work(kind, name, count, folder, writing)
    os.close(writing)
    pending = b""
    at = "nothing yet"
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], 4 * SECONDS)[0]:
            data = pipe.read(1 << 16)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                outcome, note = json.loads(line)
                if outcome:
                    yield Outcome(outcome), note
                at = "" if outcome else note
        else:
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if status:
        yield Outcome.LOST, f"the process ended with {os.waitstatus_to_exitcode(status)} in {at}"


def _work(kind: Kind, name: str, count: int, folder: Path, descriptor: int) -> None:
    """Try the examples of a chunk and write a line for each: in a process that ends here."""
    status = 1
    try:
        _bound()
        with os.fdopen(descriptor, "w", encoding="utf-8", buffering=1) as pipe:
            _examples(kind, name, count, folder, lambda outcome, note: pipe.write(_line(outcome, note)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _line(outcome: str, note: str) -> str:
    return json.dumps([outcome, note]) + "\n"


def _bound() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    signal.signal(signal.SIGALRM, _hang)
    warnings.simplefilter("ignore")
    # What libraries of C write is not wanted; what smkit says goes to sys.stderr.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


def _hang(*_: object) -> None:
    raise HangError


def _examples(kind: Kind, name: str, count: int, folder: Path, write: Callable[[str, str], object]) -> None:
    @seed(name)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def each(data: st.DataObject) -> None:
        write("", name)
        outcome, note = _tried(kind, data, folder)
        write(outcome.value, note)

    each()


def _tried(kind: Kind, data: st.DataObject, folder: Path) -> Verdict:
    place = Path(tempfile.mkdtemp(dir=folder))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    drawn = _Drawn(data)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        verdict = kind(drawn, place)  # type: ignore[arg-type]
    except HangError:
        verdict = Outcome.LOST, f"no answer in {SECONDS:.0f} s"
    except Exception as error:
        if type(error).__module__.startswith("hypothesis"):
            raise
        ends = traceback.format_exception(error)
        verdict = Outcome.LOST, f"{type(error).__name__}: {''.join(ends[-3:])[:900]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        shutil.rmtree(place, ignore_errors=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > MOST_RESIDENT:
        verdict = Outcome.LOST, f"took {grown:,} bytes of memory"
    outcome, note = verdict
    return outcome, f"{note} | {drawn}" if note else ""


class _Drawn:
    """The data of an example, which remembers what was drawn."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._drawn: list[object] = []

    def draw(self, strategy: st.SearchStrategy[Any], label: str | None = None) -> Any:
        value = self._data.draw(strategy, label)
        self._drawn.append(value)
        return value

    def __str__(self) -> str:
        with contextlib.suppress(ValueError, RecursionError):
            return ", ".join(f"{value!r:.700}" for value in self._drawn)[:1500]
        return "what cannot be written"
