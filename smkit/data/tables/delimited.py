"""CSV and its kin: lines of values between delimiters, with or without a header, parsed by pyarrow.

Rows are cut where lines end, or, in files that quote, where a line ends outside of quotes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smkit.data.tables.arrow_values import column_of, load, values_of
from smkit.data.tables.blocks import FIRST_BYTES, Block, TextFiles
from smkit.data.tables.columns import Column, Values
from smkit.data.tables.formats import Format, require_narrow
from smkit.errors import DataError

MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None")
"""Texts that stand for a number which is not there."""

_BOM = b"\xef\xbb\xbf"
_LONGEST_HEAD = 64
_STRAY_BOM = "a byte order mark that is not the start of the file"
_JOINED = "join files without their byte order marks, and without their headers"
_ARRIVED = "check that the file has arrived whole"
_OTHER_DELIMITERS = "\t;|"


class _Start(NamedTuple):
    """The first row of a file."""

    cells: list[str]
    begin: int
    end: int
    lines: int


class Delimited(Format):
    """CSV files that are alike: all with the same header, or none with one.

    A first line without a number is a header, and so is one with a text above a number, but not one with nothing above
    a number, unless that is in the first column, where pandas writes its index. Without a header columns are
    called by their place, "0", "1", ..., and the first one is the label. The delimiter is the comma, or, where the
    first line has none and in .tsv files, a tab, semicolon or bar. A number may be missing: empty, NA, NaN, null.

    Raises:
        DataError: A file has another header, no rows, or is no text.
    """

    kind = "csv"

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        super().__init__(root, files, where)
        self._csv = load("pyarrow.csv", "a CSV file", where).__name__
        self._texts = TextFiles(root, files, where)
        heads = [self._head(file) for file in range(len(files))]
        first = next((file for file, head in enumerate(heads) if head.strip(b"\r\n\xef\xbb\xbf")), None)
        if first is None:
            raise DataError("the files hold no rows", where=where, fix="check that the channel has arrived whole")
        self._delimiter = _delimiter(files[first], heads[first])
        starts = [self._first_row(file, head, 0) for file, head in enumerate(heads)]
        header = self._header(heads[first], starts[first], first)
        self.first_is_label = header is None
        self._names = header or [str(place) for place in range(len(starts[first].cells))]
        require_narrow(len(self._names), where)
        if header:
            self._check_headers(starts, header)
        self._quoted = [b'"' in head for head in heads]
        self._begins = [start.end if header else start.begin for start in starts]
        lines = [1 + start.lines if header else 1 for start in starts]
        self._quotes_checked: set[int] = set()
        self.blocks = self._texts.blocks(self._begins, self._quoted, lines)
        if not self.blocks.total:
            raise DataError("the files hold a header and no rows", where=where, fix="check what has written them")
        self.columns = tuple(column_of(name, kind) for name, kind in self._inferred(self.blocks[0]))

    def parse(self, block: Block, columns: Sequence[Column]) -> list[Values]:
        """Return the values of a block's rows for each of `columns`."""
        import pyarrow as pa

        data = self._texts.read(block)
        kinds = {"whole": pa.int64(), "real": pa.float32(), "text": pa.string()}
        try:
            found = self._read(
                block,
                data,
                {column.name: kinds[column.kind] for column in columns},
                [column.name for column in columns],
            )
        except pa.ArrowInvalid as error:
            raise self._explained(block, data, columns, str(error)) from error
        if found.num_rows != block.rows:
            raise self._explained(block, data, columns, f"{found.num_rows} rows were found in {block.rows} lines")
        return [values_of(self, block, column, found.column(column.name)) for column in columns]

    def _read(self, block: Block, data: bytes, types: dict[str, Any], names: Sequence[str]) -> Any:
        from pyarrow import BufferReader
        from pyarrow import csv as arrow_csv

        if (place := data.find(b"\0")) >= 0:
            # A disk that lost power and a download that was cut leave zeros.
            row = data.count(b"\n", 0, place)
            raise self.wrong(block, row, "there is a NUL character", _ARRIVED)
        # Where a file quotes, a line may begin within a value.
        if data.startswith(_BOM) or (not self._quoted[block.file] and b"\n" + _BOM in data):
            row = 0 if data.startswith(_BOM) else data.count(b"\n", 0, data.index(b"\n" + _BOM)) + 1
            raise self.wrong(block, row, f"there is {_STRAY_BOM}", _JOINED)
        has_quotes = b'"' in data
        if has_quotes and not self._quoted[block.file]:
            self._check_quotes(block.file)
        return arrow_csv.read_csv(
            BufferReader(data),
            arrow_csv.ReadOptions(use_threads=False, block_size=len(data) + 2, column_names=self._names),
            arrow_csv.ParseOptions(
                delimiter=self._delimiter,
                quote_char='"' if has_quotes else False,
                newlines_in_values=self._quoted[block.file],
                ignore_empty_lines=len(self._names) > 1,
            ),
            arrow_csv.ConvertOptions(
                column_types=types,
                include_columns=names,
                null_values=MISSING,
                true_values=[],
                false_values=[],
                timestamp_parsers=[],
                strings_can_be_null=False,
            ),
        )

    # --- what the files are like --------------------------------------------------------------------------------------

    def _head(self, file: int) -> bytes:
        """Return the start of a file, with its first two rows unless they are very long."""
        head = self._texts.head(file, FIRST_BYTES)
        is_enough = len(head) < FIRST_BYTES or head.count(b"\n") > 1
        return head if is_enough else self._texts.head(file, _LONGEST_HEAD * FIRST_BYTES)

    def _first_row(self, file: int, head: bytes, begin: int) -> _Start:
        """Return the first row that begins at `begin`, or after it where lines are blank."""
        begin = len(_BOM) if not begin and head.startswith(_BOM) else begin
        blank = len(head[begin:]) - len(head[begin:].lstrip(b"\r\n"))
        lines = head[begin : begin + blank].count(b"\n")
        begin += blank
        if head.startswith(_BOM, begin):
            raise DataError(f"the first rows of {self.files[file]} hold {_STRAY_BOM}", where=self.where, fix=_JOINED)
        end = begin
        while True:
            end = head.find(b"\n", end) + 1 or len(head)
            lines += 1
            if head.count(b'"', begin, end) % 2 == 0 or end == len(head):
                break
        if b"\0" in head[begin:end]:
            raise DataError(
                f"the first rows of {self.files[file]} hold a NUL character", where=self.where, fix=_ARRIVED
            )
        try:
            text = head[begin:end].decode().rstrip("\r\n")
            cells = (
                next(csv.reader([text], delimiter=self._delimiter), [])
                if '"' not in text
                else next(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter))
            )
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.files[file]} is no text in UTF-8: {error}", where=self.where, fix="write it as UTF-8 text"
            ) from error
        except csv.Error as error:
            raise DataError(
                f"the first rows of {self.files[file]} cannot be read: {error}", where=self.where, fix=_fix_of(error)
            ) from error
        return _Start(cells, begin, end, lines)

    def _header(self, head: bytes, first: _Start, file: int) -> list[str] | None:
        """Return the names of the columns if the first row holds them."""
        if all(map(_is_number, first.cells)):
            return None
        second = self._first_row(file, head, first.end).cells if head[first.end :].strip() else []
        is_above_number = [lower not in MISSING and _is_number(lower) for lower in second]
        pairs = list(zip(first.cells, is_above_number, strict=False))
        has_text_above_number = any(is_above and not _is_number(cell) for cell, is_above in pairs)
        has_gap_above_number = any(is_above and not cell for cell, is_above in pairs[1:])
        has_number = any(cell and _is_number(cell) for cell in first.cells)
        if has_text_above_number or not (has_number or has_gap_above_number):
            return [name.strip() for name in first.cells]
        return None

    def _check_headers(self, starts: Sequence[_Start], header: Sequence[str]) -> None:
        for file, start in zip(self.files, starts, strict=True):
            if start.cells and [name.strip() for name in start.cells] != header:
                raise DataError(
                    f"{file} begins with {','.join(start.cells)[:80]!r}, the first file with {','.join(header)[:80]!r}",
                    where=self.where,
                    fix="give all files the same header line, or none of them one",
                )

    def _inferred(self, block: Block) -> list[tuple[str, Any]]:
        import pyarrow as pa

        data = self._texts.read(block)
        try:
            schema = self._read(block, data, {}, self._names).schema
        except pa.ArrowInvalid as error:
            unknown = [Column(name, "text") for name in self._names]
            raise self._explained(block, data, unknown, str(error)) from error
        kinds = {field.name: field.type for field in schema}
        temporal = (pa.types.is_temporal, pa.types.is_binary)
        return [
            (name, pa.string() if any(is_kind(kinds[name]) for is_kind in temporal) else kinds[name])
            for name in self._names
        ]

    # --- what is wrong ------------------------------------------------------------------------------------------------

    def _check_quotes(self, file: int) -> None:
        if file not in self._quotes_checked and self._texts.has_row_over_lines(file, self._begins[file]):
            raise DataError(
                f"{self.files[file]} has line breaks within quotes, and no quote in its first {FIRST_BYTES:,} bytes, "
                "so that it was taken for one row a line",
                where=self.where,
                fix="quote the header line, or write the file without line breaks in values",
            )
        self._quotes_checked.add(file)

    def _explained(self, block: Block, data: bytes, columns: Sequence[Column], reason: str) -> DataError:
        """Return the error that names the first row which is wrong, found by reading the block once more, slowly."""
        wanted = [(self._names.index(column.name), column) for column in columns]
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            row = data.count(b"\n", 0, error.start)
            return self.wrong(block, row, f"byte {data[error.start]:#x} is no UTF-8", "write the file as UTF-8 text")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter)
        line = 0
        for cells in reader:
            problem = _problem(cells, len(self._names), wanted)
            if problem:
                return self.wrong(block, line, *problem)
            line = reader.line_num
        return self.wrong(block, 0, f"this line or one of the {block.rows} from it on is damaged: {reason}", "mend it")


