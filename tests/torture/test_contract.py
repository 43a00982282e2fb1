"""The short form of the attack by bad input: a few examples of each kind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from torture.contract import KINDS

pytestmark = [pytest.mark.train, pytest.mark.endurance]


def test_any_input_has_a_right_value_or_a_clear_answer() -> None:
    # The attack forks, which a process of pytest's must not.
    command = [sys.executable, "-m", "torture", "contract", "--rounds", "60", "--seed", "7", "--subjects", "smkit"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=560
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counted = dict(re.findall(r"^\| (.+?) \| smkit \| (\d+) \|", done.stdout, re.MULTILINE))
    assert set(counted) == set(KINDS)
    assert sum(map(int, counted.values())) >= 45
