"""What a source folder sends to a job: git's rules and our own, links, secrets, sizes, each mistake in clear words."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smkit.source.survey import Source, survey

pytest.importorskip("pathspec")

GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}


def git(folder: Path, *arguments: str, text: str = "") -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=GIT, input=text, capture_output=True, text=True, check=False).stdout


def write(root: Path, files: Mapping[str, str | bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def travelling(source: Source) -> list[str]:
    return [file.path for file in source.files]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a script."""
    root = tmp_path / "project"
    write(root, {"train.py": "print()\n"})
    return root


# --- rules ----------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ab", "a.b", "#a", "!b", " a", "d"])
PARTS = st.sampled_from(["a", "b", "ab", "*", "a*", "?", "**", "[ab]", "[!a]", "a.b", "*.b", "d", "\\#a", "\\!b"])


@st.composite
def rules(draw: st.DrawFn) -> str:
    """A line of a .gitignore."""
    body = "/".join(draw(st.lists(PARTS, min_size=1, max_size=3)))
    # git itself reads ` **/a` as a rule for the file ` a`; nobody writes that.
    begin = draw(st.sampled_from(["", "", "", "!", "/", "!/", "#", *([] if "**" in body else [" "])]))
    return begin + body + draw(st.sampled_from(["", "", "/", " ", "\r", "\\ ", "/*", "/**"]))


TREES = st.sets(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12)
LINES = st.lists(rules(), max_size=6).map("\n".join)


@settings(max_examples=60, deadline=None)
@given(paths=TREES, top=LINES, nested=LINES, excluded=LINES, below=st.booleans())
def test_rules_mean_what_they_mean_to_git(paths: set[str], top: str, nested: str, excluded: str, below: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder).resolve()
        git(repository, "init", "-q")
        root = repository / "d" if below else repository
        for path in sorted(paths, reverse=True):
            if not (root / path).exists() and not any(part.is_file() for part in (root / path).parents):
                write(root, {path: ""})
        (root / ".git/info" if not below else repository / ".git/info").mkdir(exist_ok=True)
        (repository / ".git/info/exclude").write_text(excluded)
        write(repository, {".gitignore": top})
        if (repository / "d").is_dir():
            write(repository, {"d/.gitignore": nested})
        everything = [file for file in root.rglob("*") if file.is_file() and ".git" not in file.parts]
        names = "\0".join(str(file.relative_to(repository)) for file in everything)
        ignored = set(git(repository, "check-ignore", "--no-index", "-z", "--stdin", text=names).split("\0"))
        expected = {
            str(file.relative_to(root)) for file in everything if str(file.relative_to(repository)) not in ignored
        }
        if below and git(repository, "check-ignore", "--no-index", "d"):
            # A folder that git ignores as a whole travels when it is given as the source.
            return
        assert set(travelling(survey(root, entry="train.py"))) == expected, (top, nested, excluded)
