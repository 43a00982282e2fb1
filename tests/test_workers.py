"""Who reads: threads, worker processes, and memory; samples that cannot be read; and each of these a known pain."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from patience import patient_with
from torch.utils.data import Dataset

from smkit.data.arrays import Arrays
from smkit.data.buffers import Buffers
from smkit.data.loader import make_loader
from smkit.data.source import Source
from smkit.errors import ConfigurationError, DataError

pytestmark = pytest.mark.train


class Numbers(Dataset):
    def __init__(self, n: int = 12, damaged: tuple[int, ...] = ()) -> None:
        self.n = n
        self.damaged = damaged

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.damaged:
            raise OSError("truncated")
        return index


class AtOnce(Numbers):
    def __getitems__(self, indices):
        return torch.tensor([self[index] for index in indices])


class WithPid(Numbers):
    def __getitem__(self, index):
        return index, os.getpid()


class Heavy(Numbers):
    def __init__(self) -> None:
        super().__init__()
        self.table = [str(number) * 500_000 for number in range(100, 140)]
        self.other = 1


class Large(Numbers):
    def __getitem__(self, index):
        return torch.zeros(1_000_000)


class LazyFile(Numbers):
    """Opens its file at the first read, as data sets over HDF5 do; an open file cannot be sent to a worker."""

    file = None

    def __getitem__(self, index):
        if self.file is None:
            self.file = open(os.devnull, "rb")  # noqa: PTH123, SIM115
        return index

    def __del__(self):
        if self.file is not None:
            self.file.close()


class Slow(Source):
    """A source that is worth a thread, and notes who has read it."""

    def __init__(self, n: int = 40) -> None:
        self.n = n
        self.readers: list[str] = []
        self.seen: list[list[int]] = []

    def __len__(self):
        return self.n

    def read(self, index, allocate):
        self.readers.append(threading.current_thread().name)
        self.seen.append(index.tolist())
        rows = allocate((len(index), 1000), torch.float32)
        rows[:] = index[:, None]
        return (rows,)

    @property
    def fingerprint(self):
        return 1


def numbers(batches) -> list[int]:
    return [number for batch in batches for number in batch.tolist()]


# -- who reads ---------------------------------------------------------------------------------------------------------


def test_a_thread_reads_two_batches_ahead_and_never_more_and_ends_with_the_pass():
    source = Slow()
    batches = iter(make_loader(source, batch_size=4, shuffle=False))
    first = next(batches)
    deadline = time.monotonic() + 5
    while len(source.seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(source.seen) == 3
    assert first[0][:, 0].tolist() == [0, 1, 2, 3]
    assert all(name.startswith("smkit-data") for name in source.readers[1:])
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("smkit-data")]


def test_small_batches_in_memory_and_the_users_own_data_are_read_by_the_thread_that_asks():
    source = Slow()
    list(make_loader(source, batch_size=4, workers="none"))
    assert set(source.readers) == {threading.current_thread().name}
    source.batch_bytes = lambda samples: samples * 4000
    source.readers.clear()
    list(make_loader(source, batch_size=4))
    assert set(source.readers) == {threading.current_thread().name}
    list(make_loader(source, batch_size=20, workers="thread"))
    assert any(name.startswith("smkit-data") for name in source.readers)


def test_an_error_in_the_thread_is_raised_where_the_batch_is_asked_for():
    class Broken(Slow):
        def read(self, index, allocate):
            if 9 in index:
                raise DataError("sample 9", where="here", fix="there")
            return super().read(index, allocate)

    batches = iter(make_loader(Broken(), batch_size=4, shuffle=False))
    assert next(batches)[0][0, 0] == 0
    assert next(batches)[0][0, 0] == 4
    with pytest.raises(DataError, match="sample 9"):
        next(batches)


def test_workers_stay_from_one_epoch_to_the_next_and_a_pass_can_be_given_up():
    loader = make_loader(WithPid(), batch_size=3, workers="process", num_workers=2)
    first = {pid for _, pids in loader for pid in pids.tolist()}
    next(iter(loader))
    seen = list(loader)
    assert {pid for _, pids in seen for pid in pids.tolist()} == first
    assert os.getpid() not in first
    assert sorted(number for batch, _ in seen for number in batch.tolist()) == list(range(12))


def test_a_second_pass_ends_the_first_one_for_workers_serve_one_at_a_time():
    loader = make_loader(Numbers(), batch_size=3, workers="process", num_workers=1)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    with pytest.raises(DataError, match="another pass over the same loader has begun"):
        next(first)
    assert len(numbers(second)) == 9


UNDER_WAY = """
import sys, time
sys.path.insert(0, {tests!r})
from test_workers import WithPid
from smkit.data.loader import make_loader

