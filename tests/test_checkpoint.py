import contextlib
import errno
import hashlib
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import patient_with, wait_until
from torch import nn

from smkit import checkpoint
from smkit.checkpoint import CheckpointStore
from smkit.errors import CheckpointError, ConfigurationError
from smkit.manifest import is_committed

pytestmark = pytest.mark.train

FILES = ["state.json", "tensors.safetensors", "manifest.json"]
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.bool, torch.complex64),
]


def state_of(step: int, numbers: int = 256) -> dict[str, Any]:
    """Return a state whose every value is its step."""
    value = float(step)
    moments = {"step": step, "exp_avg": torch.full((numbers,), value), "exp_avg_sq": torch.full((numbers,), value)}
    return {"model": {"weight": torch.full((numbers,), value)}, "optimizer": {"state": {0: moments}}, "step": step}


def is_state_of(step: int, state: dict[str, Any]) -> bool:
    return same(state, state_of(step, state["model"]["weight"].numel()))


def same(one: Any, other: Any) -> bool:
    """Whether two states agree in structure, types and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (one.shape, one.dtype) == (other.shape, other.dtype) and bits(one) == bits(other)
    if isinstance(one, np.ndarray | np.generic):
        return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, dict):
        keys = zip(one, other, strict=False)
        return len(one) == len(other) and all(same(a, b) and same(one[a], other[b]) for a, b in keys)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def round_trip(state: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    store = CheckpointStore(tmp_path)
    store.save(1, state)
    checkpoint = store.latest()
    assert checkpoint is not None
    return checkpoint.state


def filled(directory: Path, *steps: int) -> CheckpointStore:
    store = CheckpointStore(directory)
    for step in steps:
        store.save(step, state_of(step))
    return store


def directory_of(step: int, store: Path) -> Path:
    (found,) = store.glob(f"step-{step:09d}-*")
    return found


def steps_in(store: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in store.glob("step-*"))


def forge_manifest(directory: Path, **changes: Any) -> None:
    """Write a manifest that verifies for whatever the files now hold."""
    content = json.loads((directory / "manifest.json").read_bytes()) | changes
    for name, entry in content["files"].items():
        data = (directory / name).read_bytes()
        entry |= {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    del content["sha256"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    content["sha256"] = hashlib.sha256(canonical).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(content))


@contextlib.contextmanager
def mounted(directory: Path, *arguments: str) -> Iterator[Path]:
    """Mount a file system of the test's own, or skip the test."""
    directory.mkdir()
    mount = subprocess.run(["mount", *arguments, str(directory)], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"cannot mount here: {mount.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def held_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that hangs in every fsync until the event is set."""
    release = threading.Event()
    fsync = os.fsync

    def hang(descriptor: int) -> None:
        release.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", hang)
    yield release
    release.set()


def test_a_save_that_does_not_end_is_told_of_once(
    tmp_path: Path, held_disk: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "_SLOW_SECONDS", 0.1)
    store = CheckpointStore(tmp_path / "checkpoints")
    store.start(1, {"a": torch.ones(2)})
    wait_until(lambda: bool(caplog.messages))
    assert not store.wait(0.3)
    assert caplog.messages == [
        f"the checkpoint of step 1 is on its way for 0 minutes: {tmp_path / 'checkpoints'} is slow or hangs; "
        "the last one is none of this process"
    ]
    held_disk.set()
    assert store.wait()
    monkeypatch.setattr(checkpoint, "_SLOW_SECONDS", 60.0)
    store.save(2, {"a": torch.ones(2)})
    assert len(caplog.messages) == 1


# What a state may hold


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def build(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
        count = math.prod(shape) * dtype.itemsize
        data = torch.tensor(list(random.Random(seed).randbytes(count)), dtype=torch.uint8)
        return (data % 2).bool().reshape(shape) if dtype is torch.bool else data.view(dtype).reshape(shape)

    shapes = st.lists(st.integers(0, 3), max_size=3)
    return st.builds(build, st.sampled_from(DTYPES), shapes, st.integers(0, 2**32))


def arrays() -> st.SearchStrategy[Any]:
    numbers = st.sampled_from([np.arange(6, dtype=np.uint32), np.array(2.5), np.ones((2, 0)), np.eye(2, dtype=bool)])
    return numbers | st.sampled_from([np.float32(1.1), np.int64(-3), np.bool_(False), np.float64("nan")])


texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=5)
plain = st.none() | st.booleans() | st.integers() | st.floats() | texts
keys = texts | st.integers() | st.none() | st.booleans() | st.floats(allow_nan=False)
states = st.recursive(
    plain | tensors() | arrays(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys.filter(lambda key: key != "model"), states, max_size=4))
def test_any_nested_state_comes_back_bit_for_bit(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        loaded = round_trip(state, Path(directory))
    assert same(loaded, state)


def test_random_generators_an_optimizer_and_huge_integers_come_back(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    model(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "huge": [7**9000, -(7**9000), 2**63, -(2**63), 2**63 - 1],
        "random": [random.getstate(), torch.get_rng_state(), np.random.get_state(), np.random.PCG64(7).state],
    }
    assert same(round_trip(state, tmp_path), state)


def test_views_parameters_and_ordered_dicts_are_kept_by_value(tmp_path: Path) -> None:
    base = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    complex_base = torch.tensor([1 + 2j])
    state = {
        "transposed": base.T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "expanded": torch.ones(1).expand(3),
        "ordered": OrderedDict(b=1, a=2),
        "complex": complex_base,
        "conjugate": complex_base.conj(),
        "swapped": np.arange(3, dtype=">i2")[::-1].astype("<i2")[::-1],
    }
    loaded = round_trip(state, tmp_path)
    assert torch.equal(loaded["transposed"], base.T)
    assert same(loaded["parameter"], torch.ones(2))
    assert same(loaded["expanded"], torch.ones(3))
    assert same(loaded["ordered"], {"b": 1, "a": 2})
    assert loaded["conjugate"].item() == 1 - 2j
    assert same(loaded["swapped"], np.arange(3, dtype="<i2"))
    assert not any(value.requires_grad for value in loaded.values() if isinstance(value, torch.Tensor))


def test_tensors_of_one_memory_are_stored_once_and_stay_one(tmp_path: Path) -> None:
    weight = torch.rand(1000)
    loaded = round_trip({"head": weight, "model": {"tied": weight, "half": weight[:500]}}, tmp_path)
    assert loaded["head"].data_ptr() == loaded["model"]["tied"].data_ptr()
    assert loaded["head"].data_ptr() != loaded["model"]["half"].data_ptr()
    (file,) = tmp_path.glob("*/tensors.safetensors")
    assert file.stat().st_size < 4000 + 2000 + 500


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizers_state_lies_in_memory_as_before_whatever_the_order_of_its_dimensions(
    fused: bool, tmp_path: Path
) -> None:
    """A fused optimizer takes parameter and state memory by memory: in another order it mixes up weights silently."""

    def built() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        # The second one, of kernels of 1 x 1, lies in the same order with other strides.
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 1)).to(memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, *seeds: int) -> None:
        for seed in seeds:
            batch = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(seed))
            model(batch.to(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = built()
    train(model, optimizer, 1, 2, 3)
    state = round_trip({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path)
    resumed, its_optimizer = built()
    resumed.load_state_dict(state["model"])
    its_optimizer.load_state_dict(state["optimizer"])
    for parameter, own in zip(model.parameters(), resumed.parameters(), strict=True):
        assert its_optimizer.state[own]["exp_avg"].stride() == optimizer.state[parameter]["exp_avg"].stride()
    train(model, optimizer, 4, 5)
    train(resumed, its_optimizer, 4, 5)
    assert same(dict(resumed.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("strides", [[1, 1_000_000], [0, 0], [-1, 3], [1]])
def test_forged_strides_are_damage(strides: list[int], tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    store.save(2, {"table": torch.arange(6.0).reshape(2, 3).T})
    directory = directory_of(2, tmp_path)
    tree = (directory / "state.json").read_text()
    assert '{"strided":["table",[1,3]]}' in tree
    (directory / "state.json").write_text(tree.replace("[1,3]", json.dumps(strides)))
    forge_manifest(directory)
    found = store.latest()
    assert found is not None
    assert found.step == 1


def test_the_tensors_are_a_safetensors_file_under_their_paths(tmp_path: Path) -> None:
    named = {str(dtype).removeprefix("torch."): torch.ones(3).to(dtype) for dtype in DTYPES}
    awkward = {"__metadata__": torch.ones(1), "\ud800": torch.ones(2), "a.b": torch.ones(3), "a": {"b": torch.ones(4)}}
    state = {"model": {"of": [named]}, **awkward}
    read_back = round_trip(state, tmp_path)
    assert same(read_back, state)
    assert not any(tensor.data_ptr() % tensor.element_size() for tensor in read_back["model"]["of"][0].values())
    (file,) = tmp_path.glob("*/tensors.safetensors")
    loaded = safetensors.torch.load_file(file)
    assert all(same(loaded[f"model.of.0.{name}"], tensor) for name, tensor in named.items())
    assert sorted(len(tensor) for name, tensor in loaded.items() if not name.startswith("model")) == [1, 2, 3, 4]


def nested(levels: int) -> list[Any]:
    outermost: list[Any] = []
    innermost = outermost
    for _ in range(levels):
        innermost.append([])
        innermost = innermost[0]
    return outermost


class Wrapped(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (torch.ones(2).as_subclass(Wrapped), "Wrapped"),
        ({1, 2}, "builtins.set"),
        (Path("x"), "pathlib"),
        (b"x", "builtins.bytes"),
        (torch.float32, "torch.dtype"),
        (torch.ones(2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (np.array(["a"]), "<U1"),
        (np.array([object()]), "object"),
        ({(1, 2): 3}, "builtins.tuple"),
    ],
)
def test_a_value_that_cannot_be_kept_is_named_by_path_and_type(value: Any, type_name: str, tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    for save in (store.save, store.start):
        with pytest.raises(CheckpointError) as caught:
            save(2, {"optimizer": {"state": {0: (None, {"foo": value})}}})
        assert "optimizer.state.0.1.foo" in caught.value.where
        assert type_name in caught.value.what
    assert steps_in(tmp_path) == [1]


def test_a_state_that_holds_itself_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="nested deeper than 100"):
        CheckpointStore(tmp_path).save(1, {"loop": loop})
    deep = {"deep": nested(98)}
    assert same(round_trip(deep, tmp_path), deep)


# Which checkpoint is used


def test_nothing_is_touched_before_the_first_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "not" / "there")
    assert store.latest() is None
    assert store.best() is None
    assert store.wait()
    assert not store.is_saving
    assert not (tmp_path / "not").exists()
    store.save(0, state_of(0))
    assert steps_in(tmp_path / "not" / "there") == [0]


def test_the_newest_is_the_highest_step_and_then_the_last_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, mark in [(5, "first"), (12_000_000_000, "far"), (5, "second"), (3, "early")]:
        newest = store.save(step, {"mark": mark})
        assert newest.is_dir()
    for path in tmp_path.glob("step-*"):
        os.utime(path / "manifest.json", (0, 0) if "12000000000" in path.name else None)
    marks = []
    while (checkpoint := CheckpointStore(tmp_path).latest()) is not None:
        marks.append((checkpoint.step, checkpoint.state["mark"]))
        shutil.rmtree(checkpoint.directory)
    assert marks == [(12_000_000_000, "far"), (5, "second"), (5, "first"), (3, "early")]


def test_the_best_has_the_highest_score_among_the_whole_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    assert store.best() is None
    for step, score in enumerate([None, math.nan, math.inf, -2.5]):
        store.save(step, state_of(step), score=score)
    best = store.best()
    assert best is not None
    assert (best.step, best.score) == (3, -2.5)
    for step, score in [(4, 7.0), (5, 7.0), (6, 8.0)]:
        store.save(step, state_of(step), score=score)
    damaged = directory_of(6, tmp_path) / "tensors.safetensors"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    unknown = directory_of(0, tmp_path) / "manifest.json"
    unknown.write_bytes(b"")
    best = store.best()
    assert best is not None
    assert (best.step, best.score) == (5, 7.0)
    assert str(damaged) in caplog.text
    assert str(unknown) in caplog.text, "it could have been the best"


def test_a_store_with_no_manifest_at_all_is_a_fresh_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = filled(tmp_path, 1)
    (directory_of(1, tmp_path) / "manifest.json").unlink()
    assert store.latest() is None
    assert "manifest.json: is missing" in caplog.text


def test_manifests_but_nothing_whole_is_an_error_that_names_each_damage(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2)
    missing = directory_of(1, tmp_path) / "state.json"
    missing.unlink()
    cut = directory_of(2, tmp_path) / "tensors.safetensors"
    os.truncate(cut, 10)
    with pytest.raises(CheckpointError) as caught:
        store.latest()
    assert f"{missing}: is missing" in caught.value.what
    assert f"{cut}: has 10 bytes" in caught.value.what
    assert store.best() is None


def test_an_unknown_format_is_refused_and_never_removed(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2)
    newer = directory_of(2, tmp_path)
    forge_manifest(newer, format=7)
    with pytest.raises(CheckpointError, match=r"format 7.*format 2"):
        store.latest()
    for step in (3, 4, 5, 6):
        store.save(step, state_of(step))
    assert steps_in(tmp_path) == [1, 2, 4, 5, 6]
    checkpoint = store.latest()
    assert checkpoint is not None
    assert checkpoint.step == 6


def test_a_directory_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be listed"):
        CheckpointStore(tmp_path / "file").latest()


# Damage


def flip_bit(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def zero_page(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(0, len(data), 512)
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, int(path.stat().st_size * chance.choice([0, 0.5, 0.999])))


def grow(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes([chance.randrange(256)]))


def delete(path: Path, _: random.Random) -> None:
    path.unlink()


def take_older(path: Path, _: random.Random) -> None:
    shutil.copy(directory_of(100, path.parent.parent) / path.name, path)


def swap(path: Path, _: random.Random) -> None:
    other = path.with_name(FILES[FILES.index(path.name) - 1])
    path.rename(path.with_name("third"))
    other.rename(path)
    path.with_name("third").rename(other)


def link(path: Path, _: random.Random) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def link_beside(path: Path, _: random.Random) -> None:
    path.with_name("beside").symlink_to("/etc/passwd")


def pipe(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


MUTATIONS = [
    *((flip_bit, 60), (zero_page, 8), (cut, 6), (grow, 2), (delete, 1), (take_older, 1), (swap, 1)),
    *((link, 1), (link_beside, 1), (pipe, 1), (folder, 1)),
]


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_noticed_named_and_passed_over(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(name)
    filled(tmp_path / "sound", 100, 200)
    for mutate, times in MUTATIONS:
        for _ in range(times):
            shutil.copytree(tmp_path / "sound", tmp_path / "damaged")
            path = directory_of(200, tmp_path / "damaged") / name
            mutate(path, chance)
            caplog.clear()
            checkpoint = CheckpointStore(tmp_path / "damaged").latest()
            assert checkpoint is not None, mutate
            assert checkpoint.step == 100, mutate
            assert is_state_of(100, checkpoint.state)
            assert str(path.parent) in caplog.text, mutate
            assert name in caplog.text or mutate in (swap, link_beside), mutate
            shutil.rmtree(tmp_path / "damaged")
            (tmp_path / "elsewhere").unlink(missing_ok=True)


def test_a_damaged_one_of_the_same_step_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = filled(tmp_path, 1)
    damaged = store.save(1, state_of(1)) / "manifest.json"
    os.truncate(damaged, 20)
    checkpoint = store.latest()
    assert checkpoint is not None
    assert f"{damaged}: is not a manifest" in caplog.text


def test_a_manifest_of_another_directory_or_a_linked_directory_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path / "store", 1)
    original = directory_of(1, tmp_path / "store")
    shutil.copytree(original, tmp_path / "store" / "step-000000009-abcdef")
    shutil.move(filled_elsewhere := directory_of_new(tmp_path / "other", 8), tmp_path / "away")
    (tmp_path / "store" / filled_elsewhere.name).symlink_to(tmp_path / "away")
    checkpoint = store.latest()
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert f"belongs to {original.name}" in caplog.text
    assert f"{filled_elsewhere.name}: is a symbolic link" in caplog.text


def directory_of_new(store: Path, step: int) -> Path:
    return filled(store, step).save(step + 1, state_of(step + 1))


def test_the_bytes_that_were_verified_are_the_ones_in_memory(tmp_path: Path) -> None:
    checkpoint = filled(tmp_path, 1).latest()
    assert checkpoint is not None
    for path in checkpoint.directory.iterdir():
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    assert is_state_of(1, checkpoint.state)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_forged", [False, True])
def test_a_planted_pickle_is_never_executed(name: str, is_forged: bool, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(mark)))
    mark.rmdir()
    for protocol in (0, 2, 4, "torch"):
        store = filled(tmp_path / "store", 1, 2)
        path = directory_of(2, tmp_path / "store") / name
        if protocol == "torch":
            torch.save(Payload(mark), path)
        else:
            path.write_bytes(pickle.dumps(Payload(mark), protocol=protocol))
        if is_forged and name != "manifest.json":
            forge_manifest(path.parent)
        checkpoint = store.latest()
        assert checkpoint is not None
        assert checkpoint.step == 1
        assert not mark.exists()
        shutil.rmtree(tmp_path / "store")


# A hash is no signature: whoever can write can make a checkpoint that verifies


@pytest.mark.parametrize(
    "changes",
    [
        *({"ordinal": value} for value in (math.inf, 1.5, -1, 10**4000, "7", True)),
        *({"score": value} for value in (math.nan, 10**4000, "7", [])),
        *({"step": value} for value in (math.inf, None)),
        {"files": {"./tensors.safetensors": {}}},
    ],
    ids=str,
)
def test_a_manifest_that_verifies_and_holds_nonsense_is_passed_over(
    changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, 1, 2)
    forge_manifest(directory_of(2, tmp_path), **changes)
    checkpoint = store.latest()
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert f"{directory_of(2, tmp_path) / 'manifest.json'}: is not a manifest" in caplog.text
    store.save(3, state_of(3))
    assert steps_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [300], "data_offsets": [0, 0]},
        {"shape": [2**50], "data_offsets": [0, 0]},
        {"data_offsets": [1024, 0]},
        {"data_offsets": [4, 0]},
        {"data_offsets": [-1024, 0]},
        {"shape": [-1]},
        {"shape": [-16, -16]},
        {"shape": [255]},
        {"dtype": "F64"},
    ],
    ids=str,
)
def test_a_tensor_that_is_not_where_it_says_is_never_made_up(
    entry: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, 1, 2)
    file = directory_of(2, tmp_path) / "tensors.safetensors"
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["model.weight"] |= entry
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    forge_manifest(file.parent)
    checkpoint = store.latest()
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert f"{file.parent}: does not hold a state" in caplog.text


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_what_bears_a_checkpoints_name_and_is_no_directory_is_named_and_left_alone(
    make: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, 1)
    other = tmp_path / "step-000000002-abcdef"
    make(other)
    assert store.latest() is not None
    assert f"{other}: cannot be read: Not a directory" in caplog.text
    caplog.clear()
    for step in (3, 4, 5, 6):
        store.save(step, state_of(step))
    assert other.exists()
    assert not caplog.text


@contextlib.contextmanager
def without_power() -> Iterator[None]:
    """Let permissions count for root too."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_checkpoints_that_may_not_be_read_are_no_fresh_start_and_are_not_removed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = filled(Path(folder), 1, 2)
        for directory in Path(folder).iterdir():
            directory.chmod(0)
        with without_power(), pytest.raises(CheckpointError, match=r"none is whole(?s:.*)Permission denied"):
            store.latest()
        for directory in Path(folder).iterdir():
            assert not is_committed(directory / "nowhere")
            with without_power():
                assert is_committed(directory)
            directory.chmod(0o700)


# Durability

CHILD = """
import os, sys, torch
from pathlib import Path
from smkit.checkpoint import CheckpointStore
sys.path.append("tests")
from test_checkpoint import state_of

torch.set_num_threads(1)
for line in sys.stdin:
    first = int(line)
    pid = os.fork()
    if pid == 0:
        store = CheckpointStore(Path(sys.argv[1]))
        for step in range(first, first + 100_000):
            store.start(step, state_of(step, numbers=30_000))
            store.wait()
            os.write(1, f"{step}\\n".encode())
    os.write(1, f"pid {pid}\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"dead\\n")
"""


@pytest.mark.endurance
def test_after_kill_9_the_last_durable_checkpoint_or_a_newer_one_is_whole(tmp_path: Path) -> None:
    chance = random.Random(1)
    store = tmp_path / "store"
    torn = durable = 0
    command = [sys.executable, "-c", CHILD, str(store)]
    root = Path(__file__).parent.parent
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as child,
        patient_with(child),
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        for kills in range(200):
            # On a busy machine it takes more of them until something was saved, and until one fell into a save.
            if kills >= 25 and durable > 25 and torn:
                break
            child.stdin.write(f"{durable + 1}\n")
            child.stdin.flush()
            lines = iter(child.stdout.readline, "dead\n")
            timer = None
            for line in lines:
                if line.startswith("pid"):
                    pid = int(line.split()[1])
                    timer = threading.Timer(chance.uniform(0.0, 0.2), os.kill, (pid, signal.SIGKILL))
                    timer.start()
                else:
                    durable = int(line)
            assert timer is not None
            timer.join()
            checkpoint = CheckpointStore(store).latest()
            if checkpoint is None:
                assert durable == 0
                continue
            assert checkpoint.step >= durable
            assert is_state_of(checkpoint.step, checkpoint.state)
            torn += any(not (path / "manifest.json").exists() for path in store.iterdir())
            durable = checkpoint.step
        child.stdin.close()
    assert durable > 25
    assert torn, "no kill fell into a save: the test proves nothing"


def test_a_saved_checkpoint_survives_a_power_cut(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 16 * 2**20)
    if subprocess.run(["mkfs.ext4", "-q", str(image)], capture_output=True, check=False).returncode:
        pytest.skip("mkfs.ext4 does not work here")
    for step in (1, 2):
        with mounted(tmp_path / f"disk{step}", "-o", "loop", str(image)) as disk:
            filled(disk / "runs" / "store", step)
            # What the kernel has not written yet is not in the image: a copy of it is the disk after a power cut.
            shutil.copy(image, tmp_path / "cut")
        with mounted(tmp_path / f"after{step}", "-o", "loop", str(tmp_path / "cut")) as disk:
            checkpoint = CheckpointStore(disk / "runs" / "store").latest()
            assert checkpoint is not None
            assert checkpoint.step == step
            assert is_state_of(step, checkpoint.state)


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6])
def test_a_save_that_fails_at_any_fsync_leaves_the_older_one(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 1)
    fsync = os.fsync
    calls = iter(range(1, 100))

    def fail(descriptor: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        store.save(2, state_of(2))
    assert steps_in(tmp_path) == [1]
    checkpoint = store.latest()
    assert checkpoint is not None
    assert is_state_of(1, checkpoint.state)


def test_each_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((path.name.split("-")[0], [name for name in FILES if (path.parent / name).exists()]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    filled(tmp_path / "store", 1)
    # Once, the folders above it: who made them may not have waited for their names.
    above = [folder.name.split("-")[0] for folder in (tmp_path / "store" / "step").parents]
    assert [name for name, _ in seen] == [
        *(tmp_path.name.split("-")[0], "state.json.part", "tensors.safetensors.part", "step"),
        *("store", *above, "manifest.json.part", "step"),
    ]
    assert seen[-2][1] == ["state.json", "tensors.safetensors"]


def test_what_a_run_goes_on_from_is_on_the_disk_whoever_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = filled(tmp_path, 1, 2), []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(Path(f"/proc/self/fd/{file}").readlink()))
    checkpoint = store.latest()
    assert checkpoint is not None
    assert seen == [checkpoint.directory]


# The disk refuses


def test_a_full_disk_is_told_in_bytes_and_leaves_the_old_one(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        store = filled(disk / "store", 1)
        with pytest.raises(CheckpointError) as caught:
            store.save(2, state_of(2, numbers=400_000))
        free = os.statvfs(disk)
        assert "No space left on device" in caught.value.what
        assert "4,800," in caught.value.what
        assert f"{free.f_bavail * free.f_frsize:,} bytes" in caught.value.what
        assert str(disk / "store") in caught.value.where
        assert "free space" in caught.value.fix
        assert steps_in(disk / "store") == [1]
        checkpoint = store.latest()
        assert checkpoint is not None
        assert is_state_of(1, checkpoint.state)
        store.save(3, state_of(3))
        assert steps_in(disk / "store") == [1, 3]


def test_a_disk_with_no_inode_left_is_told_too(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m,nr_inodes=9", "tmpfs") as disk:
        store = filled(disk / "store", 1)
        with pytest.raises(CheckpointError, match=r"No space left on device.* and 3 files free"):
            store.save(2, state_of(2))
        assert steps_in(disk / "store") == [1]


def test_two_failed_saves_are_warnings_and_the_third_in_a_row_is_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def block() -> None:
        shutil.rmtree(tmp_path / "store")
        (tmp_path / "store").write_text("a file where the directory was")

    store = filled(tmp_path / "store", 1)
    block()
    for step in (2, 3):
        store.start(step, state_of(step))
        assert store.wait()
        assert f"step {step} could not be saved" in caplog.text
    (tmp_path / "store").unlink()
    store.start(4, state_of(4))
    assert store.wait()
    assert "checkpoints can be saved again: that of step 4 is" in caplog.text
    assert steps_in(tmp_path / "store") == [4]
    block()
    for step in (5, 6, 7):
        store.start(step, state_of(step))
    with pytest.raises(CheckpointError, match="step 7 could not be saved"):
        store.wait()
    assert store.wait()
    store.start(8, state_of(8))
    with pytest.raises(CheckpointError, match="step 8 could not be saved"):
        store.start(9, state_of(9))


@pytest.mark.endurance
def test_a_hung_disk_holds_up_neither_the_caller_nor_the_end_of_the_process(
    tmp_path: Path, held_disk: threading.Event
) -> None:
    store = CheckpointStore(tmp_path)
    held_up_seconds = store.start(1, state_of(1))
    assert held_up_seconds >= 0
    assert store.is_saving
    assert not store.wait(timeout_seconds=0.05)
    assert not store.wait(timeout_seconds=0)
    assert store.latest() is None
    held_disk.set()
    assert store.wait()
    assert not store.is_saving
    assert steps_in(tmp_path) == [1]

    program = (
        "import os, sys, threading; from pathlib import Path; from smkit.checkpoint import CheckpointStore\n"
        "os.fsync = lambda descriptor: threading.Event().wait()\n"
        "store = CheckpointStore(Path(sys.argv[1])); store.start(1, {}); assert not store.wait(0.05)"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60, cwd=root)


# The state at the time of the call


def test_what_is_saved_is_the_state_when_start_was_called(tmp_path: Path, held_disk: threading.Event) -> None:
    store = CheckpointStore(tmp_path)
    state = state_of(1)
    store.start(1, state)
    state["model"]["weight"].fill_(9)
    state["optimizer"]["state"][0]["step"] = 9
    held_disk.set()
    store.start(2, state_of(2))
    store.wait()
    for step in (2, 1):
        checkpoint = store.latest()
        assert checkpoint is not None
        assert checkpoint.step == step
        assert is_state_of(step, checkpoint.state)
        shutil.rmtree(checkpoint.directory)


def test_the_copies_are_reused_and_given_back_when_the_state_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    empty = torch.empty

    def record(*arguments: Any, **keywords: Any) -> torch.Tensor:
        tensor = empty(*arguments, **keywords)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(torch, "empty", record)
    store = filled(tmp_path, 1, 2, 3)
    assert len(made) == 3
    store.save(4, {"model": torch.zeros(2)})
    assert [reference() is not None for reference in made] == [False, False, False, True]
    store.save(5, {"model": torch.zeros(2, dtype=torch.int32)})
    checkpoint = store.latest()
    assert checkpoint is not None
    assert same(checkpoint.state, {"model": torch.zeros(2, dtype=torch.int32)})


def test_with_room_that_was_made_beforehand_the_first_save_touches_no_new_memory(tmp_path: Path) -> None:
    state = {"model": {"weight": torch.ones(8_000_000)}}
    pages = state["model"]["weight"].nbytes // resource.getpagesize()
    store = CheckpointStore(tmp_path)
    store.reserve(state)
    assert store.wait()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    store.save(1, state)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages / 2
    checkpoint = store.latest()
    assert checkpoint is not None
    assert same(checkpoint.state, state)


def test_the_modes_of_torch_around_a_save_do_not_matter(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with torch.inference_mode():
        store.save(0, state_of(0))
    store.save(1, state_of(1))
    with torch.device("meta"):
        store.save(2, {"model": model_on_cpu()})
        checkpoint = store.latest()
    assert checkpoint is not None
    assert same(checkpoint.state, {"model": model_on_cpu()})


def model_on_cpu() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(3, device="cpu"), "none": torch.ones(0, device="cpu")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e5m2])
def test_nan_in_the_model_is_never_saved_over_a_good_one(dtype: torch.dtype, tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    broken = torch.tensor([1.0, math.nan]).to(dtype)
    fine = {"model": {"w": torch.tensor([math.inf])}, "optimizer": broken, "loss": math.nan}
    store.save(2, fine)
    for state in ({"model": {"layer": [broken]}}, {"ema": broken, "model": broken}):
        with pytest.raises(CheckpointError, match="NaN"):
            store.save(3, state)
    store.start(3, {"model": {"layer": [broken]}})
    with pytest.raises(CheckpointError, match=r"NaN.*model\.layer\.0"):
        store.wait()
    store.start(3, {"model": {"layer": [broken]}})
    with pytest.raises(CheckpointError, match=r"NaN.*model\.layer\.0"):
        store.start(4, fine)
    assert store.wait()
    assert steps_in(tmp_path) == [1, 2]


def test_a_negative_step_and_a_small_keep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="-1"):
        CheckpointStore(tmp_path).save(-1, {})
    with pytest.raises(ConfigurationError, match="keep is 2"):
        CheckpointStore(tmp_path, keep=2)


# What is removed


def test_the_three_newest_the_best_and_the_first_are_kept_and_nothing_of_others_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = directory_of_new(tmp_path / "outside", 1)
    store = tmp_path / "store"
    store.mkdir()
    (store / "step-000000001-abcdef").symlink_to(outside)
    (store / "step-000000001-aaaaaa").write_text("a file")
    foreign = ["step-1-abcdef", "step-000000001-ABCDEF", "step-000000001-abcdef.bak", "step-000000001", "notes"]
    for name in foreign:
        (store / name).mkdir()
    for name in ("step-000000003-000000", "step-000000099-000000"):
        (store / name).mkdir()
        (store / name / "tensors.safetensors.part").write_text("a save that was cut off")
    untouched = {path.name for path in store.iterdir()} - {"step-000000003-000000"}
    checkpoints = CheckpointStore(store)
    for step, score in [(0, 0.4), (1, 0.5), (2, 0.9), (3, 0.1), (4, None), (5, 0.2), (6, 0.3)]:
        checkpoints.save(step, state_of(step), score=score)
    left = {path.name for path in store.iterdir()}
    assert untouched <= left
    assert sorted(int(name.split("-")[1]) for name in left - untouched) == [0, 2, 4, 5, 6]
    assert len(list(outside.iterdir())) == 3
    assert not caplog.text
    checkpoints.save(1, state_of(1))
    assert [path for path in store.glob("step-000000001-*") if path.is_dir() and (path / "state.json").exists()]


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_kept(tmp_path: Path) -> None:
    filled(tmp_path, 1, 2, 3)
    flip_bit(directory_of(3, tmp_path) / "tensors.safetensors", random.Random(0))
    os.truncate(directory_of(2, tmp_path) / "manifest.json", 5)
    store = CheckpointStore(tmp_path)
    assert store.latest() is not None
    for step, expected in [(4, [1, 2, 3, 4]), (5, [1, 2, 3, 4, 5]), (6, [1, 4, 5, 6])]:
        store.save(step, state_of(step))
        assert steps_in(tmp_path) == expected
    (directory_of(5, tmp_path) / "state.json").unlink()
    store.save(7, state_of(7))
    assert steps_in(tmp_path) == [1, 4, 5, 6, 7]


def test_of_every_hundred_saves_the_first_stays_for_a_mirror_that_is_slow(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(1, 204):
        store.save(step, {})
        if step in (4, 104):
            assert steps_in(tmp_path) == sorted({1, step // 100 * 100 + 1, step - 2, step - 1, step})
    assert steps_in(tmp_path) == [1, 101, 201, 202, 203]


def test_on_a_full_disk_they_make_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2500k", "tmpfs") as disk:
        store = CheckpointStore(disk / "store")
        for step in range(1, 6):
            store.save(step, {"model": torch.zeros(100_000)})
        assert steps_in(disk / "store") == [1, 3, 4, 5]
        (disk / "other").write_bytes(b"0" * 700_000)
        with pytest.raises(CheckpointError, match="free"):
            store.save(6, {"model": torch.zeros(100_000)})
        assert steps_in(disk / "store") == [3, 4, 5]
        store.save(7, {"model": torch.zeros(100_000)})
        assert steps_in(disk / "store") == [4, 5, 7]


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_first_save_that_the_mirror_has_not_brought_whole_is_named_and_no_hindrance(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, 10)
    (directory_of(10, tmp_path) / name).unlink()
    assert store.latest() is None
    assert f"{name}: is missing" in caplog.text
    filled(tmp_path, 5, 6)
    for directory in (directory_of(5, tmp_path), directory_of(6, tmp_path)):
        (directory / name).unlink()
    with pytest.raises(CheckpointError, match="none is whole"):
        store.latest()


def test_a_checkpoint_half_removed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    store = filled(tmp_path, 0, 1, 2, 3)
    oldest = directory_of(1, tmp_path)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    store.save(4, state_of(4))
    assert sorted(path.name for path in oldest.iterdir()) == ["state.json", "tensors.safetensors"]
    assert f"could not be removed: [Errno 13] Permission denied: '{oldest}'" in caplog.text
