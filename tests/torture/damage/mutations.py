"""What can befall a file or a folder: bits and bytes, lengths, names, and what else can stand in its place."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096


@dataclass(frozen=True)
class Scene:
    """Where damage is done.

    Attributes:
        path: The file, or the directory.
        other: The same one of another step.
        chance: Decides the place.
    """

    path: Path
    other: Path
    chance: random.Random

    @property
    def away(self) -> Path:
        """A place for what is moved, away from where anybody looks."""
        away = self.path.parent.parent / ".away"
        away.mkdir(exist_ok=True)
        return away / self.path.name


Mutation = Callable[[Scene], None]


def _changed(change: Callable[[bytearray, random.Random], None]) -> Mutation:
    def mutate(scene: Scene) -> None:
        content = bytearray(scene.path.read_bytes())
        before = bytes(content)
        while content == before:
            change(content, scene.chance)
            if not before:
                break
        scene.path.write_bytes(content)

    return mutate


def _flip_bit(content: bytearray, chance: random.Random) -> None:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _flip_bits(content: bytearray, chance: random.Random) -> None:
    for _ in range(8):
        _flip_bit(content, chance)


def _zero(content: bytearray, start: int, size: int) -> None:
    stop = min(len(content), start + size)
    content[start:stop] = bytes(stop - start)


def _zero_byte(content: bytearray, chance: random.Random) -> None:
    _zero(content, chance.randrange(len(content)), 1)


def _zero_page(content: bytearray, chance: random.Random) -> None:
    _zero(content, chance.randrange(0, len(content), PAGE), PAGE)


def _zero_half(content: bytearray, chance: random.Random) -> None:
    _zero(content, chance.choice((0, len(content) // 2)), len(content) // 2 + 1)


def _noise(content: bytearray, chance: random.Random) -> None:
    content[:] = chance.randbytes(len(content))


def _shift(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    content[start:] = content[start + 1 :] + b"\0"


def _cut(share: float) -> Mutation:
    def mutate(scene: Scene) -> None:
        size = scene.path.stat().st_size
        os.truncate(scene.path, min(size - 1, int(size * share)) if size else 0)

    return mutate


def _grow(extra: bytes) -> Mutation:
    def mutate(scene: Scene) -> None:
        with scene.path.open("ab") as file:
            file.write(extra)

    return mutate


def _make_huge(scene: Scene) -> None:
    """Make it a terabyte of nothing, which takes no room on the disk."""
    os.truncate(scene.path, 2**40)


def remove(scene: Scene) -> None:
    shutil.rmtree(scene.path) if scene.path.is_dir() else scene.path.unlink()


def _swap(scene: Scene) -> None:
    scene.path.rename(scene.away)
    scene.other.rename(scene.path)
    scene.away.rename(scene.other)


def _take_other(scene: Scene) -> None:
    shutil.copy(scene.other, scene.path)


def _swap_within(scene: Scene) -> None:
    beside = sorted(path for path in scene.path.parent.iterdir() if path != scene.path)
    other = scene.chance.choice(beside) if beside else scene.path
    scene.path.rename(scene.away)
    if other != scene.path:
        other.rename(scene.path)
    scene.away.rename(other)


def _link_to_itself_elsewhere(scene: Scene) -> None:
    scene.path.rename(scene.away)
    scene.path.symlink_to(scene.away)


def _link_to_other(scene: Scene) -> None:
    remove(scene)
    scene.path.symlink_to(scene.other)


def _link_to(target: str) -> Mutation:
    def mutate(scene: Scene) -> None:
        remove(scene)
        scene.path.symlink_to(target)

    return mutate


def _link_in_circle(scene: Scene) -> None:
    remove(scene)
    scene.path.symlink_to(scene.path.name)


def _folder(scene: Scene) -> None:
    remove(scene)
    scene.path.mkdir()
    (scene.path / "inside").touch()


def _file(scene: Scene) -> None:
    remove(scene)
    scene.path.write_text("a file where a folder was")


def _pipe(scene: Scene) -> None:
    remove(scene)
    os.mkfifo(scene.path)


def _socket(scene: Scene) -> None:
    remove(scene)
    with socket.socket(socket.AF_UNIX) as made:
        folder = os.open(scene.path.parent, os.O_RDONLY)
        # The whole path may be longer than the name of a socket can be.
        made.bind(f"/proc/self/fd/{folder}/{scene.path.name}")
        os.close(folder)


def _device(minor: int) -> Mutation:
    def mutate(scene: Scene) -> None:
        remove(scene)
        os.mknod(scene.path, stat.S_IFCHR | 0o644, os.makedev(1, minor))

    return mutate


CONTENT: dict[str, dict[str, Mutation]] = {
    "bit flipped": {"one bit": _changed(_flip_bit), "eight bits": _changed(_flip_bits)},
    "zeroed": {"byte": _changed(_zero_byte), "page": _changed(_zero_page), "half": _changed(_zero_half)},
    "overwritten": {"noise": _changed(_noise), "shifted": _changed(_shift)},
    "cut short": {"to nothing": _cut(0), "half": _cut(0.5), "99.9 %": _cut(0.999)},
    "grown": {
        "a byte": _grow(b"\0"),
        "a line": _grow(b"\n{}\n"),
        "a megabyte": _grow(bytes(2**20)),
        "huge": _make_huge,
    },
    "missing": {"file": remove},
}
"""Damage of what a file holds, by kind; what of it makes sense for a peer too."""

EXCHANGES: dict[str, dict[str, Mutation]] = {
    "exchanged": {"with another step": _swap, "by another step's": _take_other, "with a neighbour": _swap_within},
    "replaced": {
        "link to itself": _link_to_itself_elsewhere,
        "link to another step": _link_to_other,
        "link to /etc/passwd": _link_to("/etc/passwd"),
        "link to /dev/zero": _link_to("/dev/zero"),
        "link to nothing": _link_to("nowhere"),
        "link in a circle": _link_in_circle,
        "folder": _folder,
        "pipe": _pipe,
        "socket": _socket,
        "/dev/zero": _device(5),
        "/dev/full": _device(7),
    },
}
"""Something else in a file's place."""


