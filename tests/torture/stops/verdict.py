"""What a round has come to: everything that a stop must leave, and what it must not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torture.stops.orders import INT, KILL, TERM, Order
from torture.tally import Outcome

STATUSES: Mapping[int, int] = {TERM: 143, INT: 130, KILL: -KILL}


def judged(order: Order, result: Mapping[str, Any], model: str) -> tuple[Outcome, list[str]]:
    """Return what a round came to, and what is wrong."""
    problems = list(wrong(order, result, model))
    is_silent = any(problem.startswith("silent") for problem in problems)
    return (Outcome.SILENT if is_silent else Outcome.LOST if problems else Outcome.SURVIVED), problems


def wrong(order: Order, result: Mapping[str, Any], model: str) -> Iterator[str]:
    numbers = [number for number, _ in order.signals]
    words = [one["word"] for one in result["words"]]
    is_finished = "exporting" in words
    if not result["is_in_time"]:
        yield "it did not end within 120 s"
    yield from wrong_end(order, result, numbers, was_listening="loading" in words, is_finished=is_finished)
    if is_finished and result["model"] not in (None, model):
        yield "silent: another model was handed over"
    if not is_finished and result["model"] is not None:
        yield "silent: a model was handed over that is not finished"
    if "loading" in words:
        yield from lost_steps(order, result, numbers)
    yield from left_behind(order, result, numbers)
    if result["resumed_status"]:
        yield f"started again, it ends with {result['resumed_status']}"
    elif result["resumed_model"] != model:
        yield "silent: resumed, it comes to another model"


def wrong_end(
    order: Order, result: Mapping[str, Any], numbers: list[int], *, was_listening: bool, is_finished: bool
) -> Iterator[str]:
    status = result["statuses"][0]
    if status == 0 and not is_finished:
        yield "silent: status 0"
    elif result["was_met"] and status not in expected(order, numbers, was_listening, is_finished):
        yield f"statuses {result['statuses']}"
    if order.kind != "supervised" and result["failure"] is not None:
        yield f"a failure was noted: {result['failure']:.300}"
    if order.kind == "supervised" and not is_finished and result["was_met"] and result["failure"] is None:
        yield "the toolkit noted no failure"


def left_behind(order: Order, result: Mapping[str, Any], numbers: list[int]) -> Iterator[str]:
    if result["orphans"]:
        yield f"left processes: {result['orphans']}"
    # torchrun leaves a folder of its own.
    left = [name for name in result["left"] if not name.startswith("torchelastic_")]
    if left and KILL not in numbers:
        yield f"left files: {left}"
    # A SIGKILL to all of a group takes the process too that would have cleared up.
    if result["left_shared"] and not (KILL in numbers and order.to == "group"):
        yield f"left shared memory: {result['left_shared']}"


def expected(order: Order, numbers: list[int], was_listening: bool, is_finished: bool) -> set[int]:
    if order.kind == "torchrun":
        # Its own; it tells a job's runtime that this was no success.
        return {*range(1, 256), *range(-64, 0)}
    if order.kind == "supervised":
        return {0, 1, 143} if is_finished else {1, 143}
    statuses = {STATUSES[numbers[0]]} | ({-number for number in numbers} if order.kind == "shell" else set())
    if INT in numbers[1:]:
        # The second one wants an end at once.
        statuses.add(130)
    # When all is saved and said, the interpreter's own handlers are there again; to a shell it is the same status.
    statuses |= {-number for number in numbers[1:]}
    if order.kind == "process 1" and KILL in numbers:
        # What unshare makes of it.
        statuses |= {-KILL, 137, 1}
    if is_finished:
        # What is finished is finished; between the two the interpreter's own handlers are there again.
        statuses |= {0} | {-number for number in numbers}
    if not was_listening:
        # smkit is not yet there; Python's own end.
        statuses |= {-number for number in numbers} | ({1, 130} if INT in numbers else set())
    return statuses


def lost_steps(order: Order, result: Mapping[str, Any], numbers: list[int]) -> Iterator[str]:
    newest = result["newest"]
    if isinstance(newest, str):
        yield f"no whole checkpoint: {newest}"
    elif newest < result["committed"]:
        yield f"step {result['committed']} was saved, and step {newest} is found"
    elif KILL not in numbers and INT not in numbers[1:] and result["was_met"]:
        steps = [one["step"] for one in result["words"] if one["word"] == "step"]
        last = steps[0] + sum(one["word"] == "done" for one in result["words"]) if steps else newest
        if newest != last:
            yield f"step {last} was the last one done, and step {newest} is saved"
