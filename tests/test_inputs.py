"""What a launch is given as inputs: understood, or refused in the user's own words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smkit.inputs import Input, local_files, read_inputs
from smkit.s3_uris import is_bucket_name, looks_like_s3, parse_uri


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `data` with three files, and `a b.csv`."""
    for name in ("data/a.csv", "data/b.csv", "data/deep/c.csv", "data/deep/.hidden", "a b.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(**inputs: object) -> list[str]:
    return read_inputs(inputs)[1]


def found(source: object) -> dict[str, str]:
    """The files of one input: their paths in the channel, and what they hold."""
    channels, wrong = read_inputs({"train": source})
    assert wrong == []
    files, wrong = local_files(channels[0])
    assert wrong == []
    return {relative: path.read_text() for relative, path in files}


def test_a_source_is_a_folder_a_file_a_uri_or_a_pattern(folder: Path) -> None:
    whole = {"a.csv": "data/a.csv", "b.csv": "data/b.csv", "deep/.hidden": "data/deep/.hidden"}
    whole["deep/c.csv"] = "data/deep/c.csv"
    assert found("data") == found(Path("data")) == found(f"file://{folder}/data") == found("data/*") == whole
    assert found("data/a.csv") == {"a.csv": "data/a.csv"}
    assert found("data/*.csv") == {"a.csv": "data/a.csv", "b.csv": "data/b.csv"}
    assert found("data/**/*.csv") == {name: text for name, text in whole.items() if "hidden" not in name}
    assert found(f"file://{folder}/a%20b.csv") == found("a b.csv") == {"a b.csv": "a b.csv"}
    assert found("d*/deep") == {f"data/{name}": text for name, text in whole.items() if "deep" in name}


def test_a_name_with_brackets_is_a_name_if_there_is_such_a_file(folder: Path) -> None:
    (folder / "fold[1].csv").write_text("1")
    (folder / "fold1.csv").write_text("pattern")
    assert found("fold[1].csv") == {"fold[1].csv": "1"}


def test_what_lies_in_s3_stays_there() -> None:
    point = "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/train"
    given_inputs = {
        "prefix": "s3://bucket/train",
        "bucket": Input("s3://bucket"),
        "folder": Input("s3://bucket/train", mode="FastFile", sharded=True, content_type="text/csv"),
        "file": Input("s3://bucket/train.csv", mode="FastFile"),
        "point": point,
    }
    channels, wrong = read_inputs(given_inputs)
    assert wrong == []
    # Of what is read on demand, `train` would bring in `train-old` too.
    uris = ["s3://bucket/train", "s3://bucket/", "s3://bucket/train/", "s3://bucket/train.csv", point]
    assert [channel.uri for channel in channels] == uris
    assert {channel.local_paths for channel in channels} == {()}
    assert local_files(channels[0]) == ([], [])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("dta", "input 'x': there is no {folder}/dta; did you mean 'data'?"),
        ("data/*.png", "input 'x': no file matches {folder}/data/*.png"),
        (" ", "input 'x': the path is empty"),
        ("", "input 'x': the path is empty"),
        ("data/x\0", "input 'x': there is no {folder}/data/x\0"),
        (3, "input 'x': give a path, a file:// or s3:// URI, or a smkit.Input, not 3"),
        ("file://host/data", "input 'x': 'file://host/data' is on the machine 'host'; write file:///path with three"),
        ("https://host/data", "input 'x': 'https://host/data' is neither a path nor a file:// URI nor an s3:// URI"),
        ("gs://bucket/data", "input 'x': 'gs://bucket/data' is neither a path nor"),
        ("https://[/", "input 'x': 'https://[/' is neither a path nor"),
        ("s3:/bucket/a", "input 'x': 's3:/bucket/a' is no s3:// URI; did you mean 's3://bucket/a'?"),
        ("S3://bucket/a", "input 'x': 'S3://bucket/a' is no s3:// URI; did you mean 's3://bucket/a'?"),
        ("s3a://bucket/a", "input 'x': 's3a://bucket/a' is no s3:// URI; did you mean 's3://bucket/a'?"),
        ("s3//bucket/a", "input 'x': 's3//bucket/a' is no s3:// URI; did you mean 's3://bucket/a'?"),
        ("s3://", "input 'x': 's3://' names no bucket; write s3://bucket/path"),
        ("s3:///a", "input 'x': 's3:///a' names no bucket; write s3://bucket/path"),
        (
            "s3://My_Data/a",
            "input 'x': 'My_Data' in 's3://My_Data/a' cannot be a bucket, whose name has 3 to 63 lower-case letters, "
            "digits, '.' and '-'; did you mean 's3://my-data'?",
        ),
        ("s3://10.0.0.1/a", "input 'x': '10.0.0.1' in 's3://10.0.0.1/a' cannot be a bucket"),
        ("s3://bucket/a\nb", "input 'x': 's3://bucket/a\\nb' has characters in it that cannot be printed"),
        ("s3://bucket/" + "a" * 1025, "has a key of more than 1024 bytes, which S3 does not take"),
        (
            "https://bucket.s3.eu-west-1.amazonaws.com/a%20b/c",
            "is no s3:// URI; did you mean 's3://bucket/a b/c'?",
        ),
        ("https://s3.amazonaws.com/bucket/a", "did you mean 's3://bucket/a'?"),
        (
            "https://s3.console.aws.amazon.com/s3/buckets/bucket?region=eu-west-1&prefix=a/b/",
            "did you mean 's3://bucket/a/b/'?",
        ),
        (Input("data", mode="fastfile"), "input 'x': mode 'fastfile': one of File, FastFile, Pipe; did you mean 'Fast"),  # type: ignore[arg-type]
        (Input("data", sharded="yes"), "input 'x': sharded 'yes': True or False"),  # type: ignore[arg-type]
        (Input("data", content_type=1), "input 'x': content_type 1: a text such as 'text/csv'"),  # type: ignore[arg-type]
    ],
)
def test_a_source_that_is_none_is_refused_with_what_was_meant(folder: Path, source: object, message: str) -> None:
    (problem,) = problems(x=source)
    assert message.format(folder=folder) in problem


