"""Reads a table again and again, each time with another folder of caches; the other half of `torture.damage.tables`.

    python tests/torture/damage/table_reader.py FOLDER

answers each line, the name of a folder of caches, with a digest of all rows of FOLDER as they are read with it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import smkit
from smkit.data.layouts import open_dataset


def _read(data: Path, caches: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    try:
        rows = open_dataset(smkit.Channel(name="train", path=data), cache_dir=caches, label="label")
        for batch in smkit.make_loader(rows, batch_size=100, shuffle=False, seed=0):
            for name in sorted(batch):
                value = batch[name]
                digest.update(repr(value).encode() if isinstance(value, list) else value.numpy().tobytes())
        digest.update(repr(rows.classes).encode())
    except smkit.SmkitError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"foreign": repr(error)}
    _wait_for_publishing()
    return {"rows": digest.hexdigest()}


def _wait_for_publishing() -> None:
    for thread in threading.enumerate():
        if thread.name == "smkit-cache":
            thread.join()


def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_read(Path(sys.argv[1]), Path(line.rstrip("\n")))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
