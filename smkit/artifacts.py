"""What a job leaves, put into a folder of the user's: archives unpacked safely, nothing overwritten, nothing half done.

An archive can hold what nobody expects, for the script wrote it: no entry leaves the folder, and none becomes a link, a
device or more than the disk holds. This room does not know where jobs run.
"""

from __future__ import annotations

import contextlib
import filecmp
import gzip
import io
import os
import posixpath
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple, cast

from smkit.errors import JobError

Artifact = Literal["model", "output"]
"""What a script has left in SM_MODEL_DIR, and what in SM_OUTPUT_DATA_DIR."""

_MAX_ENTRIES = 200_000
_ENTRY_BYTES = 4096
"""What an entry takes of the disk beside its content."""
_MAX_FOLDERS = 200
"""In each other; the system calls of Linux take 2,048 at most."""
_MAX_LINKS = 40
"""That lead to each other, as for Linux (path_resolution(7))."""
_HARMLESS_BYTES = 100 * 2**20
_MAX_EXPANSION = 200
"""To this, and to so many times the archive's own size, anything may unpack; zeros come to a thousand times."""
_SPARE_BYTES = 64 * 2**20
"""What is to be left of the disk."""
_CHUNK_BYTES = 2**20
"""What is read at once; a header of more is none that anybody's tools write."""


class Remains(NamedTuple):
    """Folders that hold what the hosts of a job have left.

    Args:
        folders: One or several; the files of all belong together.
        are_ours: Whether they were made for this, so that files can be moved out of them.
    """

    folders: Sequence[Path]
    are_ours: bool


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Make a folder on the disk that `folder` is, or will be, on; it is gone at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def gather(remains: Remains, folder: Path) -> None:
    """Bring the files of all folders of `remains` together in `folder`, each at once or not at all.

    Raises:
        JobError: A file would overwrite one that differs; then nothing is brought.
    """
    files: dict[Path, Path] = {}
    for source in remains.folders:
        for file in (path for path in sorted(source.rglob("*")) if path.is_file()):
            target = folder / file.relative_to(source)
            others = {files.setdefault(target, file), target} - {file}
            if not all(filecmp.cmp(file, other, shallow=False) for other in others if other.exists()):
                raise JobError(
                    f"'{file.relative_to(source)}' would overwrite another file of that name",
                    where=str(file),
                    fix="download into another folder; let hosts write files of different names",
                )
    folder.mkdir(parents=True, exist_ok=True)
    for target, file in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = file
        if not remains.are_ours:
            part = target.with_name(f".{target.name}.part")
            shutil.copy2(file, part)
        part.replace(target)


