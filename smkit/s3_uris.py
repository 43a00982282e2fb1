"""s3:// URIs: read, checked by S3's own rules for buckets and keys, and the usual slips recognized.

This room knows text only: whether a bucket is there is asked elsewhere.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

_BUCKET = re.compile(r"(?=.{3,63}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_ADDRESS_OF_MACHINE = re.compile(r"\d+\.\d+\.\d+\.\d+")
_ACCESS_POINT = re.compile(r"(arn:aws[a-z-]*:s3[a-z-]*:[a-z0-9-]*:\d{12}:accesspoint[:/][^/]+)/?(.*)", re.DOTALL)
_MAX_KEY_BYTES = 1024
_SLIP = re.compile(r"s3[an]?:?/{0,3}(?=[^/:])(.*)", re.IGNORECASE | re.DOTALL)
_WEB_HOST = re.compile(r"(?:(?P<bucket>.+)\.)?s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?")
_CONSOLE_HOST = re.compile(r"(?:[a-z0-9-]+\.)*console\.(?:aws\.amazon|amazonaws)\.com?(?:\.cn)?")


class S3Uri(NamedTuple):
    """A bucket and a key, or the common start of many keys."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def looks_like_s3(text: str) -> bool:
    """Whether the writer means an object of S3, rightly written or not."""
    return bool(re.match(r"s3[an]?:|s3//", text, re.IGNORECASE)) or _from_web(text) is not None


def parse_uri(text: str) -> S3Uri:
    """Return the bucket and the key of an s3:// URI.

    Raises:
        ValueError: It is none, with what is wrong and what may have been meant.
    """
    if not text.startswith("s3://"):
        raise ValueError(f"'{text}' is no s3:// URI{_meant(text)}")
    point = _ACCESS_POINT.fullmatch(text.removeprefix("s3://"))
    bucket, key = point.groups() if point else text.removeprefix("s3://").partition("/")[::2]
    if not point:
        _check_bucket(text, bucket)
    if len(key.encode("utf-8", errors="replace")) > _MAX_KEY_BYTES:
        raise ValueError(f"'{text[:80]}...' has a key of more than {_MAX_KEY_BYTES} bytes, which S3 does not take")
    if not key.isprintable():
        raise ValueError(f"{text!r} has characters in it that cannot be printed")
    return S3Uri(bucket, key)


def is_bucket_name(name: str) -> bool:
    """Whether S3 lets a bucket have this name."""
    return bool(_BUCKET.fullmatch(name)) and not _ADDRESS_OF_MACHINE.fullmatch(name)


def _check_bucket(text: str, bucket: str) -> None:
    if not bucket:
        raise ValueError(f"'{text}' names no bucket; write s3://bucket/path")
    if not is_bucket_name(bucket):
        lower = bucket.lower().replace("_", "-")
        suggestion = f"; did you mean 's3://{lower}'?" if lower != bucket and is_bucket_name(lower) else ""
        raise ValueError(
            f"'{bucket}' in '{text}' cannot be a bucket, whose name has 3 to 63 lower-case letters, digits, '.' "
            f"and '-'{suggestion}"
        )


def _meant(text: str) -> str:
    slip = _SLIP.fullmatch(text)
    meant = _from_web(text) or (f"s3://{slip[1]}" if slip else None)
    return f"; did you mean '{meant}'?" if meant else ""


def _from_web(text: str) -> str | None:
    """Return the s3:// URI of what a web address of S3 or of its console shows."""
    if not text.lower().startswith(("http://", "https://")):
        return None
    try:
        address = urlsplit(text)
        host = (address.hostname or "").lower()
    except ValueError:
        return None
    path = unquote(address.path).lstrip("/")
    web = _WEB_HOST.fullmatch(host)
    if web:
        return f"s3://{web['bucket']}/{path}" if web["bucket"] else f"s3://{path}"
    if _CONSOLE_HOST.fullmatch(host) and path.startswith(("s3/buckets/", "s3/object/")):
        return f"s3://{path.split('/')[2]}/{parse_qs(address.query).get('prefix', [''])[0]}"
    return None
