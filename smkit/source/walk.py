"""The walk through a source folder: which files travel, which stay behind, and which cannot be taken.

What stays behind, from the strongest reason to the weakest:

1. folders that are never source: version control, caches, virtual environments; and the caller's own folders (jobs,
   checkpoints, channels) that lie in the source;
2. the rules of `.smkitignore` in the root, which may take back with `!` what a weaker reason leaves out. Unlike git,
   `!data/words.txt` does so though a rule leaves out the whole of `data`;
3. the rules of git: every `.gitignore` from the repository's top down, and `.git/info/exclude`;
4. what tools leave in a working folder: bytecode, logs of wandb, Lightning and MLflow, and, known by what they hold,
   jobs of smkit and its checkpoints. A folder `runs` or `checkpoints` of anything else travels.

The script itself never stays behind: a rule that says so is a problem.
This room takes files as the system shows them; it does not open them, and does not judge their sizes or contents.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smkit.contract import JobTree
from smkit.source.ignore_rules import Rule, git_rules_above, last_match, read_file, read_rules

IGNORE_FILE = ".smkitignore"
MAX_FILES = 100_000
"""A folder of more files is somebody's home or data; it is not walked to its end."""

_NEVER_SOURCE = frozenset(
    (".git", ".hg", ".svn", ".bzr", "_darcs", ".nox", ".tox", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache")
) | {".hypothesis", ".ipynb_checkpoints", "__pycache__", "node_modules", ".eggs"}
_LEFT_BY_TOOLS = """
*.py[co]
.DS_Store
Thumbs.db
.#*
*.sw[op]
.coverage
.coverage.*
htmlcov/
*.egg-info/
.idea/
.vscode/
.terraform/
wandb/
lightning_logs/
mlruns/
"""
_CHECKPOINT = re.compile(r"step-[0-9]{9,}-[0-9a-f]{6}")


@dataclass(frozen=True)
class SourceFile:
    """A file that travels.

    Args:
        path: Relative to the source folder, with slashes.
        location: Where it lies on this machine.
        size: In bytes; 0 for a link.
        modified: When its content last changed, in nanoseconds.
        is_executable: Whether it is a program to its owner.
        target: What it says, if it is a symbolic link; it leads to something in the source folder.
    """

    path: str
    location: Path
    size: int
    modified: int
    is_executable: bool = False
    target: str | None = None

    @property
    def is_link(self) -> bool:
        return self.target is not None


@dataclass(frozen=True)
class _Folder:
    """A folder to look through, with the rules of git that hold in it."""

    location: Path
    path: str
    rules: tuple[Rule, ...]
    is_closed: bool
    """Whether it stays behind but for what `.smkitignore` takes back by name."""


class Walk:
    """One pass over a source folder; afterwards it holds what was found."""

    def __init__(self, root: Path, entry: str, own_folders: Iterable[Path]) -> None:
        self.files: list[SourceFile] = []
        self.left_out: set[Path] = set()
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._root = root
        self._entry = entry
        self._entry_path = {root / entry, *(root / entry).parents}
        own = {path for folder in own_folders for path in (folder, folder.absolute().resolve())}
        self._own_folders = own - self._entry_path
        self._left_by_tools = read_rules(_LEFT_BY_TOOLS, origin="smkit's own rules")
        self._smkit_rules: tuple[Rule, ...] = ()
        self._path_in_repository = ""

    def run(self) -> None:
        rules: tuple[Rule, ...] = ()
        try:
            self._smkit_rules = read_file(self._root / IGNORE_FILE, origin=IGNORE_FILE)
            self._path_in_repository, rules = git_rules_above(self._root)
        except OSError as error:
            self._refuse(f"rules cannot be read: {error}")
        folders = [_Folder(self._root, "", rules, is_closed=False)]
        while folders:
            folders += self._look_through(folders.pop())
            if len(self.files) > MAX_FILES:
                self._refuse(f"more than {MAX_FILES:,} files; name in {IGNORE_FILE} what is no source")
                return

    def _refuse(self, text: str) -> None:
        self.problems.append(f"source_dir: {text}")

    def _look_through(self, folder: _Folder) -> Iterator[_Folder]:
        try:
            with os.scandir(folder.location) as entries:
                found = sorted(entries, key=lambda each: each.name)
            ignore_file = folder.location / ".gitignore"
            base = f"{self._path_in_repository}{folder.path}"
            own = read_file(ignore_file, origin=f"{folder.path}.gitignore", base=base)
        except OSError as error:
            self._refuse(f"'{folder.path or '.'}' cannot be read: {error.strerror}")
            return
        folder = _Folder(folder.location, folder.path, folder.rules + own, folder.is_closed)
        for each in found:
            if not _is_text(each.name):
                shown = os.fsencode(folder.path + each.name).decode(errors="backslashreplace")
                self._refuse(f"the name '{shown}' is not UTF-8; rename it, or name its folder in {IGNORE_FILE}")
                self.left_out.add(Path(each.path))
                continue
            path = folder.path + each.name
            is_folder = each.is_dir(follow_symlinks=False)
            reason = self._reason_to_stay(folder, Path(each.path), path, is_folder=is_folder)
            if reason is not None and Path(each.path) in self._entry_path:
                self._refuse_left_out_entry(reason)
                reason = None
            opens = is_folder and reason is not None and self._is_taken_back_below(path)
            if reason is not None and not opens:
                self.left_out.add(Path(each.path))
            elif is_folder:
                yield _Folder(Path(each.path), f"{path}/", folder.rules, is_closed=opens)
            else:
                self._take(Path(each.path), path)

    def _reason_to_stay(self, folder: _Folder, location: Path, path: str, *, is_folder: bool) -> str | None:
        """Return why a file or a folder stays behind, or None."""
        if location in self._own_folders or location.name in _NEVER_SOURCE:
            return f"'{location.name}' never travels"
        if is_folder and (_is_there(location / "pyvenv.cfg") or _is_there(location / "conda-meta")):
            return f"'{location.name}' is a virtual environment"
        rule = last_match(self._smkit_rules, path, is_folder=is_folder)
        if rule is None and folder.is_closed:
            return "its folder stays behind"
        rule = rule or last_match(folder.rules, self._path_in_repository + path, is_folder=is_folder)
        rule = rule or last_match(self._left_by_tools, path, is_folder=is_folder)
        if rule is not None:
            return None if rule.takes_back else f"the rule {rule} leaves it out"
        return "it holds a job or a checkpoint" if is_folder and _is_made_by_smkit(location) else None

    def _is_taken_back_below(self, path: str) -> bool:
        names = (rule.literal_path for rule in self._smkit_rules if rule.takes_back)
        return any(name is not None and name.startswith(f"{path}/") for name in names)

    def _refuse_left_out_entry(self, reason: str) -> None:
        self.problems.append(
            f"entry '{self._entry}': would stay behind, for {reason}; "
            f"move it, or take it back with '!/{self._entry}' at the end of {IGNORE_FILE}"
        )

    def _take(self, location: Path, path: str) -> None:
        try:
            status = location.lstat()
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFLNK:
                self._take_link(location, path, status)
            elif kind != stat.S_IFREG:
                self.left_out.add(location)
                self.warnings.append(f"source_dir: '{path}' stays behind: it is neither a file nor a folder")
            elif not os.access(location, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
                self._refuse(f"'{path}' cannot be read: {os.strerror(errno.EACCES)}")
            elif "\\" in path:
                self._refuse(f"the name '{path}' holds a backslash, which the toolkit takes for a slash; rename it")
            else:
                is_executable = bool(status.st_mode & stat.S_IXUSR)
                self.files.append(SourceFile(path, location, status.st_size, status.st_mtime_ns, is_executable))
        except OSError as error:
            self._refuse(f"'{path}' cannot be read: {error.strerror}")

    def _take_link(self, link: Path, path: str, status: os.stat_result) -> None:
        target = os.fsdecode(link.readlink())
        mend = "put a copy in its place, or give data as an input"
        if not _is_text(target) or self._leads_out(link, path, target):
            shown = os.fsencode(target).decode(errors="backslashreplace")
            self._refuse(f"the link '{path}' leads out of the folder, to {shown}; {mend}")
            return
        try:
            link.stat()
        except OSError as error:
            where = "in a circle" if error.errno == errno.ELOOP else "nowhere"
            self._refuse(f"the link '{path}' leads {where}, to {target}; remove it, or name it in {IGNORE_FILE}")
            return
        self.files.append(SourceFile(path, link, 0, status.st_mtime_ns, target=target))

    def _leads_out(self, link: Path, path: str, target: str) -> bool:
        """Say whether a link leaves the folder, be it only for a step: in a job the folder has another name."""
        depth = path.count("/")
        for part in target.split("/"):
            depth += -1 if part == ".." else part not in ("", ".")
            if depth < 0:
                return True
        if target.startswith("/"):
            return True
        try:
            return not Path(os.path.realpath(link)).is_relative_to(self._root)
        except RecursionError:
            # A chain of a thousand links, which the system itself does not follow; that is said in its place.
            return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_there(path: Path) -> bool:
    """Say whether a path can be seen; pathlib raises for what lies in a folder that may not be read."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _is_made_by_smkit(folder: Path) -> bool:
    """Say whether a folder is a local job, which has a folder for each host, or one of checkpoints."""
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if each.is_dir(follow_symlinks=False)]
    except OSError:
        return False
    return any(_CHECKPOINT.fullmatch(name) or _is_there(JobTree(folder / name).resource_config_file) for name in names)