def test_channels_are_checked_all_together(folder: Path) -> None:
    named: dict[object, str] = {
        "two words": "data",
        "..": "data",
        "a": "data",
        "A": "data",
        "valid-1.x": "data",
        3: "no",
    }
    assert read_inputs(named)[1] == [
        "input 'two words': a channel's name has 1 to 64 letters, digits, '.', '-' or '_'",
        "input '..': a channel's name has 1 to 64 letters, digits, '.', '-' or '_'",
        "input 'A': shares its variable SM_CHANNEL_A with 'a'",
        f"input '3': there is no {folder}/no",
    ]
    assert read_inputs({f"c{i}": "data" for i in range(21)})[1] == ["inputs: a job takes 20 channels, not 21"]


def test_what_cannot_be_uploaded_is_said_before(folder: Path) -> None:
    (folder / "empty").mkdir()
    bad = folder / "bad"
    bad.mkdir()
    (bad / "circle").symlink_to("..", target_is_directory=True)
    (bad / "nothing").symlink_to("gone")
    os.mkfifo(bad / "pipe")
    (bad / "line\nbreak").write_text("")
    Path(os.fsdecode(os.fsencode(bad) + b"/\xff")).write_text("")
    long = bad / ("l" * 250) / ("l" * 250) / ("l" * 250) / ("l" * 250)
    long.mkdir(parents=True)
    (long / "file").write_text("")
    channels, _ = read_inputs({"empty": "empty", "bad": "bad"})
    assert local_files(channels[0]) == ([], ["input 'empty': 'empty' holds no file"])
    files, wrong = local_files(channels[1])
    assert [relative for relative, _ in files] == [
        # The circle is broken where it comes back to its own folder, not before.
        *(f"circle/{name}" for name in ("a b.csv", "data/a.csv", "data/b.csv", "data/deep/.hidden", "data/deep/c.csv")),
    ]
    assert wrong == [
        f"input 'bad': '{bad}/circle/bad' leads back to a folder that it lies in",
        f"input 'bad': '{bad}/line\nbreak' has a name that S3 does not keep: 'line\\nbreak'",
        f"input 'bad': '{long}/file' has a path of more than 900 bytes",
        f"input 'bad': '{bad}/nothing' is a link to nothing",
        f"input 'bad': '{bad}/pipe' is no file",
        "input 'bad': and 1 more like these",
    ]


def test_links_are_followed_for_data(folder: Path) -> None:
    (folder / "links").mkdir()
    (folder / "links" / "file.csv").symlink_to(folder / "data" / "a.csv")
    (folder / "links" / "tree").symlink_to(folder / "data" / "deep", target_is_directory=True)
    assert found("links") == {
        "file.csv": "data/a.csv",
        "tree/.hidden": "data/deep/.hidden",
        "tree/c.csv": "data/deep/c.csv",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_problem(folder: Path) -> None:
    (folder / "data" / "a.csv").chmod(0)
    (folder / "data" / "deep").chmod(0)
    channels, _ = read_inputs({"train": "data"})
    assert local_files(channels[0])[1] == [
        f"input 'train': '{folder}/data/a.csv' cannot be read: you have no permission",
        f"input 'train': '{folder}/data/deep' cannot be read: Permission denied",
    ]
    (folder / "data" / "deep").chmod(0o755)


@given(
    st.from_regex(r"s3://[a-z0-9.-]{1,70}(/[a-zA-Z0-9/ ._=-]{0,40})?", fullmatch=True) | st.text() | st.text("s3:/a.")
)
def test_any_text_is_an_s3_uri_or_a_problem(text: str) -> None:
    looks_like_s3(text)
    try:
        uri = parse_uri(text)
    except ValueError:
        return
    assert is_bucket_name(uri.bucket)
    assert str(uri).rstrip("/") == text.rstrip("/")
    assert parse_uri(str(uri)) == uri
