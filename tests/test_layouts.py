"""What a channel holds is found out, said aloud, and can be overridden; what cannot be is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import smkit
from smkit.data.layouts import open_dataset
from smkit.errors import ConfigurationError, DataError

pytestmark = pytest.mark.train


@dataclass
class Folder:
    """A channel as `open_dataset` sees it; a job's has these facts, a folder of one's own need not."""

    path: Path
    name: str = "train"
    content_type: str | None = None
    input_mode: str = "File"


@pytest.fixture
def channel(tmp_path: Path) -> Folder:
    path = tmp_path / "channel"
    path.mkdir()
    return Folder(path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([1, 0, 1, 1])
TABLE = {"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "label": Y}


def csv(header: bool = False) -> bytes:
    rows = "".join(f"{y},{a},{b},{c}\n" for y, (a, b, c) in zip(Y, X, strict=True))
    return (("label,a,b,c\n" if header else "") + rows).encode()


def jsonl() -> bytes:
    rows = ({name: column[row].item() for name, column in TABLE.items()} for row in range(4))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def libsvm() -> bytes:
    return "".join(f"{y} 1:{a} 2:{b} 3:{c}\n" for y, (a, b, c) in zip(Y, X, strict=True)).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(TABLE), sink)
    return sink.getvalue()


def arrow() -> bytes:
    sink = io.BytesIO()
    table = pa.table(TABLE)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def recordio() -> bytes:
    """SageMaker's RecordIO-protobuf, put together by hand."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def entry(number: int, floats: np.ndarray) -> bytes:
        value = field(2, field(1, floats.astype("<f4").tobytes()))
        return field(number, field(1, b"values") + field(2, value))

    records = []
    for y, row in zip(Y, X, strict=True):
        payload = entry(1, row) + entry(2, np.array([y]))
        records.append(struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4))
    return b"".join(records)


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number, (y, row) in enumerate(zip(Y, X, strict=True)):
            array = io.BytesIO()
            np.save(array, row)
            for suffix, content in (("npy", array.getvalue()), ("cls", str(y).encode())):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


