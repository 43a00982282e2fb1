"""The bucket and what goes into it: every request names the owner, and no wrong byte is kept on either side."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sagemaker.fixture import SageMaker

from smkit.cloud import digests, transfer_line
from smkit.cloud.aws import connect
from smkit.cloud.storage import PART_BYTES, Storage, Upload
from smkit.cloud.uploads import LocalData, address, upload
from smkit.contract import default_bucket
from smkit.errors import ConfigurationError, JobError

pytestmark = pytest.mark.aws


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests are remembered; files count as settled at once, so that no test has to wait."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NANOSECONDS", -(10**12))
    return tmp_path / "cache" / "smkit" / "digests.sqlite"


@pytest.fixture
def storage(sagemaker: SageMaker) -> Storage:
    return Storage(connect(), sagemaker.bucket, sagemaker.account)


def files(folder: Path, **contents: str) -> list[tuple[str, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text)
    return [(name, folder / name) for name in contents]


# The bucket


def test_every_request_names_the_owner(sagemaker: SageMaker, storage: Storage, tmp_path: Path) -> None:
    big, changing = tmp_path / "big", tmp_path / "changing"
    for path in (big, changing):
        with path.open("wb") as file:
            file.truncate(PART_BYTES + 1)
    storage.ensure_bucket()
    storage.ensure_bucket()
    storage.put("a", b"text", ContentType="text/plain")
    assert storage.get("a") == b"text"
    assert (storage.head("a") or {})["ContentLength"] == 4
    assert storage.head("missing") is None
    assert storage.sizes("") == {"a": 4}
    sent: list[int] = []
    (data,) = address("train", [("big", big)]).files
    storage.upload([Upload("big", big, data.stamp.size, data.sha256, data.verify)], advance=sent.append)
    assert sum(sent) == big.stat().st_size
    (data,) = address("train", [("changing", changing)]).files
    with pytest.raises(ConfigurationError, match="changing' was changed while the launch was reading it"):
        storage.upload(
            [Upload("changing", changing, data.stamp.size, data.sha256, data.verify)],
            advance=lambda _: os.utime(changing),
        )
    assert sorted(sagemaker.objects()) == ["a", "big"]
    storage.download("big", tmp_path / "down" / "big")
    assert (tmp_path / "down" / "big").read_bytes() == big.read_bytes()
    assert [request.action for request in sagemaker.requests() if request.lacks_expected_owner] == []
    assert set(sagemaker.actions()) == {
        *("HeadBucket", "HeadObject", "ListObjectsV2", "GetObject", "PutObject"),
        *("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"),
    }
    assert sagemaker.actions().count("HeadBucket") == 1
    digested = [request for request in sagemaker.requests() if request.action in ("PutObject", "UploadPart")]
    for request in digested:
        assert "x-amz-checksum-sha256" in request.headers or "sha256" in request.headers.get("x-amz-trailer", "")


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
def test_the_default_bucket_is_made_once_by_whoever_comes_first(sagemaker: SageMaker, region: str) -> None:
    clients = connect(region=region)
    bucket = default_bucket(clients.region, clients.account)
    assert bucket == f"sagemaker-{region}-123456789012"
    storages = [Storage(clients, bucket, clients.account) for _ in range(4)]
    threads = [threading.Thread(target=storage.ensure_bucket) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sagemaker.client("s3").head_bucket(Bucket=bucket)["BucketRegion"] == region
    storages[0].put("a", b"")


def test_a_bucket_of_others_gets_nothing(sagemaker: SageMaker, tmp_path: Path) -> None:
    sagemaker.make_foreign_bucket("squatted")
    storage = Storage(connect(), "squatted", sagemaker.account)
    with pytest.raises(ConfigurationError) as caught:
        storage.ensure_bucket()
    assert str(caught.value) == (
        "the bucket 'squatted' belongs to another account than 123456789012, or you may not list it\n"
        "  where: s3://squatted\n"
        "  fix:   launch(bucket=...) with a bucket of your account, or ask for s3:ListBucket on this one"
    )
    with pytest.raises(ConfigurationError, match="AWS denies PutObject, which needs s3:PutObject"):
        storage.put("a", b"secret")
    with pytest.raises(ConfigurationError, match="belongs to another account than 123456789012, or you may not list"):
        storage.head("a")
    with pytest.raises(JobError, match="AWS denies GetObject"):
        storage.download("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_of_another_region_is_refused(sagemaker: SageMaker) -> None:
    place = {"LocationConstraint": "eu-west-1"}
    sagemaker.client("s3").create_bucket(Bucket="elsewhere", CreateBucketConfiguration=place)
    with pytest.raises(ConfigurationError, match="'elsewhere' lies in eu-west-1, and the job would run in us-east-1"):
        Storage(connect(), "elsewhere", sagemaker.account).ensure_bucket()


def test_an_expired_token_is_told_from_a_missing_object(sagemaker: SageMaker, storage: Storage) -> None:
    sagemaker.settings(expired_keys=[os.environ["AWS_ACCESS_KEY_ID"]])
    # S3 answers HEAD with a bare 400.
    with pytest.raises(ConfigurationError, match="the AWS credentials have expired"):
        storage.head("a")
    with pytest.raises(ConfigurationError, match="the AWS credentials have expired"):
        storage.ensure_bucket()


class Stubborn:
    """The real S3 behind answers that it gives first: for each call, the codes that it refuses with."""

    def __init__(self, s3: Any, **refusals: list[str]) -> None:
        self._s3 = s3
        self._refusals = refusals

    def __getattr__(self, name: str) -> Any:
        if not self._refusals.get(name):
            return getattr(self._s3, name)
        answer = {"Error": {"Code": self._refusals[name].pop(0), "Message": "not now"}}

        def refuse(**_: Any) -> None:
            raise ClientError(answer, name)  # type: ignore[arg-type]

        return refuse


def stubborn(storage: Storage, bucket: str, **refusals: list[str]) -> Storage:
    s3 = Stubborn(storage.clients.s3, **refusals)
    return Storage(replace(storage.clients, make=lambda _: s3), bucket, storage.owner)


def test_races_of_two_launches_end_well(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def making(owner: str, *answers: str) -> Storage:
        default = default_bucket(storage.clients.region, owner)
        return replace(stubborn(storage, default, create_bucket=list(answers)), owner=owner)

    making(storage.owner, "OperationAborted", "BucketAlreadyOwnedByYou").ensure_bucket()
    with pytest.raises(ConfigurationError, match="'sagemaker-us-east-1-111111111111' belongs to another account than"):
        making("111111111111", "BucketAlreadyExists").ensure_bucket()
    with pytest.raises(ConfigurationError, match="AWS denies create_bucket: not now"):
        making("222222222222", "AccessDenied").ensure_bucket()
    monkeypatch.setattr("smkit.cloud.storage._CREATE_ATTEMPTS", 1)
    with pytest.raises(ConfigurationError, match="still busy with another change of the bucket 'sagemaker-us-east-1-3"):
        making("333333333333", "OperationAborted").ensure_bucket()


def test_other_refusals_are_passed_on(storage: Storage, tmp_path: Path) -> None:
    refusals = dict.fromkeys(("head_bucket", "head_object", "list_objects_v2", "put_object"), "KMS.DisabledException")
    closed = stubborn(storage, storage.bucket, **{call: [code] for call, code in refusals.items()})
    for call in (
        closed.ensure_bucket,
        lambda: closed.head("a"),
        lambda: closed.sizes("a"),
        lambda: closed.put("a", b""),
    ):
        with pytest.raises(ConfigurationError, match=r"KMS\.DisabledException"):
            call()
    with pytest.raises(ConfigurationError, match="missing' cannot be read: No such file or directory"):
        storage.upload([Upload("a", tmp_path / "missing", 1, "00" * 32, lambda: None)], advance=lambda _: None)
    storage.put("there", b"")
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="file/there' cannot be written: "):
        storage.download("there", tmp_path / "file" / "there")
    with pytest.raises(JobError, match="AWS refused GetObject \\(NoSuchKey\\)"):
        storage.download("missing", tmp_path / "folder" / "missing")


def test_a_missing_bucket_holds_nothing(sagemaker: SageMaker) -> None:
    assert Storage(connect(), "missing-bucket", sagemaker.account).sizes("") == {}


def test_long_lists_are_read_to_their_end(sagemaker: SageMaker, storage: Storage) -> None:
    sagemaker.put({f"a b/{number}": "x" * number for number in range(5)})
    storage.clients.s3.meta.events.register(
        "before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=2)
    )
    assert storage.sizes("a b/") == {f"a b/{number}": number for number in range(5)}


# Downloads


def test_a_flipped_bit_is_noticed(sagemaker: SageMaker, storage: Storage, tmp_path: Path) -> None:
    storage.put("model", b"weights")
    target = tmp_path / "here" / "model"
    sagemaker.settings(corrupted={"GetObject": 1})
    storage.download("model", target)
    assert target.read_bytes() == b"weights"
    target.write_bytes(b"earlier")
    sagemaker.settings(corrupted={"GetObject": 2})
    with pytest.raises(JobError, match="the object arrived damaged twice"):
        storage.download("model", target)
    assert target.read_bytes() == b"earlier"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.fixture
def bad_server() -> Iterator[str]:
    """A server whose objects have no checksum: of `torn` half arrives, and `flipped` is not what its tag says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.send_header("ETag", f'"{hashlib.md5(b"x" * 100).hexdigest()}"')
            self.end_headers()
            self.wfile.write({"torn": b"x" * 50, "whole": b"x" * 100}.get(self.path.split("/")[-1], b"y" * 100))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
    thread.join()


