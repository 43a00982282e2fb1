"""Which files of a folder are images, and the label of each: its class folder, or its row in a table beside the images.

This room does not open an image; `smkit.data.images` does.
"""

from __future__ import annotations

import csv
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from smkit.data.source import stray_text
from smkit.documents import load_json
from smkit.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
TABLES = ("labels.csv", "metadata.jsonl")
_FILE_COLUMNS = ("file", "file_name", "filename", "image")

Labels = Sequence[str] | Sequence[int]


def is_image(path: str) -> bool:
    """Return whether a file is an image by its suffix."""
    return path.lower().endswith(SUFFIXES)


def list_files(folder: Path, is_data: Callable[[str], bool], where: str) -> list[str]:
    """Return all files below `folder` whose names, and folders' names, are data's: relative paths, sorted.

    A folder that holds nothing is listed too: S3 has none, so that its class would exist on one machine only.
    """
    try:
        return sorted(_files(str(folder), "", is_data))
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}",
            where=where,
            fix="give this process access to it, or take it away",
        ) from error


def _files(folder: str, prefix: str, is_data: Callable[[str], bool]) -> Iterator[str]:
    is_empty = True
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_data(entry.name):
                is_empty = False
                path = f"{prefix}{entry.name}"
                if entry.is_dir():
                    yield from _files(entry.path, f"{path}/", is_data)
                elif entry.is_file() or entry.is_symlink():
                    yield path
                else:
                    raise OSError(errno.EINVAL, "it is neither a file nor a folder", entry.path)
    if is_empty:
        yield f"{prefix} (empty)"


def label_images(root: Path, files: Sequence[str], where: str) -> tuple[Sequence[str], Labels]:
    """Return the images among `files` with the label of each: text where it names a class, else integers.

    Raises:
        DataError: They are neither class folders nor images and one table, or images and labels do not fit together.
    """
    images = [file for file in files if is_image(file)]
    tables = [file for file in files if file in TABLES]
    if others := [file for file in files if not is_image(file) and file not in TABLES]:
        raise _refusal(f"besides images there is {_some(others)}", where)
    if len(tables) > 1:
        raise _refusal(f"two tables could hold the labels: {' and '.join(tables)}", where)
    if tables:
        return _labels_of_table(root / tables[0], set(images), where)
    return images, _labels_of_folders(images, where)


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def _refusal(what: str, where: str, fix: str | None = None) -> DataError:
    if fix is not None:
        return DataError(what, where=where, fix=fix)
    fix = f"keep either class folders with nothing but images, or images and one table, {' or '.join(TABLES)}"
    return DataError(what, where=where, fix=f"{fix}; or read the files in `build_dataset`")


def _labels_of_folders(images: Sequence[str], where: str) -> list[str]:
    if loose := [image for image in images if "/" not in image]:
        raise _refusal(f"no label says what these images show: {_some(loose)}", where)
    labels = [image.partition("/")[0] for image in images]
    if len(set(labels)) == 1:
        raise _refusal(f"all images lie below one folder, {labels[0]}/, and classes are at least two", where)
    return labels


def _labels_of_table(table: Path, images: set[str], where: str) -> tuple[list[str], list[str] | list[int]]:
    """Return the images in the table's order, and their labels: integers if all of them are."""
    try:
        rows = list(_csv_rows(table) if table.suffix == ".csv" else _json_rows(table))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise _refusal(f"{table.name} cannot be read: {error}", where, _mend(table)) from error
    names = [name for name, _ in rows]
    labels = [label for _, label in rows]
    listed = set(names)
    twice = [name for name, count in Counter(names).items() if count > 1]
    for trouble, paths in (
        (f"images that {table.name} names do not exist", [name for name in names if name not in images]),
        (f"images have no row in {table.name}", sorted(images - listed)),
        (f"images have several rows in {table.name}", twice),
    ):
        if paths:
            raise _refusal(f"{trouble} ({len(paths):,}): {_some(paths)}", where)
    try:
        return names, _labels(labels, names)
    except ValueError as error:
        raise _refusal(f"{table.name} has {error}", where, _mend(table)) from error


def _mend(table: Path) -> str:
    return f"mend {table.name}: a row for each image, with whole numbers as labels, or with names alone"


def _csv_rows(table: Path) -> Iterator[tuple[str, str]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = list(reader.fieldnames or ())
        names = [column for column in columns if column in _FILE_COLUMNS]
        if len(names) != 1 or columns.count("label") != 1:
            raise ValueError(
                f"its first line needs one column of {', '.join(_FILE_COLUMNS)}, and one label; "
                f"it has {', '.join(columns) or 'none'}"
            )
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more values than there are columns")
            yield _row(row, names[0], reader.line_num)


def _json_rows(table: Path) -> Iterator[tuple[str, str]]:
    with table.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                try:
                    row = load_json(text)
                except ValueError as error:
                    raise ValueError(f"line {line} is no JSON: {error}") from error
                yield _row(row, "file_name", line)


def _row(row: Any, file_column: str, line: int) -> tuple[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get(file_column), str) or row.get("label") in (None, ""):
        raise ValueError(f"line {line} lacks a {file_column} or a label")
    return row[file_column].removeprefix("./"), row["label"]


def _labels(labels: Sequence[Any], names: Sequence[str]) -> list[str] | list[int]:
    """Return the labels of images, all classes or all integers; those of a CSV file are text all the same."""
    kinds = {type(label) for label in labels}
    if kinds == {int}:
        return _int64(labels)
    if kinds != {str}:
        raise ValueError(f"labels of the types {', '.join(sorted(kind.__name__ for kind in kinds))}")
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        if (stray := stray_text(labels)) is not None:
            image = names[labels.index(stray)]
            raise ValueError(f"the label '{stray[:40]}' for {image}, and whole numbers for others") from None
        return list(labels)
    if not all(label.lstrip("-").isdecimal() for label in labels):
        raise ValueError(f"numbers as labels, which are no classes: {_some([f'{number:g}' for number in numbers])}")
    return _int64([int(label) for label in labels])


def _int64(labels: Sequence[int]) -> list[int]:
    if beyond := [str(label) for label in labels if not -(2**63) <= label < 2**63]:
        raise ValueError(f"labels beyond 64 bits: {_some(beyond)}")
    return list(labels)
