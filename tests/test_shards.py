"""Tar shards: what samples are and how fields are decoded, from archives of all kinds; and what is refused, and how."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from smkit.data.images import Images
from smkit.data.loader import make_loader
from smkit.data.order import epoch_order
from smkit.data.shards import files as shard_files
from smkit.data.shards.shards import Shards, open_shards
from smkit.data.source import SampleError
from smkit.errors import ConfigurationError, DataError

pytestmark = pytest.mark.train

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
WHERE = "channel 'train'"


def encoded(kind: str, number: int = 0, height: int = 12, width: int = 12) -> bytes:
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 / height, columns * 255 / width, np.full((height, width), number * 7 % 256)], axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pt(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def pack(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.name


def shards(folder: Path, *contents: Iterable[tuple[str, bytes]], **options: Any) -> Shards:
    """One shard for each of `contents`."""
    files = [pack(folder / f"{number}.tar", content) for number, content in enumerate(contents)]
    return open_shards(folder, files, where=WHERE, **options)


def refusal(folder: Path, *contents: Iterable[tuple[str, bytes]], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        shards(folder, *contents, **options)
    assert caught.value.where == WHERE
    return caught.value.what


def numbered(start: int, stop: int) -> list[tuple[str, bytes]]:
    return [
        (f"{number:03}.{field}", content)
        for number in range(start, stop)
        for field, content in (("npy", npy(np.float32([number]))), ("cls", str(number % 3).encode()))
    ]


# -- samples and fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("folder", ["", "./", "a.b/", f"{'d' * 60}/{'e' * 60}/", f"ä/{'long' * 60}"])
def test_names_of_any_length_are_keys_in_every_kind_of_archive(tmp_path, form, folder):
    if form == "ustar" and "long" in folder:
        folder = "ä/"
    contents = {f"{folder}{key}": f"{key}".encode() for key in ("x", "y", "z.b", "A")}
    pack(tmp_path / "0.tar", ((f"{key.removesuffix('.b')}.Bin", text) for key, text in contents.items()), FORMATS[form])
    dataset = open_shards(tmp_path, ["0.tar"], where=WHERE)
    assert dataset.__getitems__([2, 0, 3, 1]) == {"bin": [b"z.b", b"x", b"A", b"y"]}


def test_fields_are_decoded_by_their_extensions(tmp_path):
    fields = {
        "jpg": encoded("JPEG"),
        "left.png": encoded("PNG", 1, 6, 4),
        "webp": encoded("WEBP", 2),
        "cls": b" 7\n",
        "kind.cls": "Bär".encode(),
        "npy": npy(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "pth": pt(torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True)),
        "meta.pt": pt({"a": torch.tensor(1), "b": [2, 3]}),
        "json": json.dumps({"ä": [1, None]}).encode(),
        "txt": "zwölf\n".encode(),
        "flac": b"\x00\x01",
    }
    dataset = shards(tmp_path, [(f"{key}.{name}", content) for key in "ab" for name, content in fields.items()])
    batch = dataset.__getitems__([1, 0])
    assert list(batch) == sorted(fields)
    assert batch["jpg"].shape == (2, 3, 12, 12)
    assert batch["jpg"].is_contiguous(memory_format=torch.channels_last)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(fields["left.png"])))).permute(2, 0, 1)
    assert batch["left.png"][1].equal(expected)
    assert batch["webp"].dtype == torch.uint8
    assert batch["cls"].tolist() == [7, 7]
    assert batch["kind.cls"].tolist() == [0, 0]
    assert batch["npy"].equal(torch.arange(6, dtype=torch.int16).reshape(1, 2, 3).expand(2, 2, 3))
    assert batch["pth"].equal(torch.full((2, 1), 1.5, dtype=torch.bfloat16))
    assert batch["meta.pt"] == [{"a": torch.tensor(1), "b": [2, 3]}] * 2
    assert batch["json"] == [{"ä": [1, None]}] * 2
    assert batch["txt"] == ["zwölf\n"] * 2
    assert batch["flac"] == [b"\x00\x01"] * 2
    assert dataset.classes == ()
    assert dataset[-1]["txt"] == "zwölf\n"
    assert repr(dataset) == (
        "Shards(2 samples in 1 shards: cls int64, flac bytes, jpg 12x12 uint8, json values, kind.cls int64, "
        "left.png 6x4 uint8, meta.pt values, npy (2, 3) int16, pth (1,) bfloat16, txt str, webp 12x12 uint8)"
    )
    raw = Shards(tmp_path, ["0.tar"], decode=False)
    assert raw.__getitems__([1]) == {name: [fields[name]] for name in sorted(fields)}


def test_an_image_and_its_class_are_a_pair_as_images_have_it(tmp_path):
    names = ["wolf", "fox", "wolf", "cat"]
    for number, name in enumerate(names):
        path = tmp_path / name / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded("JPEG", number, 40, 60))
    members = [
        (f"{number}.{field}", content)
        for number, name in enumerate(names)
        for field, content in (("cls", name.encode()), ("jpg", (tmp_path / name / f"{number}.jpg").read_bytes()))
    ]
    paths = [f"{name}/{number}.jpg" for number, name in enumerate(names)]
    for size in (None, 10, (8, 20)):
        dataset = shards(tmp_path, members[:4], members[4:], image_size=size)
        images, labels = dataset.__getitems__([3, 0, 1, 2])
        expected_images, expected_labels = Images(tmp_path, paths, names, size=size).__getitems__([3, 0, 1, 2])
        assert images.equal(expected_images)
        assert labels.equal(expected_labels)
    assert dataset.classes == ("cat", "fox", "wolf")
    assert repr(dataset) == "Shards(4 samples of 3 classes in 2 shards: cls int64, jpg 8x20 uint8)"


def test_arrays_and_labels_are_a_pair_and_members_may_lie_anywhere_in_the_shard(tmp_path):
    members = numbered(0, 20)
    order = np.random.default_rng(0).permutation(len(members)).tolist()
    dataset = shards(tmp_path, [members[place] for place in order], numbered(20, 30))
    arrays, labels = dataset.__getitems__(list(range(30)))
    assert sorted(arrays[:, 0].tolist()) == list(range(30))
    assert labels.tolist() == [int(value) % 3 for value in arrays[:, 0].tolist()]


def test_folders_and_hidden_files_are_left_aside(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a", "a/.hidden"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        for name in ("a/1.txt", "a/._1.txt", "__MACOSX/._1.txt", ".DS_Store", "a/.hidden/2.txt", ".cache/3.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    assert open_shards(tmp_path, ["0.tar"], where=WHERE).__getitems__([0]) == {"txt": ["x"]}
    assert len(open_shards(tmp_path, ["0.tar"], where=WHERE)) == 1


def test_sizes_and_names_in_pax_headers_and_in_binary_count(tmp_path):
    content = b"y" * 700
    info = tarfile.TarInfo("short.bin")
    info.size = len(content)
    info.pax_headers = {"size": "700", "path": f"{'long' * 40}.bin", "comment": "1"}
    data = info.tobuf(tarfile.PAX_FORMAT) + content + bytes(324)
    binary = bytearray(tarfile.TarInfo("z.bin").tobuf(tarfile.GNU_FORMAT))
    binary[124:136] = b"\x80" + (3).to_bytes(11, "big")
    binary[148:156] = b"%06o\0 " % (sum(binary[:148]) + sum(binary[156:]) + 256)
    of_all = tarfile.TarInfo.create_pax_global_header({"comment": "of all"})
    (tmp_path / "0.tar").write_bytes(of_all + data + binary + b"zzz" + bytes(509) + bytes(1024))
    assert open_shards(tmp_path, ["0.tar"], where=WHERE).__getitems__([1, 0]) == {"bin": [b"zzz", content]}


def test_the_fingerprint_is_of_what_lies_in_the_shards(tmp_path):
    first = shards(tmp_path / "a", numbered(0, 4), numbered(4, 8)).fingerprint
    assert 0 <= first < 2**63
    assert shards(tmp_path / "b", numbered(0, 4), numbered(4, 8)).fingerprint == first
    assert shards(tmp_path / "c", numbered(0, 5), numbered(5, 8)).fingerprint != first
    members = numbered(0, 4)
    assert shards(tmp_path / "d", [*members[:-1], (members[-1][0], b"2")], numbered(4, 8)).fingerprint != first


# -- who reads them ----------------------------------------------------------------------------------------------------


def opened_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def values_of(loader: Any) -> Counter[float]:
    return Counter(value for arrays, _ in loader for value in arrays[:, 0].tolist())


@pytest.mark.parametrize("is_streamed", [False, True])
def test_every_sample_is_read_once_in_an_epoch(tmp_path, is_streamed):
    dataset = shards(tmp_path, *(numbered(start, start + 7) for start in range(0, 140, 7)), is_streamed=is_streamed)
    loader = make_loader(dataset, batch_size=16)
    for _ in range(2):
        assert values_of(loader) == Counter(range(140))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_another_process_opens_the_shards_itself(tmp_path, method):
    dataset = shards(tmp_path, numbered(0, 5), numbered(5, 10))
    dataset.__getitems__([0, 9])
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(dataset.__getitem__, (7,))[0].tolist() == [7]
    assert pickle.loads(pickle.dumps(dataset))[9][0].tolist() == [9]


def test_thousands_of_shards_need_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "_OPENED", 4)
    dataset = shards(tmp_path, *(numbered(number, number + 1) for number in range(30)))
    before = opened_files()
    arrays, _ = dataset.__getitems__([*range(29, -1, -1), *range(30)])
    assert arrays[:, 0].tolist() == [*range(29, -1, -1), *range(30)]
    assert opened_files() <= before + 4
    del dataset
    assert opened_files() <= before


# -- streamed shards ---------------------------------------------------------------------------------------------------


def test_a_streamed_shard_is_copied_once_in_an_epoch_and_few_copies_lie_on_the_disk(tmp_path, monkeypatch):
    dataset = shards(
        tmp_path,
        *(numbered(start, start + 10) for start in range(0, 400, 10)),
        is_streamed=True,
        cache_dir=tmp_path / "c",
    )
    assert dataset.windows is not None
    assert dataset.windows.describe() == "shuffled by 40 files in random order, then windows of up to 80 samples"
    copied: list[int] = []
    copy = shard_files.ShardFiles._copy
    most = 0

    def counted(self: Any, shard: int, original: Any) -> Any:
        nonlocal most
        copied.append(shard)
        most = max(most, len(self._opened) + 1)
        return copy(self, shard, original)

    monkeypatch.setattr(shard_files.ShardFiles, "_copy", counted)
    order = epoch_order(400, seed=1, epoch=0, shuffle=True, windows=dataset.windows)
    seen: list[float] = []
    for start in range(0, 400, 16):
        seen += dataset.__getitems__(order[start : min(400, start + 16)])[0][:, 0].tolist()
    assert seen == order[0:400].tolist()
    assert sorted(copied) == list(range(40))
    assert most <= 10
    assert list((tmp_path / "c").iterdir()) == []


def test_copies_that_do_not_fit_are_refused_with_both_numbers(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000_000))
    monkeypatch.setattr(shard_files.ShardFiles, "open_itself", lambda *_: pytest.fail("no copy is begun"))
    big = [("a.bin", bytes(9_000_000))]
    said = refusal(tmp_path, big, big, big, is_streamed=True, cache_dir=tmp_path)
    assert said == f"3 shards of a window take 27.0 MB, and the disk of {tmp_path} has 20.0 MB left"


def test_a_disk_that_fills_up_is_said_with_both_numbers(tmp_path, monkeypatch):
    dataset = shards(tmp_path, numbered(0, 3), is_streamed=True, cache_dir=tmp_path)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"^the bytes of 0.tar take 0.0 MB, and the disk of .* has [\d.,]+ MB left\n"):
        dataset[0]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ("a.jpg a.cls b.jpg", "0.tar has no .cls for sample b (1 of its 2 samples lack it)"),
        ("a.jpg b.jpg b.jpg", "0.tar has 2 files for .jpg of sample b"),
        ("d/a.jpg d/README", "0.tar holds d/README, which has no extension and so is no field of a sample"),
        (".hidden", "0.tar holds no sample"),
        ("", "0.tar holds no sample"),
        ("a.jpg a.pkl", "the samples have .pkl, a pickle, which runs code when it is read"),
        ("a.x.pyd", "the samples have .x.pyd, a pickle, which runs code when it is read"),
        ("a.json.gz", "the samples have .json.gz, which is compressed"),
    ],
)
def test_members_that_make_no_samples_are_refused(tmp_path, members, said):
    content = {"jpg": encoded("JPEG"), "cls": b"1"}
    packed = [(name, content.get(name.rpartition(".")[2], b"")) for name in members.split()]
    assert refusal(tmp_path, packed) == said


def test_shards_with_other_fields_are_refused_by_name(tmp_path):
    assert refusal(tmp_path, [("a.txt", b""), ("a.json", b"1")], [("b.txt", b"")]) == (
        "1.tar has no .json for any sample, as for b, and 0.tar has"
    )
    assert refusal(tmp_path, [("a.txt", b"")], [("b.txt", b""), ("b.json", b"1")]) == (
        "0.tar has no .json for any sample, as for a, and 1.tar has"
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ((b"1", b"cat"), "labels are integers and names at once: .cls holds 1 as well as cat"),
        ((b"1", b""), "0.tar has a label that is neither a number nor a name: 1.cls holds b''"),
        ((b"1", b"\xff"), r"0.tar has a label that is neither a number nor a name: 1.cls holds b'\xff'"),
        ((b"1", b"a\nb"), r"0.tar has a label that is neither a number nor a name: 1.cls holds b'a\nb'"),
        ((b"1", b"9" * 30), f"labels are integers and names at once: .cls holds 1 as well as {'9' * 30}"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, said):
    assert refusal(tmp_path, [(f"{number}.cls", label) for number, label in enumerate(labels)]) == said


@pytest.mark.parametrize(
    ("field", "good", "bad", "said"),
    [
        ("jpg", encoded("JPEG"), encoded("JPEG")[:100], ""),
        ("png", encoded("PNG"), b"no image", "it is none of BMP, JPEG, PNG and WebP"),
        ("npy", npy([1]), npy([1])[:-2], "ValueError: "),
        ("npy", npy([1]), npy(np.array([{}], dtype=object)), "ValueError: Object arrays cannot be loaded"),
        ("pt", pt(torch.ones(2)), b"x", ""),
        ("json", b"1", b"{", "JSONDecodeError: "),
        ("json", b"1", b"[" * 100_000, "RecursionError: "),
        ("txt", b"a", b"\xff", "UnicodeDecodeError: "),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_field_that_cannot_be_decoded_is_named_with_its_place(tmp_path, field, good, bad, said, is_streamed):
    # 40 samples, so that the bad one is none of those that are tried at once.
    members = [(f"{number:02}.{field}", bad if number == 1 else good) for number in range(40)]
    dataset = shards(tmp_path, members, is_streamed=is_streamed)
    offset = int(dataset._index.offsets[1, 0])
    assert (tmp_path / "0.tar").read_bytes()[offset:].startswith(bad)
    with pytest.raises(SampleError) as caught:
        dataset.__getitems__([0, 1, 2])
    assert caught.value.sample == 1
    assert caught.value.where == WHERE
    assert caught.value.what.startswith(f"01.{field} in 0.tar, at byte {offset:,} (sample 1) cannot be read: {said}")
    assert "\n" not in caught.value.what
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.sample, again.what) == (1, caught.value.what)
    members[0], members[1] = (members[0][0], bad), (members[1][0], good)
    assert refusal(tmp_path, members, is_streamed=is_streamed).startswith(f"00.{field} in 0.tar, at byte 512")


@pytest.mark.parametrize(
    ("field", "first", "other", "said"),
    [
        ("jpg", encoded("JPEG"), encoded("JPEG", 0, 8, 9), "12x12 (height x width), 8x9"),
        ("npy", npy(np.zeros(2)), npy(np.zeros(3)), "(2,) float64, (3,) float64"),
        ("npy", npy(np.zeros(2)), npy(np.zeros(2, np.int8)), "(2,) float64, (2,) int8"),
        ("pth", pt(torch.zeros(2)), pt([1]), "(2,) float32, list"),
    ],
)
def test_samples_that_do_not_fit_together_are_refused(tmp_path, field, first, other, said):
    assert refusal(tmp_path, [(f"a.{field}", first), (f"b.{field}", other)]) == (
        f"the samples differ in .{field}: a.{field} in 0.tar and b.{field} in 0.tar, at byte "
        f"{512 + 512 + -(-len(first) // 512) * 512:,} are {said}"
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"?", "an entry of the unknown type b'?'"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, kind, said):
    info = tarfile.TarInfo("a.jpg")
    info.type = kind
    (tmp_path / "0.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError) as caught:
        open_shards(tmp_path, ["0.tar"], where=WHERE)
    assert caught.value.what == f"0.tar has {said} at byte 0: a.jpg"


def test_files_that_are_no_tars_are_refused(tmp_path):
    def said(content: bytes, name: str = "0.tar") -> str:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_shards(tmp_path, [name], where=WHERE)
        return caught.value.what

    whole = (tmp_path / pack(tmp_path / "x.tar", numbered(0, 2))).read_bytes()
    assert (
        said(whole, "0.tar.gz")
        == "0.tar.gz is compressed, so that a sample can only be reached by reading all before it"
    )
    assert said(b"\x1f\x8b" + bytes(600)).startswith("0.tar is compressed (gzip), so that")
    assert said(b"PK\3\4" + bytes(600)) == "0.tar is no tar: it does not begin with a header"
    assert said(b"") == (
        "0.tar is truncated: there should be a header, or the mark of the end, at byte 0, and the file ends at byte 0"
    )
    assert said(whole[:600]) == (
        "0.tar is truncated: 000.npy should have 132 bytes from byte 512 on, and the file ends at byte 600"
    )
    assert said(whole[:1024] + b"x" + whole[1025:]) == (
        "0.tar is damaged: the header at byte 1,024 does not have the checksum that it states"
    )
    assert said(whole + whole) == f"0.tar goes on after the end of its archive, at byte {len(whole):,}"
    with pytest.raises(DataError, match=r"gone.tar cannot be read: No such file or directory"):
        open_shards(tmp_path, ["gone.tar"], where=WHERE)
    with pytest.raises(DataError, match="there is no shard"):
        open_shards(tmp_path, [], where=WHERE)


def header(name: str = "a.bin", kind: bytes = b"0", size: bytes = b"00000000003", *, signed: bool = False) -> bytes:
    """A GNU header with this field for the size, and the right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT, encoding="latin-1"))
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    counted = block[:148] + b" " * 8 + block[156:]
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in counted)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            header(size=b"12345678x"),
            r"is damaged: the header at byte 0 has no number as its size: b'12345678x\x00\x00\x00'",
        ),
        (header(size=b"-1"), "is damaged: the header at byte 0 has no number as its size"),
        (
            header(size=b"\x80" + b"\xff" * 11),
            "is truncated: a.bin should have 309,485,009,821,345,068,724,781,055 bytes",
        ),
        (header(kind=b"L", size=b"77777"), "is truncated: the extended header at byte 0 should have 32,767 bytes"),
        (
            header(kind=b"L") + b"abc".ljust(512, b"\0"),
            "is damaged: the extended header before byte 1,024 belongs to no file",
        ),
        (
            header(kind=b"x", size=b"12") + b"18 path=size\n".ljust(512, b"\0"),
            "is damaged: the extended header at byte 0",
        ),
        (
            header(kind=b"x", size=b"13") + b"11 size=x1\n".ljust(512, b"\0") + header(),
            "is damaged: the extended header",
        ),
        (header(kind=b"x", size=b"40") + b"32 GNU.sparse.realsize=12345678\n".ljust(512, b"\0"), "has a sparse file"),
        (
            header(kind=b"x", size=b"5000000") + bytes(2 << 20),
            "is damaged: the extended header at byte 0 has 1,310,720",
        ),
    ],
)
def test_headers_that_say_what_cannot_be_are_refused(tmp_path, content, said):
    (tmp_path / "0.tar").write_bytes(content + bytes(1024))
    with pytest.raises(DataError) as caught:
        open_shards(tmp_path, ["0.tar"], where=WHERE)
    assert caught.value.what.startswith(f"0.tar {said}")


