"""Run the attacks by name and print what they came to."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import tempfile
import time
from pathlib import Path

from torture.tally import Campaign, Tally

PEERS = ("lightning", "accelerate", "huggingface", "torch.save")
GROUPS = {
    "killing": 500,
    "damage": 1000,
    "disks": 30,
    "power": 60,
    "stops": 200,
    "mirror": 200,
    "hosts": 10,
    "contract": 20_000,
    "services": 20,
    "security": 10,
    "soak": 3600,
    "goodput": 600,
}
"""Each group and its rounds at full length; what a round is, its module says (of the last two: a second)."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)} (all)")
    parser.add_argument("--rounds", type=int, help="instead of each group's own number")
    parser.add_argument("--seed", type=int, default=0, help="decides every random moment (0)")
    parser.add_argument("--subjects", type=lambda text: tuple(text.split(",")), default=("smkit", *PEERS))
    parser.add_argument("--out", type=Path, help="a folder for the plots")
    options = parser.parse_args()
    # A shell that starts this in the background has Ctrl-C ignored, and all that is attacked would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if unknown := [name for name in options.groups if name not in GROUPS]:
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    failures = []
    for name in options.groups or GROUPS:
        tally, began = Tally(follow=True), time.monotonic()
        rounds = options.rounds or GROUPS[name]
        with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as folder:
            campaign = Campaign(tally, rounds, Path(folder), options.seed, options.subjects, options.out)
            try:
                importlib.import_module(f"torture.{name}").attack(campaign)
            finally:
                # What it came to is known even of one that is cut off.
                minutes = (time.monotonic() - began) / 60
                title = f"{name}: {rounds} rounds, seed {options.seed}, {minutes:.1f} min"
                print(f"\n## {title}\n\n{tally.table()}", flush=True)
        failures += tally.failures()
    print("\n".join(["", f"smkit: {len(failures)} lost or silent", *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
