"""Tables: what is read from each format, what is said of files that are wrong, and the cache of parsed rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import SECONDS

import smkit.data.tables.blocks
import smkit.data.tables.table
from smkit.data.loader import make_loader
from smkit.data.tables.decimals import PADDING, decimals
from smkit.data.tables.opening import open_table
from smkit.errors import DataError

pytestmark = pytest.mark.train

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small files have many; and no table is small."""
    monkeypatch.setattr(smkit.data.tables.blocks, "FIRST_BYTES", 64)
    monkeypatch.setattr(smkit.data.tables.blocks, "BLOCK_BYTES", 128)
    monkeypatch.setattr(smkit.data.tables.delimited, "FIRST_BYTES", 128)
    monkeypatch.setattr(smkit.data.tables.columnar, "_SLICE", 7)
    monkeypatch.setattr(smkit.data.tables.recordio, "FIRST_BYTES", 64)
    monkeypatch.setattr(smkit.data.tables.recordio, "BLOCK_BYTES", 128)
    monkeypatch.setattr(smkit.data.tables.table, "SMALL", 0)


def opened(folder: Path, kind: str = "csv", **options):
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("*.*"))
    return open_table(folder, files, kind, where="channel 'train'", cache_dir=folder / "cache", **options)


def table(folder: Path, content: str | bytes, kind: str = "csv", name: str | None = None, **options):
    data = content.encode() if isinstance(content, str) else content
    (folder / (name or f"a.{kind}")).write_bytes(data)
    return opened(folder, kind, **options)


def everything(table):
    return table.__getitems__(range(len(table)))


def refusal(folder: Path, content: str | bytes, kind: str = "csv", **options) -> DataError:
    with pytest.raises(DataError) as caught:
        everything(table(folder, content, kind, **options))
    assert caught.value.where == "channel 'train'"
    return caught.value