def test_checksums_of_old_programs_count(tmp_path):
    (tmp_path / "0.tar").write_bytes(header("ä.bin", signed=True) + b"abc".ljust(512, b"\0") + bytes(1024))
    assert open_shards(tmp_path, ["0.tar"], where=WHERE)[0] == {"bin": b"abc"}


def test_a_copy_that_ends_early_is_noticed(tmp_path, monkeypatch):
    dataset = shards(tmp_path, numbered(0, 2), is_streamed=True)
    monkeypatch.setattr(shard_files, "_copy_bytes", lambda *_: 5)
    with pytest.raises(DataError, match=r"0.tar has 10,240 bytes, and reading it ended after 5"):
        dataset[0]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_shard_that_has_gone_is_named(tmp_path, is_streamed):
    dataset = pickle.loads(pickle.dumps(shards(tmp_path, numbered(0, 2), is_streamed=is_streamed)))
    (tmp_path / "0.tar").unlink()
    with pytest.raises(DataError, match=r"0.tar cannot be read: No such file or directory"):
        dataset[0]


def test_a_shard_that_has_changed_is_noticed(tmp_path):
    dataset = pickle.loads(pickle.dumps(shards(tmp_path, numbered(0, 2))))
    pack(tmp_path / "0.tar", numbered(0, 30))
    with pytest.raises(DataError, match=r"0.tar has changed: it had 10,240 bytes when it was opened, and has"):
        dataset[0]


