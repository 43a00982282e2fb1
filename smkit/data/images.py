"""From image files and their labels to a data set that decodes a whole batch at once, into the tensor that it returns.

Pixels stay 8-bit integers: making what a model wants of them is the step's, on its device. This room knows neither
channels nor where a label comes from.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import get_worker_info

from smkit.data.labels import Labels
from smkit.data.source import Allocate, SampleError, Source, fingerprint_of
from smkit.errors import ConfigurationError, DataError

_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
_MAX_THREADS = 8
_PROBES = 16
_ORIENTATION = 0x0112

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Size = tuple[int, int]


class PackedPaths:
    """Paths in two blocks of memory: worker processes would copy a list bit by bit, as its objects are counted."""

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = b"".join(encoded)
        self._offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def digest(self) -> int:
        """Return a number that is another one for other paths."""
        return fingerprint_of([self._offsets.tobytes(), self._bytes])

    def __getitem__(self, index: int) -> str:
        start, end = self._offsets[index : index + 2].tolist()
        return os.fsdecode(self._bytes[start:end])


class Images(Source):
    """Image files and their labels; a batch is `(images, labels)`, decoded when it is asked for.

    Images are uint8 (N, 3, H, W), RGB, in channels-last memory, labels int64 (N,). A step makes numbers of them where
    it computes, `images.float() / 255`, which moves a quarter of the bytes to a GPU. Grey and palette images become
    RGB, transparency is dropped, and EXIF orientation is applied.

    Without `size` all images must have one size. With it, of each image the largest centred part of that shape is
    scaled to it: the short side decides, the rest is cropped (bilinear, antialiased; a JPEG at least twice as large is
    decoded at a fraction of its size, which is much faster).

    Args:
        root: The folder that `paths` are relative to.
        paths: One file for each sample.
        labels: Classes, or integers that stay as they are.
        size: Height and width of every image, or the side of a square; by default that of the files.
        where: What an error names as their place.

    Raises:
        ConfigurationError: `size` is no size.
        DataError: Images have several sizes, or one cannot be read. Without `size` a few are tried at once.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Labels,
        *,
        size: int | Size | None = None,
        where: str = "Images",
    ) -> None:
        self._root = str(root)
        self._paths = PackedPaths(paths)
        self._where = where
        self.classes = tuple(sorted({label for label in labels if isinstance(label, str)}))
        number = {name: index for index, name in enumerate(self.classes)}
        self._labels = np.array([number[label] if isinstance(label, str) else label for label in labels], np.int64)
        self._scales = size is not None
        self.size = self._common_size() if size is None else _checked_size(size)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: Tensor, allocate: Allocate) -> tuple[Tensor, Tensor]:
        """Return the batch of these samples; the decoders run in threads, as they do not need Python's lock."""
        samples = index.tolist()
        count = len(samples)
        batch = allocate((count, *self.size, 3), torch.uint8)
        pixels = batch.numpy()
        threads = min(_threads(self.threads), count)

        def fill(start: int) -> None:
            for position in range(start, count, threads):
                self._read(samples[position], pixels[position])

        if threads > 1:
            # Threads of one batch outlive neither a fork nor a pickle, and cost less than decoding one image.
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, range(threads)))
        else:
            fill(0)
        return batch.permute(0, 3, 1, 2), torch.from_numpy(self._labels[index.numpy()])

    @property
    def fingerprint(self) -> int:
        """Of the files' names, the labels and the size."""
        return fingerprint_of([self._paths.digest(), self._labels.tobytes(), self.size])

    def __repr__(self) -> str:
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        return f"Images({len(self):,} samples{classes}: {_by(self.size)} uint8)"

    def _common_size(self) -> Size:
        """Return the size of the first image, which a few others, spread over all, must share."""
        probes = np.linspace(0, len(self) - 1, min(_PROBES, len(self)), dtype=np.int64).tolist()
        first = self._decoded(probes[0], None)
        self.size = first.shape[0], first.shape[1]
        for index in probes[1:]:
            self._read(index, first)
        return self.size

    def _read(self, index: int, out: Pixels) -> None:
        """Put the pixels of a sample into `out` (H, W, 3)."""
        decoded = self._decoded(index, out)
        if self._scales:
            decoded = _centre(decoded, self.size)
        elif decoded.shape != out.shape:
            raise DataError(
                f"the images differ in size (height x width): {self._paths[0]} is {_by(self.size)}, "
                f"{self._paths[index]} is {_by(decoded.shape)}",
                where=self._where,
                fix="scale them: `return smkit.open_dataset(channel, image_size=224)` in `build_dataset`",
            )
        if not np.may_share_memory(decoded, out):
            out[...] = decoded

    def _decoded(self, index: int, out: Pixels | None) -> Pixels:
        path = self._paths[index]
        try:
            with io.FileIO(f"{self._root}/{path}") as file:
                data = file.read()
            return _decode(data, self.size if self._scales else None, out)
        except Exception as error:
            # What a damaged image makes the decoders raise has no common class.
            raise SampleError(
                f"{path} (sample {index}) cannot be read: {_reason(error)}",
                sample=index,
                where=self._where,
                fix="replace the file or remove it, and check that the channel has arrived whole",
            ) from error


