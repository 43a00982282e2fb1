"""What one step of the training loop costs, framework by framework, against the bare PyTorch loop.

    python tests/benchmarks/step_overhead.py [--rounds N] [--steps N] [--only smkit,fabric]
    python tests/benchmarks/step_overhead.py --distributed [--only smkit,fabric]

Times are noisy: each is a ratio to the two bare blocks around it in the same process, repeated in rounds that take
every framework in turn; each round of a framework is a fresh fork of one parent that holds torch. Bare blocks write no
log. Counts (Python calls, C calls, ATen ops, reads of a tensor's value) are exact and do not depend on the load of the
machine; `--rounds 0` takes these alone.

`--distributed` counts once more where two processes train one model by DDP, over gloo, and takes no times: ranks that
share cores wait for each other. The counts are those of rank 0; one more loop, that of DDP by hand, is the base.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import frameworks
import torch
import torch._dynamo  # any optimizer imports it: once here instead of in every fork
import torch.utils.tensorboard
from digits import Job
from report import describe_machine, spread, table
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FIRST_STEP = 60
COUNTED_STEPS = 100
LOG_EVERY_STEPS = 50
VALUE_READERS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"}
PAIRS = 5  # timed blocks of one framework in one round
WORLD_SIZE = 2

Numbers = dict[str, float]
Pair = dict[str, Numbers]  # "own" and "bare"


class StepTimes:
    """Microseconds of a step: wall (median), CPU of the main thread and of the process (mean, logging included)."""

    def __init__(self, steps: int) -> None:
        self.last_step = FIRST_STEP + steps
        self.seen = 0
        self.stamps: list[float] = []
        self.thread_cpu: list[float] = []
        self.process_cpu: list[float] = []

    def tick(self) -> None:
        self.seen += 1
        if self.seen in {FIRST_STEP, self.last_step}:
            self.thread_cpu.append(time.thread_time())
            self.process_cpu.append(time.process_time())
        self.stamps.append(time.perf_counter())

    def result(self) -> Numbers:
        stamps = self.stamps[FIRST_STEP - 1 : self.last_step]
        steps = len(stamps) - 1
        return {
            "wall": median(after - before for before, after in pairwise(stamps)) * 1e6,
            "thread_cpu": (self.thread_cpu[1] - self.thread_cpu[0]) / steps * 1e6,
            "process_cpu": (self.process_cpu[1] - self.process_cpu[0]) / steps * 1e6,
        }


class Count:
    """Something exact, counted from one training forward to another `COUNTED_STEPS` later."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.counts: Counter[str] = Counter()

    def tick(self) -> None:
        self.seen += 1
        if self.seen == FIRST_STEP:
            self.begin()
        elif self.seen == FIRST_STEP + COUNTED_STEPS:
            self.end()

    def begin(self) -> None:
        self.__enter__()

    def end(self) -> None:
        self.__exit__(None, None, None)

    def result(self) -> Numbers:
        return {key: count / COUNTED_STEPS for key, count in self.counts.items()}


