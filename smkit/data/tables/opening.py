"""From the files of a channel to a table: the format opens them, and the columns of a batch are chosen.

This room knows which format reads which kind of file, and nothing of what is in them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from smkit.data.source import fingerprint_of, fingerprint_of_files
from smkit.data.tables.cache import default_folder
from smkit.data.tables.columnar import Arrow, Parquet
from smkit.data.tables.columns import Selection, select
from smkit.data.tables.delimited import Delimited
from smkit.data.tables.formats import Format
from smkit.data.tables.json_lines import JSONLines
from smkit.data.tables.libsvm import LibSVM
from smkit.data.tables.lines import Lines
from smkit.data.tables.recordio import RecordIO
from smkit.data.tables.table import Table
from smkit.errors import DataError

_VERSION = 2
"""Of what a cache holds: another one for another way to parse the same files."""

_FORMATS: dict[str, Callable[[Path, Sequence[str], str], Format]] = {
    "csv": Delimited,
    "jsonl": JSONLines,
    "parquet": Parquet,
    "arrow": Arrow,
    "libsvm": LibSVM,
    "recordio": RecordIO,
    "text": Lines,
}


def open_table(
    root: Path,
    files: Sequence[str],
    kind: str,
    *,
    label: str | None = None,
    columns: Sequence[str] | None = None,
    content_type: str | None = None,
    cache_dir: Path | None = None,
    where: str,
) -> Table:
    """Return the rows of files as a data set.

    Args:
        root: The folder of the files.
        files: Their paths relative to `root`, all of one kind; rows follow this order.
        kind: csv, jsonl, parquet, arrow, libsvm, recordio or text.
        label: The label's column; "" is none. By default it is the first column of a CSV file without a header, what
            libsvm and RecordIO have as label, and else the column called label, labels, y, target or targets.
        columns: Names of the features, in their order; by default all but the label.
        content_type: The channel's; `text/csv;label_size=0` says that there is no label.
        cache_dir: Where parsed rows are kept; by default a folder of this user below the machine's temporary folder.
        where: What an error names as its place.

    Raises:
        DataError: A file is damaged, a column is not there, or the label is not clear.
    """
    opened = _FORMATS[kind](root, files, where)
    if label is None and opened.first_is_label:
        label = _stated_label(content_type, where)
    if not opened.is_selectable:
        label, columns = _all(opened, kind, label, columns, where)
    selection = select(
        opened.columns,
        label=label,
        columns=columns,
        first_is_label=opened.first_is_label,
        is_matrix=opened.is_matrix,
        where=where,
    )
    choice = json.dumps([kind, selection.is_matrix, [[c.name, c.kind, c.length] for c in selection.columns], label])
    return Table(
        opened,
        selection,
        cache_folder=Path(cache_dir) if cache_dir is not None else default_folder(where),
        key=_key(root, files, choice, selection),
        identity=fingerprint_of([fingerprint_of_files(root, files), choice]),
        where=where,
    )


def _stated_label(content_type: str | None, where: str) -> str | None:
    """Return "" if the content type says that there is no label, else None, as for one label."""
    stated = re.search(r"label_size\s*=\s*(\w+)", content_type or "")
    if stated and stated[1] not in ("0", "1"):
        raise DataError(
            f"the content type '{content_type}' says that a row has {stated[1]} labels, and smkit reads one or none",
            where=where,
            fix='choose one: label="0" is the first column; or read the files in `build_dataset`',
        )
    return "" if stated and stated[1] == "0" else None


def _key(root: Path, files: Sequence[str], choice: str, selection: Selection) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((_VERSION, choice, selection.label is None)).encode())
    for file in files:
        path = (root / file).absolute()
        found = path.stat()
        digest.update(repr((str(path), found.st_size, found.st_mtime_ns)).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _all(
    opened: Format, kind: str, label: str | None, columns: Sequence[str] | None, where: str
) -> tuple[str | None, Sequence[str] | None]:
    """Return the label of a format whose columns have no names of their own."""
    if columns is not None or label:
        asked = f"columns={list(columns)}" if columns is not None else f"label={label!r}"
        raise DataError(
            f"{asked} was asked for, and {kind} files have no named columns",
            where=where,
            fix="leave it out: a row is its features and its label",
        )
    return label if opened.first_is_label else "", None
