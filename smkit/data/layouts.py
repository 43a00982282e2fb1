"""From the files of a channel to a data set: the layout is inferred from what lies there, and said aloud.

Each format is read by the library that its field uses; none may run code from a file. What this room does not
understand, or could understand in two ways, is an error that names what was seen and which argument decides.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Protocol

from torch.utils.data import IterableDataset

from smkit.data.arrays import READERS, read_arrays
from smkit.data.images import Images
from smkit.data.labels import SUFFIXES, TABLES, is_image, label_images, list_files
from smkit.data.mounts import is_streamed
from smkit.data.source import Source
from smkit.errors import ConfigurationError, DataError

logger = logging.getLogger(__name__)

Layout = Literal["arrays", "images", "csv", "jsonl", "parquet", "arrow", "libsvm", "recordio", "text", "tar"]

_NOT_DATA = (".*", "_*", "*.manifest", "*.md5", "*.sha256", "*.crc", "Thumbs.db", "README*", "LICENSE*")
_BY_SUFFIX: dict[str, Layout] = {
    **dict.fromkeys(READERS, "arrays"),
    **dict.fromkeys(SUFFIXES, "images"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    **dict.fromkeys((".libsvm", ".svm", ".svmlight"), "libsvm"),
    **dict.fromkeys((".recordio", ".rec", ".pbr"), "recordio"),
    ".txt": "text",
    ".tar": "tar",
}
_BY_CONTENT_TYPE: dict[str, Layout] = {
    "text/csv": "csv",
    "text/libsvm": "libsvm",
    "text/x-libsvm": "libsvm",
    "application/x-recordio-protobuf": "recordio",
    "application/jsonlines": "jsonl",
    "application/x-parquet": "parquet",
    "application/x-tar": "tar",
    "text/plain": "text",
}
_BY_MAGIC: tuple[tuple[int, bytes, Layout], ...] = (
    (0, b"PAR1", "parquet"),
    (0, b"ARROW1", "arrow"),
    (0, b"\x0a\x23\xd7\xce", "recordio"),
    (257, b"ustar", "tar"),
)
_FOREIGN = {
    ".mds": "a Mosaic streaming data set: build a streaming.StreamingDataset",
    ".beton": "an FFCV data set: build an ffcv Loader",
    ".tfrecord": "TFRecords, which TensorFlow reads: write them again as tar shards or Parquet",
    ".tfrecords": "TFRecords, which TensorFlow reads: write them again as tar shards or Parquet",
    ".lance": "a Lance data set: build one with lance.torch",
    ".tgz": "a compressed archive: unpack it, or write plain .tar shards, which can be read at any place",
    ".zip": "a compressed archive: unpack it, or write plain .tar shards, which can be read at any place",
}
_UNDERSTOOD = (
    "arrays (one .npz, .safetensors, .pt, or .npy files), images in one folder for each class, or images and "
    f"{' or '.join(TABLES)}, CSV, JSON lines, Parquet, Arrow, libsvm, RecordIO, tar shards, or text"
)
_CHECK = "check the channel's S3 prefix, or on this machine the folder that it was given"


class ChannelFolder(Protocol):
    """What is asked of a channel: its name and its folder; of a job's, also its modes and its content type."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...


