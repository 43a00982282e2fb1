"""Storage: one bucket of S3 whose owner is known, written and read with checksums.

Every request names the account that the bucket must belong to, so that a bucket that somebody else made under the
expected name gets nothing and gives nothing. What is written carries a SHA-256 that S3 checks on arrival: smkit names
objects by that digest, and S3 refuses bytes that changed between the two. What is read is checked before its file gets
its name. Nothing is deleted here. This room knows no job.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from smkit.cloud.aws import Clients
from smkit.cloud.aws_errors import aws_errors, error_code, is_denied
from smkit.cloud.download import Download
from smkit.cloud.pages import pages
from smkit.contract import default_bucket
from smkit.errors import ConfigurationError, JobError, SmkitError

PREFIX = "smkit"
"""What all of smkit's keys in a bucket start with; source/, data/ and jobs/ are below it."""
PART_BYTES = 32 * 1024 * 1024
"""An object of more goes up in parts of this size; S3 takes 10,000 of them, which is 312 GiB."""
_MAX_PARTS = 10_000
_THREADS = 8
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket"})
_CREATE_ATTEMPTS = 5


class Upload(NamedTuple):
    """A file that is to become an object.

    Args:
        key: The object's key.
        path: The file.
        size: Its bytes.
        sha256: Its digest in hexadecimal digits, which S3 checks on arrival where the object is of one part.
        verify: Raises if the file is no longer what the digest was made of; called once all its bytes have left.
    """

    key: str
    path: Path
    size: int
    sha256: str
    verify: Callable[[], None]


