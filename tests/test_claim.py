"""Two runs do not train in one directory."""

import fcntl
import os
from pathlib import Path

import pytest
from lines import LineTrainer, Run, weights

import smkit

pytestmark = pytest.mark.train


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_loses_nothing(tmp_path: Path) -> None:
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
