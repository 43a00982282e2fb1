"""Channels in Pipe mode, read from real named pipes: what samples are, what is refused, and when pipes are let go."""

from __future__ import annotations

import logging
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from smkit.data import pipes
from smkit.data.pipes import Pipe, open_pipe
from smkit.errors import DataError

pytestmark = pytest.mark.train

MAGIC = struct.pack("<I", 0xCED7230A)


def record(content: bytes, flag: int = 0) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(content)) + content + bytes(-len(content) % 4)


def mxnet_record(content: bytes) -> bytes:
    """As dmlc's writer has it: where the magic number is in the content, at a multiple of 4, there it is cut."""
    parts = [b""]
    for start in range(0, len(content), 4):
        word = content[start : start + 4]
        if word == MAGIC:
            parts.append(b"")
        else:
            parts[-1] += word
    if len(parts) == 1:
        return record(content)
    flags = [1, *[2] * (len(parts) - 2), 3]
    return b"".join(record(part, flag) for part, flag in zip(parts, flags, strict=True))


@pytest.fixture
def send(tmp_path) -> Iterator[Callable[..., threading.Thread]]:
    """Make the pipe of an epoch, and write into it from another thread; what became of it is in `outcome`."""
    threads: list[threading.Thread] = []

    def start(*pieces: bytes, epoch: int = 0) -> Any:
        path = tmp_path / f"train_{epoch}"
        os.mkfifo(path)

        def write() -> None:
            try:
                with path.open("wb", buffering=0) as file:
                    for piece in pieces:
                        file.write(piece)
                thread.outcome = "sent"
            except BrokenPipeError:
                thread.outcome = "broken"

        thread: Any = threading.Thread(target=write, daemon=True)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def pipe(folder: Path, wrapper: str = "RecordIO", content_type: str | None = None) -> Pipe:
    return open_pipe(folder / "train", record_wrapper=wrapper, content_type=content_type, where="channel 'train'")


def refusal(stream: Pipe) -> DataError:
    with pytest.raises(DataError) as caught:
        list(stream)
    assert caught.value.where == "channel 'train'"
    return caught.value


def test_each_pass_reads_the_pipe_of_the_next_epoch(tmp_path, send):
    stream = pipe(tmp_path)
    for epoch in range(3):
        contents = [f"{epoch} {number}".encode() * number for number in range(50)]
        send(*map(record, contents), epoch=epoch)
        assert list(stream) == contents
    assert repr(stream) == "Pipe(train: RecordIO records)"


def test_an_empty_pipe_is_an_empty_epoch(tmp_path, send):
    send()
    assert list(pipe(tmp_path)) == []


@settings(deadline=None, max_examples=50)
@given(contents=st.lists(st.lists(st.sampled_from([MAGIC, b"abcd", b"x", b""]), max_size=6).map(b"".join), max_size=6))
def test_records_with_the_magic_number_in_them_come_back_whole(tmp_path_factory, contents):
    # Parts that the writer does not cut at a multiple of 4 hold the number, and are whole records.
    folder = tmp_path_factory.mktemp("pipe")
    (folder / "train_0").write_bytes(b"".join(map(mxnet_record, contents)))
    assert list(pipe(folder)) == contents


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_stream_gives_its_first_records_and_then_an_error_with_the_offset(tmp_path, data):
    contents = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
    whole = b"".join(map(record, contents))
    cut = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole[:cut])
    if damaged and data.draw(st.booleans()):
        damaged = bytearray(whole)
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "train_0").write_bytes(damaged)
    seen: list[bytes] = []
    refused = ""
    try:
        seen.extend(pipe(tmp_path))
    except DataError as error:
        refused = error.what
    if refused:
        assert "at byte" in refused
    else:
        # A stream that ends between two records is whole to whoever reads it.
        assert sum(8 + len(sample) + -len(sample) % 4 for sample in seen) == len(damaged)
        assert len(damaged) == len(whole) or seen == contents[: len(seen)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (record(b"one") + MAGIC, "is truncated: a record's head at byte 12 has 4 of 8 bytes"),
        (record(b"one") + record(b"12345678")[:-3], "is truncated: the record at byte 12 has 5 of 8 bytes"),
        (MAGIC + b"\xff\xff\xff\x1f" + bytes(100), "is truncated: the record at byte 0 has 100 of 536,870,912 bytes"),
        (record(b"one") + b"a,b,c,d,", "is no RecordIO at byte 12: it has 0x2c622c61 instead of 0xced7230a"),
        (record(b"one", 3), "is damaged: the record at byte 0 has flag 3, which cannot stand there"),
        (record(b"one", 1) + record(b"two"), "is damaged: the record at byte 12 has flag 0, which cannot stand there"),
        (record(b"one", 1), "is truncated: the record's next part is missing at byte 12"),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(tmp_path, send, content, said):
    send(content)
    assert refusal(pipe(tmp_path)).what == f"train_0 {said}"


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def entry(number: int, tensor: bytes) -> bytes:
    return field(number, field(1, b"values") + field(2, tensor))


def floats(*values: float) -> bytes:
    return field(1, struct.pack(f"<{len(values)}f", *values))


def test_protobuf_messages_are_features_and_a_label(tmp_path, send):
    sparse = field(2, floats(7.0) + field(2, bytes([2])) + field(3, bytes([4])))
    send(
        record(entry(1, field(2, floats(1.5, 2.5))) + entry(2, field(2, floats(1.0)))),
        record(entry(1, field(7, field(1, bytes([3, 4]))))),
        record(entry(1, sparse)),
    )
    pipe = open_pipe(
        tmp_path / "train", record_wrapper="RecordIO", content_type="application/x-recordio-protobuf", where="here"
    )
    (features, label), (whole,), (gaps,) = pipe
    assert (features.tolist(), label.item(), features.dtype) == ([1.5, 2.5], 1.0, torch.float32)
    assert whole.tolist() == [3, 4]
    assert gaps.tolist() == [0, 0, 7, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 tensors of features and 0 labels"),
        (entry(1, field(2, floats(1))) * 2, "2 tensors of features"),
        (entry(1, field(2, floats(1))) + entry(2, field(2, floats(1, 2))), "1 tensors of features and 1 labels"),
        (bytes([10]), "it ends within a number"),
        (bytes([10, 100]), "a field is longer than its message"),
        (entry(1, field(9, b"")), "a value of kind 9 is no tensor of numbers"),
        (entry(1, field(2, floats(1) + field(2, bytes([9])) + field(3, bytes([4])))), "the keys of sparse features"),
    ],
)
def test_messages_that_are_none_are_refused_with_their_number(content, said, tmp_path, send):
    good = record(entry(1, field(2, floats(1))))
    send(good, record(content))
    pipe = iter(
        open_pipe(tmp_path / "train", record_wrapper="None", content_type="application/x-recordio-protobuf", where="x")
    )
    next(pipe)
    with pytest.raises(DataError, match=f"train_0 has no record that can be read, record 1: .*{said}"):
        next(pipe)