def open_dataset(
    channel: ChannelFolder,
    *,
    layout: Layout | None = None,
    label: str | None = None,
    columns: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    cache_dir: Path | None = None,
) -> Source | IterableDataset[Any]:
    """Return the data set that a channel holds; most batches are tuples `(inputs..., label)`.

    Which layout it is, the channel's content type says, else the files' suffixes, else their first bytes:

    * arrays: one `.npz`, `.safetensors`, `.pt` or `.pth`, or several `.npy`, which are mapped, not read. The label is
      the array named label, labels, y, target or targets; inputs are the others, by name. A list keeps its order.
    * images (.bmp, .jpeg, .jpg, .png, .webp): each below the folder of its class, or anywhere beside one table:
      `labels.csv` with the columns file (or file_name, filename, image) and label, or `metadata.jsonl` with `file_name`
      and `label`. A batch is `(images, labels)`, uint8 (N, 3, H, W) and int64 (N,).
    * CSV, JSON lines, Parquet, Arrow, libsvm, RecordIO-protobuf: rows of numbers are `(features, labels)`, float32
      (N, columns) and int64 or float32 (N,); rows with text or lists are a dict by column. A CSV file without a header
      has the label first, as SageMaker's own algorithms have it; else it is the column of one of the names above.
    * text: `{"text": [line, ...]}`.
    * tar shards as webdataset writes them: `(images, labels)` where a sample is one image and `.cls`, else a dict by
      extension.

    Labels that are text become indices of the sorted `classes`. Tables are parsed once, while the first epoch reads
    them, into a cache of this machine that later epochs and runs map into memory; the first epoch of a large one is
    therefore shuffled within windows. So is every epoch of tar shards in a FastFile channel. A channel in Pipe mode is
    a stream.

    Args:
        channel: What holds the files.
        layout: Decides where two layouts fit or none does; files of other layouts are then left aside.
        label: The column that is the label; "" for none.
        columns: The columns that are features, in this order; by default all but the label.
        image_size: Height and width that images are scaled and cropped to, or the side of a square. By default they
            stay as they are, and must have one size.
        cache_dir: Where parsed tables are kept; by default a folder of this user's below the system's temporary one.

    Raises:
        ConfigurationError: An argument does not go with the layout.
        DataError: The folder is missing, empty or of no layout that is understood, or a file of it is damaged.
    """
    where = f"channel '{channel.name}' ({channel.path})"
    content_type: str | None = getattr(channel, "content_type", None)
    mode: str = getattr(channel, "input_mode", "File")
    if mode == "Pipe":
        wrapper: str = getattr(channel, "record_wrapper", "None")
        _refuse_options("a stream in Pipe mode", layout=layout, label=label, columns=columns, image_size=image_size)
        from smkit.data.pipes import open_pipe

        return open_pipe(channel.path, record_wrapper=wrapper, content_type=content_type, where=where)
    files = list_files(channel.path, _is_data, where)
    if not any(map(_is_file, files)):
        raise DataError("the folder holds no data", where=where, fix=_CHECK)
    chosen, own = _chosen(channel.path, files, layout, content_type, where)
    streamed = mode == "FastFile" or is_streamed(channel.path)
    if chosen == "arrays":
        _refuse_options("arrays", label=label, columns=columns, image_size=image_size)
        return read_arrays([channel.path / file for file in _arrays(own, where)], where)
    if chosen == "images":
        _refuse_options("images", label=label, columns=columns)
        files = own if layout else files
        return Images(channel.path, *label_images(channel.path, files, where), size=image_size, where=where)
    if chosen == "tar":
        _refuse_options("tar shards", label=label, columns=columns)
        from smkit.data.shards.shards import open_shards

        return open_shards(
            channel.path, own, image_size=image_size, is_streamed=streamed, cache_dir=cache_dir, where=where
        )
    _refuse_options(f"a table ({chosen})", image_size=image_size)
    if streamed and chosen not in ("parquet", "arrow"):
        logger.warning(
            "%s streams from S3: all of it is read once to count its rows; Parquet says how many it has", where
        )
    from smkit.data.tables.opening import open_table

    return open_table(
        channel.path,
        own,
        chosen,
        label=label,
        columns=columns,
        content_type=content_type,
        cache_dir=cache_dir,
        where=where,
    )


def _is_file(path: str) -> bool:
    return not path.endswith(" (empty)")


def _is_data(name: str) -> bool:
    return not any(fnmatchcase(name, pattern) for pattern in _NOT_DATA)


def _suffix(file: str) -> str:
    """Return the suffix that says what a file is, without `.gz`; Spark writes `part-0` into a folder `name.csv`."""
    path = Path(file.lower().removesuffix(".gz"))
    return path.suffix or (path.parent.suffix if path.name.startswith("part-") else "")


