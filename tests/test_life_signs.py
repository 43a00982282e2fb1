"""Signs of life: who is gone is named, whoever has taken leave is not, and the first word is everybody's."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from patience import SECONDS

from smkit.life_signs import LifeSigns

pytestmark = pytest.mark.train


@pytest.fixture
def signs() -> Callable[..., LifeSigns]:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def of_rank(rank: int, world_size: int = 3) -> LifeSigns:
        return LifeSigns(store, "run", rank, world_size, f"algo-{rank + 1}", patience_seconds=10)

    return of_rank


def word_of(signs: LifeSigns) -> str:
    deadline = time.monotonic() + SECONDS
    while not signs.word() and time.monotonic() < deadline:
        time.sleep(0.05)
    return signs.word()


def test_who_has_not_come_is_named(signs: Callable[..., LifeSigns]) -> None:
    first = signs(0)
    third = signs(2)
    assert first.absent(0.2) == "rank 1 on host unknown"
    second = signs(1)
    assert first.absent(SECONDS) == ""
    for one in (first, second, third):
        one.close(says_farewell=True)


def test_the_first_word_is_everybodys(signs: Callable[..., LifeSigns]) -> None:
    ranks = [signs(rank) for rank in range(3)]
    assert [one.word() for one in ranks] == ["", "", ""]
    assert ranks[1].tell("the lights went out") == "the lights went out"
    assert ranks[2].tell("rank 1 is gone") == "the lights went out"
    assert ranks[0].cause("I have lost contact") == "the lights went out"
    assert [word_of(one) for one in ranks] == ["the lights went out"] * 3
    for one in ranks:
        one.close(says_farewell=False)


def test_who_gives_no_more_signs_is_named_with_its_host(signs: Callable[..., LifeSigns]) -> None:
    ranks = [signs(rank) for rank in range(3)]
    ranks[1].close(says_farewell=False)
    cause = ranks[0].cause("it was seen so")
    assert cause == "rank 1 on host algo-2 gave no more sign of life (it was seen so)"
    assert word_of(ranks[2]) == cause
    for one in ranks:
        one.close(says_farewell=False)


def test_who_is_alive_but_does_not_come_is_named(signs: Callable[..., LifeSigns]) -> None:
    ranks = [signs(rank, 2) for rank in range(2)]
    assert ranks[0].cause("seen").startswith("rank 1 on host algo-2 did not come to where the others waited")
    for one in ranks:
        one.close(says_farewell=False)


ORPHAN = """
    import os, subprocess, sys, time
    if len(sys.argv) == 1:
        environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
        subprocess.Popen([sys.executable, __file__, "rank"], env=environment)
        sys.stdin.read()
    else:
        import torch
        from smkit.life_signs import LifeSigns
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        signs = LifeSigns(store, "run", 0, 1, "algo-1", patience_seconds=10)
        print("begun", flush=True)
        time.sleep(1000)
"""


def test_a_rank_whose_agent_is_gone_stops_as_if_asked_to(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(textwrap.dedent(ORPHAN))
    agent = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "begun\n"
    agent.kill()
    # To the end of the pipes: the orphan holds them until it has ended.
    _, said = agent.communicate(timeout=SECONDS)
    assert "torchrun, which has started rank 0, is gone; the run stops" in said