CONTENTS = {
    "rows.csv": csv(),
    "header.csv": csv(header=True),
    "rows.csv.gz": gzip.compress(csv()),
    "rows.jsonl": jsonl(),
    "rows.parquet": parquet(),
    "rows.arrow": arrow(),
    "rows.libsvm": libsvm(),
    "rows.recordio": recordio(),
    "rows.tar": tar(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_each_layout_is_found_by_its_suffix_and_gives_the_same_batches(name, channel, cache):
    (channel.path / "part").mkdir()
    (channel.path / "part" / name).write_bytes(CONTENTS[name])
    for marker in ("_SUCCESS", "_committed_1", ".part.crc", "train.manifest", "rows.md5"):
        (channel.path / marker).touch()
    dataset = open_dataset(channel, cache_dir=cache)
    assert len(dataset) == 4
    [(features, labels)] = smkit.make_loader(dataset, batch_size=4, shuffle=False)
    assert (features.dtype, labels.dtype) == (torch.float32, torch.int64 if name != "rows.recordio" else labels.dtype)
    assert features.tolist() == X.tolist()
    assert labels.tolist() == Y.tolist()
    assert "\n" not in repr(dataset)
    assert "4" in repr(dataset)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.recordio", "rows.tar"])
def test_a_file_without_a_suffix_is_known_by_its_first_bytes(name, channel, cache):
    (channel.path / "part-00000").write_bytes(CONTENTS[name])
    assert len(open_dataset(channel, cache_dir=cache)) == 4


@pytest.mark.parametrize(
    ("content_type", "name"),
    [
        ("text/csv", "rows.csv"),
        ("text/csv; label_size=1", "rows.csv"),
        ("text/x-libsvm", "rows.libsvm"),
        ("application/x-recordio-protobuf", "rows.recordio"),
        ("application/jsonlines", "rows.jsonl"),
        ("application/x-parquet", "rows.parquet"),
    ],
)
def test_a_file_without_a_suffix_is_what_the_channels_content_type_says(content_type, name, channel, cache):
    channel.content_type = content_type
    (channel.path / "part-00000").write_bytes(CONTENTS[name])
    assert len(open_dataset(channel, cache_dir=cache)) == 4


def test_a_content_type_without_a_label_makes_all_columns_features(channel, cache):
    channel.content_type = "text/csv;label_size=0"
    (channel.path / "rows.csv").write_bytes(csv())
    [(features,)] = smkit.make_loader(open_dataset(channel, cache_dir=cache), batch_size=4, shuffle=False)
    assert features.shape == (4, 4)


def test_text_is_lines(channel, cache):
    (channel.path / "lines.txt").write_text("one\ntwo\nthree")
    [batch] = smkit.make_loader(open_dataset(channel, cache_dir=cache), batch_size=3, shuffle=False)
    assert batch == {"text": ["one", "two", "three"]}


def test_two_layouts_are_refused_until_an_argument_decides(channel, cache):
    (channel.path / "rows.csv").write_bytes(csv())
    (channel.path / "more.csv").write_bytes(csv())
    (channel.path / "rows.jsonl").write_bytes(jsonl())
    with pytest.raises(DataError) as caught:
        open_dataset(channel)
    assert str(caught.value) == (
        "more than one layout fits what is there, csv (2) and jsonl (1): more.csv, rows.csv, rows.jsonl\n"
        f"  where: channel 'train' ({channel.path})\n"
        "  fix:   say which with open_dataset(..., layout='csv'), or keep one of them"
    )
    assert len(open_dataset(channel, layout="csv", cache_dir=cache)) == 8
    assert len(open_dataset(channel, layout="jsonl", cache_dir=cache)) == 4
    with pytest.raises(DataError, match="no file can be of the layout 'parquet'"):
        open_dataset(channel, layout="parquet")


def test_files_of_an_unknown_suffix_are_read_as_what_an_argument_says(channel, cache):
    (channel.path / "rows.dat").write_bytes(csv())
    with pytest.raises(DataError, match=r"(?s)no known layout fits what is there: rows.dat.*layout="):
        open_dataset(channel)
    assert len(open_dataset(channel, layout="csv", cache_dir=cache)) == 4


def test_a_label_and_columns_are_chosen_by_name(channel, cache):
    (channel.path / "rows.csv").write_bytes(csv(header=True))
    dataset = open_dataset(channel, label="b", columns=["c", "a"], cache_dir=cache)
    [(features, labels)] = smkit.make_loader(dataset, batch_size=4, shuffle=False)
    assert features.tolist() == X[:, [2, 0]].tolist()
    assert labels.tolist() == X[:, 1].tolist()
    with pytest.raises(DataError, match="laebl"):
        open_dataset(channel, label="laebl", cache_dir=cache)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rows.csv", {"image_size": 8}, r"image_size is 8, and the channel holds a table \(csv\)"),
        ("rows.tar", {"label": "a"}, "label is 'a', and the channel holds tar shards"),
        ("x.npy", {"columns": ["a"]}, r"columns is \['a'\], and the channel holds arrays"),
    ],
)
def test_an_argument_that_does_not_go_with_the_layout_is_refused(name, options, message, channel):
    (channel.path / name).write_bytes(CONTENTS.get(name, b""))
    with pytest.raises(ConfigurationError, match=message):
        open_dataset(channel, **options)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["shard.00000.mds", "index.json"], "a Mosaic streaming data set.*streaming.StreamingDataset.*build_dataset"),
        (["chunk-0-0.bin", "index.json"], "a litdata data set.*litdata.StreamingDataset"),
        (["train.beton"], "an FFCV data set"),
        (["a.tfrecord"], "TFRecords"),
        (["a.tar.gz"], "gzip"),
        (["a.tgz"], "a compressed archive.*plain .tar shards"),
        (["a.zip"], "a compressed archive"),
    ],
)
def test_formats_of_others_are_named_with_what_reads_them(files, message, channel):
    for file in files:
        (channel.path / file).write_bytes(b"")
    with pytest.raises(DataError, match=f"(?s){message}"):
        open_dataset(channel)


def test_images_beside_a_table_stay_images_whatever_the_content_type_says(channel):
    Image.new("RGB", (4, 4)).save(channel.path / "1.png")
    (channel.path / "labels.csv").write_text("file,label\n1.png,3\n")
    channel.content_type = "text/csv"
    assert type(open_dataset(channel)).__name__ == "Images"


