"""Channels of images: their two layouts, what is read from the files, and what is said of those that are wrong."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from smkit.data.images import Images, PackedPaths
from smkit.data.layouts import open_dataset
from smkit.data.loader import make_loader
from smkit.errors import ConfigurationError, DataError
from smkit.preflight import with_same_classes

pytestmark = pytest.mark.train


@dataclass
class Folder:
    path: Path
    name: str = "train"


@pytest.fixture
def channel(tmp_path) -> Folder:
    return Folder(tmp_path)


def picture(number: int = 0, height: int = 12, width: int = 12) -> Image.Image:
    """A smooth picture, so that JPEG changes little of it."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 / height, columns * 255 / width, np.full((height, width), number * 7 % 256)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def write(folder: Path, *files: str, **size: int) -> None:
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, **size).save(path)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def only_image(channel: Folder, content: bytes, suffix: str = ".jpg", **options) -> torch.Tensor:
    """What is read from `content`, as (H, W, 3)."""
    (channel.path / "labels.csv").write_text(f"file,label\na{suffix},0\n")
    (channel.path / f"a{suffix}").write_bytes(content)
    return open_dataset(channel, **options)[0][0].permute(1, 2, 0)


def refusal(channel: Folder, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        open_dataset(channel, **options)
    assert caught.value.where == f"channel 'train' ({channel.path})"
    return caught.value


# -- the two layouts ---------------------------------------------------------------------------------------------------


def test_the_folders_of_a_channel_are_classes_in_sorted_order(channel):
    write(channel.path, "b/2.png", "b/deep/er/1.PNG", "a/9.jpeg", "a/10.bmp", "B/x.webp")
    for marker in ("_SUCCESS", "README.md", "a/.DS_Store", "a/Thumbs.db", ".cache/x.png"):
        (channel.path / marker).parent.mkdir(exist_ok=True)
        (channel.path / marker).touch()
    dataset = open_dataset(channel)
    assert dataset.classes == ("B", "a", "b")
    assert repr(dataset) == "Images(5 samples of 3 classes: 12x12 uint8)"
    images, labels = dataset.__getitems__([4, 0, 2])
    assert labels.tolist() == [2, 0, 1]
    assert labels.dtype == torch.int64
    # Sorted: B/x.webp, a/10.bmp, a/9.jpeg, b/2.png, b/deep/er/1.PNG; the last one was written as number 1.
    assert images[0].permute(1, 2, 0).tolist() == np.asarray(picture(1)).tolist()
    assert [label.item() for _, label in dataset] == [0, 1, 1, 2, 2]
    assert dataset[-1][0].equal(images[0])


@pytest.mark.parametrize("column", ["file", "file_name", "filename", "image"])
def test_a_table_gives_the_order_and_the_labels(channel, column):
    write(channel.path, "1.png", "deep/2.png", "3.png")
    rows = [("3.png", "wolf"), ("./deep/2.png", "fox"), ("1.png", "wolf")]
    table = channel.path / "labels.csv"
    table.write_text("\ufeff" + f"{column},width,label\n" + "".join(f"{file},12,{label}\n" for file, label in rows))
    dataset = open_dataset(channel)
    assert dataset.classes == ("fox", "wolf")
    images, labels = dataset.__getitems__([0, 1, 2])
    assert labels.tolist() == [1, 0, 1]
    assert images[:, 2, 0, 0].tolist() == [14, 7, 0]
    table.unlink()
    lines = [json.dumps({"file_name": file, "label": label}) for file, label in rows]
    (channel.path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    again = open_dataset(channel)
    assert again.classes == dataset.classes
    assert again.__getitems__([0, 1, 2])[1].equal(labels)


def test_integer_labels_stay(channel):
    write(channel.path, "1.png", "2.png")
    (channel.path / "labels.csv").write_text("file,label\n1.png,-100\n2.png,10\n")
    dataset = open_dataset(channel)
    assert [label.item() for _, label in dataset] == [-100, 10]
    assert dataset.classes == ()
    assert repr(dataset) == "Images(2 samples: 12x12 uint8)"
    (channel.path / "labels.csv").unlink()
    (channel.path / "metadata.jsonl").write_text(
        '{"file_name": "1.png", "label": 3}\n{"file_name": "2.png", "label": 1}'
    )
    assert [label.item() for _, label in open_dataset(channel)] == [3, 1]


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_jpeg_is_read_as_pillow_reads_it(channel):
    content = encoded(picture(3, 40, 30), "JPEG", quality=90, progressive=True)
    assert only_image(channel, content).tolist() == np.asarray(Image.open(io.BytesIO(content))).tolist()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_grey_image_becomes_rgb(channel, kind):
    content = encoded(picture(3).convert("L"), kind)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert only_image(channel, content, f".{kind.lower()}").tolist() == expected.tolist()


def test_a_cmyk_jpeg_has_the_colours_that_pillow_gives_it(channel):
    content = encoded(picture(3).convert("CMYK"), "JPEG", quality=95)
    expected = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    assert only_image(channel, content).tolist() == expected.tolist()
    assert np.abs(expected.astype(int) - np.asarray(picture(3))).mean() < 6


def test_palettes_and_transparency_become_rgb(channel):
    palette = picture(3).quantize(8)
    expected = np.asarray(palette.convert("RGB"))
    content = encoded(palette, "PNG", transparency=bytes([0, 128, 255]))
    assert only_image(channel, content, ".png").tolist() == expected.tolist()
    clear = picture(3)
    clear.putalpha(0)
    assert only_image(channel, encoded(clear, "PNG"), ".png").tolist() == np.asarray(picture(3)).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_applied(channel, orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    content = encoded(picture(3, 40, 30), "JPEG", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert only_image(channel, content).tolist() == np.asarray(upright).tolist()
    scaled = only_image(channel, content, image_size=(10, 5))
    assert (scaled.float() - torch.from_numpy(centre(upright, 10, 5))).abs().mean() < 4


def test_damaged_exif_is_no_reason_to_refuse_an_image(channel):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    content = encoded(picture(3), "JPEG", exif=exif)
    expected = only_image(channel, content)
    directory = content.index(b"Exif\0\0") + 6 + 4
    for offset in (0x7FFFFFFF, 0xFFFFFFFF):
        broken = content[:directory] + struct.pack(">I", offset) + content[directory + 4 :]
        assert broken != content
        assert only_image(channel, broken).equal(expected)


def test_the_content_decides_and_not_the_suffix(channel):
    assert only_image(channel, encoded(picture(3), "PNG"), ".jpg").tolist() == np.asarray(picture(3)).tolist()


def centre(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The largest centred part of that shape, scaled by Pillow: the oracle of `image_size`."""
    scale = min(image.height / height, image.width / width)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, np.float32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(120, 160, 50), (160, 120, 50), (120, 160, (40, 70)), (64, 64, 50), (20, 30, 50), (50, 50, 50), (300, 9, (6, 6))],
)
def test_with_a_size_the_short_side_is_scaled_and_the_centre_cropped(channel, kind, height, width, size):
    content = encoded(picture(3, height, width), kind, quality=98, subsampling=0)
    scaled = only_image(channel, content, f".{kind.lower()}", image_size=size)
    expected = centre(picture(3, height, width), *((size, size) if isinstance(size, int) else size))
    assert scaled.shape == expected.shape
    assert (scaled.float() - torch.from_numpy(expected)).abs().mean() < 2.5


def test_a_jpeg_much_larger_than_the_size_is_decoded_at_a_fraction(channel, monkeypatch):
    import simplejpeg

    shapes = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg,
        "decode_jpeg",
        lambda *args, **options: shapes.append(decode(*args, **options).shape) or decode(*args, **options),
    )
    content = encoded(picture(3, 800, 1000), "JPEG")
    for side in (100, 101, 400, 401):
        assert only_image(channel, content, image_size=side).shape == (side, side, 3)
    assert [shape[0] for shape in shapes] == [100, 200, 400, 800]


def test_images_of_several_sizes_come_out_in_one(channel):
    write(channel.path, "a/1.jpg", "a/2.png", height=30, width=40)
    write(channel.path, "b/1.jpg", "b/2.png", height=90, width=20)
    dataset = open_dataset(channel, image_size=(16, 24))
    assert dataset.__getitems__([0, 1, 2, 3])[0].shape == (4, 3, 16, 24)
    assert repr(dataset) == "Images(4 samples of 2 classes: 16x24 uint8)"


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(channel) -> Images:
    write(channel.path, *(f"{'abc'[i % 3]}/{i:02}.jpg" for i in range(30)), height=16, width=24)
    return open_dataset(channel)


def test_a_batch_is_one_tensor_in_channels_last_memory_whose_rows_are_the_samples(many):
    images, labels = many.__getitems__([7, 0, 29, 7])
    assert images.shape == (4, 3, 16, 24)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert [(image.tolist(), label.item()) for image, label in zip(images, labels, strict=True)] == [
        (many[index][0].tolist(), many[index][1].item()) for index in (7, 0, 29, 7)
    ]
    with pytest.raises(IndexError):
        many[30]


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_the_number_of_threads_changes_nothing(many, cores, monkeypatch):
    expected = [many[index][0] for index in range(30)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    assert many.__getitems__(list(range(30)))[0].equal(torch.stack(expected))


def test_worker_processes_give_the_same_batches_in_the_same_order(many):
    def batches(workers: int):
        options = {"workers": "process", "num_workers": workers} if workers else {}
        return list(make_loader(many, batch_size=8, seed=3, **options))

    for (images, labels), (same, same_labels) in zip(batches(0), batches(2), strict=True):
        assert same.equal(images)
        assert same_labels.equal(labels)
        assert same.is_contiguous(memory_format=torch.channels_last)


def test_a_resumed_loader_goes_on_with_the_same_batches(many):
    loader = make_loader(many, batch_size=8, seed=3)
    whole = [images for images, _ in loader]
    resumed = make_loader(many, batch_size=8, seed=3)
    resumed.load_state_dict({**loader.state_dict(), "epoch": 0, "samples": 16})
    rest = [images for images, _ in resumed]
    assert len(rest) == 2
    assert all(images.equal(before) for images, before in zip(rest, whole[2:], strict=True))


def test_a_data_set_can_be_pickled_and_forked_after_it_was_read(many):
    before = many.__getitems__([0, 1, 2, 3])[0]
    assert pickle.loads(pickle.dumps(many)).__getitems__([0, 1, 2, 3])[0].equal(before)
    context = multiprocessing.get_context("fork")
    forked = DataLoader(many, batch_size=4, num_workers=2, multiprocessing_context=context, collate_fn=tuple)
    assert next(iter(forked))[0].equal(before)


def test_the_index_holds_no_python_object_for_each_sample():
    names = [f"class-{index % 7}/ünï-{index}.jpg" for index in range(1000)]
    paths = PackedPaths(names)
    assert [paths[index] for index in range(len(paths))] == names
    assert len(pickle.dumps(paths)) < sum(len(os.fsencode(name)) for name in names) + 8 * 1001 + 500
    assert all(isinstance(value, (bytes, np.ndarray)) for value in vars(paths).values())


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a/1.png"], "all images lie below one folder, a/, and classes are at least two"),
        (["1.png", "2.png"], "no label says what these images show: 1.png, 2.png"),
        (["a/1.png", "b/1.png", "3.png"], "no label says what these images show: 3.png"),
        (["a/1.png", "b/1.txt"], "besides images there is b/1.txt"),
        (["a/1.png", "b/1.png", *(f"n{i}.txt" for i in range(7))], "n0.txt, n1.txt, n2.txt, n3.txt, n4.txt and 2 more"),
        (["a/1.png", "b/1.png", "c/"], "besides images there is c/ (empty)"),
        (["1.png", "x.npz"], "besides images there is x.npz"),
        (["1.png", "labels.csv", "metadata.jsonl"], "two tables could hold the labels: labels.csv and metadata.jsonl"),
    ],
)
def test_a_channel_that_is_neither_layout_is_refused_with_what_was_seen(channel, files, said):
    for file in files:
        path = channel.path / file
        (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not file.endswith("/"):
            path.touch()
    error = refusal(channel)
    assert error.what.endswith(said)
    assert "class folders" in error.fix
    assert "`build_dataset`" in error.fix


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            "name,label\n",
            "its first line needs one column of file, file_name, filename, image, and one label; it has name",
        ),
        ("file,image,label\n", "it has file, image, label"),
        ("", "it has none"),
        ("file,label\n1.png,\n", "line 2 lacks a file or a label"),
        ("file,label\n1.png\n", "line 2 lacks a file or a label"),
        ('file,label\n"1.png,0\n', "labels.csv cannot be read: unexpected end of data"),
        ("file,label\n1.png,a\n2.png,a\n4.png,a\n", "images that labels.csv names do not exist (1): 4.png"),
        ("file,label\n1.png,a\n", "images have no row in labels.csv (1): 2.png"),
        ("file,label\n1.png,a\n2.png,b\n1.png,b\n", "images have several rows in labels.csv (1): 1.png"),
        ("file,label\n1.png,0.5\n2.png,1\n", "labels.csv has numbers as labels, which are no classes: 0.5, 1"),
        (
            "file,label\n1.png,1,2\n2.png,1\n",
            "labels.csv cannot be read: line 2 has more values than there are columns",
        ),
        (
            '{"file_name": "1.png", "label": 1, "label": 2}\n',
            "metadata.jsonl cannot be read: line 1 is no JSON: gives the",
        ),
        ("file,label\n1.png,1\n2.png,9223372036854775808\n", "labels beyond 64 bits: 9223372036854775808"),
        ('{"file_name": "1.png"}', "line 1 lacks a file_name or a label"),
        ('{"file_name": "1.png", "label": 1}\n[]', "line 2 lacks a file_name or a label"),
        (
            '{"file_name": "1.png", "label": 1}\n\n{',
            "line 3 is no JSON: Expecting property name enclosed in double quotes",
        ),
        (
            '{"file_name": "1.png", "label": 1}\n{"file_name": "2.png", "label": "b"}',
            "metadata.jsonl has labels of the types int, str",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_line_or_the_files(channel, table, said):
    write(channel.path, "1.png", "2.png")
    (channel.path / ("metadata.jsonl" if table.startswith("{") else "labels.csv")).write_text(table)
    assert said in refusal(channel).what


def test_a_table_that_is_no_text_is_refused(channel):
    write(channel.path, "1.png")
    (channel.path / "labels.csv").write_bytes(b"file,label\n1.png,\xff\n")
    assert refusal(channel).what.startswith("labels.csv cannot be read: 'utf-8' codec can't decode")


@pytest.mark.parametrize("odd", [1, 25])
def test_images_of_several_sizes_are_refused_at_once_or_when_the_odd_one_is_read(channel, odd):
    write(channel.path, *(f"{'ab'[i % 2]}/{i:02}.jpg" for i in range(40)), height=12, width=16)
    write(channel.path, f"{'ab'[odd % 2]}/{odd:02}.jpg", height=16, width=12)
    with pytest.raises(DataError) as caught:
        list(make_loader(open_dataset(channel), batch_size=8))
    assert caught.value.what == (
        f"the images differ in size (height x width): a/00.jpg is 12x16, b/{odd:02}.jpg is 16x12"
    )
    assert "`return smkit.open_dataset(channel, image_size=224)` in `build_dataset`" in caught.value.fix


def test_a_stray_text_among_whole_numbers_does_not_make_names_of_them(channel):
    write(channel.path, "1.png", "2.png", "3.png")
    (channel.path / "labels.csv").write_text("file,label\n1.png,10\n2.png,2\n3.png,cat\n")
    assert refusal(channel).what == "labels.csv has the label 'cat' for 3.png, and whole numbers for others"


def test_a_jpeg_that_claims_to_be_gigabytes_is_refused_before_it_is_decoded(channel):
    content = bytearray(encoded(picture(), "JPEG"))
    size = content.find(b"\xff\xc0") + 5
    content[size : size + 4] = struct.pack(">HH", 65_500, 65_500)
    with pytest.raises(DataError, match="it claims to be 65500 x 65500 pixels, more than 178,956,970"):
        only_image(channel, bytes(content))


JPEG = encoded(picture(3, 64, 64), "JPEG")
PNG = encoded(picture(3, 64, 64), "PNG")
DEEP = encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is none of BMP, JPEG, PNG and WebP"),
        (b"\xff\xd8\xff\xe0 and no more", "OSError: Truncated File Read"),
        (b"GIF89a", "it is none of BMP, JPEG, PNG and WebP"),
        (JPEG[:-100], "ValueError: Premature end of JPEG file"),
        (JPEG[:30], ""),
        (PNG[: len(PNG) // 2], "OSError: "),
        (PNG[:60] + bytes(20) + PNG[80:], ""),
        (DEEP, "ValueError: its pixels have more than 8 bits (Pillow's mode I;16)"),
    ],
)
@pytest.mark.parametrize("size", [None, 8])
def test_a_damaged_image_is_named_with_its_number_and_the_reason(channel, content, reason, size):
    write(channel.path, "a/1.jpg", "b/1.jpg", height=64, width=64)
    (channel.path / "b" / "1.jpg").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_dataset(channel, image_size=size).__getitems__([0, 1])
    assert caught.value.what.startswith(f"b/1.jpg (sample 1) cannot be read: {reason}")
    assert "\n" not in caught.value.what
    assert caught.value.where == f"channel 'train' ({channel.path})"
    assert caught.value.fix == "replace the file or remove it, and check that the channel has arrived whole"


@pytest.mark.parametrize("workers", ["none", "auto", "process"])
def test_an_image_that_has_gone_is_named_whoever_reads(many, workers):
    (Path(many._root) / "a" / "00.jpg").unlink()
    with pytest.raises(DataError, match=r"^a/00.jpg \(sample 0\) cannot be read: FileNotFoundError: No such file"):
        list(make_loader(many, batch_size=8, workers=workers))


def test_a_folder_that_cannot_be_read_is_named(channel):
    (channel.path / "a").mkdir()
    (channel.path / "a" / "loop").symlink_to(".")
    assert "a/loop/loop" in refusal(channel).what
    assert refusal(channel).what.endswith("cannot be read: Too many levels of symbolic links")


@pytest.mark.parametrize("size", [0, (10, 0), -3, (1, 2, 3), 2.5])
def test_what_is_no_size_is_refused(channel, size):
    write(channel.path, "a/1.png", "b/1.png")
    with pytest.raises(ConfigurationError, match="no size") as caught:
        open_dataset(channel, image_size=size)
    assert caught.value.where == "image_size"


def test_a_size_is_refused_where_there_are_no_images(channel):
    np.save(channel.path / "x.npy", np.zeros(3))
    with pytest.raises(ConfigurationError, match="image_size is 8, and the channel holds arrays"):
        open_dataset(channel, image_size=8)


def test_training_and_validation_must_have_the_same_classes(tmp_path):
    def loader(*classes: str):
        folder = tmp_path / "-".join(classes)
        write(folder, *(f"{name}/1.png" for name in classes))
        return make_loader(open_dataset(Folder(folder)), batch_size=2)

    train = loader("ant", "bee")
    assert with_same_classes(train, validation := loader("ant", "bee")) is validation
    with pytest.raises(DataError, match="the same classes: only training has bee; only validation has cat, dog"):
        with_same_classes(train, loader("ant", "cat", "dog"))
    with pytest.raises(DataError, match="only validation has f0, f1, f2, f3, f4 and 1 more"):
        with_same_classes(train, loader("ant", "bee", *(f"f{i}" for i in range(6))))
    write(tmp_path / "numbers", "1.png")
    (tmp_path / "numbers" / "labels.csv").write_text("file,label\n1.png,1\n")
    with pytest.raises(DataError, match="only training has ant, bee"):
        with_same_classes(train, make_loader(open_dataset(Folder(tmp_path / "numbers")), batch_size=1))
