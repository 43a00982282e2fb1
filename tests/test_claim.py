"""Two runs do not train in one directory."""

import fcntl
import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from lines import LineTrainer, Run, weights

import smkit
from smkit import claim

pytestmark = pytest.mark.train


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "PATIENCE_SECONDS", 0.2)
    run = Run.within(tmp_path)

    class Twice(LineTrainer):
        """Starts itself a second time in its own directory, in the middle of its training."""

        def training_step(self, batch: object) -> object:
            if self.step == 3:
                with pytest.raises(smkit.ConfigurationError, match="another process is training there") as caught:
                    run(LineTrainer, "--epochs", "2").fit()
                assert caught.value.where == str(run.directory / "checkpoints")
            return super().training_step(batch)

    twice = run(Twice, "--epochs", "4", "--checkpoint-every-seconds", "0")
    twice.fit()
    # Free again when it has ended, also for a run that goes on from what it has left.
    again = run(LineTrainer, "--epochs", "4")
    again.fit()
    assert weights(again) == weights(twice)


def test_where_there_are_no_locks_it_trains_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", refuse)
    Run.within(tmp_path)(LineTrainer).fit()


def test_a_claim_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    with ExitStack() as first:
        first.enter_context(claim.claimed(tmp_path))
        threading.Timer(0.3, first.close).start()
        with claim.claimed(tmp_path):
            pass
