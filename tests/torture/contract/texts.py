"""Texts that smkit reads besides: lines of logs and metrics, manifests of checkpoints, rules of `.gitignore`, pipes."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from smkit import contract, manifest
from smkit.data.pipes import open_pipe
from smkit.log_view import last_lines, last_traceback
from smkit.source.ignore_rules import last_match, read_rules
from torture.contract.data_files import _record, damaged
from torture.contract.examples import Outcome, Verdict, judged

MARKS = [
    "[metrics] ",
    "step=",
    "epoch=",
    " ",
    "=",
    "1",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e3",
    "1e999",
    "loss",
    "\r",
    "\n",
    "\u0661",
    "9" * 5000,
]
MARKS += [
    "Traceback (most recent call last):",
    '  File "train.py", line 1, in <module>',
    "ValueError: x",
    ":",
    "^^^",
    "\x1b[31m",
]
MARKS += [
    "During handling of the above exception, another exception occurred:",
    "[1,mpirank:0]",
    "é\u202e\udcff",
    "x" * 30_000,
]

names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"], exclude_characters="="),
    min_size=1,
    max_size=8,
)
numbers = st.floats() | st.integers(-(10**6), 10**6).map(float)


def metric_lines(data: st.DataObject, folder: Path) -> Verdict:
    """A record is written and read back, by smkit and by the regular expression of the request; then damaged."""
    values = data.draw(st.dictionaries(names, numbers, min_size=1, max_size=4))
    step, epoch = data.draw(st.integers(0, 10**9)), data.draw(st.integers(0, 10**6))
    line = contract.metric_line(step, epoch, values)
    read = contract.parse_metric_line(data.draw(st.sampled_from(["", "algo-1 | ", "\r50%|###| "])) + line)
    if read is None or read[:2] != (step, epoch) or read[2].keys() != values.keys():
        return Outcome.SILENT, f"{line!r} is read back as {read}"
    for name, value in values.items():
        found = re.search(contract.metric_regex(name), line)
        both = (read[2][name], float(found[1]) if found else None)
        if any(each is None or not _close(each, value) for each in both):
            return Outcome.SILENT, f"{name}={value!r} of {line!r} is read back as {both}"
    damaged_line = damaged(data, line.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    # A line that was cut or spliced is any line or none; what matters is that it is read at all, and as numbers.
    again = contract.parse_metric_line(damaged_line)
    is_right = again is None or all(isinstance(value, float) for value in again[2].values())
    return (Outcome.SURVIVED, "") if is_right else (Outcome.SILENT, f"{damaged_line!r} is {again}")


def _close(mine: float, its: float) -> bool:
    if math.isnan(its):
        return math.isnan(mine)
    return math.isclose(mine, its, rel_tol=1e-5) or mine == its


def log_lines(data: st.DataObject, folder: Path) -> Verdict:
    """Any lines are a log: its last traceback and last lines are found without an end in tears, and are of the log."""
    parts = st.lists(st.sampled_from(MARKS) | st.text(max_size=10), max_size=6).map("".join)
    lines = data.draw(st.lists(parts, max_size=12))
    for line in lines:
        contract.parse_metric_line(line)
    shown = [*last_traceback(lines), *last_lines(lines)]
    words = {word for line in shown for word in re.findall(r"\w+", line)}
    foreign = words - set(re.findall(r"\w+", " ".join(lines))) - {"lines"}
    invented = {word for word in foreign if not word.isdecimal() and not any(word in line for line in lines)}
    return (Outcome.SILENT, f"{invented} is in no line") if invented - {"Traceback", "File"} else (Outcome.SURVIVED, "")


def manifests(data: st.DataObject, folder: Path) -> Verdict:
    """A manifest of a checkpoint, damaged anywhere: it verifies and is the one that was written, or it is refused."""
    directory = folder / "step-000000001-000000001"
    content = data.draw(st.binary(max_size=20))
    entries = manifest.write_files(directory, {"tensors": [memoryview(content)]})
    manifest.commit(directory, entries, step=1, ordinal=1, score=None)
    whole = manifest.Manifest.read(directory)
    file = directory / "manifest.json"
    written = file.read_bytes()
    changed = (data.draw(st.booleans()) and data.draw(_other_manifests(written))) or damaged(data, written)
    file.write_bytes(changed)

    def is_right(found: manifest.Manifest) -> str | None:
        # One that was signed without files is another manifest, and no damage.
        return None if found == whole or (changed != written and not found.files) else repr(found)

    wish = "accept" if changed == written else ""
    return judged(lambda: manifest.Manifest.read(directory), folder, is_right=is_right, must=wish)


def _other_manifests(written: bytes) -> st.SearchStrategy[bytes]:
    """Manifests whose own hash matches, and that hold what none does."""
    content = json.loads(written)
    odd = st.sampled_from(
        [None, -1, 1.5, "1", [], {}, True, 2**70, float("nan"), {"a": 1}, {"../x": {"bytes": 1, "xxh3_128": "0"}}]
    )

    def signed(change: tuple[str, Any]) -> bytes:
        other = {**content, change[0]: change[1]}
        del other["sha256"]
        other["sha256"] = manifest._sha256(other)
        return json.dumps(other).encode()

    # What was signed anew with another step would be another checkpoint, and no damage.
    return st.tuples(st.sampled_from(["format", "directory", "files"]), odd).map(signed)


WORDS = [
    "a",
    "b",
    "ab",
    "*",
    "**",
    "?",
    "[ab]",
    "[!a]",
    "[",
    "]",
    "\\",
    "/",
    "/",
    "!",
    "#",
    " ",
    ".",
    "a.b",
    "é",
    "\t",
    "[[:alpha:]]",
    "{a,b}",
    "+",
    "(",
    "^",
    "$",
    "|",
    "-",
]
PATHS = [
    "a",
    "b",
    "ab",
    "a/b",
    "a/b/a",
    "b/ab",
    "a.b",
    ".a",
    "é",
    "a b",
    "b/é",
    "#a",
    "!a",
    "\\a",
    "[",
    "a/a b",
    " a",
    "{a,b}",
    "+",
    "^a",
]


def rules(data: st.DataObject, folder: Path) -> Verdict:
    """Rules of a `.gitignore`, tried on paths: as `git check-ignore` decides."""
    line = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map("".join)
    lines = data.draw(st.lists(line, min_size=1, max_size=4))
    (folder / ".gitignore").write_text("\n".join(lines) + "\n", encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True, capture_output=True)
    ignored = _ignored_by_git(folder)
    found = {path for path in PATHS if _is_ignored(lines, path)}
    if found != ignored:
        return Outcome.SILENT, f"ignores {sorted(found - ignored)} and not {sorted(ignored - found)}, unlike git"
    return Outcome.SURVIVED, ""


def _ignored_by_git(folder: Path) -> set[str]:
    text = "\0".join(PATHS)
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "-z", "--stdin", "-v", "-n"],
        cwd=folder,
        input=text.encode(),
        capture_output=True,
        check=False,
    )
    fields = done.stdout.decode().split("\0")
    decided = zip(fields[2::4], fields[3::4], strict=False)
    return {path for pattern, path in decided if pattern and not pattern.startswith("!")}


def _is_ignored(lines: Sequence[str], path: str) -> bool:
    """Decide as git does: top down, and what lies in a folder that is left out is never asked about."""
    found = read_rules("\n".join(lines) + "\n", origin=".gitignore")
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        rule = last_match(found, "/".join(parts[:end]), is_folder=end < len(parts))
        if rule is not None and not rule.takes_back:
            return True
    return False


def pipes(data: st.DataObject, folder: Path) -> Verdict:
    """What comes out of a pipe: RecordIO, messages, rows of numbers, lines of text; cut and damaged."""
    wrapper, kind = data.draw(
        st.sampled_from(
            [("RecordIO", None), ("None", "application/x-recordio-protobuf"), ("None", "text/csv"), ("None", None)]
        )
    )
    rows = data.draw(st.lists(st.integers(-9, 9), min_size=1, max_size=4))
    is_text = wrapper == "None" and (kind is None or kind == "text/csv")
    content = (
        "".join(f"{number},{number}.5\n" for number in rows).encode()
        if is_text
        else b"".join(_record([number, 0.5], number) for number in rows)
    )
    changed = damaged(data, content)
    (folder / "train_0").write_bytes(changed)

    def read() -> list[Any]:
        return list(open_pipe(folder / "train", record_wrapper=wrapper, content_type=kind, where="channel 'train'"))

    return judged(
        read,
        folder,
        is_right=lambda found: (
            None if changed != content or len(found) == len(rows) else f"{len(found)} of {len(rows)}"
        ),
        must="accept" if changed == content else "",
    )
