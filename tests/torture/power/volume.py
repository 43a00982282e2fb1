"""A disk as it stands at each call of a log, and what of it can be left after a power cut at that call.

What was written is on the disk for good when the file was synced; a name, when its folder was. All else can be there
or not, each write and each name for itself, in any order: that is all that POSIX promises, and more than ext4 takes.
Only a `rename` is whole or not at all. The disk knows nothing of who wrote, or what.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from torture.faulty_disk import Call

_SECTOR = 512
_ALWAYS: Callable[[], bool] = lambda: True  # noqa: E731 - a constant
_NEVER: Callable[[], bool] = lambda: False  # noqa: E731


@dataclass(eq=False)
class _File:
    """Bytes that are safe, and what was done to them since: writes, and new lengths."""

    safe: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def bytes_if(self, is_kept: Callable[[], bool], torn: random.Random | None) -> bytes:
        data = bytearray(self.safe)
        for place, written in self.pending:
            if not is_kept():
                continue
            if written is None:
                data[place:] = bytes(max(0, place - len(data)))
                continue
            length = len(written)
            if torn is not None and torn.random() < 0.2:
                # The front of a write, up to the end of a sector.
                end = torn.randrange(length + 1)
                length = max(0, end - (place + end) % _SECTOR)
            data.extend(bytes(max(0, place - len(data))))
            data[place : place + length] = written[:length]
        return bytes(data)

    def sync(self) -> None:
        self.safe, self.pending = self.bytes_if(_ALWAYS, None), []


@dataclass(eq=False)
class _Change:
    """One call's changes of names, in one folder or two: whole or not at all."""

    edits: list[tuple[_Folder, str, _File | _Folder | None]]


@dataclass(eq=False)
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    safe: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.pending:
            for folder, name, node in change.edits:
                _edit(folder.safe, name, node)
                if folder is not self and change in folder.pending:
                    folder.pending.remove(change)
        self.pending = []

    def names_if(self, kept: set[_Change]) -> dict[str, _File | _Folder]:
        names = dict(self.safe)
        for change in self.pending:
            if change in kept:
                for folder, name, node in change.edits:
                    if folder is self:
                        _edit(names, name, node)
        return names


_Change.__hash__ = object.__hash__  # type: ignore[method-assign]


