"""From the bytes of one image to its pixels, and to a part of them of a given size.

What a damaged image makes the decoders raise has no common class: whoever calls them knows the place and says it. This
room knows neither files nor data sets.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from smkit.errors import ConfigurationError

_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112
_MOST_PIXELS = 178_956_970
"""Of an image that is decoded, as of Pillow's own limit: a file of a few bytes can claim to be gigabytes."""

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Size = tuple[int, int]


def checked_size(size: int | Size) -> Size:
    """Return height and width.

    Raises:
        ConfigurationError: `size` is no size.
    """
    sides = list(size) if isinstance(size, Sequence) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ConfigurationError(
            f"{size} is no size", where="image_size", fix="give the side of a square, or (height, width), in pixels"
        )
    return sides[0], sides[1]


def by(shape: Sequence[int]) -> str:
    """Return a size in words."""
    return f"{shape[0]}x{shape[1]}"


def reason(error: Exception) -> str:
    """Return in one line why an image cannot be read."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is none of BMP, JPEG, PNG and WebP"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def decode(data: bytes, size: Size | None, out: Pixels | None) -> Pixels:
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
        if height * width > _MOST_PIXELS:
            raise ValueError(f"it claims to be {width} x {height} pixels, more than {_MOST_PIXELS:,}")
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


def centre(pixels: Pixels, size: Size) -> Pixels:
    """Return the largest centred part of the shape of `size`, scaled to it."""
    (height, width), (rows, columns) = size, pixels.shape[:2]
    scale = min(rows / height, columns / width)
    part_rows, part_columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - part_rows) // 2, (columns - part_columns) // 2
    part = pixels[top : top + part_rows, left : left + part_columns]
    if part.shape[:2] == size:
        return part
    # Only a batch of one that torch has made is channels-last to it, and so is the result then: three times as fast.
    tensor = torch.from_numpy(np.ascontiguousarray(part))[None].permute(0, 3, 1, 2)
    scaled = interpolate(tensor, size, mode="bilinear", antialias=True)
    result: Pixels = scaled[0].permute(1, 2, 0).numpy()
    return result
