"""Parquet and Arrow files, which know their columns and rows: read by pyarrow, some rows at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smkit.data.tables.arrow_values import column_of, load, values_of, with_lengths
from smkit.data.tables.blocks import Block, Blocks, read_failed
from smkit.data.tables.columns import Column, Values
from smkit.data.tables.formats import Format, require_narrow
from smkit.errors import DataError

_SLICE = 1 << 13
_MOST_OPEN = 8
_BUFFER_BYTES = 1 << 16


class _Columnar(Format):
    """Files with a schema each, which must be the same."""

    unit = "row"

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        super().__init__(root, files, where)
        schema: Any = None
        parts: list[tuple[int, int, int, int, int]] = []
        for file, name in enumerate(files):
            with self._reading(file):
                found, groups = self._described(file)
            if schema is not None and not found.equals(schema):
                raise DataError(
                    f"{name} has other columns or types than {files[0]}: {_difference(schema, found)}",
                    where=where,
                    fix="write all files with the same columns",
                )
            schema = found
            line = 1
            for group, rows in enumerate(groups):
                for number, start in enumerate(range(0, rows, _SLICE)):
                    parts.append((file, group, number, min(_SLICE, rows - start), line + start))
                line += rows
        self.blocks = Blocks(parts)
        if not self.blocks.total:
            raise DataError("the files hold no rows", where=where, fix="check what has written them")
        require_narrow(len(schema), where)
        columns = [column_of(field.name, field.type) for field in schema]
        lists = [column.name for column in columns if column.length is not None]
        block = self.blocks[0]
        with self._reading(block.file):
            self.columns = with_lengths(columns, self._rows(block, lists) if lists else None)

    def parse(self, block: Block, columns: Sequence[Column]) -> list[Values]:
        """Return the values of a block's rows for each of `columns`."""
        with self._reading(block.file):
            rows = self._rows(block, [column.name for column in columns])
            if rows.num_rows != block.rows:
                raise ValueError(f"{rows.num_rows} rows are where {block.rows} were")
            return [values_of(self, block, column, rows.column(column.name)) for column in columns]

    @abstractmethod
    def _described(self, file: int) -> tuple[Any, list[int]]:
        """Return the schema of a file and the number of rows of each of its groups."""

    @abstractmethod
    def _rows(self, block: Block, names: Sequence[str]) -> Any:
        """Return these columns of a block."""

    @contextmanager
    def _reading(self, file: int) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise read_failed(self.files[file], error, self.where) from error


class Parquet(_Columnar):
    """Parquet files: a row group is read from its start on, and what was read of it is not read again."""

    kind = "parquet"

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        load("pyarrow.parquet", "a Parquet file", where)
        self._open: dict[tuple[int, int], tuple[int, Iterator[Any]]] = {}
        super().__init__(root, files, where)
        self._open.clear()

    def chain(self, number: int) -> range:
        """Return the blocks of the row group up to block `number`."""
        return range(number - self.blocks[number].stop, number + 1)

    def _described(self, file: int) -> tuple[Any, list[int]]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.root / self.files[file]) as opened:
            groups = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            return opened.schema_arrow.remove_metadata(), groups

    def _rows(self, block: Block, names: Sequence[str]) -> Any:
        key = block.file, block.start
        number, batches = self._open.pop(key, (0, None))
        if batches is None or number > block.stop:
            number, batches = 0, self._batches(block, names)
        while number < block.stop:
            next(batches)
            number += 1
        rows = next(batches)
        if len(self._open) >= _MOST_OPEN:
            self._open.pop(next(iter(self._open)), None)
        self._open[key] = number + 1, batches
        return rows

    def _batches(self, block: Block, names: Sequence[str]) -> Iterator[Any]:
        from pyarrow import parquet

        # Otherwise all of a row group is read into memory before its first row.
        options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
        with parquet.ParquetFile(
            self.root / self.files[block.file], page_checksum_verification=True, **options
        ) as opened:
            yield from opened.iter_batches(_SLICE, row_groups=[block.start], columns=list(names), use_threads=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}


class Arrow(_Columnar):
    """Arrow files, of the format with a footer (Feather) or of the one for streams, which datasets writes."""

    kind = "arrow"

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        load("pyarrow.ipc", "an Arrow file", where)
        self._streams: dict[int, list[Any]] = {}
        super().__init__(root, files, where)

    def _described(self, file: int) -> tuple[Any, list[int]]:
        reader = self._reader(file)
        schema = (reader or self._stream(file)[0]).schema.remove_metadata()
        if reader is None:
            return schema, [batch.num_rows for batch in self._stream(file)]
        return schema, [reader.get_batch(group).num_rows for group in range(reader.num_record_batches)]

    def _rows(self, block: Block, names: Sequence[str]) -> Any:
        reader = self._reader(block.file)
        group = self._stream(block.file)[block.start] if reader is None else reader.get_batch(block.start)
        rows = group.select(list(names)).slice(block.stop * _SLICE, block.rows)
        # Arrow keeps offsets into memory in the file, and follows them unseen: damaged ones would end the process.
        rows.validate(full=True)
        return rows

    def _reader(self, file: int) -> Any:
        """Return the reader of a file with a footer; None where there is none."""
        import pyarrow as pa

        path = self.root / self.files[file]
        with path.open("rb") as opened:
            if opened.read(6) != b"ARROW1":
                return None
        return pa.ipc.open_file(pa.memory_map(str(path)))

    def _stream(self, file: int) -> list[Any]:
        """Return the batches of a stream, which lie in the mapped file."""
        import pyarrow as pa

        if file not in self._streams:
            reader = pa.ipc.open_stream(pa.memory_map(str(self.root / self.files[file])))
            empty = pa.RecordBatch.from_pylist([], schema=reader.schema)
            self._streams[file] = list(reader) or [empty]
        return self._streams[file]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_streams": {}}


def _difference(first: Any, other: Any) -> str:
    for field in other:
        if field.name not in first.names:
            return f"'{field.name}' is new"
        if first.field(field.name).type != field.type:
            return f"'{field.name}' is {field.type}, not {first.field(field.name).type}"
    missing = [name for name in first.names if name not in other.names]
    return f"'{missing[0]}' is missing" if missing else "their order is another one"
