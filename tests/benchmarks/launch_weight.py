"""What a launcher weighs: what pip installs, and the CPU seconds until it can speak to AWS.

    python tests/benchmarks/launch_weight.py --sdk-v2 PYTHON --sdk-v3 PYTHON [--rounds N]

smkit[launch] is installed into an environment of its own for it; those of the SDKs are given, with nothing else in
them. What every environment begins with, pip and setuptools, is left out. Rounds take every row in turn, each a process
of its own; the round before the first is thrown away (it compiles bytecode and warms the disk cache).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from report import describe_machine, spread, table

ROOT = Path(__file__).resolve().parents[2]
REGION = "us-east-1"
SIZES = """
import importlib.metadata, json, os, re, sysconfig

at_first = {"pip", "setuptools"}
installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
site = sysconfig.get_path("purelib")
size = 0
for folder, folders, files in os.walk(site):
    if folder == site:
        left_out = [name for name in folders if re.match("pip|setuptools|pkg_resources|_distutils_hack", name)]
        folders[:] = set(folders) - set(left_out)
    size += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in files)
print(json.dumps({"size": size, "packages": {key: installed[key] for key in sorted(installed.keys() - at_first)}}))
"""
CLOCK = """
import json, resource, sys, time
print(json.dumps({
    "cpu": time.process_time(),
    "modules": len(sys.modules),
    "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""
BOTO3 = "import boto3; session = boto3.Session()"
CLIENTS = "for name in ('s3', 'sagemaker'): session.client(name)"
SMKIT_CLIENTS = "from smkit.cloud.aws import connect; session = connect()"
V2_SESSION = "from sagemaker.session import Session; import boto3; session = Session(boto3.Session()).boto_session"
V3_SESSION = V2_SESSION.replace("sagemaker.session", "sagemaker.core.helper.session_helper")
STATEMENTS = {
    "smkit": ["from smkit import launch", f"from smkit import launch; {SMKIT_CLIENTS}"],
    "boto3 alone": ["import boto3", BOTO3],
    "SDK v2": ["from sagemaker.pytorch import PyTorch", f"from sagemaker.pytorch import PyTorch; {V2_SESSION}"],
    "SDK v3": ["from sagemaker.train import ModelTrainer", f"from sagemaker.train import ModelTrainer; {V3_SESSION}"],
}
"""For each launcher: what a launch script imports; and that with what speaks to AWS for it."""


@dataclass
class Row:
    """One statement and what its processes told."""

    launcher: str
    title: str
    program: str
    runs: list[dict[str, float]] = field(default_factory=list)


def ask(python: str, program: str, folder: Path) -> Any:
    """Run a program in an empty folder and return what it tells."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))}
    environment |= {"AWS_DEFAULT_REGION": REGION, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    command = [python, "-W", "ignore", "-c", program]
    ended = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def install(folder: Path) -> str:
    """Install smkit[launch] and return the interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", f"{ROOT}[launch]"], check=True)
    return python


def measure(pythons: dict[str, str], rounds: int, folder: Path) -> list[Row]:
    rows = []
    for launcher, (importing, speaking) in STATEMENTS.items():
        rows.append(Row(launcher, f"`{importing}`", importing + CLOCK))
        rows.append(Row(launcher, "... and clients of S3 and SageMaker", f"{speaking}\n{CLIENTS}\n{CLOCK}"))
    for turn in range(rounds + 1):
        for row in rows:
            print(f"round {turn} of {rounds}: {row.launcher} {row.title}", file=sys.stderr, flush=True)
            found = ask(pythons[row.launcher], row.program, folder)
            if turn:
                row.runs.append(found)
    return rows


def show_sizes(sizes: dict[str, Any]) -> None:
    base = sizes["smkit"]
    print("Installed\n")
    header = ["launcher", "packages", "× smkit", "MB", "× smkit"]
    lines = []
    for launcher, found in sizes.items():
        count, size = len(found["packages"]), found["size"]
        lines.append(
            [
                launcher,
                str(count),
                f"{count / len(base['packages']):.1f}",
                f"{size / 1e6:.0f}",
                f"{size / base['size']:.1f}",
            ]
        )
    print(table(header, lines), end="\n\n")


def show_times(rows: list[Row]) -> None:
    print(f"Until it can speak to AWS, median (least–greatest) of {len(rows[0].runs)} processes\n")
    header = ["launcher", "statement", "CPU s", "× smkit", "modules", "peak MB"]
    lines = []
    for place, row in enumerate(rows):
        ratio = median(own["cpu"] / other["cpu"] for own, other in zip(row.runs, rows[place % 2].runs, strict=True))
        cpu = spread([run["cpu"] for run in row.runs])
        memory = median(run["memory"] for run in row.runs)
        modules = median(run["modules"] for run in row.runs)
        lines.append([row.launcher, row.title, cpu, f"{ratio:.1f}", f"{modules:,g}", f"{memory:.0f}"])
    print(table(header, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdk-v2", required=True, help="the interpreter of an environment with sagemaker 2 alone")
    parser.add_argument("--sdk-v3", required=True, help="that of one with sagemaker-train alone")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine(["smkit", "boto3", "pydantic"]), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = install(folder / "smkit")
        pythons = {"smkit": own, "SDK v2": options.sdk_v2, "SDK v3": options.sdk_v3}
        sizes = {launcher: ask(python, SIZES, folder) for launcher, python in pythons.items()}
        versions = {key: value for each in sizes.values() for key, value in each["packages"].items()}
        named = [
            f"{key} {versions[key]}" for key in sorted(versions) if key.startswith(("sagemaker", "boto3", "smkit"))
        ]
        print(f"* {', '.join(named)}\n", flush=True)
        show_sizes(sizes)
        show_times(measure(pythons | {"boto3 alone": own}, options.rounds, folder))


if __name__ == "__main__":
    main()
