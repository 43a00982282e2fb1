"""Hosts that train together, and what can happen to them: ranks, torchrun and the network between fail.

A round: two or three hosts, each a network namespace, train a small model; when the victim, drawn anew, has come to its
place, something happens once (`faults.py`). Trainer's `timeout_seconds` is 8.

* REFUSED: within 120 s all processes of all hosts have ended by themselves (but for one that was stopped by a signal),
  each torchrun with another status than 0; the failure file of each host whose ranks could still say something names
  the rank and the host that failed first, without a traceback; and the run, started again with the same folders on one
  rank less, ends with the records of a run without a fault.
* SURVIVED: it ended as if nothing had been, with those records. A link that is down for 5 s, packets that are lost or
  late, and a rank that comes 20 s late must be survived.
* LOST: anything else; SILENT: status 0 in spite of a fault, or other records.

One round in five is started by torchrun itself; the others by agents that do the same and are forked (`forked.py`). The
peers run the same faults in a step with their own default time-outs, and need only end within 120 s.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.hosts.faults import Fault, Scene, cut, faults, kill, lose_one_way, stop
from torture.hosts.job import Job, Starts
from torture.hosts.network import Network, missing
from torture.tally import Campaign, Outcome

SCRIPT = Path(__file__).with_name("train.py")
PEERS_SCRIPT = Path(__file__).with_name("peers.py")
PEERS = {"torch.save": "torch", "accelerate": "accelerate", "lightning": "lightning"}
PEERS_FAULTS = [
    Fault("kill -9 of a rank, step", "step", kill, silences="rank", layouts=((2, 1),), counts=(8,)),
    Fault("a rank stopped, step", "step", stop, silences="rank", layouts=((2, 1),), counts=(8,)),
    Fault("a host cut off, step", "step", cut, silences="host", layouts=((2, 1),), counts=(8,)),
]
PEERS_ROUNDS = 2
TIMEOUT_SECONDS = 8.0
LIMIT_SECONDS = 120.0
"""The contract's; on a quiet machine they need a quarter of it."""
STUCK_LIMIT_SECONDS = 180.0
"""For a rank that is stuck in its own code: it is asked to stop when the others have given up, and has 100 s then."""
START_SECONDS = 300.0
_ARGUMENTS = ("--batch-size", "12", "--epochs", "10", "--log-every-steps", "1", "--validate-every-steps", "10")
_TIMED = ("time", "train/samples_per_second", "train/data_wait_percent", "train/eta_seconds")
_AT_ONCE = 3


@dataclass(frozen=True)
class Plan:
    """One round, drawn."""

    fault: Fault
    subject: str
    hosts: int
    ranks_per_host: int
    victim: int
    count: int
    seconds_after: float
    forks: bool
    seed: int
    folder: Path

    @property
    def text(self) -> str:
        how = "forked" if self.forks else "torchrun"
        return (
            f"round {self.folder.name}, {how}, {self.hosts} hosts of {self.ranks_per_host}, rank {self.victim}, "
            f"time {self.count} of its place, {self.seconds_after:.3f} s after"
        )


@dataclass(frozen=True)
class Result:
    plan: Plan
    outcome: Outcome
    note: str
    seconds: float


def attack(campaign: Campaign, chosen: list[Fault] | None = None, *, starts_torchrun: bool = True) -> None:
    """Do all rounds; of `chosen` faults only, if they are given."""
    lack = missing()
    if lack:
        raise RuntimeError(lack)
    plans = list(_plans(campaign, faults() if chosen is None else chosen, starts_torchrun=starts_torchrun))
    slowest: dict[tuple[str, str], float] = {}
    with Starts(forks=True) as forking, Starts(forks=False) as starting, ThreadPoolExecutor(_AT_ONCE) as pool:
        expected = _reference(forking, campaign.folder)
        for result in pool.map(lambda plan: _round(forking if plan.forks else starting, plan, expected), plans):
            plan = result.plan
            campaign.tally.count(plan.fault.name, plan.subject, result.outcome, f"{result.note} ({plan.text})")
            key = plan.fault.name, plan.subject
            slowest[key] = max(slowest.get(key, 0.0), result.seconds)
    if campaign.tally.follow:
        for (name, subject), seconds in slowest.items():
            print(f"{name}, {subject}: ended within {seconds:.1f} s", file=sys.stderr)