def test_a_streamed_channel_of_shards_says_how_far_it_shuffles(channel):
    channel.input_mode = "FastFile"
    for number in range(3):
        (channel.path / f"{number}.tar").write_bytes(tar())
    dataset = open_dataset(channel)
    loader = smkit.make_loader(dataset, batch_size=5)
    assert "shuffled by 3 files in random order, then windows of up to" in loader.describe()
    assert "shuffled" not in smkit.make_loader(dataset, batch_size=5, shuffle=False).describe()
    seen = torch.cat([features for features, _ in loader])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, np.concatenate([X, X, X]).tolist()))


def test_two_epochs_of_a_large_table_differ_and_each_row_comes_once(channel, cache):
    n = 70_000
    (channel.path / "rows.csv").write_text("".join(f"{row % 7},{row}\n" for row in range(n)))
    dataset = open_dataset(channel, cache_dir=cache)
    loader = smkit.make_loader(dataset, batch_size=1000)
    assert loader.describe().count("shuffled in the first epoch by windows of up to") == 1
    epochs = []
    for _ in range(2):
        rows = torch.cat(
            [torch.stack([features[:, 0].long() % 7, labels, features[:, 0].long()]) for features, labels in loader], 1
        )
        assert rows[0].equal(rows[1])
        assert rows[2].sort().values.equal(torch.arange(n))
        epochs.append(rows[2])
    assert int(epochs[0][:1000].max()) < 20_000, "the first batch does not wait for the whole file"
    assert int(epochs[1][:1000].max()) > 60_000
    again = smkit.make_loader(open_dataset(channel, cache_dir=cache), batch_size=1000)
    assert torch.cat([features[:, 0].long() for features, _ in again]).equal(epochs[0]), "whatever is in the cache"


def test_the_parts_that_spark_writes_are_of_the_layout_that_their_folder_names(channel, cache):
    for file in ("rows.csv/part-00000", "rows.csv/part-00001.gz", "rows.csv/_SUCCESS"):
        path = channel.path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(csv()) if file.endswith(".gz") else b"" if file.endswith("SS") else csv())
    assert len(open_dataset(channel, cache_dir=cache)) == 8


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_of_too_many_columns_is_refused_before_it_takes_minutes(kind, channel, cache):
    names = [f"c{number}" for number in range(70_000)]
    content = {
        "csv": f"{','.join(names)}\n{','.join('1' for _ in names)}\n".encode,
        "jsonl": lambda: json.dumps(dict.fromkeys(names, 1)).encode(),
        "parquet": lambda: parquet_of(pa.table({name: [1] for name in names})),
    }[kind]()
    (channel.path / f"a.{kind}").write_bytes(content)
    with pytest.raises(DataError, match="the table has 70,000 columns, and smkit reads up to 65,536"):
        open_dataset(channel, cache_dir=cache)