def published(folder: Path) -> list[Path]:
    """The caches that have their name, once the thread that gives it has ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [path for path in (folder / "cache").iterdir() if path.suffix != ".partial"]
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("nothing was published")


# -- CSV ---------------------------------------------------------------------------------------------------------------


def test_csv_without_a_header_has_the_label_first_as_sagemaker_has_it(tmp_path):
    features, label = everything(table(tmp_path, "1,0.5,2\n0,-1e-3,\n"))
    assert label.tolist() == [1, 0]
    assert label.dtype == torch.int64
    torch.testing.assert_close(features, torch.tensor([[0.5, 2], [-0.001, float("nan")]]), equal_nan=True)
    (features,) = everything(opened(tmp_path, content_type="text/csv; label_size=0"))
    assert features.shape == (2, 3)
    with pytest.raises(DataError, match="says that a row has 2 labels"):
        opened(tmp_path, content_type="text/csv;label_size=2")
    (tmp_path / "a.csv").write_text("1.5,2\n")
    assert everything(opened(tmp_path))[1].dtype == torch.float32


def test_csv_with_a_header_has_named_columns(tmp_path):
    content = "a,b,Target\n1,2,x\n3,4,y\n5,6,x\n"
    read = table(tmp_path, content)
    features, label = everything(read)
    assert features.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert label.tolist() == [0, 1, 0]
    assert read.classes == ("x", "y")
    assert repr(read) == "Table(3 rows of 1 csv file: 2 features float32, Target int64 of 2 classes)"
    features, label = everything(opened(tmp_path, columns=["b"], label="a"))
    assert (features.tolist(), label.tolist()) == ([[2], [4], [6]], [1, 3, 5])
    batch = everything(opened(tmp_path, columns=["Target", "b"], label=""))
    assert batch["Target"] == ["x", "y", "x"]
    assert batch["b"].tolist() == [2, 4, 6]
    assert batch["b"].dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("\ufeffa,y\r\n1,2\r\n3,4\r\n\r\n\r\n", "a.csv"),
        ("\n\na,y\n1,2\n3,4", "a.csv"),
        ("a;y\n1;2\n3;4\n", "a.csv"),
        ("a|y\n1|2\n3|4\n", "a.csv"),
        ("a\ty\n1\t2\n3\t4\n", "a.tsv"),
        ('"a","y"\n"1","2"\n3,4\n', "a.csv"),
        ('"a",y\n1,2\n3,4\n', "a.csv"),
        # The content is in the test's name, which must be the same in two processes.
        (gzip.compress(b"a,y\n1,2\n3,4\n\n", mtime=0), "a.csv.gz"),
    ],
)
def test_csv_of_many_writers(tmp_path, content, name):
    features, label = everything(table(tmp_path, content, name=name))
    assert (features.tolist(), label.tolist()) == ([[1], [3]], [2, 4])


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (",label,name\n0,cat,tom\n1,dog,rex\n", ("label", "name")),
        ("1,,x\n2,3.5,y\n", ("0", "1", "2")),
        ("x,,\ny,3.5,4.5\n", ("0", "1", "2")),
        ("null,red\n2.5,blue\n", ("0", "1")),
        ("cat,None,tom\ndog,x,rex\n", ("0", "1", "2")),
        ('a,text\n1,"l1\n\ufeffl2"\n2,x', ("a", "text")),
    ],
)
def test_a_gap_in_the_first_line_tells_no_header_from_a_row(tmp_path, content, columns):
    batch = everything(table(tmp_path, content, label=""))
    assert tuple(batch) == columns


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (
            "\n\ufeffy,a\n1,2\n",
            {},
            "the first rows of a.csv hold a byte order mark that is not the start of the file",
        ),
        ("label,a,", {}, "the files hold a header and no rows"),
        ("y,a\n\ufeff1,2\n", {}, "the first rows of a.csv hold a byte order mark that is not the start of the file"),
        ("y,a\n1,2\n\ufeffy,a\n", {}, "a.csv, line 3: there is a byte order mark that is not the start of the file"),
        ("a,y\n1,2\n\n3,4\n", {}, "a.csv, line 3: the line is blank"),
        ("a,y\n1,2\n3\n", {}, "a.csv, line 3: the row has 1 values, and the table 2 columns"),
        ("a,y\n1,2\n3,0.5\n", {}, None),
        ("a,y\n1,\n", {"label": "y"}, "a.csv, line 2: the label 'y' is missing"),
        ("a,y\n1,2\n,\n", {"label": "y"}, "a.csv, line 3: column 'y' has no value"),
        ("a,y\n1,u\n2,\n", {}, "a.csv, line 3: the label 'y' is missing"),
        (b"a,y\nu,x\n\xff,x\n", {"label": ""}, "a.csv, line 3: byte 0xff is no UTF-8"),
        ("a,b\n1,2\n", {}, "no column is called like a label; the columns are a, b"),
        ("y,label\n1,2\n", {}, "several columns could be the label: y, label; the columns are y, label"),
        ("a,a,y\n1,2,3\n", {}, "two columns are called 'a'"),
        ("a,y\n1,2\n", {"columns": ["aa"]}, "there is no column 'aa'; the columns are a, y"),
        ("a,y\n1,2\n", {"columns": ["y"]}, "no column is left for the features"),
        ("a,y\n", {}, "the files hold a header and no rows"),
        ("\n\n", {}, "the files hold no rows"),
        ('a,y\n1,"2\n', {}, 'a.csv has an odd number of `"`: a quoted field is never closed'),
    ],
)
def test_what_is_said_of_csv_that_is_wrong(tmp_path, content, options, said):
    if said is None:
        assert everything(table(tmp_path, content, **options))[1].tolist() == [2, 0.5]
    else:
        assert refusal(tmp_path, content, **options).what == said


def test_a_later_row_of_another_kind_is_named(tmp_path, small_blocks):
    rows = [f"{number},{number % 3}" for number in range(100)]
    assert (
        "line 91: column 'y' is '0.5', and was of whole numbers"
        in refusal(tmp_path, "\n".join(["a,y", *rows[:89], "1,0.5", *rows]), label="y").what
    )
    assert (
        "line 91: column 'a' is 'oops', and was of numbers"
        in refusal(tmp_path, "\n".join(["a,y", *rows[:89], "oops,1", *rows]), label="y").what
    )
    assert everything(table(tmp_path, "\n".join(["a,y", *rows, "0.5,1", ",1"])))[0][-2:, 0].tolist()[0] == 0.5


def test_files_with_other_headers_are_refused(tmp_path):
    (tmp_path / "b.csv").write_text("b,y\n1,2\n")
    assert refusal(tmp_path, "a,y\n1,2\n").what == "b.csv begins with 'b,y', the first file with 'a,y'"


def test_line_breaks_in_quotes_are_part_of_a_row(tmp_path, small_blocks):
    rows = [(f'say "{number}",\nor\n\n{"x" * (number % 7)}', number) for number in range(200)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("text", "label"), *rows])
    # The header has no quote, but the first block has one.
    read = table(tmp_path, text.getvalue())
    assert len(read) == 200
    batch = everything(read)
    assert list(zip(batch["text"], batch["label"].tolist(), strict=True)) == rows


def test_line_breaks_in_quotes_that_begin_late_are_an_error_and_quotes_alone_are_none(tmp_path, small_blocks):
    plain = "text,label\n" + "".join(f"t{number},{number}\n" for number in range(40))
    batch = everything(table(tmp_path, plain + '"a, ""b""",7\n'))
    assert batch["text"][-1] == 'a, "b"'
    assert "line breaks within quotes" in refusal(tmp_path, plain + '"a\nb",7\n' + "c,8\n" * 40).what