def _plans(campaign: Campaign, chosen: list[Fault], *, starts_torchrun: bool) -> Iterator[Plan]:
    for subject in campaign.subjects:
        if subject != "smkit" and subject not in PEERS:
            continue
        is_peer = subject in PEERS
        for fault in PEERS_FAULTS if is_peer else chosen:
            draws = campaign.draws(f"hosts {subject} {fault.name}")
            for number in range(min(campaign.rounds, PEERS_ROUNDS) if is_peer else campaign.rounds):
                hosts, each = draws.choice(fault.layouts)
                world = hosts * each
                ranks = {"any": range(world), "first": [0], "other": range(1, world)}[fault.victims]
                yield Plan(
                    fault=fault,
                    subject=subject,
                    hosts=hosts,
                    ranks_per_host=each,
                    victim=draws.choice(list(ranks)),
                    count=draws.choice(fault.counts),
                    seconds_after=draws.uniform(0, 0.4),
                    forks=not is_peer and not (starts_torchrun and number % 5 == 4),
                    seed=draws.randrange(1 << 30),
                    folder=campaign.folder / f"{subject}-{fault.name}-{number}".replace(" ", "_").replace("%", ""),
                )


def _arguments(folder: Path) -> list[str]:
    for channel in ("train", "validation"):
        (folder / channel).mkdir(parents=True, exist_ok=True)
        (folder / channel / "present").touch()
    channels = [f"--channel={channel}={folder / channel}" for channel in ("train", "validation")]
    # Hosts have folders of their own, but for the checkpoints, which the platform brings to all.
    places = ["--run-dir", f"{folder}/host-{{host}}", "--checkpoint-dir", f"{folder}/checkpoints"]
    return [str(SCRIPT), *_ARGUMENTS, "--checkpoint-every-seconds", "0.3", *channels, *places]


def _environment(**more: str) -> dict[str, str]:
    return {"TORTURE_TIMEOUT": str(TIMEOUT_SECONDS), **more}