def parquet_of(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "1", "cat"], "a.csv, line 4: the label is 'cat', and a whole number in most other rows"),
        (["0", "1", "\u0662"], "a.csv, line 4: the label is '\u0662', and a whole number in most other rows"),
        (["0.5", "inf"], "a.csv, line 3: the label 'label' is infinite"),
        (["0", "1", "2", "a", "b", "c"], None),
    ],
)
def test_a_stray_text_among_numbers_does_not_make_names_of_them(labels, message, channel, cache):
    (channel.path / "a.csv").write_text("label,x\n" + "".join(f"{label},1\n" for label in labels))
    if message is None:
        assert open_dataset(channel, cache_dir=cache).classes == tuple(labels)
    else:
        with pytest.raises(DataError, match=message):
            open_dataset(channel, cache_dir=cache)[0]


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"label,x\r1,2\r", "end each line with a line feed"),
        (b"label,x\n1," + b"9" * 200_000, "begin the file with rows of shorter values"),
        (b"label,x\n1,\xff", "write it as UTF-8 text"),
    ],
)
def test_first_rows_that_cannot_be_read_are_told_apart(content, advice, channel, cache):
    (channel.path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_dataset(channel, cache_dir=cache)
    assert caught.value.fix.startswith(advice)


def test_zeros_that_a_lost_download_leaves_are_no_text(channel, cache):
    (channel.path / "a.csv").write_bytes(b"label,\0\0\0\0\0,2\n1,2\n")
    with pytest.raises(DataError, match=r"the first rows of a\.csv hold a NUL character"):
        open_dataset(channel, cache_dir=cache)
    (channel.path / "a.csv").write_bytes(b"label,x\n1,2\ncat\0\0\0,3\n")
    with pytest.raises(DataError, match=r"a\.csv, line 3: there is a NUL character"):
        open_dataset(channel, cache_dir=cache)


def test_offsets_of_an_arrow_file_that_point_outside_of_it_are_not_followed(channel, cache):
    content = bytearray(arrow_of(pa.table({"label": [0, 1], "x": [[1, 2], [3, 4]]})))
    offsets = bytes(content).find(struct.pack("<3i", 0, 2, 4))
    content[offsets : offsets + 12] = struct.pack("<3i", 0, 2_000_000_000, 2_000_000_002)
    (channel.path / "a.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.arrow cannot be read"):
        open_dataset(channel, cache_dir=cache)[0]


def arrow_of(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_arrays_that_share_a_name_are_refused(channel):
    with zipfile.ZipFile(channel.path / "a.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in (0.0, 1.0):
            with archive.open("x.npy", "w") as file:
                np.lib.format.write_array(file, np.full(3, value))
    with pytest.raises(DataError, match="two arrays of it have one name"):
        open_dataset(channel)
    (channel.path / "a.npz").unlink()
    torch.save({1: torch.zeros(3), "1": torch.ones(3)}, channel.path / "a.pt")
    with pytest.raises(DataError, match=r"two arrays of a\.pt are called '1'"):
        open_dataset(channel)


def test_an_archive_that_does_not_fit_into_memory_is_refused_before_it_is_unpacked(channel):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**45,)})
    with zipfile.ZipFile(channel.path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head.getvalue())
        archive.infolist()[0].file_size = 2**47
    with pytest.raises(DataError, match="it is 140,737,488,355,328 bytes when unpacked"):
        open_dataset(channel)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": "x", "label": 1}\n{"a": "\xff", "label": 1}\n', "a.jsonl, line 2: column 'a' is no UTF-8"),
        ("a.jsonl", b'{"\xff": 1, "label": 1}\n', "a.jsonl, line 1: the name of a column is no UTF-8"),
        ("a.jsonl", b"{}\n{}\n", "the rows have no columns"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl, line 1: "),
        ("metadata.jsonl", b"[" * 100_000, "metadata.jsonl cannot be read: "),
    ],
)
def test_text_that_is_damaged_is_named(name, content, message, channel, cache):
    (channel.path / name).write_bytes(content)
    if name == "metadata.jsonl":
        Image.new("RGB", (4, 4)).save(channel.path / "1.png")
    with pytest.raises(DataError, match=message):
        next(iter(smkit.make_loader(open_dataset(channel, cache_dir=cache), batch_size=2, shuffle=False)))


def test_numbers_beyond_float32_are_infinite(channel, cache):
    table = pa.table({"a": [1e300, 1.0], "label": [0, 1]})
    pyarrow.parquet.write_table(table, channel.path / "a.parquet", write_page_checksum=True)
    [(features, _)] = smkit.make_loader(open_dataset(channel, cache_dir=cache), batch_size=2, shuffle=False)
    assert features.tolist() == [[float("inf")], [1.0]]


def test_a_flipped_bit_in_a_checksummed_page_is_found(channel, cache):
    file = channel.path / "a.parquet"
    table = pa.table({"a": np.random.default_rng(0).random(4000), "label": np.zeros(4000, np.int64)})
    pyarrow.parquet.write_table(table, file, write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"^a.parquet cannot be read"):
        next(iter(smkit.make_loader(open_dataset(channel, cache_dir=cache), batch_size=2)))


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.zeros(3, dtype=torch.uint16), "uint16"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(3, device="meta"), "without data"),
    ],
)
def test_tensors_whose_rows_cannot_be_read_are_refused(tensor, kind, channel):
    torch.save({"x": tensor}, channel.path / "x.pt")
    with pytest.raises(DataError, match=f"'x' in x.pt is a tensor that rows cannot be read from: {kind}"):
        open_dataset(channel)


def test_a_pipe_among_the_files_is_not_waited_for(channel):
    (channel.path / "rows.csv").write_bytes(csv())
    os.mkfifo(channel.path / "more.csv")
    with pytest.raises(DataError, match=r"more.csv cannot be read: it is neither a file nor a folder"):
        open_dataset(channel)
