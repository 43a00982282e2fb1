"""What reading a table costs: the first batch, the first epoch and the next, and memory, beside pandas and datasets.

    python tests/benchmarks/tables.py [--rounds N] [--rows N]

Every row is timed once in each round, all rounds in turn in one process, and a ratio is that of two rows of the same
round. Each first epoch has an empty cache; files are in the page cache. Memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from report import describe_machine, spread, table

from smkit import make_loader
from smkit.data.tables.opening import open_table

FEATURES = 30
BATCH_SIZE = 1024
PIECE = 100_000
FEW = 4096
MEMORY = """
import sys, tempfile
from pathlib import Path
import torch
from smkit import make_loader
from smkit.data.tables.opening import open_table

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024

torch.set_num_threads(1)
with tempfile.TemporaryDirectory(dir=sys.argv[1]) as cache:
    for name in sys.argv[3:]:
        before = peak()
        read = open_table(Path(sys.argv[1]), [name], sys.argv[2], where="benchmark", cache_dir=Path(cache))
        for _ in make_loader(read, batch_size=1024):
            pass
    print(peak() - before)
"""


def write_tables(folder: Path, rows: int) -> None:
    """Write a CSV file of a label and 30 numbers, and the same as Parquet."""
    generator = np.random.default_rng(0)
    pieces = []
    for start in range(0, rows, PIECE):
        count = min(PIECE, rows - start)
        columns = {"label": generator.integers(0, 2, count)}
        columns |= {f"f{place}": generator.standard_normal(count).round(6) for place in range(FEATURES)}
        piece = pd.DataFrame(columns)
        piece.to_csv(folder / "a.csv", mode="a", header=not start, index=False, float_format="%.6f")
        pieces.append(piece)
    pd.concat(pieces).to_parquet(folder / "a.parquet", index=False)
    pieces[0][:FEW].to_csv(folder / "few.csv", index=False)
    pieces[0][:FEW].to_parquet(folder / "few.parquet", index=False)


class Ways:
    """What is compared; each returns seconds by the name of what they are for."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.rows = rows

    def pandas(self) -> dict[str, float]:
        return {"pandas": self.seconds(lambda: pd.read_csv(self.folder / "a.csv"))}

    def pandas_float32(self) -> dict[str, float]:
        return {"pandas float32": self.seconds(lambda: pd.read_csv(self.folder / "a.csv", dtype=np.float32))}

    def csv(self) -> dict[str, float]:
        return self.smkit("csv")

    def parquet(self) -> dict[str, float]:
        return self.smkit("parquet")

    def datasets(self) -> dict[str, float]:
        files = str(self.folder / "a.parquet")

        def read() -> None:
            stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
            deque(stream.with_format("numpy").iter(batch_size=BATCH_SIZE), 0)

        return {"datasets": self.seconds(read)}

    def smkit(self, kind: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            began = time.perf_counter()
            read = open_table(self.folder, [f"a.{kind}"], kind, where="benchmark", cache_dir=Path(cache))
            opened = time.perf_counter() - began
            loader = make_loader(read, batch_size=BATCH_SIZE)
            batches = iter(loader)
            next(batches)
            first = time.perf_counter() - began
            for _ in batches:
                pass
            epoch = time.perf_counter() - began
            while not any(path.suffix != ".partial" for path in Path(cache).iterdir()):
                time.sleep(0.01)
            second = self.seconds(lambda: deque(loader, 0))
        return {
            f"{kind} open": opened,
            f"{kind} first batch": first,
            f"{kind} epoch 1": epoch,
            f"{kind} epoch 2": second,
        }

    @staticmethod
    def seconds(function: Callable[[], object]) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began


def memory(path: Path, kind: str) -> float:
    """Return the MB that the first epoch takes at its peak, over what one over a few rows has taken before."""
    command = [sys.executable, "-c", MEMORY, str(path.parent), kind, f"few.{kind}", path.name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


TITLES = {
    "pandas": "pandas.read_csv",
    "pandas float32": "pandas.read_csv, float32",
    "csv open": "**smkit**, CSV opened",
    "csv first batch": "**smkit**, CSV first batch",
    "csv epoch 1": "**smkit**, CSV first epoch",
    "csv epoch 2": "**smkit**, second epoch",
    "datasets": "datasets, Parquet streaming, numpy",
    "parquet first batch": "**smkit**, Parquet first batch",
    "parquet epoch 1": "**smkit**, Parquet first epoch",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    folder = Path(tempfile.mkdtemp())
    try:
        write_tables(folder, options.rows)
        ways = Ways(folder, options.rows)
        times: dict[str, list[float]] = {name: [] for name in TITLES}
        for turn in range(options.rounds + 1):
            for way in (ways.pandas, ways.csv, ways.pandas_float32, ways.parquet, ways.datasets):
                for name, seconds in way().items():
                    if turn and name in times:  # the first round warms the page cache and the imports
                        times[name].append(seconds)
        megabytes = {"CSV": memory(folder / "a.csv", "csv"), "Parquet": memory(folder / "a.parquet", "parquet")}
        with (folder / "more.csv").open("wb") as more:
            more.write((folder / "a.csv").read_bytes())
            body = (folder / "a.csv").read_bytes().partition(b"\n")[2]
            for _ in range(3):
                more.write(body)
        megabytes["CSV, four times the rows"] = memory(folder / "more.csv", "csv")
        size = (folder / "a.csv").stat().st_size
    finally:
        shutil.rmtree(folder)
    print(describe_machine(), end="\n\n")
    print(f"{options.rows:,} rows of a label and {FEATURES} numbers, {size / 1e6:.0f} MB of CSV; ", end="")
    print("median (least–greatest) of rounds.\n")
    rows = []
    for name, results in times.items():
        peers = (times["pandas"], times["datasets"] if "parquet" in name else times["csv epoch 1"])
        ratios = [spread([own / other for own, other in zip(results, peer, strict=True)], 3) for peer in peers]
        rate = spread([options.rows / seconds / 1e6 for seconds in results])
        rows.append([TITLES[name], spread(results, 3), rate, *ratios])
    print(table(["way", "seconds", "M rows/s", "× pandas", "× first epoch (Parquet: × datasets)"], rows), end="\n\n")
    print(
        table(
            ["first epoch", f"MB over one of {FEW:,} rows"],
            [[name, f"{value:.0f}"] for name, value in megabytes.items()],
        )
    )


if __name__ == "__main__":
    main()