def test_a_size_is_refused_where_it_means_nothing(tmp_path):
    with pytest.raises(ConfigurationError, match="0 is no size"):
        shards(tmp_path, numbered(0, 2), image_size=0)
    assert refusal(tmp_path, numbered(0, 2), image_size=8) == "image_size is 8, and no field is an image: cls, npy"


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(sorted(FORMATS)))
def test_a_damaged_shard_gives_its_own_samples_or_an_error(tmp_path, data, form):
    long = data.draw(st.booleans())
    samples = {f"{'n' * 120 if long else ''}{number}": bytes([65 + number]) * (number * 300) for number in range(4)}
    if long and form == "ustar":
        samples = {f"{'d' * 110}/{key[-1]}": content for key, content in samples.items()}
    members = [(f"{key}.{field}", content) for key, content in samples.items() for field in ("bin", "raw")]
    path = tmp_path / "0.tar"
    pack(path, members, FORMATS[form])
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, end + 1024))]
    else:
        for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
            damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        dataset = open_shards(tmp_path, ["0.tar"], where=WHERE)
        batch = dataset.__getitems__(list(range(len(dataset))))
    except DataError as error:
        assert error.where == WHERE  # noqa: PT017  # nothing but this error may come
        return
    # What is neither a header nor a name has no checksum; sizes and the number of samples are right.
    assert [len(content) for content in batch["bin"]] == [number * 300 for number in range(4)]
    assert batch.keys() == {"bin", "raw"}
