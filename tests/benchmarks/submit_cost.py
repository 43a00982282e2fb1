"""What it costs to submit a job, for the first time and again: requests, connections, bytes, seconds.

    python tests/benchmarks/submit_cost.py --sdk-v2 PYTHON --sdk-v3 PYTHON [--rounds N] [--round-trip MS]

The source is a work tree of 201 files with 5 MB of .git. The test SageMaker stands behind a proxy (delay.py), and its
jobs wait for instances for ever, so that nothing runs beside the launch. Each launch is a process of its own, from the
interpreter's start to its end. A round takes every way in turn, each with an empty account that has its bucket and its
role, whose ARN is given; before the first, one launch of each, not delayed, is thrown away. Ratios are taken within a
round. Needs smkit[launch] and the libraries of the tests (dependency groups test and aws), and git.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from delay import HANDSHAKES, Delay
from report import describe_machine, spread, table

HERE = Path(__file__).parent
TESTS = HERE.parent
# The tests' own package `sagemaker`; the SDK of that name is only in the processes that are measured.
sys.path.insert(0, str(TESTS))

from sagemaker.fixture import SageMaker, start_server  # noqa: E402

FILES = 200
HISTORY_BYTES = 5_000_000
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"
SMKIT = "smkit"
VENDORED = "smkit, travelling along"
TIMES = ("first", "second")


@dataclass(frozen=True)
class Launch:
    """What one launch took."""

    actions: Sequence[str]
    connections: int
    megabytes: float
    wall: float
    call: float
    cpu: float


def make_source(folder: Path, script: str) -> Path:
    """Write a work tree: the script, its 200 modules and a past in which a big file came and went."""
    (folder / "parts").mkdir(parents=True)
    (folder / "train.py").write_text(script)
    for number in range(FILES):
        (folder / f"parts/part_{number}.py").write_text(f"# part {number}\n" + "VALUES = [1, 2, 3]\n" * 20)

    def git(*words: str) -> None:
        identity = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    git("init")
    (folder / "big.bin").write_bytes(os.urandom(HISTORY_BYTES))
    git("add", ".")
    git("commit", "-m", "with the big file")
    git("rm", "big.bin")
    git("commit", "-m", "without it")
    return folder


def launch(command: Sequence[str], given: Mapping[str, Any], account: SageMaker, delay: Delay | None) -> Launch:
    """Launch once, and tell what the server and the proxy saw of it."""
    account.forget_requests()
    before = delay.connections if delay else 0
    endpoint = delay.endpoint if delay else account.endpoint
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHONPATH"))}
    environment |= account.environment | {"AWS_ENDPOINT_URL": endpoint}
    environment |= {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(TESTS / "interop/sdk_config.yaml")}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*command, json.dumps(given)], env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{text}")
    told = next(json.loads(line) for line in reversed(text.splitlines()) if line.startswith('{"name"'))
    requests = account.requests()
    return Launch(
        actions=[request.action for request in requests],
        connections=(delay.connections if delay else 0) - before,
        megabytes=sum(request.size for request in requests) / 1e6,
        wall=wall,
        call=told["seconds"],
        cpu=usage.ru_utime + usage.ru_stime,
    )


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[Launch]]]:
    """Return the launches of each way, the first ones and the second ones."""
    plain = make_source(folder / "plain", "print('done')\n")
    # SDK users have smkit in their image or in requirements.txt; launch sends it along with a script that imports it.
    vendored = make_source(folder / "vendored", "import smkit\n\nprint(smkit.__version__)\n")
    ways = {
        SMKIT: ([sys.executable, str(HERE / "smkit_launch.py")], plain),
        VENDORED: ([sys.executable, str(HERE / "smkit_launch.py")], vendored),
        "SDK v2, `PyTorch.fit`": ([options.sdk_v2, str(TESTS / "interop/v2_fit.py")], plain),
        "SDK v3, `ModelTrainer.train`": ([options.sdk_v3, str(TESTS / "interop/v3_train.py")], plain),
    }
    found: dict[str, dict[str, list[Launch]]] = {way: {order: [] for order in TIMES} for way in ways}
    process, account = start_server(folder / "jobs")
    try:
        delay = Delay(int(account.endpoint.rpartition(":")[2]), options.round_trip / 1000)
        for turn in range(options.rounds + 1):
            for way, (command, source) in ways.items():
                print(f"round {turn} of {options.rounds}: {way}", file=sys.stderr, flush=True)
                account.start_afresh(f"sagemaker-{account.region}-{account.account}")
                account.settings(starting=1e9)
                given = {
                    "source_dir": str(source),
                    "image": IMAGE,
                    "role": account.role,
                    "inputs": {},
                    "hyperparameters": {"epochs": 3},
                    "output": None,
                    "wait": False,
                }
                if turn == 0:
                    launch(command, given, account, None)
                    continue
                for order in TIMES:
                    found[way][order].append(launch(command, given, account, delay))
    finally:
        process.communicate(timeout=60)
    return found


def cells(launches: Sequence[Launch], base: Sequence[Launch]) -> list[str]:
    ratio = median(own.wall / other.wall for own, other in zip(launches, base, strict=True))
    return [
        f"{median(len(each.actions) for each in launches):g}",
        f"{median(each.connections for each in launches):g}",
        f"{median(each.megabytes for each in launches):.2f}",
        spread([each.wall for each in launches]),
        f"{ratio:.1f}",
        spread([each.call for each in launches]),
        spread([each.cpu for each in launches]),
    ]


def show(found: Mapping[str, Mapping[str, Sequence[Launch]]]) -> None:
    header = ["way", "requests", "connections", "MB sent", "process s", "× smkit", "of it the call", "CPU s"]
    for order in TIMES:
        print(f"The {order} launch, median (least–greatest) of {len(found[SMKIT][order])} rounds\n")
        print(
            table(header, [[way, *cells(each[order], found[SMKIT][order])] for way, each in found.items()]), end="\n\n"
        )
    for order in TIMES:
        print(f"smkit's {order}: {', '.join(found[SMKIT][order][-1].actions)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdk-v2", required=True, help="the interpreter of an environment with sagemaker 2")
    parser.add_argument("--sdk-v3", required=True, help="that of one with sagemaker-train")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-trip", type=float, default=40, help="milliseconds")
    options = parser.parse_args()
    print(describe_machine(["smkit", "boto3", "pydantic"]), flush=True)
    print(f"* round trip {options.round_trip:g} ms; {HANDSHAKES} of them for each new connection\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        show(measure(options, Path(folder)))


if __name__ == "__main__":
    main()
