"""The archive: the same files give the same bytes, unpacking gives them back, what changes meanwhile is seen."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smkit.errors import ConfigurationError
from smkit.source.archive import content_hash, pack
from smkit.source.survey import survey

pytest.importorskip("pathspec")

Tree = dict[str, bytes]
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"), min_size=1, max_size=30).map(
    lambda name: f"x{name}"
)
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3)
    .map("/".join)
    .filter(lambda path: len(path.encode()) < 200 and path[-1] != "~"),
    st.binary(max_size=2000),
    max_size=8,
)


def write(root: Path, tree: Tree) -> Tree:
    """Write what of a tree can stand side by side, and return it."""
    written = {}
    for path, content in tree.items():
        parents = {str(parent) for parent in Path(path).parents}
        if not parents & set(written) and not any(other.startswith(f"{path}/") for other in written):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
            written[path] = content
    return written


def read(root: Path) -> Tree:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@settings(max_examples=20, deadline=None)
@given(tree=TREES, extra=st.dictionaries(NAMES.map("vendored/{}".format), st.binary(max_size=100), max_size=3))
def test_unpacking_gives_back_what_was_packed_and_packing_is_deterministic(tree: Tree, extra: Tree) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second, unpacked = (Path(folder, name) for name in ("a", "b/other", "unpacked"))
        expected = write(first, {"train.py": b""} | tree)
        # The other tree comes in another order, at another time, with other rights.
        write(second, dict(reversed(expected.items())))
        for path in second.rglob("*"):
            os.utime(path, (0, 0))
            path.chmod(0o700 if path.is_dir() else 0o600)
        one, other = survey(first, entry="train.py"), survey(second, entry="train.py")
        with pack(one, extra) as archive, pack(other, extra) as again:
            assert archive.path.read_bytes() == again.path.read_bytes()
            assert archive.sha256 == again.sha256 == content_hash(one, extra)
            assert archive.size == archive.path.stat().st_size
            with archive.open() as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
                members = tar.getmembers()
                tar.extractall(unpacked, filter="data")
        assert not archive.path.exists()
        assert read(unpacked) == expected | extra
        assert {(member.uid, member.gid, member.mtime, member.uname) for member in members} == {(0, 0, 0, "")}


def test_a_program_stays_a_program_a_link_a_link_and_what_is_beside_takes_the_place_of_a_file(tmp_path: Path) -> None:
    root = tmp_path / "a"
    write(root, {"run.sh": b"#!/bin/sh\n", "requirements.txt": b"old", "sub/train.py": b""})
    (root / "run.sh").chmod(0o775)
    (root / "link.py").symlink_to("sub/train.py")
    (tmp_path / "wheel").write_bytes(b"wheel")
    source = survey(root, entry="run.sh")
    extra = {"requirements.txt": b"new", "wheels/a.whl": tmp_path / "wheel"}
    with pack(source, extra) as archive, tarfile.open(archive.path) as tar:
        assert {member.name: (oct(member.mode), member.linkname) for member in tar} == {
            "link.py": ("0o755", "sub/train.py"),
            "requirements.txt": ("0o644", ""),
            "run.sh": ("0o755", ""),
            "sub/train.py": ("0o644", ""),
            "wheels/a.whl": ("0o644", ""),
        }
        tar.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out/requirements.txt").read_bytes() == b"new"
    assert (tmp_path / "out/wheels/a.whl").read_bytes() == b"wheel"
    assert (tmp_path / "out/link.py").readlink() == Path("sub/train.py")


def test_the_hash_is_that_of_the_tar_stream_and_is_the_same_for_ever(tmp_path: Path) -> None:
    tree = {"train.py": b"print()\n", "d\xe9j\xe0/" + "x" * 120: b"long", "a b": b""}
    write(tmp_path, tree)
    source = survey(tmp_path, entry="train.py")
    with pack(source, {}) as archive:
        unzip = subprocess.run(["gunzip", "-c", archive.path], capture_output=True, check=True)
        program = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
        shown = subprocess.run([sys.executable, "-c", program], input=unzip.stdout, capture_output=True, check=True)
        assert shown.stdout.decode().strip() == archive.sha256
    assert archive.sha256 == "2466890759ccd3994acc8e5242f780560aa1ce45afdcdf6e3bad946627ea3266"


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("longer than it was"),
        lambda path: path.write_text("shor"),
        lambda path: os.utime(path, (1, 1)),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("train.py")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_a_file_that_has_changed_since_it_was_looked_at_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    write(tmp_path, {"train.py": b"", "log.txt": b"short"})
    source = survey(tmp_path, entry="train.py")
    change(tmp_path / "log.txt")
    for use in (pack, content_hash):
        with pytest.raises(
            ConfigurationError, match=r"'log\.txt' has changed, or has gone, while the source was packed"
        ):
            use(source, {})


def test_a_place_without_space_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"train.py": b""})
    source = survey(tmp_path, entry="train.py")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"the source cannot be packed: .*No such file"):
        pack(source, {})