class CallCount(Count):
    """Python calls and C calls of the main thread."""

    def begin(self) -> None:
        sys.setprofile(self._profile)

    def end(self) -> None:
        sys.setprofile(None)
        self.counts -= Counter(python=1, c=1)  # this function and the call within

    def _profile(self, _frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            self.counts["python"] += 1
        elif event == "c_call":
            self.counts["c"] += 1


class OperationCount(Count, TorchDispatchMode):
    """ATen operations, those of the backward pass among them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts["aten"] += 1
        return function(*args, **(kwargs or {}))


class ReadCount(Count, TorchFunctionMode):
    """Reads of a number's value by Python, each of which waits for the GPU where there is one.

    Integers are left out: they are a loader's indices, which lie in host memory anyway.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in VALUE_READERS and args[0].is_floating_point():
            self.counts["reads"] += 1
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Bench:
    """Where the data lies, where blocks write, and how long a timed block is."""

    data: Path
    scratch: Path
    steps: int
    world_size: int = 1

    def block(self, train: Callable[[Job], object], steps: int, watch: Any, output: Path | None = None) -> Numbers:
        """Train for the watched steps and a few more; return what `watch` saw."""
        length = FIRST_STEP + steps + 10
        train(
            Job(
                self.data,
                output or Path(tempfile.mkdtemp(dir=self.scratch)),
                steps=length,
                log_every_steps=LOG_EVERY_STEPS,
                tick=watch.tick,
                world_size=self.world_size,
                rank=int(os.environ.get("RANK", "0")),
            )
        )
        if watch.seen != length:
            raise RuntimeError(f"{watch.seen} training forwards were seen, {length} were asked for")
        return watch.result()

    def count(self, train: Callable[[Job], object]) -> Numbers:
        return {
            **self.block(train, COUNTED_STEPS, CallCount()),
            **self.block(train, COUNTED_STEPS, OperationCount()),
            **self.block(train, COUNTED_STEPS, ReadCount()),
        }

    def count_in_ranks(self, train: Callable[[Job], object], log: Path) -> Numbers:
        """Count in several processes that train together, new ones for each kind of count."""
        together = replace(self, world_size=WORLD_SIZE)
        found: Numbers = {}
        for watch in (CallCount, OperationCount, ReadCount):
            output = Path(tempfile.mkdtemp(dir=self.scratch))
            block = partial(together.block, train, COUNTED_STEPS, output=output)
            found |= in_fork(block, watch(), log, world_size=WORLD_SIZE)
        return found

    def time(self, train: Callable[[Job], object]) -> list[Pair]:
        """Return the times of each block of `train` with the mean of the bare blocks around it."""
        self.block(train, 1, StepTimes(1))  # imports, caches
        turns = [frameworks.bare_without_log, *[train, frameworks.bare_without_log] * PAIRS]
        times = [self.block(each, self.steps, StepTimes(self.steps)) for each in turns]
        return [
            {"own": own, "bare": {key: (before[key] + after[key]) / 2 for key in own}}
            for before, own, after in zip(times[:-2:2], times[1::2], times[2::2], strict=True)
        ]


@dataclass
class Result:
    """What is known of one framework; `trouble` says why the rest is not."""

    counts: Numbers = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    trouble: str = ""


def in_fork(function: Callable[..., Any], argument: object, log: Path, *, world_size: int = 1) -> Any:
    """Return what `function(argument)` returns in a fork of this process; its output goes to `log`.

    With a `world_size` above 1, that of rank 0 among so many forks, each of which calls it.
    """
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    places: list[dict[str, str]] = [{}] if world_size == 1 else environments(world_size)
    forks = {
        fork(function, argument, log.with_suffix(f".{rank}.log"), result if rank == 0 else None, place): rank
        for rank, place in enumerate(places)
    }
    while forks:
        process, status = os.wait()
        rank = forks.pop(process)
        if os.waitstatus_to_exitcode(status) != 0:
            for other in forks:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            lines = log.with_suffix(f".{rank}.log").read_text().strip().splitlines() or ["killed"]
            raise RuntimeError(lines[-1])
    return json.loads(result.read_text())


def fork(
    function: Callable[..., Any], argument: object, log: Path, result: Path | None, environment: dict[str, str]
) -> int:
    """Return the process that calls `function(argument)` and leaves what it returns in `result`."""
    process = os.fork()
    if process != 0:
        return process
    status = 1
    try:
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.environ |= environment
        found = json.dumps(function(argument))
        if result is not None:
            result.write_text(found)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def environments(world_size: int) -> list[dict[str, str]]:
    """Return what torchrun would tell each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "benchmark", "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def measure(bench: Bench, results: dict[str, Result], rounds: int) -> None:
    """Fill `results`: counts first, then `rounds` of times; a framework that fails is left out from then on."""
    for turn in range(rounds + 1):
        for name, result in results.items():
            if result.trouble:
                continue
            print(f"round {turn} of {rounds}: {name}", file=sys.stderr, flush=True)
            train, log = frameworks.FRAMEWORKS[name], bench.scratch / f"{name}.log"
            try:
                if turn == 0:
                    result.counts = in_fork(bench.count, train, log)
                else:
                    result.pairs += in_fork(bench.time, train, log)
            except RuntimeError as error:
                result.trouble = f"failed: {error}"


def count_row(own: Numbers, base: Numbers) -> list[str]:
    """Return the cells of one framework's counts."""
    cells = [f"{own[key]:.1f} ({own[key] - base[key]:+.1f})" for key in ("python", "c", "aten")]
    return [*cells, f"{own.get('reads', 0) * COUNTED_STEPS:.0f}"]


def time_row(pairs: list[Pair]) -> list[str]:
    """Return the cells of one framework's times."""
    ratios = ([pair["own"][key] / pair["bare"][key] for pair in pairs] for key in ("wall", "thread_cpu", "process_cpu"))
    extra = [pair["own"]["wall"] - pair["bare"]["wall"] for pair in pairs]
    return [*map(spread, ratios), spread(extra, digits=0)]


def print_report(base: Numbers, results: dict[str, Result]) -> None:
    """Print the machine and the two tables as Markdown."""
    titles = frameworks.TITLES | {"bare": "bare loop + TensorBoard"}
    print(describe_machine(), end="\n\n")
    print(f"Per step, over {COUNTED_STEPS} steady steps; in brackets the difference to the bare loop without a log.\n")
    header = ["framework", "Python calls", "C calls", "ATen ops", f"value reads in {COUNTED_STEPS} steps"]
    rows = [["bare PyTorch loop", *count_row(base, base)]]
    for name, result in results.items():
        cells = count_row(result.counts, base) if result.counts else [result.trouble, "", "", ""]
        rows.append([titles[name], *cells])
    print(table(header, rows), end="\n\n")
    timed = {name: result.pairs for name, result in results.items() if result.pairs and not result.trouble}
    if not timed:
        return
    bare = [pair["bare"] for pairs in timed.values() for pair in pairs]
    wall, cpu = (spread([block[key] for block in bare], digits=0) for key in ("wall", "thread_cpu"))
    print(f"Median (least–greatest) of {len(bare) // len(timed)} pairs. A bare step takes {wall} µs wall (p50) and")
    print(f"{cpu} µs CPU. The row of the bare loop with TensorBoard shows what the method can resolve.\n")
    header = ["framework", "wall p50 × bare", "main-thread CPU × bare", "process CPU × bare", "µs over bare (wall p50)"]
    print(table(header, [[titles[name], *time_row(pairs)] for name, pairs in timed.items()]))


def count_distributed(bench: Bench, names: list[str]) -> int:
    """Count each framework alone and in several processes, and print both as one table."""
    base = frameworks.bare_without_log
    turns = {"": base, **{name: frameworks.FRAMEWORKS[name] for name in names}}
    titles = frameworks.TITLES | {"": "bare PyTorch loop, without a log", "bare": "bare loop + TensorBoard"}
    together_header = f"Python calls, DDP × {WORLD_SIZE}"
    header = ["framework", "Python calls, alone", "C calls", "both", together_header, "C calls", "both"]
    header += ["ATen ops", f"value reads in {COUNTED_STEPS} steps"]
    rows: list[list[str]] = []
    bases: tuple[Numbers, Numbers] = ({}, {})
    for name, train in turns.items():
        print(f"counting: {name or 'base'}", file=sys.stderr, flush=True)
        log = bench.scratch / f"{name or 'base'}.log"
        trouble = frameworks.trouble(name)
        if not trouble:
            try:
                alone, together = in_fork(bench.count, train, log), bench.count_in_ranks(train, log)
            except RuntimeError as error:
                trouble = f"failed: {error}"
        if trouble:
            rows.append([titles[name], trouble, *[""] * (len(header) - 2)])
            continue
        if not name:
            bases = (alone, together)
        cells = [
            cell
            for own, other in zip((alone, together), bases, strict=True)
            for cell in (f"{own['python']:.1f}", f"{own['c']:.1f}", f"× {calls(own) / calls(other):.2f}")
        ]
        reads = f"{together.get('reads', 0) * COUNTED_STEPS:.0f}"
        rows.append([titles[name], *cells, f"{together['aten']:.1f}", reads])
    print(describe_machine(), end="\n\n")
    print(f"Per step, over {COUNTED_STEPS} steady steps; ops and reads are those of DDP. × is to the first row.\n")
    print(table(header, rows))
    return 1 if any(row[1].startswith("failed") for row in rows) else 0


def calls(found: Numbers) -> float:
    """Return Python calls and C calls together."""
    return found["python"] + found["c"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help=f"timed rounds of {PAIRS} pairs; 0: counts alone")
    parser.add_argument("--steps", type=int, default=200, help="timed steps of one block")
    parser.add_argument(
        "--only", type=frameworks.parse_names, default=list(frameworks.FRAMEWORKS), help="bare,smkit,..."
    )
    parser.add_argument("--distributed", action="store_true", help="count with DDP too; no times")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= frameworks.QUIET_ENVIRONMENT
    results = {name: Result(trouble=frameworks.trouble(name)) for name in options.only}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder, "data"), Path(folder), options.steps)
        subprocess.run([sys.executable, Path(__file__).with_name("digits.py"), bench.data], check=True)
        if options.distributed:
            return count_distributed(bench, options.only)
        base = in_fork(bench.count, frameworks.bare_without_log, Path(folder, "base.log"))
        measure(bench, results, options.rounds)
    print_report(base, results)
    return 1 if any(result.trouble.startswith("failed") for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