def inside(name: str, *, archive: str) -> PurePosixPath:
    """Return the relative path that an entry of an archive is called by.

    Raises:
        JobError: It leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name or name.startswith("~"):
        raise _refused(f"the entry {_shown(name)} leads out of the folder", archive)
    if len(path.parts) > _MAX_FOLDERS:
        raise _refused(f"the entry {_shown(name)} lies more than {_MAX_FOLDERS} folders deep", archive)
    return path


def unpack(archive: Path, folder: Path, *, name: str) -> None:
    """Unpack a tar.gz file into `folder`; a link to another entry becomes a copy of it.

    Args:
        archive: The file.
        folder: An empty folder.
        name: What the archive is called in messages.

    Raises:
        JobError: An entry leads out of the folder, is a device, or has the name of another one; there is more than the
            disk holds, or than can come of an archive of this size; or it is damaged.
    """
    try:
        most = max(_HARMLESS_BYTES, _MAX_EXPANSION * archive.stat().st_size)
        with _opened(archive) as stream:
            measured = _Measured(stream, most, name)
            with tarfile.open(fileobj=measured, mode="r:") as entries:
                _Unpacking(folder, name, most).unpack(entries)
            measured.read_to_the_end()
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError, zlib.error) as error:
        raise JobError(
            f"the archive cannot be unpacked: {error}",
            where=name,
            fix="download it again; look at what the script left",
        ) from error


def _opened(archive: Path) -> IO[bytes]:
    """Open what SageMaker leaves, a tar.gz, or a tar without compression."""
    with archive.open("rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(archive)) if is_compressed else archive.open("rb")


class _Measured(io.RawIOBase):
    """The tar stream of an archive: what is read of it, at once and altogether, has an end."""

    def __init__(self, stream: IO[bytes], most: int, name: str) -> None:
        super().__init__()
        self._stream = stream
        self._most = most
        self._name = name

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _CHUNK_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        content = self._stream.read(size)
        self._require(self._stream.tell())
        return content

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        self._require(position)
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read_to_the_end(self) -> None:
        """Have the checksum of the whole looked at, which stands at its end."""
        while self.read(_CHUNK_BYTES):
            pass

    def _require(self, position: int) -> None:
        if position > self._most:
            raise _too_much(self._most, self._name)


@dataclass
class _Unpacking:
    folder: Path
    name: str
    most: int
    entries: int = 0
    bytes_left: int = 0
    disk_bytes_left: int = 0

    def unpack(self, entries: tarfile.TarFile) -> None:
        self.bytes_left = self.most
        self.disk_bytes_left = shutil.disk_usage(self.folder).free - _SPARE_BYTES
        links: dict[PurePosixPath, PurePosixPath] = {}
        while (entry := entries.next()) is not None:
            # It would keep every header that it has read.
            entries.members = []  # type: ignore[attr-defined]
            self._count()
            path = inside(entry.name, archive=self.name)
            target = self.folder / path
            if entry.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif entry.isreg():
                content = entries.extractfile(entry)
                if content is not None:
                    self._write(content, entry, target)
            elif entry.issym() or entry.islnk():
                base = path.parent if entry.issym() else PurePosixPath()
                links[path] = inside(posixpath.normpath(base / entry.linkname), archive=self.name)
            else:
                raise _refused(f"the entry {_shown(entry.name)} is neither a file nor a folder", self.name)
        self._copy_links(links)

    def _write(self, content: IO[bytes], entry: tarfile.TarInfo, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            # Also of another case, or of other accents, where the disk takes them for the same.
            raise _refused(f"the entry {_shown(entry.name)} has the name of another one", self.name)
        with target.open("xb") as file:
            while chunk := content.read(_CHUNK_BYTES):
                self._take(len(chunk))
                file.write(chunk)
        target.chmod(0o755 if entry.mode & 0o100 else 0o644)
        os.utime(target, (entry.mtime, entry.mtime))

    def _copy_links(self, links: dict[PurePosixPath, PurePosixPath]) -> None:
        """Copy what links lead to, those that lead to links after these; there is never a link on the disk."""
        for _ in range(_MAX_LINKS):
            known = ((path, to) for path, to in links.items() if to not in links and path.parent != to)
            ready = {path: to for path, to in known if (self.folder / to).exists()}
            for path, to in ready.items():
                del links[path]
                self._copy(self.folder / to, self.folder / path)
            if not ready:
                break
        if links:
            link, end = (_shown(str(each)) for each in next(iter(links.items())))
            raise _refused(
                f"the link {link} leads to {end}, which the archive does not hold, or through more than {_MAX_LINKS} "
                "others",
                self.name,
            )

    def _copy(self, source: Path, target: Path) -> None:
        if source in target.parents or target.exists():
            raise _refused(
                f"the link {_shown(target.name)} leads to a folder that it is in, or has another's name", self.name
            )
        for file in [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]:
            self._count()
            self._take(file.stat().st_size)
            copy = target / file.relative_to(source) if file != source else target
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)

    def _count(self) -> None:
        self.entries += 1
        self._take(_ENTRY_BYTES)
        if self.entries > _MAX_ENTRIES:
            raise _refused(f"there are more than {_MAX_ENTRIES:,} entries", self.name)

    def _take(self, size: int) -> None:
        self.bytes_left -= size
        self.disk_bytes_left -= size
        if self.disk_bytes_left < 0:
            raise _refused("there is more in it than the disk has room for", self.name)
        if self.bytes_left < 0:
            raise _too_much(self.most, self.name)


def _shown(name: str) -> str:
    """Return a name that anybody has chosen as a text for a terminal."""
    return ascii(name if len(name) <= 100 else f"{name[:97]}...")


def _too_much(most: int, archive: str) -> JobError:
    return _refused(f"more than {most / 1e6:,.0f} MB come of it, as only of one that is made to fill disks", archive)


def _refused(what: str, archive: str) -> JobError:
    return JobError(
        f"the archive is not unpacked: {what}",
        where=archive,
        fix="look at what the script writes into its folder; fetch the archive itself with: aws s3 cp",
    )