def _edit(names: dict[str, _File | _Folder], name: str, node: _File | _Folder | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


class Volume:
    """What is below one folder.

    Args:
        folder: All calls are below it.
        existing: Folders in it that are there from the beginning, for good.
    """

    def __init__(self, folder: Path, existing: Sequence[str]) -> None:
        folders: dict[str, _File | _Folder] = {name: _Folder() for name in existing}
        self._root = _Folder(dict(folders), dict(folders))
        self._base = str(folder)
        self._handles: dict[int, _File] = {}

    def begin_process(self, folder: Path) -> None:
        """Forget the open files, for those of another process are others; it calls this disk by another path."""
        self._handles, self._base = {}, str(folder)

    def apply(self, call: Call) -> None:
        """Do what a call has done."""
        if call.kind in ("write", "truncate"):
            file = self._handles.get(call.handle)
            if file is not None:
                file.pending.append((call.offset, call.data if call.kind == "write" else None))
            return
        if call.kind == "fsync":
            node = self._handles.get(call.handle) if call.handle else self._find(call.path)
            if node is not None:
                node.sync()
        elif call.kind == "open":
            self._open(call)
        elif call.kind in ("mkdir", "unlink", "rmdir"):
            parent, name = self._place(call.path)
            self._change((parent, name, _Folder() if call.kind == "mkdir" else None))
        elif call.kind in ("rename", "link"):
            node = self._find(call.path)
            assert node is not None, f"what is renamed was never seen: {call.path}"
            old, new = self._place(call.path), self._place(call.target)
            gone = [(*old, None)] if call.kind == "rename" else []
            self._change(*gone, (*new, node))

    def _open(self, call: Call) -> None:
        node = self._find(call.path)
        if not isinstance(node, _File):
            node = _File()
            self._change((*self._place(call.path), node))
        elif call.offset & os.O_TRUNC:
            node.pending.append((0, None))
        self._handles[call.handle] = node

    def _change(self, *edits: tuple[_Folder, str, _File | _Folder | None]) -> None:
        change = _Change(list(edits))
        for folder, name, node in edits:
            _edit(folder.names, name, node)
            if change not in folder.pending:
                folder.pending.append(change)

    def _parts(self, path: str) -> tuple[str, ...]:
        return PurePosixPath(path).relative_to(self._base).parts

    def _find(self, path: str) -> _File | _Folder | None:
        node: _File | _Folder | None = self._root
        for part in self._parts(path):
            node = node.names.get(part) if isinstance(node, _Folder) else None
        return node

    def _place(self, path: str) -> tuple[_Folder, str]:
        *parents, name = self._parts(path)
        node: _File | _Folder | None = self._root
        for part in parents:
            node = node.names.get(part) if isinstance(node, _Folder) else None
        assert isinstance(node, _Folder), f"there is no folder for {path}"
        return node, name

    # --- power cuts ---------------------------------------------------------------------------------------------------

    def after_kill(self) -> Mapping[str, bytes]:
        """Return the files by their paths as every process sees them, whatever of them is on the disk for good."""
        return self._left(self._changes(), _ALWAYS, None)

    def after_cut_without_the_unsynced(self) -> Mapping[str, bytes]:
        """Return the files by their paths, if all is gone that was not synced."""
        return self._left(set(), _NEVER, None)

    def after_cut_with_names_alone(self) -> Mapping[str, bytes]:
        """... if all names are there, and of the bytes those that were synced: files that are empty, or half."""
        return self._left(self._changes(), _NEVER, None)

    def after_cut_with_bytes_alone(self) -> Mapping[str, bytes]:
        """... if all bytes are there, and those names that were synced."""
        return self._left(set(), _ALWAYS, None)

    def after_cut_by_chance(self, draws: random.Random) -> Mapping[str, bytes]:
        """... if each write and each name that was not synced is there or not by chance, and some writes are torn."""
        share = draws.choice((0.2, 0.5, 0.8))
        kept = {change for change in self._changes() if draws.random() < share}
        return self._left(kept, lambda: draws.random() < share, draws)

    def _changes(self) -> dict[_Change, None]:
        """Return all changes of names that are not on the disk for good, of every folder that has ever been."""
        found: dict[_Change, None] = {}
        seen: set[int] = set()
        waiting: list[_Folder] = [self._root]
        while waiting:
            folder = waiting.pop()
            if id(folder) in seen:
                continue
            seen.add(id(folder))
            for change in folder.pending:
                found.setdefault(change)
            nodes = [*folder.names.values(), *folder.safe.values()]
            nodes += [node for change in folder.pending for _, _, node in change.edits if node is not None]
            waiting += [node for node in nodes if isinstance(node, _Folder)]
        return found

    def _left(
        self, kept: Mapping[_Change, None] | set[_Change], is_kept: Callable[[], bool], torn: random.Random | None
    ) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        contents: dict[int, bytes] = {}

        def visit(folder: _Folder, prefix: str) -> None:
            for name, node in sorted(folder.names_if(set(kept)).items()):
                if isinstance(node, _Folder):
                    files[f"{prefix}{name}/"] = b""
                    visit(node, f"{prefix}{name}/")
                else:
                    if id(node) not in contents:
                        contents[id(node)] = node.bytes_if(is_kept, torn)
                    files[prefix + name] = contents[id(node)]

        visit(self._root, "")
        return files


def digest(files: Mapping[str, bytes]) -> str:
    """Return what tells one state of a disk from another."""
    hashed = hashlib.sha256()
    for name, content in sorted(files.items()):
        hashed.update(f"{name}\0{len(content)}\0".encode() + content)
    return hashed.hexdigest()


def put(files: Mapping[str, bytes], folder: Path) -> None:
    """Make these files."""
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
