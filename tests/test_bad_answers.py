"""Answers that are none, lists without an end, connections that break off: what comes of them is right, or refused."""

from __future__ import annotations

import itertools
import random
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sagemaker.fixture import SageMaker
from torture.faulty_proxy import Proxy, plan
from torture.services.world import start_job

from smkit.cloud import answers, download
from smkit.cloud.aws import Clients, TimeOuts, connect
from smkit.cloud.aws_errors import error_code, is_passing
from smkit.cloud.connection import Connection
from smkit.cloud.doctor import Wishes, account_checks
from smkit.cloud.jobs import SageMakerJobs
from smkit.cloud.logs import JobLog, last_words
from smkit.cloud.object_tags import Tag
from smkit.cloud.storage import Storage, Upload
from smkit.errors import ConfigurationError, JobError
from smkit.watching import OutOfReach, Watch, has_ended

pytestmark = [pytest.mark.aws, pytest.mark.usefixtures("unpaused")]

EVER = 1000
PART_BYTES = 5 * 2**20


@pytest.fixture
def proxy(sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a proxy before the server, which clients of this process are sent to."""
    made = Proxy(int(sagemaker.endpoint.rpartition(":")[2]))
    threading.Thread(target=made.serve, daemon=True).start()
    address = f"http://127.0.0.1:{made.port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    return address


@pytest.fixture
def clients(proxy: str) -> Clients:
    del proxy  # it has set the address
    return connect(time_outs=TimeOuts(connect=1.0, read=1.0, attempts=3))


@pytest.fixture
def storage(sagemaker: SageMaker, clients: Clients) -> Storage:
    return Storage(clients, sagemaker.bucket, sagemaker.account)


# Answers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["garbage for an answer", "reply cut off", "error in a 200"])
def test_what_is_no_answer_is_asked_for_again(proxy: str, clients: Clients, kind: str, seed: int) -> None:
    sagemaker = clients.sagemaker
    plan(proxy, kind=kind, times=1, actions="ListTrainingJobs", seed=seed)
    assert sagemaker.list_training_jobs()["TrainingJobSummaries"] == []
    plan(proxy, kind=kind, times=EVER, actions="ListTrainingJobs", seed=seed)
    with pytest.raises(OutOfReach) as caught:
        SageMakerJobs(clients).list_jobs()
    assert "AWS has failed by itself at ListTrainingJobs" in caught.value.what or "cannot be reached" in str(
        caught.value
    )


def test_an_answer_that_is_none_is_shown(proxy: str, storage: Storage) -> None:
    for ask in (lambda: storage.put("a", b""), lambda: storage.sizes("")):
        plan(proxy, kind="garbage for an answer", times=EVER, actions=".*", seed=8)
        with pytest.raises(ConfigurationError, match="has failed by itself") as caught:
            ask()
        assert error_code(caught.value) in (answers.UNREADABLE, "500")
        assert is_passing(caught.value)


def test_a_call_ends_after_long_pauses(proxy: str, clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_PATIENCE_SECONDS", 0.0)
    plan(proxy, kind="500", times=EVER, actions="GetCallerIdentity")
    with pytest.raises(ConfigurationError, match="failed by itself at GetCallerIdentity"):
        _ = clients.account
    assert [action for action, _ in plan(proxy)["seen"]] == ["GetCallerIdentity"] * 2


def test_a_clock_that_is_wrong_is_told_from_a_key_that_is(proxy: str, clients: Clients, storage: Storage) -> None:
    asked = {
        "GetCallerIdentity": lambda: clients.account,
        "DescribeTrainingJob": lambda: SageMakerJobs(clients).describe("job"),
        "(Head|List).*": storage.ensure_bucket,
    }
    for actions, ask in asked.items():
        plan(proxy, kind="clock skew", times=EVER, actions=actions, every=True)
        with pytest.raises((ConfigurationError, JobError), match="AWS refuses the time of this machine"):
            ask()


def test_a_status_that_nobody_knows_is_no_end() -> None:
    known = {"InProgress": False, "Stopping": False, "Deleting": False, "Pondering": False}
    known |= dict.fromkeys(("Completed", "Failed", "Stopped"), True)
    assert {status: has_ended({"TrainingJobStatus": status}) for status in known} == known


def test_a_job_that_was_just_made_may_not_be_seen_yet(sagemaker: SageMaker, proxy: str, clients: Clients) -> None:
    sagemaker.settings(starting=600.0)
    start_job(sagemaker, "fresh", "exit 0")
    jobs = SageMakerJobs(clients, just_made="fresh")
    plan(proxy, kind="404", times=2, actions="DescribeTrainingJob")
    watch = Watch("fresh", lambda: jobs.describe("fresh"), 0.0, lambda _: 0.0)
    looks = watch.lines(itertools.repeat(None))
    while watch.last_description == {}:
        assert next(looks) is None
    assert watch.last_description["TrainingJobStatus"] == "InProgress"
    # Others see it in the list.
    plan(proxy, kind="404", times=1, actions="DescribeTrainingJob")
    with pytest.raises(OutOfReach, match="SageMaker has taken job 'fresh' and does not show it"):
        SageMakerJobs(clients).describe("fresh")
    with pytest.raises(JobError, match="there is no job 'frsh'") as caught:
        SageMakerJobs(clients).describe("frsh")
    assert caught.value.fix == "did you mean 'fresh'?"


def test_an_order_to_stop_that_did_not_arrive_is_given_again(
    sagemaker: SageMaker, proxy: str, clients: Clients
) -> None:
    start_job(sagemaker, "endless", "trap 'exit 0' TERM; while true; do sleep 0.1; done")
    sagemaker.until("endless", "Training")
    # Its status is that of an answer, and what stands in it nobody reads.
    plan(proxy, kind="error in a 200", times=2, actions="StopTrainingJob")
    SageMakerJobs(clients).stop("endless", grace_seconds=120)
    assert sagemaker.job("endless")["TrainingJobStatus"] == "Stopped"


def test_a_stream_that_is_named_and_not_found_is_waited_for(sagemaker: SageMaker, proxy: str, clients: Clients) -> None:
    start_job(sagemaker, "talking", "echo line")
    sagemaker.all_lines("talking")
    log = JobLog(Connection(clients), "talking", lambda: 1)
    plan(proxy, kind="404", times=1, actions="GetLogEvents")
    with pytest.raises(OutOfReach, match="CloudWatch does not find a stream that it has named"):
        next(log)
    assert next(log) == "line"


# Lists


def test_a_list_without_an_end_is_an_error(
    sagemaker: SageMaker, proxy: str, clients: Clients, storage: Storage
) -> None:
    sagemaker.client("logs").create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    sagemaker.settings(quotas={"another": 1.0})
    plan(proxy, kind="pages without an end", times=EVER, actions="ListObjectsV2")
    with pytest.raises(ConfigurationError, match="the same page again and again"):
        storage.sizes("")
    plan(proxy, kind="pages without an end", times=EVER, actions="ListTrainingJobs")
    with pytest.raises(JobError, match="the same page again and again"):
        SageMakerJobs(clients).list_jobs()
    plan(proxy, kind="pages without an end", times=EVER, actions="DescribeLogStreams")
    with pytest.raises(JobError, match="the same page again and again"):
        next(JobLog(Connection(clients), "job", lambda: 1))
    plan(proxy, kind="pages without an end", times=EVER, actions="ListServiceQuotas")
    checks = {check.subject: check for check in account_checks(clients, Wishes(instance_type="ml.m5.large"))}
    assert "the same page again and again" in checks["quota"].finding


class EmptyPages:
    """A log that gives its line after so many empty pages."""

    def __init__(self, count: int) -> None:
        self.count = count

    def describe_log_streams(self, **_: Any) -> dict[str, Any]:
        return {"logStreams": [{"logStreamName": "job/algo-1-1"}]}

    def get_log_events(self, nextToken: str = "0", **_: Any) -> dict[str, Any]:  # noqa: N803 - the API's own word
        at = int(nextToken)
        events = [{"timestamp": 1000, "message": "line"}] if at == self.count else []
        following = str(min(at + 1, self.count + 1))
        return {"events": events, "nextForwardToken": following, "nextBackwardToken": following}


@pytest.mark.parametrize("count", [0, 1, 400])
def test_pages_may_be_empty_before_the_next_line(count: int) -> None:
    connection = Connection(SimpleNamespace(logs=EmptyPages(count), profile_name=None))  # type: ignore[arg-type]
    assert next(JobLog(connection, "job", lambda: 1)) == "line"
    assert last_words(connection, "job", "") == ["line"]


def test_empty_pages_without_an_end_are_an_outage() -> None:
    connection = Connection(SimpleNamespace(logs=EmptyPages(10**9), profile_name=None))  # type: ignore[arg-type]
    for ask in (lambda: next(JobLog(connection, "job", lambda: 1)), lambda: last_words(connection, "job", "")):
        with pytest.raises(OutOfReach, match="CloudWatch has given 500 empty pages and no end"):
            ask()


# Objects


def put_in_parts(sagemaker: SageMaker, key: str, data: bytes, sizes: list[int]) -> None:
    s3, place = sagemaker.client("s3"), {"Bucket": sagemaker.bucket, "Key": key}
    place["UploadId"] = s3.create_multipart_upload(**place)["UploadId"]
    parts, start = [], 0
    for number, size in enumerate(sizes, 1):
        tag = s3.upload_part(**place, PartNumber=number, Body=data[start : start + size])["ETag"]
        parts.append({"PartNumber": number, "ETag": tag})
        start += size
    s3.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})


@pytest.mark.parametrize("kind", ["reply cut off", "reset in the reply"])
def test_a_download_goes_on_where_it_broke_off(
    sagemaker: SageMaker, proxy: str, storage: Storage, tmp_path: Path, kind: str
) -> None:
    data = random.Random(1).randbytes(3_000_000)
    sagemaker.put({"model": data})
    plan(proxy, kind=kind, times=4, actions="GetObject", seed=2)
    storage.download("model", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data
    assert len(plan(proxy)["seen"]) == 5
    ranges = [request.headers.get("range") for request in sagemaker.requests() if request.action == "GetObject"]
    assert ranges[0] is None
    assert all(ranges[1:])


def test_a_connection_that_brings_nothing_or_is_too_slow_is_given_up(
    sagemaker: SageMaker, proxy: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sagemaker.put({"model": bytes(100_000)})
    monkeypatch.setattr(download, "_MEASURED_SECONDS", 0.1)
    monkeypatch.setattr(download, "_READ_BYTES", 256)
    for kind in ("reply cut off", "slow reply"):
        plan(proxy, kind=kind, times=EVER, actions="GetObject", seed=1)
        with pytest.raises(JobError, match="breaks off again and again, or is too slow") as caught:
            storage.download("model", tmp_path / "model")
        assert "of 100000 bytes came" in caught.value.what
    assert list(tmp_path.iterdir()) == []


def test_bits_that_flip_in_an_object_of_several_parts_are_noticed(
    sagemaker: SageMaker, proxy: str, storage: Storage, tmp_path: Path
) -> None:
    data = random.Random(1).randbytes(11_000_000)
    put_in_parts(sagemaker, "even", data, [PART_BYTES, PART_BYTES, len(data) - 2 * PART_BYTES])
    storage.download("even", tmp_path / "even")
    assert (tmp_path / "even").read_bytes() == data
    plan(proxy, kind="bit flipped in an object", times=EVER, actions="GetObject")
    with pytest.raises(JobError, match=r"arrived damaged twice: its MD5 is [0-9a-f]{32}-3, and S3 says [0-9a-f]{32}-3"):
        storage.download("even", tmp_path / "flipped")
    # Parts may be of several sizes.
    put_in_parts(sagemaker, "uneven", data, [PART_BYTES + 1, PART_BYTES, len(data) - 2 * PART_BYTES - 1])
    plan(proxy, kind="bit flipped in an object", times=1, actions="GetObject")
    storage.download("uneven", tmp_path / "uneven")
    assert (tmp_path / "uneven").read_bytes() == data


def test_a_tag_does_not_depend_on_how_the_bytes_come() -> None:
    data = random.Random(1).randbytes(1000)
    for part_bytes in (None, 1, 100, 300, 1000, 2000):
        tags = set()
        for step in (1, 7, 100, 999, 1000):
            tag = Tag(part_bytes and itertools.repeat(part_bytes))
            for start in range(0, len(data), step):
                tag.update(data[start : start + step])
            tags.add(str(tag))
        assert len(tags) == 1
        assert part_bytes is None or tags.pop().endswith(f"-{-(-len(data) // part_bytes)}")


def test_what_was_damaged_on_the_way_is_sent_again(sagemaker: SageMaker, proxy: str, storage: Storage) -> None:
    plan(proxy, kind="bit flipped in what is put", times=2, actions="PutObject")
    storage.put("a", b"text")
    assert sagemaker.objects() == {"a": b"text"}
    plan(proxy, kind="bit flipped in what is put", times=EVER, actions="PutObject")
    with pytest.raises(ConfigurationError, match="AWS refused PutObject"):
        storage.put("a", b"other")
    assert sagemaker.objects() == {"a": b"text"}


def test_an_object_that_is_replaced_under_way_is_not_mixed(
    sagemaker: SageMaker, proxy: str, storage: Storage, tmp_path: Path
) -> None:
    old, new = random.Random(1).randbytes(2_000_000), random.Random(2).randbytes(2_000_000)
    sagemaker.put({"model": old})
    s3 = storage.clients.s3
    plan(proxy, kind="reply cut off", times=1, actions="GetObject", seed=2)

    class Replacing:
        def __getattr__(self, name: str) -> Any:
            return getattr(s3, name)

        def get_object(self, **request: Any) -> Any:
            if "Range" in request:
                sagemaker.put({"model": new})
            return s3.get_object(**request)

    replacing = Storage(replace(storage.clients, make=lambda _: Replacing()), storage.bucket, storage.owner)
    replacing.download("model", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == new


def test_an_upload_whose_last_reply_was_lost_has_come(
    sagemaker: SageMaker, proxy: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smkit.cloud.storage.PART_BYTES", PART_BYTES)
    file = tmp_path / "big"
    file.write_bytes(random.Random(1).randbytes(PART_BYTES + 1))
    upload = Upload("big", file, PART_BYTES + 1, "00" * 32, lambda: None)
    plan(proxy, kind="reply lost", times=1, actions="CompleteMultipartUpload")
    storage.upload([upload], advance=lambda _: None)
    assert sagemaker.objects()["big"] == file.read_bytes()
    sagemaker.client("s3").delete_object(Bucket=sagemaker.bucket, Key="big")
    plan(proxy, kind="404", times=EVER, actions="CompleteMultipartUpload")
    with pytest.raises(ConfigurationError, match="AWS refused CompleteMultipartUpload"):
        storage.upload([upload], advance=lambda _: None)
