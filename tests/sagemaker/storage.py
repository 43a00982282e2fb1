"""S3 as the service itself uses it for a job: channels and checkpoints in, models and outputs out."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class DataFaultError(Exception):
    """The customer's data cannot be had."""


def split(uri: str) -> tuple[str, str]:
    """Return the bucket and the key (or prefix) of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def keys(s3: Any, uri: str) -> list[str]:
    """Return all keys that begin with the URI's, sorted; none if there is no such bucket."""
    bucket, prefix = split(uri)
    try:
        pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix))
    except s3.exceptions.NoSuchBucket:
        return []
    return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


def download_channel(s3: Any, uri: str, folder: Path, share: tuple[int, int] = (0, 1)) -> None:
    """Download what an S3Prefix names; of `(1, 2)`, the second host's half.

    A prefix need not end at a `/`: `s3://bucket/tra` names `train/a` and `trace`, too.

    Raises:
        DataFaultError: Nothing begins with this prefix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bucket, prefix = split(uri)
    found = [key for key in keys(s3, uri) if not key.endswith("/")]
    if not found:
        text = f'Data download failed:No S3 objects found under S3 URL "{uri}" given in input data source. '
        raise DataFaultError(text + "Please ensure that the bucket exists and that objects exist under that S3 prefix.")
    position, hosts = share
    for key in found[position::hosts]:
        _download(s3, bucket, key, folder / _name_below(prefix, key))


def _name_below(prefix: str, key: str) -> str:
    rest = key[len(prefix) :]
    whole = not rest or not (prefix.endswith("/") or not prefix or rest.startswith("/"))
    return prefix.rpartition("/")[2] + rest if whole else rest.lstrip("/")


def _download(s3: Any, bucket: str, key: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as target:
        shutil.copyfileobj(s3.get_object(Bucket=bucket, Key=key)["Body"], target)


class Mirror:
    """A folder of one host that is kept in S3 while the job runs: new and changed files go up, deletions too."""

    def __init__(self, s3: Any, folder: Path, uri: str) -> None:
        self._s3, self._folder = s3, folder
        self._bucket, prefix = split(uri)
        self._prefix = prefix.rstrip("/") + "/" if prefix else ""
        self._known: dict[str, tuple[int, int]] = {}

    def restore(self) -> None:
        """Download what is in S3."""
        for key in keys(self._s3, f"s3://{self._bucket}/{self._prefix}"):
            if not key.endswith("/"):
                _download(self._s3, self._bucket, key, self._folder / key[len(self._prefix) :])
        self._known = dict(self._state())

    def sync(self) -> None:
        """Bring S3 to the state of the folder."""
        now = dict(self._state())
        for name in now.keys() | self._known.keys():
            key = self._prefix + name
            if name not in now:
                self._s3.delete_object(Bucket=self._bucket, Key=key)
                del self._known[name]
            elif now[name] != self._known.get(name):
                try:
                    data = (self._folder / name).read_bytes()
                except FileNotFoundError:
                    continue  # deleted or renamed since it was listed: the next time tells
                self._s3.put_object(Bucket=self._bucket, Key=key, Body=data)
                self._known[name] = now[name]

    def _state(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for file in _files(self._folder):
            try:
                state = file.stat()
            except FileNotFoundError:
                continue
            yield file.relative_to(self._folder).as_posix(), (state.st_mtime_ns, state.st_size)


def _files(folder: Path) -> list[Path]:
    # A folder may vanish while it is listed, for the job is at work in it.
    try:
        return [file for file in sorted(folder.rglob("*")) if file.is_file()]
    except FileNotFoundError:
        return _files(folder)


def upload_output(s3: Any, folders: Iterable[Path], uri: str, name: str, *, compressed: bool) -> str:
    """Upload the hosts' folders as one, `<uri>/<name>.tar.gz` or the files below `<uri>/<name>/`; return its address.

    Where two hosts have a file of the same name, the first host's stays.
    """
    merged: dict[str, Path] = {}
    for folder in folders:
        for file in _files(folder):
            merged.setdefault(file.relative_to(folder).as_posix(), file)
    bucket, prefix = split(f"{uri}/{name}")
    if not compressed:
        for path, file in merged.items():
            s3.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=file.read_bytes())
        return f"{uri}/{name}/"
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            for path, file in merged.items():
                archive.add(file, path)
        packed.seek(0)
        s3.put_object(Bucket=bucket, Key=f"{prefix}.tar.gz", Body=packed)
    return f"{uri}/{name}.tar.gz"
