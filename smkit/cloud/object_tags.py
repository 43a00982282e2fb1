"""The tag that S3 gives an object, made again of its bytes: an MD5 of all, or of the MD5s of its parts.

Checksums of its own S3 keeps of most objects, but which one, and whether botocore can compute it, depends on who wrote
it; a tag is there always. This room knows no service.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

_TAG = re.compile(r"[0-9a-f]{32}(?:-(\d+))?")


def part_count(answer: Mapping[str, Any]) -> int | None:
    """Return of how many parts the tag in an answer to GetObject is made, 0 if of all bytes; None if of none at all.

    An object that KMS or the customer's own key encrypts has a random tag.
    """
    is_plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    match = _TAG.fullmatch(tag_of(answer))
    return int(match[1] or 0) if is_plain and match else None


def tag_of(answer: Mapping[str, Any]) -> str:
    """Return the tag in an answer, without its quotes."""
    return str(answer.get("ETag", "")).strip('"')


class Tag:
    """The tag of bytes that come one after the other.

    Args:
        part_sizes: How many bytes each part has, the last may have fewer; None for an object of one piece.
    """

    def __init__(self, part_sizes: Iterable[int] | None) -> None:
        self._is_of_parts = part_sizes is not None
        self._sizes = iter(part_sizes or ())
        self._ended: list[bytes] = []
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._room = self._next_room()

    def update(self, block: bytes) -> None:
        """Add the bytes that come next."""
        view = memoryview(block)
        while len(view) > self._room:
            self._md5.update(view[: int(self._room)])
            view = view[int(self._room) :]
            self._ended.append(self._md5.digest())
            self._md5, self._room = hashlib.md5(usedforsecurity=False), self._next_room()
        self._md5.update(view)
        self._room -= len(view)

    def __str__(self) -> str:
        if not self._is_of_parts:
            return self._md5.hexdigest()
        parts = [*self._ended, self._md5.digest()]
        return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"

    def _next_room(self) -> float:
        return next(self._sizes, math.inf)
