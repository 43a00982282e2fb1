"""From the files of a channel to a data set: the layout is inferred from what lies there, and said aloud.

Each format is read by the library that its field uses; none may run code from a file. What this room does not
understand, or could understand in two ways, is an error that names what was seen: `build_dataset` then decides.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from smkit.data.arrays import READERS, Arrays, read_arrays
from smkit.data.images import Images
from smkit.data.labels import SUFFIXES, TABLES, is_image, label_images, list_files
from smkit.errors import DataError

_NOT_DATA = (".*", "_SUCCESS", "*.manifest", "Thumbs.db", "README*", "LICENSE*")
_UNDERSTOOD = (
    "one .npz, one .safetensors, one .pt or .pth, .npy files with one array each, one folder of images for each class, "
    f"or images and {' or '.join(TABLES)}"
)


class ChannelFolder(Protocol):
    """What is asked of a channel: its name and its folder."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...


def open_dataset(channel: ChannelFolder, *, image_size: int | tuple[int, int] | None = None) -> Arrays | Images:
    """Return the data set that a channel holds, its batches being tuples `(inputs..., label)`.

    Arrays: the label is the array named label, labels, y, target or targets; the inputs are the others, sorted by name.
    The tensors of a list or tuple keep its order. `.npy` files are mapped into memory, not read.

    Images (.bmp, .jpeg, .jpg, .png, .webp): either each lies below the folder of its class, whose label is its index
    among the sorted folders, or anywhere beside one table: `labels.csv`, with the columns file, file_name, filename or
    image, and label; or `metadata.jsonl`, with `file_name` and `label`. Labels that are text become indices of the
    sorted `classes`, integers stay. A batch is `(images, labels)`, uint8 (N, 3, H, W) and int64 (N,).

    Args:
        channel: What holds the files.
        image_size: Height and width that images are scaled and cropped to, or the side of a square. By default they
            stay as they are, and must have one size.

    Raises:
        ConfigurationError: `image_size` is no size.
        DataError: The folder is missing, empty or of no layout that is understood, or a file of it is damaged.
    """
    where = f"channel '{channel.name}' ({channel.path})"
    entries = _entries(channel.path, where)
    kinds = {entry.suffix.lower() if entry.is_file() else "folder" for entry in entries}
    if kinds & {"folder", *SUFFIXES}:
        files = list_files(channel.path, _is_data, where)
        if any(map(is_image, files)):
            return Images(channel.path, *label_images(channel.path, files, where), size=image_size, where=where)
    if len(kinds) != 1 or not kinds <= READERS.keys() or (len(entries) > 1 and kinds != {".npy"}):
        more = f" and {len(entries) - 10} more" if len(entries) > 10 else ""
        seen = ", ".join(entry.name + "/" * entry.is_dir() for entry in entries[:10])
        raise DataError(
            f"no known layout fits what is there: {seen}{more}",
            where=where,
            fix=f"keep either {_UNDERSTOOD}; or read the files in `build_dataset`",
        )
    if image_size is not None:
        raise DataError(
            f"image_size is {image_size}, and there are arrays, not images", where=where, fix="leave image_size out"
        )
    return read_arrays(entries, where)


def _entries(folder: Path, where: str) -> list[Path]:
    fix = "check the channel's S3 prefix, or on this machine the folder that it was given"
    try:
        entries = [entry for entry in folder.iterdir() if _is_data(entry.name)]
    except OSError as error:
        raise DataError(f"the folder cannot be read: {error.strerror}", where=where, fix=fix) from error
    if not entries:
        raise DataError("the folder holds no data", where=where, fix=fix)
    return sorted(entries)


def _is_data(name: str) -> bool:
    return not any(fnmatchcase(name, pattern) for pattern in _NOT_DATA)