def test_rows_of_text_are_features_with_the_label_first(tmp_path, send):
    send(b"1,0.5,-2e3\r\n0,1,", b"2\n\n1,3,4")
    samples = list(DataLoader(pipe(tmp_path, "None", "text/csv"), batch_size=3))
    features, labels = samples[0]
    assert features.dtype == labels.dtype == torch.float32
    assert features.tolist() == [[0.5, -2000], [1, 2], [3, 4]]
    assert labels.tolist() == [1, 0, 1]


def test_rows_may_have_no_label(tmp_path, send):
    send(b"1,2\n")
    ((features,),) = pipe(tmp_path, "None", "text/csv; label_size=0")
    assert features.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1,2\n1,2,3\n", "has 3 columns in line 2, and 2 in the first"),
        (b"label,x\n1,2\n", "has no row of numbers in line 1: could not convert string to float: 'label'"),
        (b"1,2\n1,\n", "has no row of numbers in line 2: could not convert string to float: ''"),
        (b"1,2\n\xff\n", "is no text in line 2, at byte 4: invalid start byte"),
    ],
)
def test_what_is_no_row_is_refused_with_its_line(tmp_path, send, content, said):
    send(content)
    assert refusal(pipe(tmp_path, "None", "text/csv")).what == f"train_0 {said}"


def test_other_text_comes_line_by_line(tmp_path, send):
    send("ä\r\n\nb,c".encode())
    assert list(pipe(tmp_path, "None")) == ["ä", "", "b,c"]


@pytest.mark.parametrize("leave", ["break", "close"])
def test_leaving_early_closes_the_pipe_and_frees_the_writer(tmp_path, send, leave):
    writer = send(*[record(bytes(100_000))] * 100)
    if leave == "break":
        for _ in pipe(tmp_path):
            break
    else:
        samples = iter(pipe(tmp_path))
        next(samples)
        samples.close()
    writer.join(10)
    assert writer.outcome == "broken"


def test_waiting_for_a_writer_is_said_aloud_and_can_be_interrupted(tmp_path, monkeypatch, caplog, unmeasured):
    os.mkfifo(tmp_path / "train_0")
    monkeypatch.setattr(pipes, "_LOG_AFTER", 0.05)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        next(iter(pipe(tmp_path)))
    timer.join()
    assert caplog.messages[0] == (
        f"channel 'train': waiting for somebody to write into {tmp_path}/train_0, for 0 s now"
    )
    assert 2 <= len(caplog.messages) <= 10


def test_a_pipe_may_appear_late_but_not_never(tmp_path, send, monkeypatch):
    stream = pipe(tmp_path)
    timer = threading.Timer(0.2, send, (record(b"late"),))
    timer.start()
    assert list(stream) == [b"late"]
    timer.join()
    monkeypatch.setattr(pipes, "_APPEARS_WITHIN", 0.2)
    error = refusal(stream)
    assert error.what == "train_1 does not exist after 0 s"
    assert error.fix == f"check that {tmp_path} is the job's folder of inputs"


def test_what_is_no_pipe_is_refused(tmp_path):
    (tmp_path / "train_0").mkdir()
    assert refusal(pipe(tmp_path)).what == "train_0 cannot be read: Is a directory"


def test_neither_workers_nor_an_index_can_read_a_pipe(tmp_path):
    with pytest.raises(DataError, match="sample 3 cannot be read by its index"):
        pipe(tmp_path)[3]
    loader = DataLoader(pipe(tmp_path), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(Exception, match="a pipe can be read by one process only"):
        list(loader)


def test_settings_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="the record wrapper is 'Zip'"):
        pipe(tmp_path, "Zip")
    with pytest.raises(DataError, match="label_size=2 in the content type"):
        pipe(tmp_path, "None", "text/csv;label_size=2")