def _reference(starts: Starts, folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run to which nothing happens."""
    folder = folder / "undisturbed"
    with Network(1) as network:
        job = Job(starts, network, folder / "job", _arguments(folder), environment=_environment())
        try:
            if not job.wait_until_ended([0], START_SECONDS) or job.agents[0].poll() != 0:
                raise RuntimeError(f"the run without a fault has failed:\n{job.log(0).read_text()}")
        finally:
            job.end()
    return _records(folder)


def _records(folder: Path) -> list[dict[str, Any]]:
    """Return rank 0's records but for what the clock says."""
    file = folder / "host-0/output/data/metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in _TIMED} for line in lines]


def _are_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return len(found) == len(expected) and all(
        one.keys() == other.keys() and all(math.isclose(one[key], other[key], rel_tol=1e-9) for key in one)
        for one, other in zip(found, expected, strict=True)
    )


def _round(starts: Starts, plan: Plan, expected: list[dict[str, Any]]) -> Result:
    try:
        return _fault_round(starts, plan, expected)
    except Exception as error:  # one round that the attack itself spoils is not the end of it
        return Result(plan, Outcome.LOST, f"the attack itself has failed: {error!r}", 0.0)


def _fault_round(starts: Starts, plan: Plan, expected: list[dict[str, Any]]) -> Result:
    fault = plan.fault
    own = {"TORTURE_FAULT": f"{plan.victim} {fault.place} {plan.count} {fault.own}"} if fault.own else {}
    if fault.is_next_late:
        own = {"TORTURE_FAULT": f"{(plan.victim + 1) % (plan.hosts * plan.ranks_per_host)} {fault.place} 1 late"}
    with Network(plan.hosts, seed=plan.seed) as network:
        script = _arguments(plan.folder) if plan.subject == "smkit" else [str(PEERS_SCRIPT), PEERS[plan.subject]]
        job = Job(
            starts,
            network,
            plan.folder / "job",
            script,
            ranks_per_host=plan.ranks_per_host,
            environment=_environment(**own),
        )
        try:
            if not job.wait_for(plan.victim, fault.place, plan.count, START_SECONDS):
                return Result(plan, Outcome.LOST, "it has never come to the place", 0.0)
            if fault.happens is not None:
                time.sleep(plan.seconds_after)
                began = time.time()
                fault.happens(Scene(network, job, plan.victim, random.Random(plan.seed)))
            else:
                began = time.time()
            problem = _ends(job, plan)
            seconds = max(job.ended.values(), default=began) - began
            if problem:
                return Result(plan, Outcome.LOST, problem, seconds)
        finally:
            job.end()
        statuses = [agent.poll() for agent in job.agents.values()]
    if plan.subject != "smkit":
        return Result(plan, Outcome.REFUSED if 0 not in statuses else Outcome.SILENT, f"statuses {statuses}", seconds)
    outcome, note = _judged(starts, plan, statuses, expected)
    return Result(plan, outcome, note, seconds)


def _ends(job: Job, plan: Plan) -> str:
    """Wait until all have ended that can; return what is wrong with that."""
    is_stopped = plan.fault.happens is stop
    limit = STUCK_LIMIT_SECONDS if plan.fault.own == "stick" else LIMIT_SECONDS
    limit += START_SECONDS if plan.fault.survives else 0
    own_host = job.host_of(plan.victim)
    # The agent of one that was stopped by a signal waits for it.
    awaited = [host for host in job.agents if not (is_stopped and host == own_host)]
    if not job.wait_until_ended(awaited, limit):
        left = {host: job.processes(host) for host in awaited}
        return f"after {limit:.0f} s there still were {left}"
    if is_stopped:
        # It wakes up, as a machine does that was moved, and finds that all others are gone.
        process = job.process_of(plan.victim)
        if process is not None:
            os.kill(process, signal.SIGCONT)
        if not job.wait_until_ended([own_host], limit):
            return f"{limit:.0f} s after it went on there still were {job.processes(own_host)}"
    return ""


def _judged(
    starts: Starts, plan: Plan, statuses: list[int | None], expected: list[dict[str, Any]]
) -> tuple[Outcome, str]:
    fault = plan.fault
    if fault.survives:
        if any(statuses):
            return Outcome.LOST, f"statuses {statuses}: {_failures(plan)}"
        is_same = _are_same(_records(plan.folder), expected)
        return (Outcome.SURVIVED, "") if is_same else (Outcome.SILENT, "other records")
    if 0 in statuses:
        return Outcome.SILENT, f"statuses {statuses}"
    problem = _unnamed(plan) or _not_resumed(starts, plan, expected)
    return (Outcome.LOST, problem) if problem else (Outcome.REFUSED, "")


def _failures(plan: Plan) -> dict[int, str]:
    files = {host: plan.folder / f"host-{host}/output/failure" for host in range(plan.hosts)}
    return {host: file.read_text() for host, file in files.items() if file.exists()}


def _unnamed(plan: Plan) -> str:
    """Return what is wrong with what the hosts have said."""
    failures = _failures(plan)
    own_host = plan.victim // plan.ranks_per_host
    if plan.fault.silences == "agent":
        # All stop as if they had been asked to.
        return f"a stop is no failure: {failures}" if failures else ""
    who = rf"rank {plan.victim} on host {Job.name(own_host)}\b"
    if plan.fault.own == "raise":
        who += ": ValueError: the lights went out"
    if plan.fault.silences == "host":
        who = rf"on host {Job.name(own_host)}\b"
    if plan.fault.happens is lose_one_way:
        # Whether one end of the link does not send or the other does not hear, nobody can tell.
        who = r"on host algo-\d+\b"
    if plan.fault.is_next_late or (plan.fault.silences and own_host == 0):
        # With the last rank of its host that agent ends too, and with it the store where others, or late ones, look.
        who += rf"|host ({Job.name(0)}|of rank 0), which keeps the store"
    for host in range(plan.hosts):
        wanted = who if host != own_host else _said_of_itself(plan, who)
        said = failures.get(host, "nothing")
        if wanted and not re.search(wanted, said):
            return f"host {Job.name(host)} has said, where {wanted!r} was to be said: {said[:300]!r}"
    return ""


def _said_of_itself(plan: Plan, who: str) -> str:
    """Return what the victim's own host must say; nothing if nobody there can."""
    if plan.fault.silences == "rank" and plan.ranks_per_host == 1:
        return ""
    if plan.fault.silences == "host":
        return "sign of life|which keeps the store"
    return {"raise": "ValueError: the lights went out", "stick": f"{who}|asked to stop"}.get(plan.fault.own, who)


def _not_resumed(starts: Starts, plan: Plan, expected: list[dict[str, Any]]) -> str:
    """Start the run again on one rank less; return what is wrong with what comes of it."""
    with Network(1) as network:
        job = Job(
            starts,
            network,
            plan.folder / "again",
            _arguments(plan.folder),
            ranks_per_host=plan.hosts * plan.ranks_per_host - 1,
            environment=_environment(),
        )
        try:
            if not job.wait_until_ended([0], START_SECONDS) or job.agents[0].poll() != 0:
                return f"it does not go on: status {job.agents[0].poll()}, {job.log(0).read_text()[-1000:]}"
        finally:
            job.end()
    found = _records(plan.folder)
    if not _are_same(found, expected):
        return f"resumed, it has other records: {len(found)} for {len(expected)}"
    return ""