def _fix_of(error: csv.Error) -> str:
    if "field limit" in str(error):
        return "begin the file with rows of shorter values, or write it as Parquet or JSON lines"
    return "end each line with a line feed, and quote a value that holds line breaks"


def _problem(cells: Sequence[str], width: int, wanted: Sequence[tuple[int, Column]]) -> tuple[str, str] | None:
    if not cells and width > 1:
        return "the line is blank", "remove it"
    if cells and len(cells) != width:
        return f"the row has {len(cells)} values, and the table {width} columns", "mend the row, or quote its values"
    for place, column in wanted:
        cell = cells[place] if cells else ""
        if column.kind == "real" and not _is_number(cell):
            return (
                f"column '{column.name}' is {cell[:40]!r}, and was of numbers before",
                "mend the row, or leave the column out: columns=[...]",
            )
        if column.kind == "whole" and (cell in MISSING or not _is_whole(cell)):
            return (
                f"column '{column.name}' is {cell[:40]!r}, and was of whole numbers before",
                "mend the row; if the column is of real numbers write them so from the first row on: 1.0, not 1",
            )
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in MISSING
    return "_" not in text


def _is_whole(text: str) -> bool:
    try:
        return -(2**63) <= int(text) < 2**63 and "_" not in text
    except ValueError:
        return False


def _delimiter(file: str, head: bytes) -> str:
    line = head.lstrip(_BOM + b"\r\n").partition(b"\n")[0].decode(errors="replace")
    if ".tsv" in file.lower() and "\t" in line:
        return "\t"
    return (
        ","
        if "," in line
        else max(_OTHER_DELIMITERS, key=line.count)
        if any(map(line.count, _OTHER_DELIMITERS))
        else ","
    )
