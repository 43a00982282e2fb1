"""Load data in several processes that are killed at random moments, each time going on in another number of them.

A process of its own, for it forks: torch is imported once, and each rank is a true process that a true SIGKILL ends.
What a rank is given it appends to a log; a step counts when all ranks have logged it and rank 0 has saved the position.
This script judges nothing.

    python tests/elastic.py KIND DIRECTORY KILLS SEED
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from smkit import SampleRandom, make_loader
from smkit.data.arrays import Arrays
from smkit.data.order import Windows

SAMPLES = 1009  # The last step of an epoch has one sample: all ranks but one get nothing.
BATCH_SIZE = 24
LONGEST = 0.12
"""Seconds from a round's first step to its end, at most."""
LOST = 3
"""The status of a rank that another one has left alone."""


class Segmented(Arrays):
    """Arrays that are shuffled as shards are."""

    windows = Windows((200, 300, 509), largest=128, first=16)


class Drawing(Dataset[Any]):
    """What a user writes: a sample at a time, with random numbers from wherever they come."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(1))]
        return torch.tensor(index), torch.tensor(drawn, dtype=torch.float64)


class Stream(IterableDataset[Any]):
    """What can only be read from front to end: it draws, and has no place of its own."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(Drawing().__getitem__, range(SAMPLES))


class StreamWithState(IterableDataset[Any]):
    """A stream that can go on from a place, and does not know what it has drawn."""

    def __init__(self) -> None:
        self._place = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self._place < SAMPLES:
            self._place += 1
            yield Drawing()[self._place - 1]
        self._place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._place = state["place"]


def dataset(kind: str) -> Any:
    numbers = {"numbers": torch.arange(SAMPLES), "drawn": torch.zeros(SAMPLES, 3, dtype=torch.float64)}
    kinds: dict[str, Callable[[], Any]] = {
        "arrays": lambda: Arrays(numbers),
        "segmented": lambda: Segmented(numbers),
        "drawing": Drawing,
        "stream": Stream,
        "stream with state": StreamWithState,
    }
    return kinds[kind]()


def with_draws(batch: Any, draws: SampleRandom) -> tuple[Tensor, Tensor]:
    """Return the samples of a batch, and the bytes of all random numbers that belong to each."""
    numbers, drawn = batch
    own = [torch.rand(2, generator=generator) for generator in draws.generators()]
    parts = [drawn, draws.uniform(3), draws.normal(2), draws.integers(1000, 1), torch.stack(own)]
    return numbers, torch.cat([part.view(torch.uint8) for part in parts], 1)


def loader(kind: str, **options: Any) -> Any:
    # A list of samples is the same to the reader whether it is asked for in this way or by default.
    collate = {"collate_fn": default_collate} if kind == "drawing" else {}
    return make_loader(dataset(kind), batch_size=BATCH_SIZE, seed=5, transform=with_draws, **collate, **options)


def steps(data: Any) -> Iterator[dict[str, Any]]:
    """Yield what this rank is given in each step that is left of the epoch: samples and their draws by micro-batch."""
    batches = iter(data)
    for group in data.groups():
        # Without the samples that stand in for an empty share.
        given = [[part[:share] for part in next(batches)] for share in group.shares]
        yield {
            "epoch": data.epoch,
            "step": data.step,
            "samples": [numbers.tolist() for numbers, _ in given],
            "draws": [[row.numpy().tobytes().hex() for row in draws] for _, draws in given],
        }


