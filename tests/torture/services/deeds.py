"""What a round does through smkit with a job that is there, and what that should come to without a fault.

It knows no fault.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torture.services.world import World, start_job
from torture.tally import Outcome

_LIVES = "for i in $(seq 1 12); do echo line $i; sleep 0.1; done; echo w > /opt/ml/model/w"
Verdict = tuple[Outcome, str]
RIGHT: Verdict = (Outcome.SURVIVED, "")


@dataclass
class Deed:
    """One thing to do in a round, made anew for each.

    Args:
        order: What the client is told.
        of_done: What to say of what it came to.
        of_refused: What to say after an error, which so far is a clear one.
    """

    order: dict[str, Any]
    of_done: Callable[[Any, str], Verdict]
    of_refused: Callable[[str], Verdict] = lambda _: (Outcome.REFUSED, "")


def same(found: Any, wanted: Any) -> Verdict:
    """Compare."""
    return RIGHT if found == wanted else (Outcome.SILENT, f"{str(found)[:300]} instead of {str(wanted)[:100]}")


def same_lines(found: list[str], wanted: list[str]) -> Verdict:
    """Compare, whatever their order is."""
    if Counter(found) != Counter(wanted):
        lack, more = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
        return Outcome.SILENT, f"{lack.total()} lines lack, {more.total()} too many"
    return RIGHT


def _logs(world: World, _: random.Random, *, follow: bool) -> Deed:
    order = {"do": "logs", "name": "packed", "follow": follow}
    return Deed(order, lambda lines, _: same_lines(lines, world.lines))


def _live(world: World, _: random.Random) -> Deed:
    name = world.fresh("live")
    start_job(world.account, name, _LIVES)
    wanted = [f"line {i}" for i in range(1, 13)]
    return Deed({"do": "logs", "name": name, "follow": True}, lambda lines, _: same_lines(lines, wanted))


def _wait(world: World, _: random.Random) -> Deed:
    def of_done(uri: str, said: str) -> Verdict:
        own = [line for line in said.splitlines() if line in world.lines]
        right = same(uri, f"s3://{world.account.bucket}/jobs/packed/output/model.tar.gz")
        return same_lines(own, world.lines) if right == RIGHT else right

    return Deed({"do": "wait", "name": "packed", "show_logs": True}, of_done)


def _metrics(world: World, _: random.Random) -> Deed:
    return Deed({"do": "metrics", "name": "packed"}, lambda rows, _: same(rows, world.rows))


def download(world: World, _: random.Random, *, name: str) -> Deed:
    """Download the model of a job into a folder of its own."""
    folder = world.folder / world.fresh("download") / "model"

    def found() -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def leavings() -> list[str]:
        return [path.name for path in folder.parent.glob("*") if path != folder] if folder.parent.exists() else []

    def of_done(_: str, __: str) -> Verdict:
        wrong = [name for name in found().keys() | world.files.keys() if found().get(name) != world.files.get(name)]
        if wrong or leavings():
            return Outcome.SILENT, f"wrong: {wrong}; left: {leavings()}"
        return RIGHT

    def of_refused(_: str) -> Verdict:
        wrong = [name for name, data in found().items() if data != world.files.get(name)]
        if wrong or leavings():
            return Outcome.SILENT, f"not whole: {wrong}; left: {leavings()}"
        return Outcome.REFUSED, ""

    return Deed({"do": "download", "name": name, "directory": str(folder), "what": "model"}, of_done, of_refused)


def _stop(world: World, _: random.Random) -> Deed:
    name = world.fresh("stopped")
    start_job(world.account, name, "trap 'exit 0' TERM; while true; do sleep 0.1; done")
    world.account.until(name, "Training")
    return Deed(
        {"do": "stop", "name": name}, lambda status, _: same((status, status_of(world, name)), ("Stopped",) * 2)
    )


def status_of(world: World, name: str) -> str:
    """Return what the service itself says of a job."""
    return str(world.account.job(name)["TrainingJobStatus"])


def _attach(world: World, _: random.Random) -> Deed:
    return Deed({"do": "attach", "name": "packed"}, lambda status, _: same(status, "Completed"))


def _doctor(world: World, _: random.Random) -> Deed:
    words = ["doctor", "--json", "--instance-type", "ml.m5.large", "--bucket", world.account.bucket]

    def of_done(came: list[Any], said: str) -> Verdict:
        status, shown = came
        if status not in (0, 1):
            return Outcome.LOST, f"exit {status}: {said}"
        checks = {check["subject"]: check for check in json.loads(shown)}
        bad = [check for check in checks.values() if check["state"] in ("problem", "warning") and not check["fix"]]
        if bad:
            return Outcome.LOST, f"no fix: {bad}"
        return RIGHT if status == 0 else (Outcome.REFUSED, "")

    return Deed({"do": "command", "words": words}, of_done)


def _command(world: World, _: random.Random, *, verb: str) -> Deed:
    words = [verb, "packed"] if verb != "jobs" else [verb, "--output-dir", str(world.folder / "none")]

    def of_done(came: list[Any], said: str) -> Verdict:
        status, shown = came
        if status:
            is_clear = status in (1, 2) and "fix:" in said and "Traceback" not in said
            return (Outcome.REFUSED, "") if is_clear else (Outcome.LOST, f"exit {status}: {said}")
        if verb == "logs":
            return same_lines(shown.splitlines(), world.lines)
        if verb == "jobs" and "are not shown" in said:
            return Outcome.REFUSED, ""
        is_right = {"jobs": "us-east-1", "status": "Completed", "metrics": "0.4"}[verb] in shown
        return RIGHT if is_right else (Outcome.SILENT, f"{verb}: {shown[:300]} {said[:300]}")

    return Deed({"do": "command", "words": words}, of_done)


def verdict(deed: Deed, came: dict[str, Any]) -> Verdict:
    """Return what a round has come to."""
    if "hung" in came:
        return Outcome.LOST, f"no answer in {came['hung']} s"
    if "broke" in came:
        return Outcome.LOST, came["broke"]
    if "refused" in came:
        if "fix:" not in came["refused"]:
            return Outcome.LOST, came["refused"]
        return deed.of_refused(came["refused"])
    return deed.of_done(came["done"], came["said"])


OF_JOBS: dict[str, Callable[[World, random.Random], Deed]] = {
    "wait": _wait,
    "logs": lambda world, draw: _logs(world, draw, follow=True),
    "logs so far": lambda world, draw: _logs(world, draw, follow=False),
    "logs live": _live,
    "metrics": _metrics,
    "download packed": lambda world, draw: download(world, draw, name="packed"),
    "download plain": lambda world, draw: download(world, draw, name="plain"),
    "stop": _stop,
    "attach": _attach,
    "doctor": _doctor,
    **{f"smkit {verb}": partial(_command, verb=verb) for verb in ("status", "logs", "metrics", "jobs")},
}
