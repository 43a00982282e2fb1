"""One whole job in one process: a framework, one epoch of digits, validation, TensorBoard, a checkpoint or model.

    python digits_job.py FRAMEWORK DATA OUTPUT

The last line of its output is a JSON object: CPU seconds of the process up to the end of the first optimizer step,
the clock at that moment, the accuracy, the modules that were loaded.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from digits import Job
from frameworks import FRAMEWORKS
from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    name, data, output = sys.argv[1:]
    first: dict[str, float] = {}

    def note_first_step(*_: Any) -> None:
        if not first:
            first.update(first_step_time=time.time(), first_step_cpu=time.process_time())

    register_optimizer_step_post_hook(note_first_step)
    accuracy = FRAMEWORKS[name](Job(Path(data), Path(output), log_every_steps=10, complete=True))
    print("\n" + json.dumps({**first, "accuracy": accuracy, "modules": len(sys.modules)}))


if __name__ == "__main__":
    main()
