"""JSON lines: a row is an object on a line of its own, parsed by pyarrow."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smkit.data.tables.arrow_values import column_of, load, values_of, with_lengths
from smkit.data.tables.blocks import Block, TextFiles
from smkit.data.tables.columns import Column, Values
from smkit.data.tables.formats import Format, require_narrow
from smkit.errors import DataError

_DEEPEST = 100
"""How deep a line may be nested; pyarrow descends by recursion, and beyond some ten thousand it crashes the process."""
_BEGINNING = re.compile(rb"\s*\{")
"""How a block begins; at a null in this place pyarrow 26 crashes the process."""
_NULL = re.compile(rb"\n[ \t\r]*null")
"""A line that pyarrow takes for a row in which all is missing."""
_TEXT_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"?|[][{}]')


class JSONLines(Format):
    """JSON lines files; the first rows say which keys there are, and what each of them holds.

    A key that a row lacks, or whose value is null, is a missing number, or the text "".

    Raises:
        DataError: There are no rows, or the first ones are damaged.
    """

    kind = "jsonl"

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        super().__init__(root, files, where)
        load("pyarrow.json", "JSON lines", where)
        self._texts = TextFiles(root, files, where)
        self.blocks = self._texts.blocks_of_lines("rows")
        first = self._read(self.blocks[0], self._texts.read(self.blocks[0]), None)
        try:
            self._types: dict[str, Any] = {field.name: _as_read(field.type) for field in first.schema}
        except UnicodeDecodeError as error:
            what = "the name of a column is no UTF-8"
            raise self.wrong(self.blocks[0], 0, what, "write the file as UTF-8 text") from error
        require_narrow(len(self._types), where)
        self.columns = with_lengths([column_of(name, kind) for name, kind in self._types.items()], first)

    def parse(self, block: Block, columns: Sequence[Column]) -> list[Values]:
        """Return the values of a block's rows for each of `columns`."""
        import pyarrow as pa

        types = dict(self._types)
        for column in columns:
            if column.kind == "real" and column.length is None and pa.types.is_integer(types[column.name]):
                types[column.name] = pa.float64()
        found = self._read(block, self._texts.read(block), types)
        return [values_of(self, block, column, found.column(column.name)) for column in columns]

    def _read(self, block: Block, data: bytes, types: dict[str, Any] | None) -> Any:
        import pyarrow as pa
        from pyarrow import json as arrow_json

        self._require_shallow(block, data)
        if not _BEGINNING.match(data) or _NULL.search(data):
            raise self._explained(block, data, types, "there is a line without an object")
        try:
            found = arrow_json.read_json(
                pa.BufferReader(data),
                arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 2),
                arrow_json.ParseOptions(
                    explicit_schema=None if types is None else pa.schema(list(types.items())),
                    newlines_in_values=False,
                    unexpected_field_behavior="infer" if types is None else "error",
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._explained(block, data, types, str(error)) from error
        if found.num_rows != block.rows:
            raise self._explained(block, data, types, f"{found.num_rows} objects were found")
        return found

    def _require_shallow(self, block: Block, data: bytes) -> None:
        if data.count(b"[") + data.count(b"{") <= block.rows + _DEEPEST:
            # Each row is an object, and what is left of the brackets is not enough for a deep one.
            return
        text = np.frombuffer(data, np.uint8)
        openings = np.flatnonzero((text == ord("[")) | (text == ord("{")))
        lines = np.searchsorted(np.flatnonzero(text == ord("\n")), openings)
        many = np.unique(lines[_DEEPEST:][lines[_DEEPEST:] == lines[:-_DEEPEST]])
        texts = data.split(b"\n") if len(many) else []
        for row in many.tolist():
            if _depth(texts[row]) > _DEEPEST:
                what = f"this is nested more than {_DEEPEST} deep"
                raise self.wrong(block, row, what, "keep a number, a text or a list of numbers under each key")

    def _explained(self, block: Block, data: bytes, types: dict[str, Any] | None, reason: str) -> DataError:
        """Return the error that names the first line which is wrong, found by reading the block once more, slowly."""
        seen: dict[str, str] = {}
        for row, line in enumerate(data.split(b"\n")[: block.rows]):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                what = f"this is no JSON: {error}" if line.strip() else "the line is blank"
                return self.wrong(block, row, what, "keep one whole object on each line")
            if not isinstance(values, dict):
                return self.wrong(block, row, f"this is no object: {line[:40]!r}", "keep one object on each line")
            for name, value in values.items():
                expected = seen.setdefault(name, _kind(value)) if types is None else _expected(types.get(name))
                if not _fits(value, expected):
                    what = f"'{name}' is {json.dumps(value)[:60]}, and was {expected} before"
                    return self.wrong(block, row, what, "give each key values of one type, and the first row every key")
        return self.wrong(
            block, 0, f"this line or one of the {block.rows} from it on cannot be read: {reason}", "mend the line"
        )


def _depth(line: bytes) -> int:
    """Return how deep the objects and lists of a line are nested."""
    depth = deepest = 0
    for bracket in _TEXT_OR_BRACKET.findall(line):
        depth += (bracket in (b"[", b"{")) - (bracket in (b"]", b"}"))
        deepest = max(deepest, depth)
    return deepest


def _as_read(kind: Any) -> Any:
    """Return the type of a column as it is read: what looks like a date stays text."""
    import pyarrow as pa

    return pa.string() if pa.types.is_temporal(kind) else pa.float64() if pa.types.is_null(kind) else kind


def _expected(kind: Any) -> str:
    import pyarrow.types as kinds

    if kind is None:
        return "not there"
    tests = {
        "a whole number": kinds.is_integer,
        "a number": kinds.is_floating,
        "true or false": kinds.is_boolean,
        "text": kinds.is_string,
        "a list": kinds.is_list,
    }
    return next((name for name, test in tests.items() if test(kind)), "an object")


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def _fits(value: object, expected: str) -> bool:
    if expected == "a whole number":
        return value is None or type(value) is int
    return expected != "not there" and (value is None or expected == "null" or _kind(value) == expected)
