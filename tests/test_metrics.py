"""One record: one line in one write, one point, one row; what was noted and what a resume takes back."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patience import SECONDS, patient_with, wait_until

import smkit
from smkit import contract, metric_files

pytestmark = pytest.mark.train

NAMES = st.from_regex(r"[a-z][a-z0-9_.\-]{0,10}(/[a-z0-9_]{1,10})?", fullmatch=True)


@given(st.dictionaries(NAMES, st.floats(width=32), min_size=1, max_size=6))
def test_cloudwatch_reads_every_metric_back_from_its_line(values: dict[str, float]) -> None:
    line = contract.metric_line(12, 3, values)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    for name, value in values.items():
        match = re.search(contract.metric_regex(name), line)
        assert match is not None
        assert float(match[1]) == pytest.approx(value, rel=1e-5, nan_ok=True)
        assert len(contract.metric_regex(name)) <= 500


def test_a_record_holds_means_of_what_was_noted_and_given_values(tmp_path: Path) -> None:
    log = smkit.MetricLog(tmp_path / "metrics.jsonl", prints=False)
    for value in (1.0, 2.0, 6.0):
        log.add("loss", torch.tensor(value, requires_grad=True))
    log.add("plain", 4)
    assert log.write(10, 1, {"rate": 0.5}) == {"loss": 3.0, "plain": 4.0, "rate": 0.5}
    assert log.write(20, 2) == {}
    log.close()
    (row,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert {**row, "time": 0} == {"step": 10, "epoch": 1, "time": 0, "loss": 3.0, "plain": 4.0, "rate": 0.5}


@pytest.mark.parametrize(("name", "value"), [("a b", 1.0), ("a=b", 1.0), ("", 1.0), ("vector", torch.zeros(3))])
def test_what_no_line_can_carry_is_refused(name: str, value: float, tmp_path: Path) -> None:
    log = smkit.MetricLog(prints=False)
    with pytest.raises(smkit.SmkitError, match=r"cannot be called|more than one element"):
        _ = log.add(name, value), log.write(1, 1)  # type: ignore[func-returns-value]


def test_a_record_is_one_write_to_stdout() -> None:
    script = (
        "import smkit; log = smkit.MetricLog(); log.add('a', 1); log.add('b', 2)\n"
        "log.write(1, 1); log.write(2, 1, {'c': 3})"
    )
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-u", "-c", script], stdout=writing)
    os.close(writing)
    # An unbuffered child: whatever one read of the pipe returns begins and ends with whole lines.
    pieces = []
    with patient_with(process):
        while piece := os.read(reading, 65536):
            pieces.append(piece)
        os.close(reading)
        assert process.wait() == 0
    assert b"".join(pieces) == b"[metrics] step=1 epoch=1 a=1 b=2\n[metrics] step=2 epoch=1 c=3\n"
    assert all(piece.endswith(b"\n") for piece in pieces)


def test_a_reader_that_has_gone_away_does_not_end_the_run() -> None:
    script = (
        "import os, smkit; log = smkit.MetricLog(); os.close(1)\n"
        "log.write(1, 1, {'a': 1}); log.write(2, 1, {'a': 1}); os.write(2, b'went on')\n"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=SECONDS)
    assert done.stderr == b"went on"


def test_a_resume_takes_back_rows_and_keeps_what_was_noted(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    log = smkit.MetricLog(file, prints=False)
    log.write(1, 1, {"a": 1.0})
    log.add("loss", 2.0)
    state = log.state_dict()
    log.add("loss", 100.0)
    log.write(2, 1, {"a": 2.0})
    log.close()
    with file.open("a") as broken:
        broken.write('{"step": 3, "a"')
    again = smkit.MetricLog(file, prints=False)
    again.load_state_dict(state, step=1)
    again.add("loss", 4.0)
    assert again.write(2, 1) == {"loss": 3.0}
    again.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]


def test_what_a_run_without_a_checkpoint_has_written_is_taken_back_by_the_one_that_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": 2, "torn \xff')
    log = smkit.MetricLog(file, prints=False)
    log.begin()
    log.write(1, 1, {"a": 1.0})
    log.close()
    assert [json.loads(line)["a"] for line in file.read_text().splitlines()] == [1.0]
    assert list(tmp_path.iterdir()) == [file]


def test_rows_that_cannot_be_taken_back_cost_the_metrics_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n')
    (tmp_path / "metrics.jsonl.part").mkdir()
    log = smkit.MetricLog(file, prints=False)
    log.begin()
    assert log.write(1, 1, {"a": 1.0}) == {"a": 1.0}
    assert "metrics are not written" in caplog.text
    assert file.read_text() == '{"step": 1}\n'


def test_tensorboard_forgets_what_a_killed_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = smkit.MetricLog(tensorboard_dir=tmp_path, prints=False)
    for step in (1, 2, 3):
        first.write(step, 1, {"loss": 10.0 + step})
    first.close()
    second = smkit.MetricLog(tensorboard_dir=tmp_path, prints=False)
    second.load_state_dict({"pending": {}}, step=1)
    second.write(2, 1, {"loss": 20.0})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 11.0), (2, 20.0)]


def test_points_are_in_the_file_as_soon_as_they_are_written_and_no_two_files_are_one(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Two processes of one number in one second, as in containers, neither of which comes to its end.
    logs = [smkit.MetricLog(tensorboard_dir=tmp_path, prints=False) for _ in range(2)]

    def points() -> list[tuple[int, float]]:
        # A new one each time: it reads no file again that has others after it.
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("loss")] if events.Tags()["scalars"] else []

    for step, log in enumerate(logs, start=1):
        log.write(step, 1, {"loss": 10.0 + step})
        # They are written in another thread.
        wait_until(lambda count=step: points() == [(1, 11.0), (2, 12.0)][:count])
    assert len(list(tmp_path.iterdir())) == 2
    for log in logs:
        log.close()


def test_rows_are_written_again_when_a_full_disk_has_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        log = smkit.MetricLog(disk / "metrics.jsonl", disk / "tensorboard", prints=False)
        log.write(1, 1, {"loss": 1.0})
        log.close()
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))
        for step in range(2, 200):
            log.write(step, 1, {"loss": 1.0, "more": 0.1})
        log.close()
        assert caplog.text.count("are not written to") == 2
        (disk / "filler").unlink()
        log.write(200, 1, {"loss": 2.0})
        log.close()
        assert caplog.text.count("are written to") == 2
        rows = [json.loads(line)["step"] for line in (disk / "metrics.jsonl").read_text().splitlines()]
        assert rows == [*range(1, len(rows)), 200]
        assert len(rows) < 200
    finally:
        log.close()
        subprocess.run(["umount", str(disk)], check=True)


def test_a_row_that_was_on_its_way_when_a_checkpoint_was_taken_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metrics.jsonl"
    first = smkit.MetricLog(file, prints=False)
    disk_answers = threading.Event()
    row = metric_files._row

    def row_on_a_disk_that_hangs(record: dict[str, Any]) -> bytes:
        assert record["step"] <= 300 or disk_answers.wait(SECONDS)
        return row(record)

    monkeypatch.setattr(metric_files, "_row", row_on_a_disk_that_hangs)
    for step in range(1, 900):
        first.write(step, 1, {"loss": 1.0})
    wait_until(lambda: first.state_dict()["rows"] == 300)
    state = first.state_dict()
    disk_answers.set()
    first.close()
    file.unlink()
    file.write_text("{}\n" * state["rows"])
    second = smkit.MetricLog(file, prints=False)
    second.load_state_dict(state, 899)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 899
    assert rows[-1]["step"] == 899
    assert {} in rows


def test_records_that_a_hanging_disk_has_cost_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    disk_answers = threading.Event()
    row = metric_files._row
    monkeypatch.setattr(metric_files, "_row", lambda record: disk_answers.wait(SECONDS) and row(record))
    log = smkit.MetricLog(file, prints=False)
    for step in range(1, 1501):
        log.write(step, 1, {"loss": 1.0})
    disk_answers.set()
    wait_until(lambda: log.state_dict()["rows"] == 1000)
    log.write(1501, 1, {"loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [*range(1, 1001), 1501]
    assert [record.getMessage() for record in caplog.records] == [
        f"1000 metric records wait for the disk, and more are dropped: {file}",
        f"the disk has taken the metrics that waited; 500 were dropped: {file}",
    ]


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.jsonl.part"])
def test_a_pipe_in_a_files_place_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    log = smkit.MetricLog(tmp_path / "metrics.jsonl", prints=False)
    log.load_state_dict({"pending": {}, "rows": 0}, 0)
    assert log.write(1, 1, {"loss": 1.0}) == {"loss": 1.0}
    log.close()
