"""Where a source comes from, as git tells it, without names of people, passwords and secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from smkit.source.provenance import describe


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Ada Lovelace", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main")
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull}
    run = subprocess.run(["git", *who, *arguments], cwd=folder, env=environment, capture_output=True, check=True)
    return run.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit, of two scripts in two folders."""
    root = tmp_path / "repository"
    for path in ("a/train.py", "b/other.py", ".env"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("print(1)\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def test_a_clean_and_a_changed_folder(repository: Path) -> None:
    source = repository / "a"
    (repository / "b/other.py").write_text("not of this source\n")
    clean = describe(source)
    assert clean is not None
    assert clean.commit == git(repository, "rev-parse", "HEAD")
    assert (clean.branch, clean.remote, clean.is_dirty, clean.diff, clean.untracked) == ("main", None, False, "", ())
    (source / "train.py").write_text("print(2)\n")
    (source / "new caf\xe9.py").touch()
    index = (repository / ".git/index").read_bytes()
    changed = describe(source)
    assert changed is not None
    assert (changed.is_dirty, changed.untracked, changed.note) == (True, ("a/new caf\xe9.py",), "")
    assert "--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-print(1)\n+print(2)\n" in changed.diff
    assert (repository / ".git/index").read_bytes() == index
    document = json.loads(changed.as_json("0" * 64))
    assert document["code_sha256"] == "0" * 64
    assert document["git"]["diff"] == changed.diff
    assert "Ada" not in changed.as_json("") + clean.as_json("")


@pytest.mark.parametrize(
    ("address", "remote"),
    [
        ("https://ada:hunter2@github.com/org/repo.git?x=y", "https://github.com/org/repo.git"),
        ("git@github.com:org/repo.git", "github.com:org/repo.git"),
        ("ssh://ada@host:22/repo", "ssh://host:22/repo"),
        ("/home/ada/repo", None),
        ("../repo", None),
        ("file:///home/ada/repo", None),
        ("https://[broken/repo", None),
        ("ext::ssh -o Password=hunter2secret host /repo", None),
        ("https://host/t/gl" + "pat-aB3dE5fG7hI9jK1lM2nO/repo.git", None),
    ],
)
def test_the_remote_has_neither_users_nor_passwords(repository: Path, address: str, remote: str | None) -> None:
    git(repository, "config", "remote.origin.url", address)
    found = describe(repository)
    assert found is not None
    assert found.remote == remote


def test_tags_are_what_sagemaker_takes(repository: Path) -> None:
    git(repository, "checkout", "-qb", "f\xe9~".replace("~", "") + "#1,&" + "x" * 150)
    git(repository, "config", "remote.origin.url", "https://host/" + "a" * 300)
    found = describe(repository)
    assert found is not None
    tags = found.as_tags()
    assert tags["smkit:git-branch"] == "f\xe9-1--" + "x" * 150
    assert tags["smkit:git-dirty"] == "false"
    # API: Tag; Python's \w are the letters, digits and the underscore of all scripts.
    assert all(len(value) <= 256 and re.fullmatch(r"[\w\s.:/=+\-@]*", value) for value in tags.values())
    git(repository, "checkout", "-q", "--detach")
    detached = describe(repository)
    assert detached is not None
    assert "smkit:git-branch" not in detached.as_tags()


def test_a_diff_with_a_secret_is_left_out_and_a_long_one_is_cut(repository: Path) -> None:
    (repository / "a/train.py").write_text("x = 'ghp" + "_aB3dE5gH7jK9mN1pQrS2tUvW4xYz6AbC8eFg'\n")
    found = describe(repository)
    assert found is not None
    assert (found.diff, found.note) == ("", "the diff is left out: it holds a GitHub token")
    git(repository, "checkout", "-q", ".")
    (repository / ".env").write_text("PASSWORD=hunter2\n")
    found = describe(repository)
    assert found is not None
    assert "hunter2" not in found.as_json("")
    git(repository, "checkout", "-q", ".")
    (repository / "a/train.py").write_text("x\n" * 700_000)
    found = describe(repository)
    assert found is not None
    assert (len(found.diff), found.note) == (1_000_000, "the diff is cut after 1,000,000 bytes")


def test_where_git_cannot_tell_there_is_no_provenance(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert describe(tmp_path) is None
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    assert describe(tmp_path / "empty") is None
    if os.geteuid() == 0:
        os.chown(repository, 65534, 65534)
        assert describe(repository) is None
        os.chown(repository, 0, 0)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "empty/.git"))
    assert describe(repository) is not None
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe(repository) is None


def test_a_repository_cannot_run_programs(repository: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    for name in ("core.fsmonitor", "diff.external", "diff.x.textconv", "diff.x.command"):
        git(repository, "config", name, str(trap))
    (repository / ".gitattributes").write_text("*.py diff=x\n")
    (repository / "a/train.py").write_text("print(3)\n")
    found = describe(repository)
    assert found is not None
    assert "+print(3)" in found.diff
    assert not (tmp_path / "sprung").exists()


def test_what_stays_behind_is_not_in_the_diff_either(repository: Path) -> None:
    for path in ("private.cfg", "kept/own.txt", "notes/a b.txt", "gone.cfg", "a\tb.cfg"):
        (repository / path).parent.mkdir(exist_ok=True)
        (repository / path).write_text("canary of old\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "second")
    git(repository, "config", "diff.noprefix", "true")
    for path in ("private.cfg", "notes/a b.txt", "a\tb.cfg"):
        (repository / path).write_text("canary\n")
    (repository / "kept/own.txt").write_text("mine\n")
    (repository / "gone.cfg").unlink()
    found = describe(repository, {repository / "private.cfg", repository / "notes", repository / "a\tb.cfg"})
    assert found is not None
    assert "--- a/kept/own.txt\n+++ b/kept/own.txt\n@@ -1 +1 @@\n-canary of old\n+mine\n" in found.diff
    assert found.diff.count("canary") == 1
    assert "deleted file mode" in found.diff