if __name__ == "__main__":
    for _, pids in make_loader(WithPid(), batch_size=1, workers="process", num_workers=2, shuffle=False):
        print(int(pids), flush=True)
    time.sleep(600)
"""


def test_workers_of_a_killed_process_end(tmp_path):
    (tmp_path / "under_way.py").write_text(UNDER_WAY.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(tmp_path / "under_way.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, patient_with(process):
        workers = {int(process.stdout.readline()) for _ in range(12)}
        assert len(workers - {process.pid}) == 2
        process.kill()
        # The workers, and the server that has forked them, hold the pipe open for as long as they live.
        while process.stdout.read(1):
            pass
    assert process.returncode == -signal.SIGKILL


OF_THE_SAME_SERVER = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, {tests!r})
from test_workers import WithPid
from smkit.data.loader import make_loader

if __name__ == "__main__":
    loader = make_loader(WithPid(), batch_size=1, workers="process", num_workers=1, shuffle=False)
    batches = iter(loader)
    next(batches)
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
    process.start()
    # What is sent to the group reaches neither the server nor what it has forked.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    print(len(list(batches)), process.is_alive())
    process.terminate()
    process.join(60)
    print(process.exitcode)
"""


def test_what_else_the_user_starts_from_the_same_server_can_be_ended(tmp_path):
    script = tmp_path / "of_the_same_server.py"
    script.write_text(OF_THE_SAME_SERVER.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120, start_new_session=True)
    assert done.stdout == "11 True\n-15\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": "processes"}, "'processes' is none of the choices.*'auto', 'none', 'thread', 'process'"),
        ({"num_workers": 2}, "2 worker processes are asked for, and workers is 'auto'"),
        ({"workers": "process", "num_workers": 0}, "0 is out of range"),
        ({"on_error": "ignore"}, "'ignore' is none of the choices"),
        ({"skip_budget": -1}, "-1 is out of range"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=f"(?s){message}"):
        make_loader(Numbers(), batch_size=4, **options)


def test_processes_share_the_cores_of_their_host():
    cores = len(os.sched_getaffinity(0))
    source = Slow()
    make_loader(source, batch_size=4, local_world_size=2)
    assert source.threads == max(1, cores // 2)
    assert make_loader(Numbers(), batch_size=4, workers="process").num_workers == max(1, cores - 1)


# -- what workers need is there before they start ----------------------------------------------------------------------


def test_shared_memory_that_is_too_small_is_found_before_a_worker_starts(monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=16_384, f_frsize=4096))
    loader = make_loader(Large(), batch_size=10, workers="process", num_workers=2)
    with pytest.raises(ConfigurationError) as caught:
        list(loader)
    assert str(caught.value) == (
        "2 worker processes need about 240 MB of shared memory for the batches under way, and /dev/shm has 67 MB free\n"
        "  where: workers\n"
        "  fix:   use workers='thread', which needs none, fewer workers or a smaller batch; of a container of your "
        "own, raise --shm-size"
    )
    assert len(list(make_loader(Large(4), batch_size=2, workers="thread"))) == 2


def test_too_few_open_files_are_found_before_a_worker_starts(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (66, 1024))
    with pytest.raises(ConfigurationError, match=r"(?s)2 worker processes need about 70 open files.*have 66.*ulimit"):
        list(make_loader(Numbers(), batch_size=4, workers="process", num_workers=2))


def test_a_data_set_of_python_objects_that_each_worker_copies_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(numbers(make_loader(Heavy(), batch_size=12, workers="process", num_workers=1))) == 12
    assert "its own copy of the data set" in caplog.text
    assert "most of it in Heavy.table" in caplog.text


