"""Archives unpacked one by one, each in a process of its own that may take so much memory, disk and time, and no more.

    python -m torture.security.unpacking SUBJECT FOLDER NAME...

prints a line of JSON for each archive: what became of it. Every process is a fork of one that has imported all.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from torture.security import hostile_archives

SECONDS = 30
MEMORY_BYTES = 200 * 2**20
DISK_BYTES = 450 * 2**20
"""Of a bomb, smkit takes 200 times the archive's own size: of two megabytes, 400."""
REFUSED, FOREIGN = 3, 4


def _smkit() -> Callable[[Path, Path], None]:
    from smkit.artifacts import unpack

    return lambda archive, folder: unpack(archive, folder, name="model.tar.gz")


def _extractall(**options: str) -> Callable[[Path, Path], None]:
    def extract(archive: Path, folder: Path) -> None:
        with tarfile.open(archive, "r:*") as entries:
            entries.extractall(folder, **options)  # type: ignore[arg-type]

    return extract


def _toolkit() -> Callable[[Path, Path], None]:
    from sagemaker_training import files

    def extract(archive: Path, folder: Path) -> None:
        with tarfile.open(archive, "r:gz") as entries:
            files._safe_extractall(entries, str(folder))

    return extract


SUBJECTS: dict[str, Callable[[], Callable[[Path, Path], None]]] = {
    "smkit": _smkit,
    "tarfile.extractall": lambda: _extractall(filter="fully_trusted"),
    'filter="data"': lambda: _extractall(filter="data"),
    "sagemaker-training": _toolkit,
}


def main() -> None:
    subject, folder, *names = sys.argv[1:]
    unpack = SUBJECTS[subject]()
    for name in names:
        print(json.dumps(_round(unpack, name, Path(folder))), flush=True)


def _round(unpack: Callable[[Path, Path], None], name: str, folder: Path) -> dict[str, object]:
    place, archive = folder / "place", folder / "archive.tar.gz"
    outside, target = place / "outside", place / "target"
    hostile_archives.make_outside(outside)
    target.mkdir()
    hostile_archives.write(name, archive, outside)
    began = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_unpack(unpack, archive, target, writing))
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(child, 0)
    found = {
        "name": name,
        "status": os.waitstatus_to_exitcode(status),
        "said": said,
        "seconds": round(time.monotonic() - began, 2),
        "memory": usage.ru_maxrss * 1024,
        "disk": int(usage.ru_oublock) * 512 if name in hostile_archives.RAW else _size(target),
        "escapes": list(hostile_archives.escapes(target, outside)),
    }
    _remove(place)
    archive.unlink()
    return found


def _unpack(unpack: Callable[[Path, Path], None], archive: Path, target: Path, words: int) -> int:
    # Of the processor, for others may be at work here.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    # A file of more than this ends it, before it has filled the disk of those who look on.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * DISK_BYTES, 2 * DISK_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    try:
        unpack(archive, target)
    except BaseException as error:
        os.write(words, f"{type(error).__name__}: {error}".encode(errors="replace")[:2000])
        return REFUSED if type(error).__module__.startswith("smkit") else FOREIGN
    return 0


def _size(folder: Path) -> int:
    return sum(
        os.stat(name, dir_fd=place, follow_symlinks=False).st_blocks * 512
        for _, folders, files, place in os.fwalk(folder)
        for name in [*folders, *files]
    )


def _remove(place: Path) -> None:
    for _, _, _, folder in os.fwalk(place):
        os.fchmod(folder, 0o700)
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