class Ranks:
    """The processes of one round."""

    def __init__(self, directory: Path, kind: str, settings: dict[str, Any], *, until_epoch: int | None) -> None:
        self._directory, self._kind, self._settings, self._until_epoch = directory, kind, settings, until_epoch
        self._pairs = [socket.socketpair() for _ in settings["workers"][1:]]
        self._begun, begin = os.pipe()
        self.processes = [self._forked(rank, begin) for rank in range(len(settings["workers"]))]
        os.close(begin)
        for pair in self._pairs:
            pair[0].close()
            pair[1].close()

    def wait_for_first_step(self) -> None:
        """Return when a step is saved, or no rank is left that could."""
        os.read(self._begun, 1)

    def kill(self, moments: random.Random) -> None:
        """Kill all ranks and their workers: one first, the others at once or a little later."""
        victims = moments.sample(self.processes, len(self.processes))
        for number, process in enumerate(victims):
            if number == 1 and moments.random() < 0.5:
                time.sleep(moments.uniform(0, 0.02))
            os.killpg(process, signal.SIGKILL)

    def end(self) -> list[int]:
        """Return the status of each rank; negative is the signal that has ended it."""
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in self.processes]
        os.close(self._begun)
        return statuses

    def _forked(self, rank: int, begin: int) -> int:
        process = os.fork()
        if process:
            os.setpgid(process, process)
            return process
        status = 1
        try:
            os.setpgid(0, 0)
            self._run(rank, begin)
            status = 0
        except ConnectionError:
            status = LOST
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _run(self, rank: int, begin: int) -> None:
        mine = [pair[0] for pair in self._pairs] if rank == 0 else [self._pairs[rank - 1][1]]
        for end in (end for pair in self._pairs for end in pair if end not in mine):
            end.close()
        workers = self._settings["workers"]
        data = loader(
            self._kind,
            rank=rank,
            world_size=len(workers),
            gradient_accumulation_steps=self._settings["accumulation"],
            workers=workers[rank],
            num_workers=2 if workers[rank] == "process" else None,
        )
        if self._settings["state"]:
            data.load_state_dict(self._settings["state"])
        log = os.open(self._directory / f"{self._settings['round']}-{rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        while data.epoch != self._until_epoch:
            for given in steps(data):
                os.write(log, json.dumps(given).encode() + b"\n")
                data.advance()
                if rank == 0:
                    self._save_when_all_are_there(data.state_dict(), mine)
                    os.write(begin, b".")
                else:
                    mine[0].sendall(b".")
                    _receive(mine[0])

    def _save_when_all_are_there(self, state: dict[str, int], others: list[socket.socket]) -> None:
        for other in others:
            _receive(other)
        written = self._directory / "state.json.new"
        written.write_text(json.dumps(state))
        written.replace(self._directory / "state.json")
        for other in others:
            other.sendall(b".")


def _receive(other: socket.socket) -> None:
    if not other.recv(1):
        raise ConnectionResetError


def saved_state(directory: Path) -> dict[str, int]:
    file = directory / "state.json"
    return json.loads(file.read_text()) if file.exists() else {}


def settings_of_round(number: int, kind: str, state: dict[str, int], moments: random.Random) -> dict[str, Any]:
    # Threads share the process's generators, which a drawing data set may not have; streams read themselves.
    here = ["auto", "none", "thread"] if kind in ("arrays", "segmented") else ["auto", "none"]
    share = 0 if kind.startswith("stream") else 0.03
    workers = ["process" if moments.random() < share else moments.choice(here) for _ in range(moments.randint(1, 4))]
    return {"round": number, "workers": workers, "accumulation": moments.choice([1, 2]), "state": state}


def main() -> None:
    kind, directory, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    moments = random.Random(seed)
    for number in range(kills + 1):
        state = saved_state(directory)
        settings = settings_of_round(number, kind, state, moments)
        with (directory / "rounds.jsonl").open("a") as rounds:
            rounds.write(json.dumps(settings) + "\n")
        # The last round is left alone, and ends with an epoch.
        ranks = Ranks(directory, kind, settings, until_epoch=state.get("epoch", 0) + 1 if number == kills else None)
        if number < kills:
            # One round in five may end before anything is read.
            if moments.random() < 0.8:
                ranks.wait_for_first_step()
            time.sleep(moments.uniform(0, LONGEST))
            ranks.kill(moments)
        statuses = ranks.end()
        expected = {0} if number == kills else {-signal.SIGKILL, LOST}
        if not expected.issuperset(statuses):
            sys.exit(f"round {number}: statuses {statuses} of {settings}")


if __name__ == "__main__":
    main()
