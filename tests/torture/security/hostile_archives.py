"""Archives that nobody's tools make: entries that leave the folder, take it over, or have no end.

Each is written to a file, beside a folder `outside` with a file `canary` that no unpacking may touch, read or link to.
The folder that is unpacked into lies beside `outside`, so that `../outside` leads there.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

CANARY = b"what lies outside stays as it is\n"
Entry = tuple[tarfile.TarInfo, bytes]


def _file(name: str, content: bytes = b"hostile\n", **words: object) -> Entry:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for word, value in words.items():
        setattr(entry, word, value)
    return entry, content


def _of_kind(name: str, kind: bytes, link: str = "", **words: object) -> Entry:
    return _file(name, b"", type=kind, linkname=link, **words)


def _link(name: str, to: str) -> Entry:
    return _of_kind(name, tarfile.SYMTYPE, to)


def _hard(name: str, to: str) -> Entry:
    return _of_kind(name, tarfile.LNKTYPE, to)


def _folder(name: str, mode: int = 0o755) -> Entry:
    return _of_kind(name, tarfile.DIRTYPE, mode=mode)


def _out_of_many_links(outside: str) -> list[Entry]:
    """CVE-2025-4517: a path that `realpath` gives up on, because it is longer than PATH_MAX once it is resolved."""
    deep, entries, path = "d" * 247, [], ""
    for letter in "abcdefghijklmnop":
        entries += [_folder(f"{path}{deep}"), _link(f"{path}{letter}", deep)]
        path += f"{deep}/"
    links = "/".join("abcdefghijklmnop")
    entries.append(_link(f"{links}/{'l' * 254}", "../" * 16))
    entries.append(_link("escape", f"{links}/{'l' * 254}/{outside}"))
    entries += [_hard("hard", "escape/canary"), _file("hard"), _file("escape/planted")]
    return entries


def _outer_folder_by_link() -> list[Entry]:
    """CVE-2024-12718, CVE-2025-4330: links that are harmless one by one, and lead out when the next one is followed."""
    return [
        *(_folder("a"), _folder("a/b"), _link("a/b/up", ".."), _link("up2", "a/b/up/../..")),
        *(_folder("up2/outside", 0o777), _file("up2/outside/canary"), _file("up2/outside/planted")),
    ]


def _moved_link() -> list[Entry]:
    """CVE-2025-4138: a hard link to a link, which is relative to where the copy of it lies."""
    return [_folder("a/b/c"), _link("a/b/c/l", "../../../x"), _hard("l", "a/b/c/l"), _file("l/../../outside/planted")]


ENTRIES: dict[str, Callable[[Path], list[Entry]]] = {
    "up": lambda outside: [_file("../outside/planted")],
    "up from deep": lambda outside: [_file("a/b/../../../outside/planted")],
    "absolute": lambda outside: [_file(f"{outside}/planted")],
    "absolute after slashes": lambda outside: [_file(f"//{outside}/planted")],
    "link up, file through it": lambda outside: [_link("l", "../outside"), _file("l/planted")],
    "absolute link, file through it": lambda outside: [_link("l", str(outside)), _file("l/planted")],
    "link up, file in its place": lambda outside: [_link("l", "../outside/canary"), _file("l")],
    "link up alone": lambda outside: [_link("l", "../outside/canary")],
    "link of two steps": lambda outside: [_link("a", "."), _link("a/l", "../outside"), _file("a/l/planted")],
    "link behind a folder": lambda outside: [_folder("a"), _link("a/l", "../../outside"), _folder("a/l/new")],
    "hard link up": lambda outside: [_hard("l", "../outside/canary")],
    "hard link up, file in its place": lambda outside: [_hard("l", "../outside/canary"), _file("l")],
    "absolute hard link": lambda outside: [_hard("l", f"{outside}/canary"), _file("l")],
    "hard link to a link up": lambda outside: [_link("s", "../outside/canary"), _hard("h", "s"), _file("h")],
    "character device": lambda outside: [_of_kind("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)],
    "block device": lambda outside: [_of_kind("disk", tarfile.BLKTYPE, devmajor=7, devminor=0, mode=0o666)],
    "fifo": lambda outside: [_of_kind("fifo", tarfile.FIFOTYPE)],
    "set-user-ID": lambda outside: [_file("su", mode=0o4755, uid=0, gid=0)],
    "all rights for all": lambda outside: [_folder("open", 0o7777), _file("open/x", mode=0o7777)],
    "folder without rights": lambda outside: [_folder("shut", 0), _file("shut/x")],
    "rights of the folder itself": lambda outside: [_folder(".", 0o7777), _folder("..", 0o7777)],
    "many links (CVE-2025-4517)": lambda outside: _out_of_many_links("../../outside"),
    "links that follow links (CVE-2025-4330)": lambda outside: _outer_folder_by_link(),
    "a link that was moved (CVE-2025-4138)": lambda outside: _moved_link(),
    "circle of links": lambda outside: [_link("a", "b"), _link("b", "a")],
    "link to its own folder": lambda outside: [_file("a/x"), _link("a/l", "../a")],
    "links to links that double": lambda outside: [
        _file("d0/x"),
        *(_link(f"d{level}/{side}", f"../d{level - 1}") for level in range(1, 40) for side in "ab"),
    ],
    "chain of links": lambda outside: [*(_link(f"l{n}", f"l{n + 1}") for n in range(20_000)), _file("l20000")],
    "size of 8 exabytes": lambda outside: [_file("x", b"", size=2**63 - 1)],
    "folder of a terabyte": lambda outside: [_of_kind("d", tarfile.DIRTYPE, size=2**40), _file("x")],
    "hole of a terabyte": lambda outside: [
        _file("x", b"", pax_headers={"GNU.sparse.map": "", "GNU.sparse.size": str(2**40), "GNU.sparse.major": "0"})
    ],
    "time of another age": lambda outside: [_file("x", mtime=2**62), _file("y", mtime=-(2**62))],
    "case": lambda outside: [_file("model.bin", b"mine"), _file("MODEL.BIN", b"theirs")],
    "accents": lambda outside: [_file("caf\u00e9", b"1"), _file("cafe\u0301", b"2")],
    "control characters": lambda outside: [_file("a\n\x1b]0;owned\x07b\u202etxt"), _link("\x1b[2Jl", "nowhere")],
    "name of 5,000 letters": lambda outside: [_file("n" * 5000)],
    "2,000 folders deep": lambda outside: [_file("d/" * 2000 + "x")],
    "no name": lambda outside: [_file(""), _file("."), _file("/"), _folder("..")],
    "somebody's home": lambda outside: [_file("~/x"), _file("~root/x")],
    "backslashes": lambda outside: [_file("..\\outside\\planted")],
    "a file, then a folder": lambda outside: [_file("x"), _folder("x"), _file("x/y")],
    "the same name twice": lambda outside: [_file("x", b"first"), _file("x", b"second")],
    "a slash behind a file": lambda outside: [_link("l", "../outside/"), _file("l/")],
    "unknown kind": lambda outside: [_of_kind("x", b"Z"), _of_kind("y", b"9")],
    "a NUL in a name": lambda outside: [_file("x", pax_headers={"path": "a\0/../../outside/planted"})],
    "another size in a further header": lambda outside: [_file("x", b"1234", pax_headers={"size": str(2**40)})],
}


def _written(entries: list[Entry]) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
        for entry, content in entries:
            packed.write(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
            packed.write(content + bytes(-len(content) % 512))
        packed.write(bytes(1024))
    return file.getvalue()


_PIECE = 64 * 2**20


def _bomb(header: bytes, size: int) -> bytes:
    """Return a header, and zeros of this size, a thousand times as many as bytes: gzip's members can be repeated."""
    piece = gzip.compress(bytes(_PIECE), 9, mtime=0)
    return gzip.compress(header, mtime=0) + piece * (size // _PIECE)


def _header(kind: bytes, size: int, name: str = "x") -> bytes:
    return _file(name, b"", type=kind, size=size)[0].tobuf(tarfile.GNU_FORMAT)


RAW: dict[str, Callable[[], bytes]] = {
    "bomb, 1000:1": lambda: _bomb(_header(tarfile.REGTYPE, 2 * 2**30), 2 * 2**30),
    "bomb in a header": lambda: _bomb(_header(tarfile.XHDTYPE, 4 * 2**30), 4 * 2**30),
    "bomb in a long name": lambda: _bomb(_header(tarfile.GNUTYPE_LONGNAME, 4 * 2**30), 4 * 2**30),
    "a million entries": lambda: gzip.compress(_header(tarfile.DIRTYPE, 0) * 10_000, 1, mtime=0) * 100,
    "a hundred thousand headers of one entry": lambda: gzip.compress(
        (_header(tarfile.GNUTYPE_LONGNAME, 2) + b"a\0".ljust(512, b"\0")) * 100_000, 1, mtime=0
    ),
    "cut off": lambda: _written([_file("x", os.urandom(100_000))])[:50_000],
    "flipped": lambda: _flipped(_written([_file("x", b"0123456789" * 10_000)])),
    "a bomb between two entries": lambda: (
        _bomb(_header(tarfile.DIRTYPE, 2 * 2**30), 2 * 2**30) + _written([_file("x")])
    ),
    "no archive": lambda: b"\x1f\x8b\x08" + bytes(range(256)) * 10,
}


def _flipped(packed: bytes) -> bytes:
    middle = len(packed) // 2
    return packed[:middle] + bytes([packed[middle] ^ 0x55]) + packed[middle + 1 :]


_LONG = frozenset(("links to links that double", "bomb, 1000:1", "a bomb between two entries", "a million entries")) | {
    "a hundred thousand headers of one entry",
    "chain of links",
}
"""Those that take seconds, to be written or to be refused."""


def names(*, is_short: bool) -> list[str]:
    return [name for name in (*ENTRIES, *RAW) if not (is_short and name in _LONG)]


def write(name: str, file: Path, outside: Path) -> None:
    """Write the archive of this name."""
    file.write_bytes(RAW[name]() if name in RAW else _written(ENTRIES[name](outside)))


def make_outside(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "canary").write_bytes(CANARY)
    (folder / "canary").chmod(0o600)
    folder.chmod(0o750)


def escapes(target: Path, outside: Path) -> Iterator[str]:
    """Yield what came to lie, or changed, where it must not: outside, or inside as a door to the outside."""
    beside = sorted(path.name for path in target.parent.iterdir())
    if beside != sorted([target.name, outside.name]):
        yield f"beside the folder there are {beside}"
    if [path.name for path in outside.iterdir()] != ["canary"] or (outside / "canary").read_bytes() != CANARY:
        yield "what lies outside is not what it was"
    if stat.S_IMODE(outside.stat().st_mode) != 0o750 or (outside / "canary").stat().st_nlink != 1:
        yield "rights or links of what lies outside are not what they were"
    # By descriptors, for the paths themselves can be longer than the system takes.
    for folder, folders, files, place in os.fwalk(target):
        for name in [*folders, *files]:
            status = os.stat(name, dir_fd=place, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode) and not _end_of(Path(folder, name)).is_relative_to(target):
                yield f"{name!r} is a link out of the folder"
            elif (danger := _danger(status.st_mode)) is not None:
                yield f"{name!r} {danger}"


def _danger(mode: int) -> str | None:
    if stat.S_ISLNK(mode):
        return None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "is a device or a pipe"
    if mode & 0o6000 and stat.S_ISREG(mode):
        return "runs as its owner"
    return "can be written by anybody" if mode & 0o002 else None


def _end_of(link: Path) -> Path:
    """Return where a link leads; itself, where that cannot be followed."""
    try:
        return link.resolve(strict=True)
    except (OSError, RuntimeError):
        return link
