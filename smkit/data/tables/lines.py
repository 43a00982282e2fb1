"""Lines of text: a row is a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smkit.data.tables.blocks import Block, TextFiles
from smkit.data.tables.columns import Column, Values
from smkit.data.tables.formats import Format, texts_of


class Lines(Format):
    """Text files; a blank line is a row, except at the end of a file.

    Raises:
        DataError: There is no line.
    """

    kind = "text"
    columns = (Column("text", "text"),)
    is_selectable = False

    def __init__(self, root: Path, files: Sequence[str], where: str) -> None:
        super().__init__(root, files, where)
        self._texts = TextFiles(root, files, where)
        self.blocks = self._texts.blocks_of_lines("lines")

    def parse(self, block: Block, columns: Sequence[Column]) -> list[Values]:
        """Return the lines of a block, for each of `columns`."""
        data = self._texts.read(block)
        lines = data.split(b"\n")[: block.rows]
        try:
            data.decode()
        except UnicodeDecodeError as error:
            row = data.count(b"\n", 0, error.start)
            what = f"byte {data[error.start]:#x} is no UTF-8"
            raise self.wrong(block, row, what, "write the file as UTF-8 text") from error
        if b"\r" in data:
            lines = [line.removesuffix(b"\r") for line in lines]
        return [texts_of(lines) for _ in columns]
