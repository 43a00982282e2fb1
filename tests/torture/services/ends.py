"""Clients that end in the middle: a launch or a download that is killed, or interrupted by Ctrl-C."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

from torture.faulty_proxy import plan
from torture.services.deeds import Verdict, download
from torture.services.launches import Launch, forget_launches
from torture.services.world import ANSWER_SECONDS, World
from torture.tally import Campaign, Outcome


def attack(campaign: Campaign, world: World) -> None:
    """End launches and downloads at random moments."""
    for what, end in (("launcher", _ended_launch), ("downloader", _ended_download)):
        for signal_, how in ((signal.SIGKILL, "killed"), (signal.SIGINT, "interrupted")):
            draw = campaign.draws(f"{what} {how}")
            for number in range(campaign.rounds):
                outcome, note = end(world, draw, signal_)
                campaign.tally.count(f"{what} {how}", "smkit", outcome, f"round {number}: {note}")


def _end_at_random(world: World, order: dict[str, Any], draw: random.Random, signal_: signal.Signals) -> dict[str, Any]:
    """Send a signal to the client when it has sent a random number of requests; return what it says, if anything."""
    plan(world.proxy, kind="")
    usual = world.client.do({"do": "attach", "name": "packed", "endpoint": world.proxy})
    assert "done" in usual, usual
    world.account.settings(latency=0.03)
    plan(world.proxy, kind="")
    process, wanted = world.client.process, draw.randrange(12)
    world.client.send({**order, "endpoint": world.proxy})
    deadline = time.monotonic() + 5
    while len(plan(world.proxy)["seen"]) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 0.1))
    process.send_signal(signal_)
    came = world.client.answer(2.0 if signal_ == signal.SIGKILL else ANSWER_SECONDS) or {}
    world.account.settings(latency=0.0)
    if signal_ == signal.SIGKILL:
        world.client.end()
    elif not came:
        world.client.end()
        return {"hung": ANSWER_SECONDS}
    return came


def _ended_launch(world: World, draw: random.Random, signal_: signal.Signals) -> Verdict:
    launch = Launch.make(world, draw)
    came = _end_at_random(world, launch.order(launch.name), draw, signal_)
    try:
        if "hung" in came:
            return Outcome.LOST, "Ctrl-C is not heard"
        if "done" in came:
            return launch.of_done(came["done"])
        if "broke" in came and "KeyboardInterrupt" not in came["broke"]:
            return Outcome.LOST, came["broke"]
        if signal_ == signal.SIGINT and (left := launch.uploads_left()):
            return Outcome.SILENT, f"{left} uploads in parts are left"
        # Who is killed says nothing; what it leaves must do for the next launch.
        return launch.of_refused(came.get("said", "") if signal_ == signal.SIGINT else "is not known")
    finally:
        forget_launches(world)


def _ended_download(world: World, draw: random.Random, signal_: signal.Signals) -> Verdict:
    deed = download(world, draw, name=draw.choice(["packed", "plain"]))
    came = _end_at_random(world, deed.order, draw, signal_)
    if "hung" in came:
        return Outcome.LOST, "Ctrl-C is not heard"
    if "done" in came:
        return deed.of_done(came["done"], "")
    if "broke" in came and "KeyboardInterrupt" not in came["broke"]:
        return Outcome.LOST, came["broke"]
    outcome, note = deed.of_refused("")
    if signal_ == signal.SIGKILL and note.startswith("not whole: []"):
        outcome = Outcome.REFUSED  # a killed process cannot take its temporary folder away
    if outcome is not Outcome.REFUSED:
        return outcome, note
    again = world.client.do({**deed.order, "do": "download", "endpoint": world.proxy})
    if "done" not in again:
        return Outcome.LOST, f"a second download: {again}"
    outcome, note = deed.of_done(again["done"], "")
    is_whole = outcome is Outcome.SURVIVED or (signal_ == signal.SIGKILL and note.startswith("wrong: []"))
    return (Outcome.REFUSED, "") if is_whole else (outcome, note)