def test_a_download_that_is_not_whole_leaves_nothing(
    bad_server: str, sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bad_server)
    storage = Storage(connect(), sagemaker.bucket, sagemaker.account)
    with pytest.raises(JobError, match=r"the object arrived damaged twice: .*50"):
        storage.download("torn", tmp_path / "torn")
    with pytest.raises(JobError, match=r"the object arrived damaged twice: its MD5 is [0-9a-f]{32}, and S3 says"):
        storage.download("flipped", tmp_path / "flipped")
    assert list(tmp_path.iterdir()) == []
    storage.download("whole", tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"x" * 100


# Local data


def puts(sagemaker: SageMaker) -> list[str]:
    sent = [request for request in sagemaker.requests() if request.action == "PutObject"]
    return sorted(request.key.encode("latin-1").decode().rpartition("/")[2] for request in sent)


def test_the_same_data_is_uploaded_once(sagemaker: SageMaker, storage: Storage, tmp_path: Path) -> None:
    contents = {"a.csv": "1", "b c.csv": "2", "ü.csv": "", "d+e&f.csv": "3"}
    data = address("train", files(tmp_path / "one", **contents))
    assert data.size == 3
    assert sagemaker.actions() == []
    uri = upload(data, storage)
    assert uri == f"s3://{sagemaker.bucket}/smkit/data/{data.tree_hash}/"
    there = sagemaker.objects(data.key())
    assert {key.removeprefix(data.key()): body.decode() for key, body in there.items()} == contents
    assert puts(sagemaker) == sorted(contents)
    sagemaker.forget_requests()
    again = address("validation", files(tmp_path / "two", **contents)[::-1])
    assert upload(again, storage) == uri
    assert sagemaker.actions() == ["ListObjectsV2"]


def test_the_address_tells_trees_apart(tmp_path: Path) -> None:
    trees = [{"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "1"}, {"a": "1", "b": ""}, {"ab": "12"}, {"a": "12"}]
    hashes = {address("x", files(tmp_path / str(number), **tree)).tree_hash for number, tree in enumerate(trees)}
    assert len(hashes) == len(trees)


def test_an_upload_that_was_cut_off_goes_on(sagemaker: SageMaker, storage: Storage, tmp_path: Path) -> None:
    contents = {f"{number}.csv": "x" * number for number in range(1, 7)}
    data = address("train", files(tmp_path / "data", **contents))
    (tmp_path / "data" / "5.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"5\.csv' is gone: No such file or directory while the launch"):
        upload(data, storage)
    arrived = {key.rpartition("/")[2] for key in sagemaker.objects(data.key())}
    sagemaker.put({data.key() + "2.csv": "torn"})
    sagemaker.forget_requests()
    again = address("train", files(tmp_path / "data", **contents))
    upload(again, storage)
    assert set(puts(sagemaker)) == contents.keys() - arrived | {"2.csv"}
    assert len(sagemaker.objects(data.key())) == 6


def test_a_file_that_changes_is_refused(sagemaker: SageMaker, storage: Storage, tmp_path: Path) -> None:
    data = address("train", files(tmp_path / "data", a="old"))
    (tmp_path / "data" / "a").write_text("new")
    with pytest.raises(ConfigurationError, match="a' was changed while the launch was reading it"):
        upload(data, storage)


def test_strangers_among_the_data_are_an_error(sagemaker: SageMaker, storage: Storage, tmp_path: Path) -> None:
    data = address("train", files(tmp_path / "data", a="1"))
    sagemaker.put({data.key() + "evil.py": ""})
    with pytest.raises(ConfigurationError, match=r"1 objects that are no part of input 'train' .*evil\.py'"):
        upload(data, storage)


def test_a_file_that_goes_away_while_it_is_hashed(tmp_path: Path) -> None:
    given = [*files(tmp_path / "data", a="1"), ("b", tmp_path / "data" / "b")]
    with pytest.raises(ConfigurationError, match="data/b' cannot be read: No such file or directory"):
        address("train", given)


def test_digests_are_remembered_until_a_file_changes(storage: Storage, tmp_path: Path, cache: Path) -> None:
    given = files(tmp_path / "data", a="1", b="2")
    first = address("train", given)
    assert not cache.exists(), "a dry run leaves nothing behind"
    upload(first, storage)
    with sqlite3.connect(cache) as database:
        database.execute("UPDATE digests SET sha256 = 'remembered'")
    database.close()
    (tmp_path / "data" / "b").write_text("3")
    a, b = address("train", given).files
    assert a.sha256 == "remembered"
    assert b.sha256 != first.files[1].sha256
    assert len(b.sha256) == 64


@pytest.mark.parametrize("damage", ["garbage", "a folder"])
def test_a_damaged_memory_is_no_failure(storage: Storage, tmp_path: Path, cache: Path, damage: str) -> None:
    if damage == "garbage":
        cache.parent.mkdir(parents=True)
        cache.write_text("garbage" * 100)
    else:
        cache.mkdir(parents=True)
    data = address("train", files(tmp_path / "data", a="1"))
    upload(data, storage)
    assert address("train", files(tmp_path / "data", a="1")).tree_hash == data.tree_hash


def test_a_fresh_file_is_not_remembered(
    storage: Storage, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED_NANOSECONDS", 10**12)
    upload(address("train", files(tmp_path / "data", a="1")), storage)
    with sqlite3.connect(cache) as database:
        assert database.execute("SELECT count(*) FROM digests").fetchone() == (0,)
    database.close()


def test_many_files_are_warned_of() -> None:
    stamp = digests.Stamp(0, 0, 0, 0, 0)
    file = digests.LocalFile("a", Path("a"), stamp, "", settled=True)
    assert LocalData("train", "", (file,) * 100_000).warnings == ()
    (warning,) = LocalData("train", "", (file,) * 100_001).warnings
    assert warning.startswith("input 'train': 100,001 files; uploading and reading so many takes long")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_line_says_how_far_and_how_long(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> None:
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("sys.stderr", written)
    for seconds in ("_SILENT_SECONDS", "_PLAIN_SECONDS", "_REDRAW_SECONDS"):
        monkeypatch.setattr(transfer_line, seconds, 0.0)
    line = transfer_line.TransferLine("uploading input 'train'", 3_000_000)
    line.advance(1_500_000)
    line.end()
    line.advance(1)
    text = written.getvalue()
    assert "uploading input 'train': 1.5 MB of 3.0 MB · " in text
    assert text.endswith(" left\x1b[K\r\x1b[K" if is_terminal else " left\n")
    assert text.count("uploading") == 1


def test_a_terminal_that_has_gone_away_ends_no_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(transfer_line, "_SILENT_SECONDS", 0.0)
    line = transfer_line.TransferLine("uploading", 3 * 10**12)
    monkeypatch.setattr(line, "_is_terminal", True)
    monkeypatch.setattr(line, "_due", 0.0)
    monkeypatch.setattr("sys.stderr", closed)
    line.advance(2 * 10**12)
    line.end()
