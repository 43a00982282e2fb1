"""What is synced before a call returns: the bytes, the name, and the names above it."""

import errno
import os
from pathlib import Path

import pytest

from smkit.disk import make_directory, put_in_place, sync_above, sync_directory, sync_tree


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What has been synced until now."""
    seen: list[Path] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return seen


def test_a_new_directory_has_its_name_and_those_of_the_new_ones_above(tmp_path: Path, synced: list[Path]) -> None:
    make_directory(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    make_directory(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_a_finished_file_takes_the_place_of_another_when_its_bytes_are_there(
    tmp_path: Path, synced: list[Path]
) -> None:
    part, file = tmp_path / "file.part", tmp_path / "file"
    part.write_text("new")
    file.write_text("old")
    put_in_place(part, file)
    assert synced == [part, tmp_path]
    assert file.read_text() == "new"


def test_of_a_tree_all_files_and_all_names_are_synced_and_no_link_is_followed(
    tmp_path: Path, synced: list[Path]
) -> None:
    deep = tmp_path / "model" / "deep"
    deep.mkdir(parents=True)
    (deep / "file").write_text("bytes")
    # Beside it a folder that holds nothing but a folder: its name is to be there as well.
    only = tmp_path / "model" / "only"
    (only / "folder").mkdir(parents=True)
    (only / "folder" / "file").touch()
    os.mkfifo(tmp_path / "model" / "pipe")
    (tmp_path / "outside").touch()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "outside")
    sync_tree(tmp_path / "model")
    assert {deep / "file", deep, only, only / "folder", tmp_path / "model", tmp_path, Path("/")} <= set(synced)
    assert len(synced) == len(set(synced))
    assert tmp_path / "outside" not in synced


def test_a_file_system_that_syncs_no_folders_is_no_reason_to_fail_and_a_broken_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = errno.EINVAL

    def fail(_: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    sync_directory(tmp_path)
    sync_above(tmp_path / "file")
    error = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        sync_directory(tmp_path)
