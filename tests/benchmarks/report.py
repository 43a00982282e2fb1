"""What the benchmarks print: the machine, the versions, a Markdown table, a median with its range."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

PACKAGES = (
    "torch",
    "lightning",
    "accelerate",
    "transformers",
    "tensorboard",
    "pydantic",
    "numpy",
    "simplejpeg",
    "pillow",
)


def describe_machine(packages: Sequence[str] = PACKAGES) -> str:
    """Return the date, the machine, its load and the versions of these packages, as a Markdown list."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    return "\n".join(
        [
            f"* {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, load {load}",
            f"* {_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            f"* Python {platform.python_version()}, {versions}",
        ]
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, numbers to the right."""
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of `values` with their least and greatest."""
    least, middle, greatest = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({least}–{greatest})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
