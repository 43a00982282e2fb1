"""Damage on the way, and the checksums by which S3 finds it in what is put: moto believes any."""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections.abc import Callable
from typing import Any

from sagemaker.wire import Answer, Request, error

_PUT = ("PutObject", "UploadPart")
_ALGORITHMS: dict[str, Callable[[bytes], bytes]] = {
    "x-amz-checksum-crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "x-amz-checksum-sha1": lambda data: hashlib.sha1(data).digest(),
    "x-amz-checksum-sha256": lambda data: hashlib.sha256(data).digest(),
    "content-md5": lambda data: hashlib.md5(data).digest(),
}


def flip_one_bit(data: bytes) -> bytes:
    """Damage this."""
    damaged = bytearray(data)
    if damaged:
        damaged[len(damaged) // 2] ^= 1
    return bytes(damaged)


def refusal_of_damage(request: Request, environ: dict[str, Any], *, corrupted: bool) -> Answer | None:
    """Damage what is put, if so told, and compare it with the checksum that the client gave, if it gave one."""
    if request.action not in _PUT:
        return None
    body = environ["wsgi.input"].read(request.size)
    body = flip_one_bit(body) if corrupted else body
    environ["wsgi.input"] = io.BytesIO(body)
    given = {name: value for name, value in request.headers.items() if name in _ALGORITHMS}
    wrong = [name for name, value in given.items() if base64.b64encode(_ALGORITHMS[name](body)).decode() != value]
    if wrong:
        return error(request, "BadDigest", f"The {wrong[0]} you specified did not match what we received.")
    return None