cells = st.one_of(st.floats(width=32), st.integers(-(10**9), 10**9), st.none())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(-(2**62), 2**62), cells, cells), min_size=1, max_size=60),
    line_end=st.sampled_from(["\n", "\r\n"]),
    ends=st.booleans(),
)
def test_numbers_are_what_python_makes_of_them(tmp_path, small_blocks, rows, line_end, ends):
    text = line_end.join(["y,a,b", *(",".join("" if cell is None else repr(cell) for cell in row) for row in rows)])
    read = table(tmp_path, text + line_end * ends)
    features, label = everything(read)
    assert label.tolist() == [row[0] for row in rows]
    expected = np.array([[np.nan if cell is None else cell for cell in row[1:]] for row in rows], np.float64)
    np.testing.assert_array_equal(features.numpy(), expected.astype(np.float32))


# -- JSON lines, text --------------------------------------------------------------------------------------------------


def test_json_lines_are_columns_by_key(tmp_path, small_blocks):
    brackets = '[\\"{'
    rows = [
        {"text": f"é{n}\n{brackets * n}", "label": n % 5, "v": [n, 0.5], "ok": n % 2 == 0, "when": "2024-01-01"}
        for n in range(99)
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    batch = everything(table(tmp_path, content, "jsonl"))
    assert batch["text"] == [row["text"] for row in rows]
    assert batch["v"].tolist() == [row["v"] for row in rows]
    assert batch["ok"].tolist() == [int(row["ok"]) for row in rows]
    assert batch["when"][0] == "2024-01-01"
    assert batch["label"].tolist() == [row["label"] for row in rows]


def test_json_lines_of_numbers_are_features_and_a_label(tmp_path):
    content = '{"a": 1, "y": 0}\n{"y": 1, "a": 2.5}\n{"y": 2}\n'
    features, label = everything(table(tmp_path, content, "jsonl"))
    torch.testing.assert_close(features, torch.tensor([[1], [2.5], [float("nan")]]), equal_nan=True)
    assert label.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": "x", "y": 1}', "'a' is \"x\", and was a number before"),
        ('{"a": 1, "y": 1, "z": 1}', "'z' is 1, and was not there before"),
        ('{"a": 1, "y": 0.5}', "'y' is 0.5, and was a whole number before"),
        ('{"a": 1, "y": null}', "column 'y' has no value"),
        ('{"a": 1, "y": 1', "this is no JSON: "),
        ("[1]", "this is no object: b'[1]'"),
        ("null", "this is no object: b'null'"),
        ("", "the line is blank"),
        # pyarrow would take the process down.
        pytest.param('{"a": ' + "[" * 50_000 + "]" * 50_000 + ', "y": 1}', "this is nested more than 100 ", id="lists"),
        pytest.param('{"a": ' * 50_000 + "1" + "}" * 50_000, "this is nested more than 100 deep", id="objects"),
    ],
)
def test_what_is_said_of_json_lines_that_are_wrong(tmp_path, small_blocks, line, said):
    rows = ['{"a": 1, "y": 2}'] * 20
    what = refusal(tmp_path, "\n".join([*rows, line, *rows]), "jsonl").what
    assert what.startswith(f"a.jsonl, line 21: {said}")


