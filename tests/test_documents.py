"""What small files and variables say: the right value, or a reason; never one of two readings, never a wait."""

import os
import re
import sys
from pathlib import Path

import pytest

from smkit import documents


def loaded(folder: Path, name: str, content: str | bytes) -> object:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return documents.load(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("twice.json", '{"a": 1, "a": 2}'),
        ("deep.json", '{"b": {"a": 1, "a": 2}}'),
        ("twice.toml", "a = 1\na = 2"),
        ("twice.yaml", "a: 1\na: 2"),
        ("deep.yaml", "b:\n  a: 1\n  a: 2"),
        ("values.yaml", "yes: 1\ntrue: 2"),
    ],
)
def test_a_name_that_is_given_twice_is_no_choice_of_the_reader(name: str, content: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"twice|overwrite|one value"):
        loaded(tmp_path, name, content)


def test_what_a_mapping_takes_over_it_may_give_again(tmp_path: Path) -> None:
    merged = loaded(tmp_path, "merged.yaml", "b: &b {x: 1, y: 2}\nc:\n  <<: *b\n  x: 3")
    assert merged == {"b": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}}


@pytest.mark.parametrize("text", ["010", "-010", "1:30", "1:30.5"])
def test_a_number_that_yaml_reads_otherwise_than_it_looks_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"write '{text}' for a text") + "|without the 0"):
        loaded(tmp_path, "numbers.yaml", f"a: {text}")
    assert loaded(tmp_path, "numbers.yaml", f"a: '{text}'\nb: 0\nc: 0x1F\nd: 0.5") == {
        "a": text,
        "b": 0,
        "c": 31,
        "d": 0.5,
    }


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a [*a]",
        "a: " + "[" * 3000,
        "a: 0x" + "f" * 100_000,
    ],
    ids=["aliases", "itself", "depth", "number"],
)
def test_what_is_beyond_all_measure_is_refused_and_not_expanded(content: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"aliases|itself|bits"):
        loaded(tmp_path, "bomb.yaml", content)


def test_a_mark_before_utf_8_is_no_part_of_the_text(tmp_path: Path) -> None:
    for name, content in (("a.json", '{"a": 1}'), ("a.toml", "a = 1"), ("a.yaml", "a: 1")):
        assert loaded(tmp_path, name, b"\xef\xbb\xbf" + content.encode()) == {"a": 1}


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "endless"):
        with pytest.raises(ValueError, match="no file but a folder, a pipe or a device"):
            documents.load(tmp_path / f"{name}.yaml")
    with (tmp_path / "large.json").open("wb") as large:
        large.truncate(documents.MOST_BYTES + 1)
    with pytest.raises(ValueError, match="more than 16 MiB"):
        documents.load(tmp_path / "large.json")


def test_depth_is_bounded_where_pythons_own_limit_is_not(tmp_path: Path) -> None:
    limit = sys.getrecursionlimit()
    file = tmp_path / "deep.yaml"
    sys.setrecursionlimit(20_000)
    try:
        file.write_text("[" * 140 + "]" * 140)
        assert documents.load(file)
        file.write_text("[" * 3000 + "]" * 3000)
        with pytest.raises(ValueError, match="nested too deeply"):
            documents.load(file)
    finally:
        sys.setrecursionlimit(limit)