def test_a_data_set_that_opens_its_file_when_it_reads_can_be_sent_to_workers():
    dataset = LazyFile()
    assert len(numbers(make_loader(dataset, batch_size=4, workers="process", num_workers=1))) == 12
    assert dataset.file is None


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_is_used_again_when_nobody_holds_it_in_any_way():
    buffers = Buffers()
    shape = (1024, 256)
    weight = torch.ones(256, 1, requires_grad=True)
    for keep in (
        lambda tensor: tensor[5:6, 3],
        lambda tensor: tensor.numpy()[0],
        lambda tensor: tensor.view(torch.int32),
        lambda tensor: tensor @ weight,  # holds its input for the gradient
        lambda tensor: (tensor,),
        np.from_dlpack,
    ):
        memory = [buffers(shape, torch.float32)]
        held = [keep(memory[0])]
        address = memory.pop().data_ptr()
        assert buffers(shape, torch.float32).data_ptr() != address
        held.clear()
        gc.collect()
        assert buffers(shape, torch.float32).data_ptr() == address
    assert buffers((3,), torch.int64).shape == (3,)
    assert buffers((1 << 18,), torch.bfloat16).dtype == torch.bfloat16


def test_batches_that_are_kept_stay_what_they_are():
    source = Arrays({"row": torch.arange(64).float()[:, None].expand(64, 100_000).contiguous()})
    kept = [batch for (batch,) in make_loader(source, batch_size=4, shuffle=False)]
    assert [int(batch[0, 0]) for batch in kept] == list(range(0, 64, 4))
    few = set()
    for (batch,) in make_loader(source, batch_size=4):
        few.add(batch.data_ptr())
        del batch
    assert len(few) <= 5


# -- samples that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Numbers, AtOnce])
@pytest.mark.parametrize("options", [{}, {"workers": "process", "num_workers": 2}])
def test_a_sample_that_cannot_be_read_is_replaced_by_the_next_one_and_counted(kind, options, caplog):
    loader = make_loader(kind(12, (3, 4, 11)), batch_size=4, shuffle=False, on_error="skip", skip_budget=3, **options)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            assert numbers(loader) == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 0]
    assert loader.skipped == {number: f"sample {number} cannot be read: OSError: truncated" for number in (3, 4, 11)}
    assert caplog.text.count("skipped, ") == 3
    assert "skipped, 3 of at most 3" in caplog.text


@pytest.mark.parametrize("options", [{}, {"workers": "process", "num_workers": 2}, {"workers": "thread"}])
def test_more_unreadable_samples_than_the_budget_are_an_error(options):
    loader = make_loader(Numbers(12, (3, 4)), batch_size=4, on_error="skip", skip_budget=1, **options)
    with pytest.raises(DataError, match=r"(?s)2 samples cannot be read, and 1 may be skipped; the last: sample [34].*"):
        list(loader)
    with pytest.raises(DataError, match=r"1 samples cannot be read, and 0 may be skipped"):
        list(make_loader(Numbers(12, (3, 4)), batch_size=4, on_error="skip"))


def test_a_data_set_of_which_nothing_can_be_read_does_not_loop_for_ever():
    with pytest.raises(DataError, match="no sample can be read"):
        list(make_loader(Numbers(5, tuple(range(5))), batch_size=5, on_error="skip", skip_budget=9))


def test_what_is_no_samples_fault_is_not_skipped():
    class Ragged(Numbers):
        def __getitem__(self, index):
            return torch.zeros(index)

    with pytest.raises(RuntimeError, match="equal size"):
        list(make_loader(Ragged(), batch_size=4, on_error="skip", skip_budget=9))


def test_batches_for_a_gpu_are_read_into_page_locked_memory(monkeypatch):
    locked: list[tuple[int, ...]] = []

    def lock(shape, dtype):
        locked.append(tuple(shape))
        return torch.empty(tuple(shape), dtype=dtype)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("smkit.data.indexed.page_locked", lock)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    batches = list(make_loader(Slow(8), batch_size=4, pin_memory=True))
    assert locked == [(4, 1000), (4, 1000)]
    assert [len(batch) for (batch,) in batches] == [4, 4]
