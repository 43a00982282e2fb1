"""Stops at random moments: SIGTERM, Ctrl-C and SIGKILL, once and several times, in everything that a training does.

A round starts a training, waits until it does a certain thing, waits a random little longer, and sends signals. smkit
has survived it if there is the checkpoint of the last finished step (after SIGKILL, or a second Ctrl-C, that of the
last save), the status is that of the signal, no model lies where finished ones do, no failure is noted, the end came
within 120 s, and neither processes nor shared memory are left; and if the training, started again, ends with the model
of one that was never stopped, bit for bit. Lost: one of these is not so. Silent: another model, or a status of success.

Trainings are forked processes, plain ones, process 1 of a container, behind a shell, two ranks of torchrun, and jobs of
the real toolkit behind smkit's supervisor. Of the peers: see `torture.stops.peers`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torture.stops import peers
from torture.stops.orders import Order, orders
from torture.stops.verdict import judged
from torture.tally import Campaign

TESTS = Path(__file__).parent.parent.parent


def attack(campaign: Campaign) -> None:
    if "smkit" in campaign.subjects:
        attack_smkit(campaign, orders(campaign))
    for peer in campaign.subjects:
        if peer in peers.WAYS:
            peers.attack(campaign, peer)


def attack_smkit(campaign: Campaign, rounds: Iterator[Order]) -> None:
    with Driver(campaign.folder) as driver:
        models: dict[tuple[int, tuple[str, ...]], str] = {}
        for number, order in enumerate(rounds):
            reason = missing(order)
            if reason:
                print(f"left out, {order.attack}: {reason}", file=sys.stderr)
                continue
            settled = (order.world_size, order.settings)
            if settled not in models:
                alone = Order(
                    "", "importing", 1, 0.0, (), world_size=order.world_size, settings=order.settings, pauses={}
                )
                models[settled] = driver.done(alone)["model"]
            result = driver.done(order)
            outcome, problems = judged(order, result, models[settled])
            what = f"{order.word} {order.count} + {order.after:.3f} s, {order.signals}, to {order.to}, {order.kind}"
            note = f"round {number}, seed {campaign.seed} ({what}): {'; '.join(problems)}"
            campaign.tally.count(f"stops: {order.attack}", "smkit", outcome, note)


def missing(order: Order) -> str:
    """Return why a round cannot be done here, nothing if it can."""
    if order.kind in ("process 1", "supervised") and (os.geteuid() or not shutil.which("unshare")):
        return "it takes root, and unshare, to be process 1"
    if order.kind == "supervised" and importlib.util.find_spec("sagemaker_training") is None:
        return "sagemaker-training is not installed"
    return ""


class Driver:
    """The process that does the rounds; where it may, it has a /dev/shm of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        command = [sys.executable, "-m", "torture.stops.rounds"]
        paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        if os.geteuid() == 0 and shutil.which("unshare"):
            mount = 'mount -t tmpfs tmpfs /dev/shm && STOPS_OWN_MEMORY=1 exec "$@"'
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", *command]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def done(self, order: Order) -> dict[str, Any]:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(order) | {"folder": str(folder)}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver has ended, with status {self._process.wait()}")
        shutil.rmtree(folder, ignore_errors=True)
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        with self._process, contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