@pytest.mark.parametrize("first", ["null", '  null, "b": [31 4]}'])
def test_a_null_in_the_place_of_the_first_object_does_not_crash_the_process(tmp_path, first):
    assert refusal(tmp_path, f'{first}\n{{"a": 1}}\n', "jsonl").what.startswith("a.jsonl, line 1: this is no ")


def test_lines_of_text_are_rows(tmp_path, small_blocks):
    lines = [f"Zeile {number} ü" * (number % 4) for number in range(300)] + ["end"]
    read = table(tmp_path, "\ufeff" + "\r\n".join(lines) + "\r\n\r\n", "text", "a.txt")
    assert everything(read) == {"text": lines}
    assert read.__getitems__([300, 1, 1]) == {"text": ["end", lines[1], lines[1]]}
    assert read[1] == {"text": lines[1]}
    assert "a.txt, line 2: byte 0xff" in refusal(tmp_path, b"a\n\xff\n", "text", name="a.txt").what


# -- Parquet and Arrow -------------------------------------------------------------------------------------------------


def columns_of(rows: int) -> dict[str, object]:
    return {
        "x": np.arange(rows, dtype=np.float64) / 3,
        "text": [f"t{number}" * (number % 3) for number in range(rows)],
        "list": [[float(number), 1.0, 2.0] for number in range(rows)],
        "label": np.arange(rows) % 4,
    }


def write_arrow(path: Path, content, rows: int, *, stream: bool) -> None:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=rows)


@pytest.mark.parametrize("form", ["parquet", "feather", "stream"])
def test_parquet_and_arrow_hold_the_same(tmp_path, small_blocks, form):
    content = pa.table(columns_of(100))
    if form == "parquet":
        pq.write_table(content, tmp_path / "a.parquet", row_group_size=30)
    else:
        write_arrow(tmp_path / "a.arrow", content, 30, stream=form == "stream")
    read = opened(tmp_path, "parquet" if form == "parquet" else "arrow")
    order = np.random.default_rng(0).permutation(100)
    for part in np.array_split(order, 7):
        batch = read.__getitems__(torch.from_numpy(part))
        assert batch["text"] == [content["text"][row].as_py() for row in part]
        torch.testing.assert_close(batch["x"], torch.from_numpy(part / 3).float())
        assert batch["list"][:, 0].tolist() == part.tolist()
        assert batch["label"].tolist() == (part % 4).tolist()


def test_parquet_of_numbers_is_features_and_a_label(tmp_path):
    content = pa.table(
        {"a": [1, None, 3], "b": [True, False, True], "y": pa.array(["u", "v", "u"]).dictionary_encode()}
    )
    pq.write_table(content, tmp_path / "a.parquet")
    read = opened(tmp_path, "parquet")
    features, label = everything(read)
    torch.testing.assert_close(features, torch.tensor([[1.0, 1], [float("nan"), 0], [3, 1]]), equal_nan=True)
    assert (label.tolist(), read.classes) == ([0, 1, 0], ("u", "v"))