def _checked_size(size: int | Size) -> Size:
    sides = list(size) if isinstance(size, Sequence) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ConfigurationError(
            f"{size} is no size", where="image_size", fix="give the side of a square, or (height, width), in pixels"
        )
    return sides[0], sides[1]


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is none of BMP, JPEG, PNG and WebP"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def _threads(limit: int | None) -> int:
    """Return how many threads decode for this process: its share of the cores, as workers divide them."""
    if limit is not None:
        return limit
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    worker = get_worker_info()
    return min(_MAX_THREADS, max(1, cores // (1 if worker is None else worker.num_workers)))


# --- pixels -----------------------------------------------------------------------------------------------------------


def _decode(data: bytes, size: Size | None, out: Pixels | None) -> Pixels:
    """Return the pixels (H, W, 3) of a file, in `out` if that has their shape.

    A JPEG that is at least twice as large as `size` is decoded at a fraction that still covers it.
    """
    if data.startswith(b"\xff\xd8\xff"):
        import simplejpeg

        fraction = {} if size is None else {"min_height": size[0], "min_width": size[1], "min_factor": 2}
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data, **fraction)
        except ValueError:
            # Rare kinds of subsampling, which Pillow reads.
            return _decode_with_pillow(data, size)
        # Of CMYK simplejpeg makes colours that differ from those of Pillow by 1; and it turns nothing.
        if colours in ("Gray", "RGB", "YCbCr") and not _is_turned(data):
            buffer = out if out is not None and out.shape == (height, width, 3) else None
            decoded: Pixels = simplejpeg.decode_jpeg(data, buffer=buffer, **fraction)
            return decoded
    return _decode_with_pillow(data, size)


def _is_turned(jpeg: bytes) -> bool:
    """Return whether EXIF says that the camera was turned; its block comes first, or right after JFIF's."""
    start = jpeg.find(b"Exif\0\0", 0, 4096) + 6
    if start < 6:
        return False
    order = "<" if jpeg[start : start + 2] == b"II" else ">"
    try:
        directory = start + struct.unpack_from(f"{order}I", jpeg, start + 4)[0]
        entries = struct.unpack_from(f"{order}H", jpeg, directory)[0]
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", jpeg, entry)
            if tag == _ORIENTATION:
                return bool(value != 1)
    except struct.error:
        pass  # Damaged, as it often is; the image counts as upright.
    return False


def _decode_with_pillow(data: bytes, size: Size | None) -> Pixels:
    from PIL import Image, ImageOps

    # Pillow's other formats are not asked: some of them start programs.
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if size is not None:
            image.draft(None, (max(size), max(size)))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels have more than 8 bits (Pillow's mode {image.mode})")
        # A palette can hold transparency, of which Pillow warns when it goes the direct way.
        whole = image.convert("RGBA") if image.mode in ("P", "PA") else image
        return np.array(whole.convert("RGB"))


def _centre(pixels: Pixels, size: Size) -> Pixels:
    """Return the largest centred part of the shape of `size`, scaled to it."""
    (height, width), (rows, columns) = size, pixels.shape[:2]
    scale = min(rows / height, columns / width)
    part_rows, part_columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - part_rows) // 2, (columns - part_columns) // 2
    part = pixels[top : top + part_rows, left : left + part_columns]
    if part.shape[:2] == size:
        return part
    # As a batch of one from the start, it is channels-last to torch, and so is the result: three times as fast.
    tensor = torch.from_numpy(np.ascontiguousarray(part[None])).permute(0, 3, 1, 2)
    scaled = interpolate(tensor, size, mode="bilinear", antialias=True)
    result: Pixels = scaled[0].permute(1, 2, 0).numpy()
    return result
