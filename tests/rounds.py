"""Run the digits example over and over in RUN_DIR/0, killing it at random moments; print what happened as JSON.

A process of its own, for it forks: torch is imported once, and each round is a true process that a true SIGKILL ends.

    python tests/rounds.py CHANNELS RUN_DIR KILLS SECONDS SEED
"""

import contextlib
import json
import os
import random
import runpy
import signal
import sys
import time
from pathlib import Path

# Imported here, once, so that a round begins to train at once.
import tensorboard.summary.writer.event_file_writer  # noqa: F401
import torch
import torch._dynamo

import smkit.context
import smkit.trainer  # noqa: F401

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits"
SETTINGS = [
    *("--epochs", "6", "--batch-size", "32", "--gradient-accumulation-steps", "4", "--hidden", "256", "--seed", "3"),
    *(
        "--max-grad-norm",
        "1.0",
        "--monitor-metric",
        "loss",
        "--log-every-steps",
        "10",
        "--checkpoint-every-seconds",
        "0.02",
    ),
]


def run(channels: Path, run_dir: Path, kill_after_seconds: float | None, longest: float = 0) -> tuple[int, str]:
    """Run the example in a child; return its status (negative: killed by that signal) and what it wrote to stderr."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        places = [f"--channel=train={channels}/train", f"--channel=validation={channels}/validation"]
        sys.argv = ["train.py", *SETTINGS, *places, "--run-dir", str(run_dir)]
        status = 1
        try:
            torch.set_num_threads(1)
            runpy.run_path(str(EXAMPLE / "train.py"), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as pipe:
        text = ""
        if kill_after_seconds is not None:
            # One round in five may end before the training has begun.
            while kill_after_seconds > 0.2 * longest and "hyperparameter" not in text and (line := pipe.readline()):
                text += line
            time.sleep(kill_after_seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        text += pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def main() -> None:
    channels, run_dir, kills, seconds, seed = sys.argv[1:]
    sys.path.insert(0, str(EXAMPLE))
    moments = random.Random(int(seed))
    killed, resumed, finished, longest = 0, 0, 0, float(seconds)
    while killed < int(kills):
        # A run that finishes before it is killed is followed by another one, in a folder of its own.
        status, text = run(Path(channels), Path(run_dir) / str(finished), moments.uniform(0, longest), longest)
        resumed += "goes on after step" in text
        killed += status == -signal.SIGKILL
        finished += status == 0
        if status not in (0, -signal.SIGKILL):
            break
    status, text = run(Path(channels), Path(run_dir) / str(finished), None)
    result = {"killed": killed, "resumed": resumed, "status": status, "stderr": text}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