@dataclass(frozen=True)
class Storage:
    """A bucket and the account that it must belong to.

    Args:
        clients: What AWS is asked through.
        bucket: The bucket's name.
        owner: The twelve digits of the account that must own it.
        kms_key: The key of KMS that what is written is encrypted with; None for the bucket's own way.
    """

    clients: Clients
    bucket: str
    owner: str
    kms_key: str | None = None
    _seen: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def ensure_bucket(self) -> None:
        """Make the default bucket if it is missing; another launch may do the same at the same moment.

        A bucket that smkit makes has S3's defaults: no public access, objects encrypted, owner enforced. One of another
        name is not made, for a name that nobody has is a mistake.

        Raises:
            ConfigurationError: The bucket belongs to another account, lies in another region, is not there and not the
                default one, or may not be made.
        """
        for attempt in range(_CREATE_ATTEMPTS):
            if self._seen or self.is_there() or self._create():
                self._seen.append(self.bucket)
                return
            time.sleep(0.2 * 2**attempt)
        raise ConfigurationError(
            f"S3 is still busy with another change of the bucket '{self.bucket}'",
            where=f"s3://{self.bucket}",
            fix="repeat in a minute; a bucket that was just deleted can block its name for an hour",
        )

    def head(self, key: str) -> dict[str, Any] | None:
        """Return what S3 says about an object, None if there is none."""
        with self._errors(f"look at {self.uri(key)}"):
            try:
                return self.clients.s3.head_object(Key=key, **self._place)
            except Exception as error:
                if error_code(error) in _ABSENT:
                    return None
                self._ask_why(error, key)
                raise

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size of each object whose key starts with `prefix`; of a missing bucket, nothing."""
        return {key: found["Size"] for key, found in self.listed(prefix)}

    def listed(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield key and description of each object whose key starts with `prefix`, in the order of the keys."""
        doing = f"list {self.uri(prefix)}"

        def page(**token: str) -> dict[str, Any]:
            with self._errors(doing):
                try:
                    return self.clients.s3.list_objects_v2(Prefix=prefix, **token, **self._place)
                except Exception as error:
                    if error_code(error) == "NoSuchBucket":
                        return {}
                    raise

        for each in pages(page, doing, given="ContinuationToken", told="NextContinuationToken"):
            yield from ((found["Key"], found) for found in each.get("Contents", ()))

    def unfinished_uploads(self) -> Sequence[str]:
        """Return the keys of smkit's uploads in parts that nobody has gone on with for a day; a thousand at most."""
        with self._errors(f"list the uploads to s3://{self.bucket}"):
            page = self.clients.s3.list_multipart_uploads(Prefix=f"{PREFIX}/", **self._place)
        a_day_ago = datetime.now(timezone.utc) - timedelta(days=1)
        return [found["Key"] for found in page.get("Uploads", ()) if found["Initiated"] < a_day_ago]

    def put(self, key: str, data: bytes, **further: Any) -> None:
        """Write an object; `further` are arguments of the API, such as ContentType."""
        digest = _base64(hashlib.sha256(data).digest())
        with self._errors(f"upload of {self.uri(key)}"):
            given = {**self._place, **self._encryption, **further}
            self.clients.s3.put_object(Key=key, Body=data, ChecksumSHA256=digest, **given)

    def get(self, key: str) -> bytes:
        """Return the bytes of a small object."""
        with self._errors(f"read of {self.uri(key)}"):
            answer = self.clients.s3.get_object(Key=key, ChecksumMode="ENABLED", **self._place)
            data: bytes = answer["Body"].read()
            return data

    def upload(self, uploads: Sequence[Upload], *, advance: Callable[[int], None]) -> None:
        """Upload files in parallel, big ones in parts; the first failure ends all.

        Args:
            uploads: What to upload.
            advance: Told of bytes that have left, from several threads; negative where an attempt is repeated.
        """
        from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager

        # CRT, the other way to transfer, knows neither our time-outs nor our handlers.
        biggest = max((upload.size for upload in uploads), default=0)
        config = TransferConfig(
            multipart_threshold=PART_BYTES + 1,
            multipart_chunksize=max(PART_BYTES, -(-biggest // _MAX_PARTS)),
            max_concurrency=_THREADS,
            preferred_transfer_client="classic",
        )
        with self._part_handlers(uploads), create_transfer_manager(self.clients.s3, config) as manager:
            listeners = [ProgressCallbackInvoker(advance)]
            started = [
                (upload, manager.upload(str(upload.path), self.bucket, upload.key, self._extra(upload), listeners))
                for upload in uploads
            ]
            for upload, future in started:
                self._finish(upload, future)

    def download(self, key: str, path: Path) -> None:
        """Write an object to `path`, which appears only when all its bytes are there and are right.

        Raises:
            JobError: There is no such object, it arrives damaged twice, or it cannot be written.
        """
        doing = f"download of {self.uri(key)} to {path}"
        with aws_errors(doing, kind=JobError, profile_name=self.clients.profile_name):
            Download(self.clients.s3, {"Key": key, **self._place}, path, doing).run()

    def is_there(self) -> bool:
        """Return whether there is such a bucket.

        Raises:
            ConfigurationError: It belongs to another account, or lies in another region.
        """
        with self._errors(f"look at the bucket s3://{self.bucket}"):
            try:
                found = self.clients.s3.head_bucket(**self._place)
            except Exception as error:
                if error_code(error) in _ABSENT:
                    return False
                self._ask_why(error, "")
                if error_code(error) == "403":
                    raise self._foreign_bucket() from error
                raise
        region = found.get("BucketRegion") or self.clients.region
        if region != self.clients.region:
            raise ConfigurationError(
                f"the bucket '{self.bucket}' lies in {region}, and the job would run in {self.clients.region}",
                where=f"s3://{self.bucket}",
                fix=f"give another bucket, or region='{region}'",
            )
        return True

    def not_there(self) -> ConfigurationError | None:
        """Return what is wrong with a bucket of this name that is not there; None if a launch makes it."""
        default = default_bucket(self.clients.region, self.owner)
        if self.bucket == default:
            return None
        return ConfigurationError(
            f"there is no bucket '{self.bucket}' in account {self.owner}",
            where=f"s3://{self.bucket}",
            fix=f"make it with `aws s3 mb s3://{self.bucket} --region {self.clients.region}`; or leave bucket out, for "
            f"{default}, which is made if it is missing",
        )

    def _create(self) -> bool:
        """Make the bucket; return whether it is made and not just about to be."""
        if error := self.not_there():
            raise error
        # S3 takes every region as a constraint but its first.
        elsewhere = self.clients.region != "us-east-1"
        place = {"CreateBucketConfiguration": {"LocationConstraint": self.clients.region}} if elsewhere else {}
        with self._errors(f"make the bucket s3://{self.bucket}"):
            try:
                # The one request that takes no ExpectedBucketOwner: it makes the bucket in this account or fails.
                self.clients.s3.create_bucket(Bucket=self.bucket, **place)
            except Exception as error:
                if error_code(error) == "BucketAlreadyExists":
                    raise self._foreign_bucket() from error
                if error_code(error) in ("BucketAlreadyOwnedByYou", "OperationAborted"):
                    return False
                raise
        return True

    def _ask_why(self, error: Exception, key: str) -> None:
        """Raise the reason of a refused HEAD: the answer to it has no body to say it, that to a list has."""
        if error_code(error) in ("400", "403"):
            try:
                self.clients.s3.list_objects_v2(Prefix=key, MaxKeys=1, **self._place)
            except Exception as reason:
                if is_denied(reason):
                    raise self._foreign_bucket() from reason
                raise

    def _foreign_bucket(self) -> ConfigurationError:
        return ConfigurationError(
            f"the bucket '{self.bucket}' belongs to another account than {self.owner}, or you may not list it",
            where=f"s3://{self.bucket}",
            fix="launch(bucket=...) with a bucket of your account, or ask for s3:ListBucket on this one",
        )

    @property
    def _place(self) -> dict[str, str]:
        return {"Bucket": self.bucket, "ExpectedBucketOwner": self.owner}

    @property
    def _encryption(self) -> dict[str, str]:
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key} if self.kms_key else {}

    def _errors(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return aws_errors(doing, profile_name=self.clients.profile_name)

    def _extra(self, upload: Upload) -> dict[str, str]:
        given = {"ExpectedBucketOwner": self.owner, **self._encryption}
        if upload.size <= PART_BYTES:
            return {**given, "ChecksumSHA256": _base64(bytes.fromhex(upload.sha256))}
        # Of several parts S3 takes no SHA-256 of the whole; there each part has its own.
        return {**given, "ChecksumAlgorithm": "SHA256"}

    def _finish(self, upload: Upload, future: Any) -> None:
        doing = f"upload of {upload.path} to {self.uri(upload.key)}"
        try:
            with self._errors(doing):
                future.result()
        except (SmkitError, OSError) as error:
            # A file that was changed or taken away gives an error of any kind; this one says so.
            upload.verify()
            if error_code(error) == "NoSuchUpload" and self._has_come(upload):
                return
            if isinstance(error, SmkitError):
                raise
            raise ConfigurationError(
                f"'{upload.path}' cannot be read: {error.strerror}", where=doing, fix="make it readable"
            ) from error
        upload.verify()

    def _has_come(self, upload: Upload) -> bool:
        """Whether an upload in parts that is not there any more has become its object: a reply to that was lost."""
        found = self.head(upload.key)
        return found is not None and found["ContentLength"] == upload.size

    @contextlib.contextmanager
    def _part_handlers(self, uploads: Sequence[Upload]) -> Iterator[None]:
        """Let s3transfer name the owner when it gives up an upload in parts, and verify files before it completes one.

        An object in parts appears when they are put together. A file that changed under way is refused then, so that
        no object ever has other bytes than its name promises.
        """
        verify = {upload.key: upload.verify for upload in uploads}

        def name_owner(*, params: dict[str, Any], **_: Any) -> None:
            if params.get("Bucket") == self.bucket:
                params.setdefault("ExpectedBucketOwner", self.owner)

        def verify_file(*, params: dict[str, Any], **_: Any) -> None:
            if params.get("Bucket") == self.bucket and params.get("Key") in verify:
                verify[params["Key"]]()

        events = self.clients.s3.meta.events
        events.register("before-parameter-build.s3.AbortMultipartUpload", name_owner)
        events.register("before-parameter-build.s3.CompleteMultipartUpload", verify_file)
        try:
            yield
        finally:
            events.unregister("before-parameter-build.s3.AbortMultipartUpload", name_owner)
            events.unregister("before-parameter-build.s3.CompleteMultipartUpload", verify_file)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
