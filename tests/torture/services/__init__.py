"""Faults of S3, SageMaker and CloudWatch: a faulty proxy before the SageMaker of the tests.

A round: something is done through smkit (launch, logs, wait, metrics, download, stop, attach, a command line), and from
a random request on one, two, three, ten or all requests of the same action meet one kind of fault (`faulty_proxy`).
Pauses run twenty times as fast, time-outs five times. It SURVIVED if it came to what it comes to without a fault:
bytes, lines and rows are compared, and of a launch the job, its source and its data. It was REFUSED if it ended within
a minute in an error of smkit's own, with a fix, after which the same launch succeeds without a fault. LOST: a hang, a
foreign traceback, a job that runs while its launch says that there is none, a second launch that fails. SILENT: two
jobs, a job with other bytes than those that were launched, a file under its final name that is not whole, lines that
are missing or come twice.

A bit that flips in the words of an answer, or of a request that is none to S3, cannot be told by anybody but TLS, which
these servers do not speak: of such a round only what breaks or hangs counts.

In rounds of "killed" and "interrupted" the process ends by SIGKILL, or by Ctrl-C, when it has sent a random number of
requests; what it leaves must do for the next. "For ever, at true speed": nothing runs faster, and the fault never ends.
`boto3` is boto3 alone: upload_file, download_file, create_training_job, and the paginators of CloudWatch Logs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

from torture.faulty_proxy import KINDS, plan
from torture.services import boto3_alone, ends
from torture.services.deeds import OF_JOBS, Deed, verdict
from torture.services.kinds import ONLY_OF, TIMES, WEIGHTED, note_round
from torture.services.launches import forget_launches, launch
from torture.services.world import ANSWER_SECONDS, Client, World, world
from torture.tally import Campaign, Outcome

DEEDS: dict[str, Callable[[World, random.Random], Deed]] = {"launch": launch, **OF_JOBS}
_SURE = ("bit flipped in an answer",)
"""Kinds that put wrong words into an answer, which nobody can tell from right ones."""
_WAITING = ("wait", "logs", "logs live", "stop", "smkit logs")
"""They go on asking as long as an outage lasts, so that no outage lasts for ever; each hang costs them seconds."""


def attack(campaign: Campaign) -> None:
    """Let each kind of fault meet everything that smkit does with AWS."""
    with world(campaign.folder) as made:
        attack_each_deed(campaign, made, KINDS)
        ends.attack(campaign, made)
        attack_at_true_speed(campaign, made)
        if set(campaign.subjects) - {"smkit"}:
            boto3_alone.attack(campaign, made)


def attack_each_deed(campaign: Campaign, world: World, kinds: Iterable[str], deeds: Iterable[str] = ()) -> None:
    """Let each of these kinds of fault meet these deeds, all by default, in turn."""
    usual = {name: _requests_of(world, name, campaign.draws(name)) for name in deeds or DEEDS}
    for kind in kinds:
        draw = campaign.draws(kind)
        for number in range(campaign.rounds):
            _round(campaign, world, kind, _deed_of(kind, number, usual, draw), usual, draw, number)


_AT_TRUE_SPEED = (
    ("hang", "launch", "HeadObject"),
    ("hang", "launch", "UploadPart"),
    ("503 SlowDown", "logs so far", "GetLogEvents"),
    ("500", "launch", "PutObject"),
    ("reset before the body", "metrics", "DescribeLogStreams"),
    ("slow reply", "download packed", "GetObject"),
    # Of a reply that brings more each time before it hangs, more is asked for as long as it does.
    ("hang", "download plain", "GetObject"),
    ("garbage for an answer", "attach", "DescribeTrainingJob"),
)


def attack_at_true_speed(campaign: Campaign, world: World) -> None:
    """Let faults that last for ever meet a client that takes the time that it says: an error comes within a minute."""
    world.client.end()
    hurried, world.client = world.client, Client(world.account, 1.0)
    for number in range(campaign.rounds // 10):
        for kind, name, action in _AT_TRUE_SPEED:
            draw = campaign.draws(f"{kind} {name} {number}")
            deed = DEEDS[name](world, draw)
            plan(world.proxy, kind=kind, times=10**6, actions=action, seed=number)
            outcome, note = verdict(
                deed, came := world.client.do({**deed.order, "endpoint": world.proxy}, patience=90.0)
            )
            plan(world.proxy, kind="")
            seconds = came.get("seconds", 90.0)
            if outcome in (Outcome.SURVIVED, Outcome.REFUSED) and seconds > ANSWER_SECONDS:
                outcome, note = Outcome.LOST, f"an answer after {seconds} s"
            place = f"{name}, {action}: {note}"
            campaign.tally.count("for ever, at true speed", "smkit", outcome, f"{kind}, {place}")
            note_round(world, f"{kind}, at true speed", place, outcome, note, came)
            forget_launches(world)
    world.client.end()
    world.client = hurried


def _requests_of(world: World, name: str, draw: random.Random) -> list[str]:
    """Return the actions of the requests that a deed sends when nothing is wrong."""
    deed = DEEDS[name](world, draw)
    plan(world.proxy, kind="")
    came = world.client.do({**deed.order, "endpoint": world.proxy})
    assert verdict(deed, came)[0] is Outcome.SURVIVED, f"{name} without a fault: {came}"
    seen = plan(world.proxy, kind="")["seen"]
    forget_launches(world)
    return [action for action, _ in seen]


def _deed_of(kind: str, number: int, usual: dict[str, list[str]], draw: random.Random) -> str:
    """Return what to do in a round: all in turn that send a request that this kind can meet."""
    able = [name for name, sent in usual.items() if any(re.fullmatch(ONLY_OF.get(kind, ".*"), each) for each in sent)]
    if kind == "events held back":
        # Of a job that ended long ago all events are there.
        able = ["logs live"]
    if kind in WEIGHTED and number % 2:
        return "launch"
    return able[(number + draw.randrange(len(able))) % len(able)]


def _round(
    campaign: Campaign,
    world: World,
    kind: str,
    name: str,
    usual: dict[str, list[str]],
    draw: random.Random,
    number: int,
) -> None:
    pattern = ONLY_OF.get(kind, ".*")
    sent = [action for action in usual[name] if re.fullmatch(pattern, action)]
    first, times, seed = draw.randrange(len(sent)), draw.choice(TIMES), draw.randrange(10**6)
    if name in _WAITING:
        times = min(times, 10 if kind.startswith("hang") else 40)
    if kind in WEIGHTED and name == "launch" and draw.random() < 0.6:
        pattern, first = "CreateTrainingJob", 0
    met = ""
    while not met:
        deed = DEEDS[name](world, draw)
        plan(world.proxy, kind=kind, first=first, times=times, actions=pattern, seed=seed)
        came = world.client.do({**deed.order, "endpoint": world.proxy, "seed": seed})
        met = plan(world.proxy, kind="")["met"]
        # Who polls sends more or fewer requests each time.
        first //= 2
    outcome, note = verdict(deed, came)
    if kind in _SURE and outcome is Outcome.SILENT:
        outcome = Outcome.SURVIVED
    place = f"{name}, {times} x {met}, seed {seed}"
    campaign.tally.count(kind, "smkit", outcome, f"round {number}: {place}: {note}")
    note_round(world, kind, place, outcome, note, came)
    if name == "launch":
        forget_launches(world)
