"""The history of a folder of checkpoints: what lay in it after each save, as the real subject has left it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from smkit.checkpoint import CheckpointStore
from torture.subjects import Order, Subject

Folder = Mapping[str, bytes]
"""The files below a folder by their relative path."""

IN_PLACE = {
    "torch.save": re.compile(r"$^"),
    "accelerate": re.compile(r"(?!.*\.safetensors$).*"),
    "huggingface": re.compile(r"(?!.*\.safetensors$).*"),
    "lightning": re.compile(r"$^"),
}
"""Files that a peer writes under their own name, so that a mirror can read half of one (found with strace). Lightning
moves its files, which is no copying only where /tmp is the same file system, as is assumed here in its favour."""


@dataclass(frozen=True)
class History:
    """What lay in the folder after each save; index 0 is the first one."""

    subject: str
    folders: list[Folder]

    def half_written(self, save: int) -> dict[str, bytes]:
        """Return the files that a mirror could have read while they were written in this save, as they became."""
        before = self.folders[save - 1] if save else {}
        new = {name: content for name, content in self.folders[save].items() if before.get(name) != content}
        if self.subject == "smkit":
            return {f"{name}.part": content for name, content in new.items()}
        return {name: content for name, content in new.items() if IN_PLACE[self.subject].match(name)}


def contents(folder: Path, before: Folder) -> dict[str, bytes]:
    """Return the files below a folder; what is as it was before is the same object."""
    files: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name, content = str(path.relative_to(folder)), path.read_bytes()
            files[name] = before[name] if before.get(name) == content else content
    return files


def history_of_smkit(folder: Path, saves: int) -> History:
    """Let a CheckpointStore save so many states, in each of which every number is its step."""
    store = CheckpointStore(folder)
    folders: list[Folder] = []
    for step in range(1, saves + 1):
        values = torch.full((500,), float(step))
        store.save(step, {"model": {"weights": values}, "optimizer": {"memory": values + 0}, "step": step})
        folders.append(contents(folder, folders[-1] if folders else {}))
    return History("smkit", folders)


def history_of_peer(subject: Subject, folder: Path) -> History:
    """Let a peer train, saving after each step, and look after each save: it pauses in the next step."""
    running = subject.start(Order(folder / "run", folder / "notes", seconds_per_step=0.2, epochs=3))
    folders: dict[int, Folder] = {}
    last: Folder = {}
    while running.is_alive():
        committed = running.notes().committed
        if committed and committed[-1] not in folders:
            try:
                seen = contents(folder / "run", last)
            except FileNotFoundError:
                continue
            if running.notes().committed == committed:
                folders[committed[-1]] = last = seen
        time.sleep(0.002)
    running.end()
    return History(subject.name, [folders[step] for step in sorted(folders)])


def whole_step(files: Folder, folder: Path) -> int:
    """Return the step of the newest checkpoint of smkit that is whole, 0 if none is; its values are those of its step.

    Raises:
        CheckpointError: The store refuses what is there.
        ValueError: It has loaded something else than was saved.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found = CheckpointStore(folder).latest()
    if found is None:
        return 0
    values = [found.state["model"]["weights"], found.state["optimizer"]["memory"]]
    if found.state["step"] != found.step or any(bool((value != found.step).any()) for value in values):
        raise ValueError(f"the checkpoint of step {found.step} holds other values")
    return found.step