def _rename_to(step: int) -> Mutation:
    def mutate(scene: Scene) -> None:
        scene.path.rename(_called(scene.path, step))

    return mutate


def _called(path: Path, step: int) -> Path:
    return path.with_name(f"step-{step:09d}-{path.name.rpartition('-')[2]}")


def _copy(number: int | None, source: str = "path") -> Mutation:
    """Copy a checkpoint under another number, or under its own with another suffix."""

    def mutate(scene: Scene) -> None:
        path: Path = getattr(scene, source)
        step = int(scene.path.name.split("-")[1]) if number is None else number
        shutil.copytree(path, scene.path.with_name(f"step-{step:09d}-{scene.chance.randrange(16**6):06x}"))

    return mutate


def _swap_directories(scene: Scene) -> None:
    _swap(scene)


def _stuff(make: Callable[[Path], object]) -> Mutation:
    def mutate(scene: Scene) -> None:
        make(scene.path / "beside")

    return mutate


def _plant(make: Callable[[Path], object]) -> Mutation:
    def mutate(scene: Scene) -> None:
        make(scene.path.with_name("step-000000900-abcdef"))

    return mutate


def _nested(path: Path) -> None:
    shutil.copytree(path.parent, path.with_name("inside"))


DIRECTORIES: dict[str, dict[str, Mutation]] = {
    "directory": {
        "missing": remove,
        "renamed to a later step": _rename_to(500),
        "renamed to an earlier step": _rename_to(0),
        "copied to a later step": _copy(500),
        "copied beside itself": _copy(None),
        "older one copied to a later step": _copy(500, "other"),
        "older one copied to its step": _copy(None, "other"),
        "exchanged with an older one": _swap_directories,
        "link to itself": _link_to_itself_elsewhere,
        "link to an older one": _link_to_other,
        "link to nothing": _link_to("nowhere"),
        "link in a circle": _link_in_circle,
        "file": _file,
        "pipe": _pipe,
        "/dev/zero": _device(5),
        "a file beside": _stuff(lambda path: path.write_text("x")),
        "a folder beside": _stuff(Path.mkdir),
        "a pipe beside": _stuff(os.mkfifo),
        "a link beside": _stuff(lambda path: path.symlink_to("/etc/passwd")),
        "itself inside": _stuff(_nested),
        "an empty later one": _plant(Path.mkdir),
        "a later file": _plant(Path.touch),
        "a later pipe": _plant(os.mkfifo),
        "a later link": _plant(lambda path: path.symlink_to("/")),
    }
}
"""What can befall the directory of a checkpoint."""
