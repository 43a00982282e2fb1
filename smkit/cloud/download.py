"""One object on its way from S3 into a file: what breaks off goes on where it was, and what is wrong never has a name.

The file appears when all bytes are there, on the disk, and are what S3's tag and its checksum say. This room knows
neither jobs nor whose bucket it is.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from smkit.cloud.aws_errors import error_code
from smkit.cloud.object_tags import Tag, part_count, tag_of
from smkit.errors import JobError

_logger = logging.getLogger(__name__)
_READ_BYTES = 16 * 1024
"""A read waits for all of it, so that of more it could not be told how slowly it comes."""
_DAMAGED = frozenset({"FlexibleChecksumError"})
_CHANGED = frozenset({"PreconditionFailed", "412"})
_FRUITLESS = 3
"""So many connections in a row that bring next to nothing, and it is not worth another."""
_LITTLE_BYTES = 256 * 1024
_LEAST_BYTES_PER_SECOND = 4 * 1024
_MEASURED_SECONDS = 15.0
"""A connection that is slower than that for so long is as good as a broken one; a new one is often faster."""


class _BrokenError(Exception):
    """The connection has ended before the object has."""


class _DamagedError(Exception):
    """The bytes are not those of the object."""


@dataclass
class Download:
    """A download that has not happened yet.

    Args:
        s3: The client.
        place: Bucket, key and owner, as arguments of the API.
        path: The file that is to appear.
        doing: What this is, for messages.
    """

    s3: Any
    place: Mapping[str, Any]
    path: Path
    doing: str

    def run(self) -> None:
        """Write the object to its file.

        Raises:
            JobError: It arrives damaged twice, too slowly or in pieces that are too small, or cannot be written.
        """
        part = self.path.with_name(f"{self.path.name}.part")
        damage = ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):
                try:
                    with part.open("wb") as file:
                        self._fetch(file)
                        file.flush()
                        os.fsync(file.fileno())
                    part.replace(self.path)
                except _DamagedError as error:
                    damage = str(error)
                else:
                    return
        except OSError as error:
            raise JobError(
                f"'{self.path}' cannot be written: {error.strerror}",
                where=self.doing,
                fix="free space, or give another folder",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        raise JobError(
            f"the object arrived damaged twice: {damage}",
            where=self.doing,
            fix="repeat; if it stays so, the object itself or a proxy on the way is damaged",
        )

    def _fetch(self, file: IO[bytes]) -> None:
        """Write all bytes of the object, over as many connections as it takes."""
        answer = self.s3.get_object(ChecksumMode="ENABLED", **self.place)
        wanted, size, tag = tag_of(answer), int(answer["ContentLength"]), self._tag(answer)
        blocks, fruitless = self._blocks(answer["Body"]), 0
        while True:
            before = file.tell()
            try:
                for block in blocks:
                    if tag is not None:
                        tag.update(block)
                    file.write(block)
                break
            except _BrokenError as error:
                came, left = file.tell() - before, size - before
                fruitless = 0 if came >= min(_LITTLE_BYTES, left / 2) else fruitless + 1
                if fruitless == _FRUITLESS:
                    raise self._given_up(error, file.tell(), size) from error
                _logger.info("%s goes on at byte %d: %s", self.doing, file.tell(), error)
            time.sleep(fruitless)
            blocks = self._rest(file.tell(), wanted, size)
        if file.tell() != size:
            raise _DamagedError(f"{file.tell()} bytes came, and S3 says {size}")
        file.flush()
        if tag is not None and str(tag) != wanted and not self._is_of_other_parts(Path(file.name), wanted):
            raise _DamagedError(f"its MD5 is {tag}, and S3 says {wanted}")

    def _rest(self, start: int, wanted: str, size: int) -> Iterator[bytes]:
        """Return what has not come yet, of the same object."""
        if start == size:
            # All has come but the end of the connection.
            return iter(())
        try:
            answer: Mapping[str, Any] = self.s3.get_object(Range=f"bytes={start}-", IfMatch=f'"{wanted}"', **self.place)
        except Exception as error:
            if error_code(error) in _CHANGED:
                raise _DamagedError("it was replaced by another one under way") from error
            raise
        if f"bytes {start}-{size - 1}/{size}" != answer.get("ContentRange"):
            raise _DamagedError(f"S3 was asked for its bytes from {start} on and gives {answer.get('ContentRange')}")
        return self._blocks(answer["Body"])

    def _blocks(self, body: Any) -> Iterator[bytes]:
        """Yield what one connection brings.

        Raises:
            _BrokenError: It ends too early, or is too slow.
            _DamagedError: It brings something else.
        """
        blocks = body.iter_chunks(_READ_BYTES)
        since, came = time.monotonic(), 0
        while True:
            try:
                block = next(blocks, b"")
            except Exception as error:
                if error_code(error) in _DAMAGED:
                    raise _DamagedError(str(error)) from error
                body.close()
                # Of what is no error of botocore's either, a connection is the cause: TLS, a decoder.
                raise _BrokenError(str(error)) from error
            if not block:
                return
            yield block
            came += len(block)
            if (passed := time.monotonic() - since) > _MEASURED_SECONDS:
                if came / passed < _LEAST_BYTES_PER_SECOND:
                    body.close()
                    raise _BrokenError(f"only {came} bytes came in {passed:.0f} seconds")
                since, came = time.monotonic(), 0

    def _tag(self, answer: Mapping[str, Any]) -> Tag | None:
        """Return a tag to be compared with that of an answer; None if nobody can tell how that is made."""
        count = part_count(answer)
        if not count:
            return None if count is None else Tag(None)
        # Whoever puts an object together takes parts of one size, almost always.
        return Tag(itertools.repeat(self._part_bytes(1)))

    def _part_bytes(self, number: int) -> int:
        return int(self.s3.head_object(PartNumber=number, **self.place)["ContentLength"])

    def _is_of_other_parts(self, path: Path, wanted: str) -> bool:
        """Whether a file that seems damaged is right, and its object of parts of several sizes."""
        count = part_count({"ETag": wanted})
        if not count:
            return False
        tag = Tag([self._part_bytes(number) for number in range(1, count + 1)])
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                tag.update(block)
        return str(tag) == wanted

    def _given_up(self, error: _BrokenError, came: int, size: int) -> JobError:
        return JobError(
            f"the connection breaks off again and again, or is too slow: {error}; {came} of {size} bytes came",
            where=self.doing,
            fix="repeat where the network is better; nothing has been written",
        )
