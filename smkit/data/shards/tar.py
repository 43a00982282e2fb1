"""Where the files lie in a tar: hopped through from header to header, without reading what is between them.

ustar, GNU and pax archives are understood. What is neither a plain file nor a folder is refused, and so is a header
whose checksum is wrong. This room does not know what the files mean, nor what a sample is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator

from smkit.errors import DataError

Read = Callable[[int, int], bytes]
"""Returns the bytes at an offset, that many; fewer only where the file ends."""

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_SPACES = b" " * 8
_LONGEST_NAME = 1 << 20
_LONGEST_NUMBER = 20
_REST = 1 << 16
_FILES = (b"0", b"\0", b"7")
_FOLDER = b"5"
_LONG_NAME = b"L"
_OF_ALL = b"g"
_PAX = (b"x", b"X", _OF_ALL)
_EXTENSIONS = (*_PAX, _LONG_NAME, b"K")
_MATTERS = re.compile(rb"path=|size=|GNU\.sparse\.")
_OTHERS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
}
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
_PACK_ANEW = "pack the shard anew, with plain files only: `tar --format=gnu -cf`, or webdataset's ShardWriter"
_FETCH_ANEW = "write the shard again, and check that the channel has arrived whole"


class Tar:
    """A tar file.

    Args:
        read: Reads the file.
        size: Bytes of the file.
        name: What an error calls the file.
        where: What an error names as its place.
    """

    def __init__(self, read: Read, size: int, *, name: str, where: str) -> None:
        self._read = read
        self._size = size
        self._name = name
        self._where = where

    def members(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield the name, the offset and the size of each file in it.

        Raises:
            DataError: The tar is truncated or damaged, is compressed, or holds something other than files and folders.
        """
        offset = 0
        of_all: dict[bytes, bytes] = {}
        of_next: dict[bytes, bytes] = {}
        while (header := self._header(offset)) is not None:
            kind, start = header[156:157], offset + _BLOCK
            size = self._number(header[124:136], offset)
            if kind in _FILES:
                size = self._decimal(of_next.get(b"size"), size, offset)
                name = of_next.get(b"path") or _name(header)
                if start + size > self._size:
                    raise self._truncated(f"{_text(name)} should have {size:,} bytes from byte {start:,} on")
                if not name.endswith(b"/"):
                    yield name, start, size
                of_next = of_all
            elif kind == _FOLDER:
                size, of_next = 0, of_all
            elif kind in _EXTENSIONS:
                records = self._records(kind, start, size)
                of_next = of_next | records
                of_all = of_all | records if kind == _OF_ALL else of_all
            else:
                raise self._refusal(header, offset)
            offset = start + -(-size // _BLOCK) * _BLOCK
        if of_next != of_all:
            raise self._damaged(f"the extended header before byte {offset:,} belongs to no file")

    def _header(self, offset: int) -> bytes | None:
        """Return the header at `offset`, or None at the end of the archive."""
        header = self._read(offset, _BLOCK)
        if len(header) < _BLOCK:
            raise self._truncated(f"there should be a header, or the mark of the end, at byte {offset:,}")
        counted = header[:148] + _SPACES + header[156:]
        stated = _octal(header[148:156])
        # Adler-32 has the sum of the bytes in it, and is ten times as fast as `sum`.
        if zlib.adler32(counted) & 0xFFFF == stated + 1:
            return header
        if header == _ZEROS:
            self._check_rest(offset + _BLOCK)
            return None
        # A sum of more than 16 bits; and some old programs took bytes for signed numbers.
        if stated not in (sum(counted), sum(counted) - 256 * sum(byte > 127 for byte in counted)):
            raise self._no_header(header, offset)
        return header

    def _check_rest(self, offset: int) -> None:
        """Check that nothing follows the end, as it does where archives were joined: it would be lost in silence."""
        while rest := self._read(offset, _REST):
            if rest.count(0) < len(rest):
                first = offset + len(rest) - len(rest.lstrip(b"\0"))
                raise self._error(
                    f"goes on after the end of its archive, at byte {first:,}",
                    "unpack archives and pack them as one; `cat` joins no tar files",
                )
            offset += len(rest)

    def _number(self, field: bytes, offset: int) -> int:
        """Return a size: octal digits, or, of 8 GiB and more, a binary number."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        size = _octal(field)
        if size < 0:
            raise self._damaged(f"the header at byte {offset:,} has no number as its size: {field!r}")
        return size

    def _decimal(self, text: bytes | None, default: int, offset: int) -> int:
        if text is None:
            return default
        if not text.isdigit() or len(text) > _LONGEST_NUMBER:
            raise self._damaged(f"the extended header before byte {offset:,} has no number as its size: {text[:20]!r}")
        return int(text)

    def _records(self, kind: bytes, start: int, size: int) -> dict[bytes, bytes]:
        """Return what an extended header says of the place of the next file, or of all."""
        header = f"the extended header at byte {start - _BLOCK:,}"
        if start + size > self._size:
            raise self._truncated(f"{header} should have {size:,} bytes")
        if size > _LONGEST_NAME:
            raise self._damaged(f"{header} has {size:,} bytes")
        content = self._read(start, size)
        if kind in _PAX:
            return self._pax_records(content, header)
        return {b"path": content.partition(b"\0")[0]} if kind == _LONG_NAME else {}

    def _pax_records(self, content: bytes, header: str) -> dict[bytes, bytes]:
        """Return the records that matter here; each is `length key=value`."""
        records: dict[bytes, bytes] = {}
        # Most say but a time.
        content = content if _MATTERS.search(content) else b""
        while content.strip(b"\0"):
            digits, _, _ = content[:_LONGEST_NUMBER].partition(b" ")
            length = int(digits) if digits.isdigit() else 0
            key, equals, value = content[len(digits) + 1 : length].partition(b"=")
            if not equals or value[-1:] != b"\n" or length > len(content):
                raise self._damaged(f"{header} is no list of records")
            if key.startswith(b"GNU.sparse."):
                raise self._error(f"has a sparse file: {header} says so", _PACK_ANEW)
            if key in (b"path", b"size"):
                records[key] = value[:-1]
            content = content[length:]
        return records

    def _refusal(self, header: bytes, offset: int) -> DataError:
        kind = _OTHERS.get(header[156:157], f"an entry of the unknown type {header[156:157]!r}")
        return self._error(f"has {kind} at byte {offset:,}: {_text(_name(header))}", _PACK_ANEW)

    def _no_header(self, header: bytes, offset: int) -> DataError:
        for magic, compression in _COMPRESSIONS.items():
            if offset == 0 and header.startswith(magic):
                return self._error(
                    f"is compressed ({compression}), so that a sample can only be reached by reading all before it",
                    "unpack the compression; images gain nothing by it",
                )
        if offset == 0:
            return self._error("is no tar: it does not begin with a header", _FETCH_ANEW)
        return self._damaged(f"the header at byte {offset:,} does not have the checksum that it states")

    def _truncated(self, what: str) -> DataError:
        return self._error(f"is truncated: {what}, and the file ends at byte {self._size:,}", _FETCH_ANEW)

    def _damaged(self, what: str) -> DataError:
        return self._error(f"is damaged: {what}", _FETCH_ANEW)

    def _error(self, what: str, fix: str) -> DataError:
        return DataError(f"{self._name} {what}", where=self._where, fix=fix)


def _octal(field: bytes) -> int:
    """Return a number of a header, which is negative only if there is none."""
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's own headers have times where POSIX has the beginning of a long name.
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