def test_what_is_said_of_columnar_files_that_are_wrong(tmp_path):
    pq.write_table(pa.table({"v": [[1.0], [1.0, 2.0]], "s": [{"k": 1}] * 2, "y": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'s' is of type struct<k: int64>, which no batch can hold"):
        opened(tmp_path, "parquet")
    with pytest.raises(DataError, match="row 2: the list in column 'v' has 2 numbers, and 1 in the first row"):
        everything(opened(tmp_path, "parquet", columns=["v"]))
    pq.write_table(pa.table({"v": [1.0], "y": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet has other columns or types than .*: 'v' is double, not list"):
        opened(tmp_path, "parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"b.parquet cannot be read"):
        opened(tmp_path, "parquet")


# -- libsvm and RecordIO -----------------------------------------------------------------------------------------------

values = st.one_of(
    st.floats(-1e6, 1e6).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["+.5", "1.", "1e-05", "-0"]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(-3, 3), st.dictionaries(st.integers(0, 40), values, max_size=6)), min_size=1, max_size=30
    ),
    base=st.integers(0, 1),
    blank=st.sampled_from([" ", "\t", "  "]),
    tail=st.sampled_from(["", " ", " # why: 1:2"]),
)
def test_libsvm_is_what_scikit_learn_makes_of_it(tmp_path, small_blocks, rows, base, blank, tail):
    load_svmlight_file = pytest.importorskip("sklearn.datasets").load_svmlight_file
    rows = [*rows, (1, {0: "1"})]
    lines = [
        blank.join([str(label), *(f"{index + base}:{value}" for index, value in sorted(pairs.items()))]) + tail
        for label, pairs in rows
    ]
    content = "\n".join(lines).encode()
    features, label = everything(table(tmp_path, content, "libsvm"))
    expected, labels = load_svmlight_file(io.BytesIO(content), zero_based=base == 0)
    np.testing.assert_array_equal(features.numpy(), expected.toarray().astype(np.float32))
    assert label.tolist() == labels.tolist()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(values, st.decimals(allow_nan=False, allow_infinity=False, places=17).map(str)), min_size=1))
def test_decimals_are_the_same_float32_as_of_python(texts):
    data = np.frombuffer(b" " * PADDING + " ".join(texts).encode() + b" " * 8, np.uint8)
    lengths = np.array([len(text) for text in texts])
    ends = PADDING + np.cumsum(lengths + 1) - 1
    dots = ends - lengths + [text.find(".") if "." in text else len(text) for text in texts]
    found = decimals(data, ends - lengths, dots, ends)
    np.testing.assert_array_equal(found.astype(np.float32), np.array(list(map(float, texts))).astype(np.float32))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 2:3 1:4", "index 1 comes after one that is not below it"),
        ("1 a:3", "'a:3' is no `index:value`"),
        ("1 2:3:4", "'2:3:4' is no `index:value`"),
        ("1 2:", "'2:' is no `index:value`"),
        ("1 2", "'2' is no `index:value`"),
        ("x 2:3", "the line does not begin with a label that is a number: 'x 2:3'"),
        ("2:3", "the line does not begin with a label that is a number: '2:3'"),
        ("", "the line is blank"),
    ],
)
def test_what_is_said_of_libsvm_that_is_wrong(tmp_path, small_blocks, line, said):
    rows = ["1 1:2 3:4"] * 20
    what = refusal(tmp_path, "\n".join([*rows, line, *rows]), "libsvm").what
    assert what == f"a.libsvm, line 21: {said}"


def test_libsvm_that_is_too_wide_is_refused(tmp_path):
    assert "the features are 5,000 columns" in refusal(tmp_path, "1 5000:1\n", "libsvm").what


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def tensor(values: np.ndarray, keys=None, shape=None) -> bytes:
    kinds = {"float32": 2, "float64": 3, "int32": 7}
    raw = values.tobytes() if values.dtype.kind == "f" else b"".join(varint(int(v) % 2**64) for v in values)
    parts = message(1, raw)
    parts += message(2, b"".join(map(varint, keys))) if keys else b""
    parts += message(3, b"".join(map(varint, shape))) if shape else b""
    return message(kinds[values.dtype.name], parts)


def record(features: bytes, label: bytes | None) -> bytes:
    content = message(1, message(1, b"values") + message(2, features))
    content += message(2, message(1, b"values") + message(2, label)) if label is not None else b""
    return struct.pack("<II", 0xCED7230A, len(content)) + content + b"\0" * (-len(content) % 4)


@pytest.mark.parametrize("kind", ["float32", "float64", "int32"])
@pytest.mark.parametrize("sparse", [False, True])
def test_recordio_of_sagemaker(tmp_path, small_blocks, kind, sparse):
    numbers = np.random.default_rng(0).integers(-9, 9, (50, 5)).astype(kind)
    labels = np.arange(50) % 3
    records = []
    for row, label in zip(numbers, labels, strict=True):
        keys = np.flatnonzero(row)
        features = tensor(row[keys], keys.tolist(), [5]) if sparse and len(keys) else tensor(row)
        records.append(record(features, tensor(np.array([label], "float32"))))
    features, label = everything(table(tmp_path, b"".join(records), "recordio", "a.pbr"))
    np.testing.assert_array_equal(features.numpy(), numbers.astype(np.float32))
    assert (label.tolist(), label.dtype) == (labels.tolist(), torch.int64)


def test_recordio_without_a_label_and_what_is_said_of_it_that_is_wrong(tmp_path):
    one = record(tensor(np.ones(3, np.float32)), None)
    (features,) = everything(table(tmp_path, one * 2, "recordio", "a.pbr"))
    assert features.tolist() == [[1, 1, 1]] * 2
    other = record(tensor(np.ones(4, np.float32)), None)
    assert "a.pbr, record 2: it has 4 features" in refusal(tmp_path, one + other, "recordio", name="a.pbr").what
    assert "record 2: the file ends within it" in refusal(tmp_path, one + one[:-4], "recordio", name="a.pbr").what
    assert "record 2: it does not begin" in refusal(tmp_path, one + b"\0" * 40, "recordio", name="a.pbr").what


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_no_damage_of_a_file_gives_anything_but_rows_or_a_data_error(tmp_path, small_blocks, data):
    whole = {
        "csv": b"a,y\n" + b"1.5,2\n" * 30,
        "jsonl": b'{"a": 1.5, "y": 2}\n' * 30,
        "libsvm": b"1 1:2 3:4\n" * 30,
        "recordio": record(tensor(np.ones(3, np.float32)), tensor(np.ones(1, np.float32))) * 10,
    }
    kind = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = table(tmp_path, bytes(content[: data.draw(st.integers(1, len(content)))]), kind)
        everything(read)
    except DataError:
        pass


# -- the cache and the order -------------------------------------------------------------------------------------------


def long_csv(folder: Path, rows: int = 3000, name: str = "a.csv") -> None:
    (folder / name).write_text("a,text,y\n" + "".join(f"{row}.5,t{row},{row % 7}\n" for row in range(rows)))


def check_rows(read, rows) -> None:
    batch = read.__getitems__(torch.as_tensor(rows))
    assert batch["a"].tolist() == [row + 0.5 for row in rows]
    assert batch["text"] == [f"t{row}" for row in rows]
    assert batch["y"].tolist() == [row % 7 for row in rows]


@pytest.fixture
def no_parsing(monkeypatch):
    """Fails where a block is parsed."""

    def refuse():
        monkeypatch.setattr(
            smkit.data.tables.delimited.Delimited, "parse", lambda *_: pytest.fail("a block was parsed")
        )

    return refuse


def test_a_block_is_parsed_when_it_is_asked_for_and_some_ahead(tmp_path, small_blocks, monkeypatch):
    long_csv(tmp_path)
    read = opened(tmp_path)
    read.threads = 1
    parsed: list[int] = []
    parse = smkit.data.tables.delimited.Delimited.parse
    monkeypatch.setattr(
        smkit.data.tables.delimited.Delimited,
        "parse",
        lambda self, block, columns: parsed.append(block.first) or parse(self, block, columns),
    )
    check_rows(read, [2900, 2901])
    assert len(parsed) == 1
    check_rows(read, list(range(2900, 2910)))
    done = len(parsed)
    check_rows(read, [2900] * 100)
    assert done < len(parsed) < 60
    assert min(parsed[done:]) >= 2900 or max(parsed[done:]) < 2900
    check_rows(read, list(range(3000)))
    assert len(parsed) == len(set(parsed)) == len(read._format.blocks)


def test_parsed_rows_are_kept_for_the_next_run(tmp_path, small_blocks, no_parsing):
    long_csv(tmp_path)
    check_rows(opened(tmp_path), list(range(3000)))
    (cache,) = published(tmp_path)
    assert cache.stat().st_mode & 0o777 == 0o700
    no_parsing()
    read = opened(tmp_path)
    check_rows(read, [5, 2999, 0, 5])
    check_rows(pickle.loads(pickle.dumps(read)), [7])


def test_another_file_or_choice_is_another_cache(tmp_path, small_blocks):
    long_csv(tmp_path)
    everything(opened(tmp_path))
    published(tmp_path)
    features, _ = everything(opened(tmp_path, columns=["a"]))
    assert features.shape == (3000, 1)
    long_csv(tmp_path, 2999)
    check_rows(opened(tmp_path), list(range(2999)))


def test_a_damaged_cache_is_made_anew(tmp_path, small_blocks, caplog):
    long_csv(tmp_path)
    everything(opened(tmp_path))
    (cache,) = published(tmp_path)
    for damage in ("rows.bin", "texts.bin", "manifest.json"):
        content = (cache / damage).read_bytes()
        (cache / damage).write_bytes(content[:-1])
        with caplog.at_level(logging.WARNING):
            check_rows(opened(tmp_path), list(range(3000)))
        assert "is damaged and made anew" in caplog.text
        caplog.clear()
        assert published(tmp_path) == [cache]
        (cache / damage).unlink()
        check_rows(opened(tmp_path), list(range(3000)))
        assert published(tmp_path) == [cache]


def test_a_flipped_bit_of_the_cache_is_noticed(tmp_path, small_blocks, caplog):
    long_csv(tmp_path)
    everything(opened(tmp_path))
    (cache,) = published(tmp_path)
    for name in ("rows.bin", "manifest.json"):
        for place in (10, -10):
            content = bytearray((cache / name).read_bytes())
            content[place] ^= 1
            (cache / name).write_bytes(content)
            caplog.clear()
            check_rows(opened(tmp_path), list(range(3000)))
            assert "is damaged and made anew" in caplog.text
            assert published(tmp_path) == [cache]


@pytest.mark.parametrize("name", ["rows.bin", "manifest.json", ""])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.touch])
def test_what_is_no_cache_is_not_waited_for(tmp_path, small_blocks, name, make):
    long_csv(tmp_path)
    everything(opened(tmp_path))
    (cache,) = published(tmp_path)
    if name:
        (cache / name).unlink()
    else:
        shutil.rmtree(cache)
    make(cache / name)
    check_rows(opened(tmp_path), list(range(3000)))
    assert published(tmp_path) == [cache]


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path, small_blocks):
    long_csv(tmp_path, 100_000)
    code = f"""
import os, signal, pathlib
from smkit.data.loader import make_loader
from smkit.data.tables.opening import open_table
folder = pathlib.Path({str(tmp_path)!r})
read = open_table(folder, ["a.csv"], "csv", where="x", cache_dir=folder / "cache")
read.__getitems__([0])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=SECONDS)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "cache").iterdir()
    other = opened(tmp_path)
    check_rows(other, [5])
    (own,) = (tmp_path / "cache").iterdir()
    assert own != left
    check_rows(opened(tmp_path), [5])
    assert own.exists(), "the folder of a living process was taken for an abandoned one"


def test_two_that_parse_the_same_files_end_with_one_cache(tmp_path, small_blocks):
    long_csv(tmp_path)
    first, second = opened(tmp_path), opened(tmp_path)
    check_rows(first, [1])
    check_rows(second, list(range(3000)))
    (cache,) = published(tmp_path)
    check_rows(first, list(range(3000)))
    check_rows(second, [17])
    del first, second
    deadline = time.monotonic() + 10
    while list((tmp_path / "cache").iterdir()) != [cache]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_forked_process_has_a_cache_of_its_own(tmp_path, small_blocks):
    long_csv(tmp_path)
    read = opened(tmp_path)
    check_rows(read, [1])
    child = os.fork()
    if child == 0:
        try:
            check_rows(read, list(range(100, 1000)))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    check_rows(read, list(range(3000)))


def test_a_table_of_text_labels_goes_to_other_processes_with_its_classes(tmp_path, small_blocks):
    rows = [f"{row},{'cab'[row % 3]}\n" for row in range(500)]
    read = table(tmp_path, "".join(["a,y\n", *rows]))
    published(tmp_path)
    copy = pickle.loads(pickle.dumps(read))
    for each in (read, copy, opened(tmp_path)):
        assert each.classes == ("a", "b", "c")
        assert everything(each)[1].tolist() == [[2, 0, 1][row % 3] for row in range(500)]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    long_csv(tmp_path)
    read = opened(tmp_path)
    found = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: type("S", (), {"f_bavail": 1, "f_frsize": found.f_frsize}))
    with pytest.raises(DataError, match=r"the parsed table takes 0\.\d MB, and .*cache has 0\.\d MB left"):
        read.__getitems__([0])
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_default_folder_is_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "a.csv").write_text("1,2\n")
    read = open_table(tmp_path, ["a.csv"], "csv", where="channel 'train'")
    everything(read)
    assert next((tmp_path / "tmp").glob("smkit-cache-*")).stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(DataError, match="is not this user's own folder"):
        open_table(tmp_path, ["a.csv"], "csv", where="channel 'train'")


def test_the_order_does_not_depend_on_the_cache(tmp_path, small_blocks, no_parsing):
    long_csv(tmp_path, 1000, "a.csv")
    long_csv(tmp_path, 500, "b.csv")
    read = opened(tmp_path)
    assert read.windows.segments == (1000, 500)
    assert read.batch_bytes(10) is None
    before = read.windows, read.fingerprint
    everything(read)
    published(tmp_path)
    no_parsing()
    again = opened(tmp_path)
    assert (again.windows, again.fingerprint) == before
    os.utime(tmp_path / "a.csv", (1, 1))
    assert opened(tmp_path).fingerprint == read.fingerprint
    assert opened(tmp_path, columns=["a"]).fingerprint != read.fingerprint


def test_a_small_table_is_shuffled_as_a_whole(tmp_path):
    read = table(tmp_path, "1,2\n3,4\n")
    assert read.windows is None
    assert read.batch_bytes(10) is None
    everything(read)
    assert read.batch_bytes(10) == 10 * (4 + 8)


def test_a_file_that_shrinks_during_a_run_is_an_error(tmp_path, small_blocks):
    long_csv(tmp_path)
    read = opened(tmp_path)
    check_rows(read, [0])
    long_csv(tmp_path, 10)
    with pytest.raises(DataError, match=r"a.csv is shorter than it was"):
        check_rows(read, [2999])


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
    assert refusal(tmp_path, "1,2\n").fix == "pip install 'smkit[tabular]'"
    (tmp_path / "a.csv").unlink()
    assert everything(table(tmp_path, "1 1:2\n", "libsvm"))[0].tolist() == [[2]]


@pytest.mark.parametrize("workers", ["thread", "process"])
def test_an_epoch_is_every_row_once_and_goes_on_where_it_stopped(tmp_path, small_blocks, monkeypatch, workers):
    monkeypatch.setattr(smkit.data.tables.table, "_FIRST_WINDOW", 16)
    monkeypatch.setattr(smkit.data.tables.table, "_LARGEST_WINDOW", 512)
    long_csv(tmp_path, 1000, "a.csv")
    long_csv(tmp_path, 700, "b.csv")
    options = {"batch_size": 64, "seed": 3, "workers": workers, **({"num_workers": 2} if workers == "process" else {})}
    loader = make_loader(opened(tmp_path, columns=["a"]), **options)
    epochs = [[batch[0][:, 0].tolist() for batch in loader] for _ in range(2)]
    for epoch in epochs:
        assert sorted(chain.from_iterable(epoch)) == sorted(row + 0.5 for rows in (1000, 700) for row in range(rows))
    assert epochs[0] != epochs[1]
    (tmp_path / "new").mkdir()
    fresh = open_table(tmp_path, ["a.csv", "b.csv"], "csv", columns=["a"], where="x", cache_dir=tmp_path / "new")
    resumed = make_loader(fresh, **options)
    for _ in range(24):
        resumed.advance()
    assert [batch[0][:, 0].tolist() for batch in resumed] == epochs[0][24:]


def test_a_row_longer_than_a_block_is_read(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 40_000)).astype(np.float32)
    content = "".join(",".join(["1", *map(repr, row.tolist())]) + "\n" for row in values)
    features, _ = everything(table(tmp_path, content))
    np.testing.assert_array_equal(features.numpy(), values)