def _chosen(
    root: Path, files: Sequence[str], layout: Layout | None, content_type: str | None, where: str
) -> tuple[Layout, list[str]]:
    """Return the layout of a channel, and the files that belong to it."""
    kinds: dict[str, Layout | None] = {file: _BY_SUFFIX.get(_suffix(file)) for file in files if _is_file(file)}
    if layout is not None:
        return layout, _files_of(layout, kinds, where)
    stated = _BY_CONTENT_TYPE.get((content_type or "").partition(";")[0].strip().lower())
    if stated is not None and not any(map(is_image, files)):
        return stated, _files_of(stated, kinds, where)
    seen = set(kinds.values())
    if "images" in seen:
        # What lies beside images is checked together with their labels.
        return "images", list(kinds)
    if seen == {None}:
        found = _by_magic(root / next(iter(kinds)), where)
        if found is not None and not any(_suffix(file) in _FOREIGN for file in kinds):
            return found, list(kinds)
    if len(seen) == 1 and None not in seen and all(map(_is_file, files)):
        [only] = seen
        if only is not None:
            return only, list(kinds)
    raise _no_layout(files, kinds, where)


def _files_of(layout: Layout, kinds: dict[str, Layout | None], where: str) -> list[str]:
    """Return the files of a layout that was named; those that nothing is known of, where there are no others."""
    own = [file for file, kind in kinds.items() if kind == layout]
    own = own or [file for file, kind in kinds.items() if kind is None and _suffix(file) not in _FOREIGN]
    if own or layout == "text":
        return own or list(kinds)
    raise DataError(f"no file can be of the layout {layout!r}: {_shown(list(kinds))}", where=where, fix=_CHECK)


def _by_magic(file: Path, where: str) -> Layout | None:
    try:
        with file.open("rb") as opened:
            start = opened.read(512)
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error.strerror}", where=where, fix=_CHECK) from error
    return next((kind for at, magic, kind in _BY_MAGIC if start[at : at + len(magic)] == magic), None)


def _arrays(files: Sequence[str], where: str) -> Sequence[str]:
    """Return the files of arrays, if they are one layout together."""
    suffixes = {_suffix(file) for file in files}
    if any("/" in file or file.lower().endswith(".gz") for file in files) or (len(files) > 1 and suffixes != {".npy"}):
        raise _no_layout(files, dict.fromkeys(files), where)
    return files


def _no_layout(files: Sequence[str], kinds: dict[str, Layout | None], where: str) -> DataError:
    foreign = next((text for file in files if (text := _FOREIGN.get(_suffix(file)))), None)
    foreign = foreign or _foreign_index(files)
    if foreign is not None:
        return DataError(
            f"this is {foreign.partition(': ')[0]}: {_shown(files)}",
            where=where,
            fix=(f"{foreign.partition(': ')[2]}, and return it in `build_dataset`"),
        )
    counts = Counter(kind for kind in kinds.values() if kind is not None)
    if len(counts) > 1:
        seen = " and ".join(f"{kind} ({count:,})" for kind, count in counts.most_common())
        return DataError(
            f"more than one layout fits what is there, {seen}: {_shown(files)}",
            where=where,
            fix=f"say which with open_dataset(..., layout={counts.most_common(1)[0][0]!r}), or keep one of them",
        )
    return DataError(
        f"no known layout fits what is there: {_shown(files)}",
        where=where,
        fix=f"keep either {_UNDERSTOOD}; say which one it is with open_dataset(..., layout=...); or read the files in "
        "`build_dataset`",
    )


def _foreign_index(files: Sequence[str]) -> str | None:
    if any(Path(file).name == "index.json" for file in files) and any(file.endswith(".bin") for file in files):
        return "a litdata data set: build a litdata.StreamingDataset"
    return None


def _shown(files: Sequence[str], limit: int = 10) -> str:
    """Return what lies in a channel, folders in their own line of the list."""
    tops = list(dict.fromkeys(f"{top}/" if rest else top for top, _, rest in (file.partition("/") for file in files)))
    more = f" and {len(tops) - limit} more" if len(tops) > limit else ""
    return ", ".join(tops[:limit]) + more


def _refuse_options(held: str, **options: object) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise ConfigurationError(
            f"{', '.join(f'{name} is {options[name]!r}' for name in given)}, and the channel holds {held}",
            where="open_dataset",
            fix=f"leave {', '.join(given)} out",
        )
