"""Where a source comes from: git's commit and what differs from it, as tags of the job and as a file beside the model.

No name of a person and no password is recorded: not of the remote's address, nor of the machine. This room asks the
program `git`, changes nothing, and takes a folder that git cannot tell about for one without a history.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from smkit.source import credentials

_TIMEOUT_SECONDS = 20
_MAX_DIFF_BYTES = 1_000_000
_MAX_UNTRACKED = 1_000
_MAX_TAG = 256
"""API: TagValue, whose characters are letters, digits, spaces and these."""
_TAG_MARKS = "_.:/=+-@"
# Nothing that a repository sets up for people is run: no monitor, no hook, and below no viewer of differences.
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=false")
# Of files that are deleted the name only: whether they travelled cannot be told any more.
_DIFF_OPTIONS = (
    *("--no-ext-diff", "--no-textconv", "--no-color", "--relative", "--irreversible-delete"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provenance:
    """What git tells about a folder.

    Args:
        commit: The full hash of the commit that is checked out.
        branch: Its branch, or None if there is none.
        remote: The address of `origin` without user and password, or None.
        is_dirty: Whether the folder differs from the commit; a file that git does not know counts.
        diff: What differs, as `git diff` shows it, without files that git does not know.
        untracked: The files and folders that git neither knows nor ignores.
        note: What of all this is left out, and why; or empty.
    """

    commit: str
    branch: str | None
    remote: str | None
    is_dirty: bool
    diff: str
    untracked: tuple[str, ...]
    note: str

    def as_tags(self) -> dict[str, str]:
        """Return tags for a SageMaker job."""
        tags = {"smkit:git-commit": self.commit, "smkit:git-dirty": "true" if self.is_dirty else "false"}
        if self.branch:
            tags["smkit:git-branch"] = _tag_value(self.branch)
        if self.remote:
            tags["smkit:git-remote"] = _tag_value(self.remote)
        return tags

    def as_json(self, code_sha256: str) -> str:
        """Return everything, with the hash of the code that travels, as a JSON document."""
        return json.dumps({"code_sha256": code_sha256, "git": asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def describe(root: Path, left_out: Collection[Path] = ()) -> Provenance | None:
    """Return what git tells about a folder, or None: no repository, no commit, no git, or a repository of others.

    Args:
        root: The folder.
        left_out: Files and folders in it that do not travel; what differs in them is not shown either.
    """
    try:
        commit = _git(root, "rev-parse", "--verify", "HEAD").decode().strip()
        status = _git(root, "status", "--porcelain", "-z", "--untracked-files=normal", "--", ".")
        branch = _git(root, "symbolic-ref", "--short", "-q", "HEAD", accepts=(0, 1)).decode(errors="replace").strip()
        remote = _git(root, "config", "--get", "remote.origin.url", accepts=(0, 1)).decode(errors="replace").strip()
        diff = _git(root, "diff", *_DIFF_OPTIONS, "HEAD", "--", ".")
    except (OSError, subprocess.SubprocessError) as error:
        _logger.debug("no provenance of %s: %s", root, error)
        return None
    untracked = [
        os.fsdecode(entry[3:]).encode(errors="replace").decode() for entry in status.split(b"\0") if entry[:2] == b"??"
    ]
    text, note = _presentable(_of_what_travels(diff, root, left_out))
    if len(untracked) > _MAX_UNTRACKED:
        note = "; ".join(filter(None, (note, f"{len(untracked) - _MAX_UNTRACKED} untracked names are left out")))
    return Provenance(
        commit=commit,
        branch=_public(branch),
        remote=_public(_without_user(remote)),
        is_dirty=bool(status),
        diff=text,
        untracked=tuple(untracked[:_MAX_UNTRACKED]),
        note=note,
    )


def _git(root: Path, *arguments: str, accepts: tuple[int, ...] = (0,)) -> bytes:
    """Return what git says, and no more of it than a diff may have.

    Raises:
        OSError: There is no git.
        SubprocessError: It fails, or does not end in time.
    """
    # In a hook, git's own variables would lead to another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    with tempfile.TemporaryFile() as output:
        run = subprocess.run(  # noqa: S603 - git, with no argument of anybody's
            [*_GIT, *arguments],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        if run.returncode not in accepts:
            raise subprocess.SubprocessError(run.stderr.decode(errors="replace").strip())
        output.seek(0)
        return output.read(_MAX_DIFF_BYTES + 1)


def _of_what_travels(diff: bytes, root: Path, left_out: Collection[Path]) -> bytes:
    """Return a diff without the files that stay behind, and without those whose names git has to quote."""
    kept = []
    for section in re.split(rb"^(?=diff --git )", diff, flags=re.MULTILINE):
        header = section.partition(b"\n@@")[0]
        names = re.findall(rb"^(?:---|\+\+\+) (.*?)\t?$", header, re.MULTILINE)
        locations = [root / os.fsdecode(name[2:]) for name in names if name.startswith((b"a/", b"b/"))]
        stays = any(path in left_out for location in locations for path in (location, *location.parents))
        if not stays and not any(name.startswith(b'"') for name in names):
            kept.append(section)
    return b"".join(kept)


def _presentable(diff: bytes) -> tuple[str, str]:
    """Return a diff as text, and what is left out of it: its end if it is long, and all of it if it shows a secret."""
    paths = re.findall(rb"^(?:---|\+\+\+) [ab]/(.*)$", diff, re.MULTILINE)
    found = [credentials.by_name(path.decode(errors="replace").rstrip("\t")) for path in paths]
    secrets = [*filter(None, found), *credentials.in_content(diff)]
    if secrets:
        return "", f"the diff is left out: it holds {secrets[0].kind}"
    note = f"the diff is cut after {_MAX_DIFF_BYTES:,} bytes" if len(diff) > _MAX_DIFF_BYTES else ""
    return diff[:_MAX_DIFF_BYTES].decode(errors="replace"), note


def _without_user(remote: str) -> str | None:
    """Return an address without user, password and query; a path on this machine is nobody's business."""
    if "://" in remote:
        try:
            parts = urlsplit(remote)
        except ValueError:
            return None
        if parts.scheme == "file" or not parts.netloc:
            return None
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    # As ssh has it, host:path; what git hands to a program of its own (ext::...) can hold anything.
    found = re.fullmatch(r"(?:[^@/:\s]*@)?([\w.-]+):(?!:)(.+)", remote)
    return f"{found[1]}:{found[2]}" if found else None


def _public(text: str | None) -> str | None:
    """Return a name or an address unless a secret stands in it."""
    return None if text and any(credentials.in_content(text.encode(errors="replace"))) else text or None


def _tag_value(text: str) -> str:
    valid = (each if each in _TAG_MARKS or unicodedata.category(each)[0] in "LNZ" else "-" for each in text)
    return "".join(valid)[:_MAX_TAG]
