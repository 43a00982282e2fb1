"""The order of samples, the loader, and the layouts of a channel."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from smkit.data import order
from smkit.data.arrays import Arrays
from smkit.data.batches import Loader
from smkit.data.layouts import open_dataset
from smkit.data.loader import make_loader
from smkit.errors import ConfigurationError, DataError

pytestmark = pytest.mark.train


def epoch_order(n: int, **options) -> torch.Tensor:
    return order.epoch_order(n, **options)[0:n]


def numbers(n: int) -> Arrays:
    return Arrays({"number": torch.arange(n)})


def read(loader) -> list[list[int]]:
    """The samples of batches of `numbers`, without those that stand in for an empty share."""
    shares = [share for group in loader.groups() for share in group.shares]
    given = [batch[0].tolist() for batch in loader]
    assert all(len(samples) == share or share == 0 < len(samples) for samples, share in zip(given, shares, strict=True))
    return [samples[:share] for samples, share in zip(given, shares, strict=True)]


def flat(batches: list[list[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


class Counting(Dataset):
    def __init__(self, n: int) -> None:
        self.n = n
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


class Augmented(Counting):
    def __getitem__(self, index):
        return index, torch.rand(()), np.random.random(), random.random()


class Damaged(Counting):
    def __getitem__(self, index):
        if index == 5:
            raise OSError("truncated image")
        return index


class DamagedAtOnce(Damaged):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Ragged(Counting):
    def __getitem__(self, index):
        return torch.zeros(index)


# -- the order ---------------------------------------------------------------------------------------------------------


def test_the_order_of_an_epoch_never_changes_between_versions():
    assert epoch_order(10, seed=0, epoch=0, shuffle=True).tolist() == [0, 2, 9, 4, 6, 7, 1, 3, 5, 8]
    assert epoch_order(10, seed=0, epoch=1, shuffle=True).tolist() == [2, 9, 4, 7, 3, 6, 5, 1, 8, 0]
    assert epoch_order(10, seed=1, epoch=0, shuffle=True).tolist() == [1, 6, 8, 5, 3, 9, 7, 0, 2, 4]
    large = epoch_order(100_000, seed=7, epoch=3, shuffle=True)
    assert large.dtype == torch.int64
    assert large[:4].tolist() == [41518, 14590, 68126, 5579]
    assert large.sort().values.equal(torch.arange(100_000))
    assert epoch_order(4, seed=0, epoch=5, shuffle=False).tolist() == [0, 1, 2, 3]


def test_no_global_random_generator_is_read_or_moved():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    first = list(make_loader(Counting(9), batch_size=4))
    torch.manual_seed(99)
    again = list(make_loader(Counting(9), batch_size=4))
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))
    list(make_loader(TensorDataset(torch.arange(9)), batch_size=4, workers="process", num_workers=1))
    assert states() == before


# -- steps, micro-batches, ranks ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    n=st.integers(1, 60),
    per_rank=st.integers(1, 5),
    world_size=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    epoch=st.integers(0, 2),
)
def test_every_sample_is_seen_once_an_epoch_by_one_rank_in_the_step_that_the_order_says(
    n, per_rank, world_size, accumulation, epoch
):
    batch_size = per_rank * world_size * accumulation
    loaders = [
        make_loader(
            numbers(n),
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for loader in loaders:
        for _ in range(epoch * loader.steps_per_epoch):
            loader.advance()
    expected = epoch_order(n, seed=0, epoch=epoch, shuffle=True).tolist()
    passes = [read(loader) for loader in loaders]
    assert all(len(batches) == len(loader) for batches, loader in zip(passes, loaders, strict=True))
    micro_batches = list(zip(*passes, strict=True))
    groups = list(make_loader(numbers(n), batch_size=batch_size, gradient_accumulation_steps=accumulation).groups())
    assert len(groups) == loaders[0].steps_per_epoch == -(-n // batch_size)
    seen = []
    for samples, sizes in groups:
        assert samples == sum(sizes)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= per_rank * world_size
        for size in sizes:
            shares = micro_batches.pop(0)
            assert sum(map(len, shares)) == size > 0
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            seen += [sample for share in shares for sample in share]
    assert seen == expected
    assert not micro_batches


def test_groups_give_the_samples_of_each_micro_batch_of_a_step_so_that_a_short_one_weighs_less():
    loader = make_loader(numbers(38), batch_size=16, gradient_accumulation_steps=4)
    groups = list(loader.groups())
    assert groups == [(16, (4, 4, 4, 4)), (16, (4, 4, 4, 4)), (6, (3, 3))]
    assert groups[0] is groups[1]
    assert len(loader) == 10
    loader.advance()
    assert list(loader.groups()) == groups[1:]
    assert list(make_loader(numbers(9), batch_size=8, gradient_accumulation_steps=2).groups()) == [
        (8, (4, 4)),
        (1, (1,)),
    ]
    assert list(make_loader(numbers(3), batch_size=8).groups()) == [(3, (3,))]
    ranks = [make_loader(numbers(9), batch_size=6, rank=rank, world_size=2) for rank in range(2)]
    assert [list(rank.groups()) for rank in ranks] == [[(6, (3,)), (3, (1,))], [(6, (3,)), (3, (2,))]]


def test_a_rank_without_a_share_of_the_last_samples_gets_one_that_weighs_nothing_whatever_the_data_set():
    for dataset in (numbers(5), TensorDataset(torch.arange(5)), Subset(numbers(5), range(5)), Counting(5)):
        loader = make_loader(dataset, batch_size=4, rank=0, world_size=4)
        assert [group.shares for group in loader.groups()] == [(1,), (0,)]
        theirs = make_loader(dataset, batch_size=4, rank=3, world_size=4)
        assert [torch.as_tensor(batch[0]).tolist() for batch in loader][1:] == [
            torch.as_tensor(batch[0]).tolist() for batch in theirs
        ][1:]


def test_a_batch_size_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(ConfigurationError) as caught:
        make_loader(numbers(9), batch_size=100, world_size=4, gradient_accumulation_steps=2)
    assert str(caught.value) == (
        "a global batch of 100 samples does not divide into 8 equal parts (world size 4 x 2 accumulation steps)\n"
        "  where: batch_size\n"
        "  fix:   choose 96 or 104"
    )
    with pytest.raises(ConfigurationError, match=r"choose 8$"):
        make_loader(numbers(9), batch_size=3, world_size=8)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("world_size", 0),
        ("rank", 1),
        ("rank", -1),
    ],
)
def test_a_number_out_of_range_is_named(argument, value):
    with pytest.raises(ConfigurationError, match=rf"{value} is out of range\n  where: {argument}\n"):
        make_loader(numbers(9), **{"batch_size": 2, argument: value})


# -- the position ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), steps=st.integers(0, 30), accumulation=st.integers(1, 3), ranks=st.sampled_from([1, 2, 4]))
def test_a_resumed_loader_gives_the_batches_that_are_left_and_reads_no_other_sample(n, steps, accumulation, ranks):
    def loaders(world_size):
        data = [Counting(n) for _ in range(world_size)]
        return data, [
            make_loader(
                dataset,
                batch_size=4 * accumulation,
                seed=3,
                gradient_accumulation_steps=accumulation,
                rank=rank,
                world_size=world_size,
            )
            for rank, dataset in enumerate(data)
        ]

    _, [before] = loaders(1)
    for _ in range(steps):
        before.advance()
    assert (before.epoch, before.step) == divmod(steps, before.steps_per_epoch)
    state = before.state_dict()
    left = [sample for batch in before for sample in batch.tolist()]
    data, resumed = loaders(ranks)
    for loader in resumed:
        loader.load_state_dict(state)
    shares = [[share for group in loader.groups() for share in group.shares] for loader in resumed]
    given = [
        [batch.tolist()[:share] for batch, share in zip(loader, own, strict=True)]
        for loader, own in zip(resumed, shares, strict=True)
    ]
    assert [sample for micro_batch in zip(*given, strict=True) for part in micro_batch for sample in part] == left
    assert {sample for dataset in data for sample in dataset.read} == set(left)


def test_the_state_says_what_was_trained_on_and_not_what_was_fetched():
    loader = make_loader(numbers(10), batch_size=4, seed=5)
    batches = iter(loader)
    next(batches), next(batches), next(batches)
    start = {"seed": 5, "epoch": 0, "samples": 0, "n": 10, "batch_size": 4, "shuffle": 1}
    fingerprint = {"fingerprint": numbers(10).fingerprint}
    assert loader.state_dict() == start | fingerprint
    assert len(json.dumps(loader.state_dict())) <= 256
    loader.advance()
    assert loader.state_dict()["samples"] == 4
    assert list(batches) == []
    assert (loader.epoch, loader.step) == (0, 1)
    loader.advance(), loader.advance()
    assert loader.state_dict() == start | fingerprint | {"epoch": 1}
    assert all(type(value) is int for value in loader.state_dict().values())


def test_a_plain_loop_sees_a_new_order_in_each_pass_and_can_be_resumed_between_them():
    loader = make_loader(numbers(10), batch_size=4)
    for epoch in range(3):
        assert loader.state_dict()["epoch"] == epoch
        assert flat(read(loader)) == epoch_order(10, seed=0, epoch=epoch, shuffle=True).tolist()
    assert next(iter(loader))[0].tolist() == next(iter(loader))[0].tolist(), "a pass that was given up does not count"
    resumed = make_loader(numbers(10), batch_size=4)
    resumed.load_state_dict(loader.state_dict())
    assert read(resumed) == read(loader)
    assert loader.state_dict()["epoch"] == 4
    resumed.load_state_dict({**resumed.state_dict(), "samples": 8})
    assert len(list(resumed)) == 1
    assert (resumed.epoch, resumed.step) == (5, 0)
    assert len(list(resumed.groups())) == 3


def test_a_consumer_that_reads_ahead_to_the_end_and_counts_its_steps_skips_none():
    loader = make_loader(numbers(4), batch_size=4)
    for epoch in range(3):
        ahead = list(loader)
        assert (
            flat([batch[0].tolist() for batch in ahead]) == epoch_order(4, seed=0, epoch=epoch, shuffle=True).tolist()
        )
        for _ in ahead:
            loader.advance()
        assert (loader.epoch, loader.step) == (epoch + 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 11}, r"the number of samples was 11 and is 10 now.*bring back the 11 samples"),
        ({"seed": 8}, r"seed was 8 and is 0 now.*set seed=8"),
        ({"batch_size": 2}, r"the global batch_size was 2 and is 4 now.*set batch_size=2"),
        ({"shuffle": 0}, r"shuffle was 0 and is 1 now"),
        ({"fingerprint": 5}, r"the fingerprint of the data was 5 and is \d+ now.*bring back the data"),
        ({"samples": 12}, r"sample 12 of epoch 0 is no place between two steps: an epoch has 3 of 4 samples"),
        ({"samples": 3}, r"sample 3 of epoch 0 is no place"),
        ({"epoch": -1}, r"sample 0 of epoch -1 is no place"),
    ],
)
def test_a_position_in_another_order_is_refused(change, message):
    loader = make_loader(numbers(10), batch_size=4)
    with pytest.raises(DataError, match=f"(?s){message}"):
        loader.load_state_dict({**loader.state_dict(), **change})
    assert (loader.epoch, loader.step) == (0, 0)


def test_a_state_that_is_not_one_is_refused():
    with pytest.raises(DataError, match=r"no batch_size, epoch, fingerprint, n, seed, shuffle in {'samples': 1}"):
        make_loader(numbers(10), batch_size=4).load_state_dict({"samples": 1})


# -- fetching ----------------------------------------------------------------------------------------------------------


def test_a_loader_is_a_torch_dataloader():
    dataset = Counting(10)
    loader = make_loader(dataset, batch_size=4, shuffle=False)
    assert isinstance(loader, DataLoader)
    assert isinstance(loader, Loader)
    assert loader.dataset is dataset
    assert list(loader.batch_sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert dataset.read == []


def test_a_batch_is_what_the_data_set_makes_of_it():
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)

    class Doubled(TensorDataset):
        def __getitem__(self, index):
            return tuple(2 * tensor for tensor in super().__getitem__(index))

    class AtOnce(Counting):
        def __getitems__(self, indices):
            assert all(type(index) is int for index in indices)
            return {"x": x[indices]}

    class ListAtOnce(Counting):
        def __getitems__(self, indices):
            return [(x[index], index) for index in indices]

    def first(dataset, **options):
        return next(iter(make_loader(dataset, batch_size=3, shuffle=False, **options)))

    for batch in (
        first(TensorDataset(x, y)),
        first(Arrays({"x": x, "y": y})),
        first(Subset(Arrays({"x": x, "y": y}), [0, 1, 2])),
    ):
        assert isinstance(batch, tuple)
        torch.testing.assert_close(batch, (x[:3], y[:3]))
    torch.testing.assert_close(first(Doubled(x, y)), [2 * x[:3], 2 * y[:3]])
    torch.testing.assert_close(first(AtOnce(6)), {"x": x[:3]})
    torch.testing.assert_close(first(ListAtOnce(6)), [x[:3], y[:3]])
    assert first([{"a": 1}, {"a": 2}, {"a": 3}])["a"].tolist() == [1, 2, 3]
    assert first(TensorDataset(y), collate_fn=list) == [(0,), (1,), (2,)]
    assert first(AtOnce(6), collate_fn=list) == ["x"]


def test_workers_change_neither_the_order_nor_the_kind_of_a_batch():
    x, y = torch.rand(22, 3), torch.arange(22)
    here = list(make_loader(TensorDataset(x, y), batch_size=8, pin_memory=True))
    there = list(make_loader(TensorDataset(x, y), batch_size=8, workers="process", num_workers=2, pin_memory=True))
    assert isinstance(there[0], tuple)
    torch.testing.assert_close(there, here)


def test_pinned_memory_changes_no_kind_of_batch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 100)

    class Nested(Counting):
        def __getitems__(self, indices):
            x = torch.tensor(indices)
            return {"pair": (x, [x, "text"]), "named": torch.max(x[None], dim=0), "nothing": None}

    loader = make_loader(Nested(2), batch_size=2, shuffle=False, pin_memory=True)
    [batch] = loader
    assert loader.pin_memory
    assert isinstance(batch["pair"], tuple)
    assert isinstance(batch["named"], torch.return_types.max)
    assert batch["pair"][0].tolist() == batch["pair"][1][0].tolist() == batch["named"].values.tolist() == [100, 101]
    assert (batch["pair"][1][1], batch["nothing"]) == ("text", None)


def test_random_augmentation_in_workers_is_the_same_after_a_resume_and_with_another_number_of_workers():
    def loader(workers):
        return make_loader(Augmented(20), batch_size=4, workers="process", num_workers=workers, shuffle=False)

    def values(batches):
        return [[tensor.tolist() for tensor in batch] for batch in batches]

    whole = loader(2)
    first, second = values(whole), values(whole)
    resumed = loader(1)
    for _ in range(2):
        resumed.advance()
    assert values(resumed) == first[2:]
    draws = [value for batch in first + second for drawn in batch[1:] for value in drawn]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(("kind", "samples"), [(Damaged, "5"), (DamagedAtOnce, "4, 5, 6, 7")])
def test_an_error_of_the_data_set_is_raised_as_it_is_and_names_the_sample(kind, samples):
    batches = iter(make_loader(kind(8), batch_size=4, shuffle=False))
    next(batches)
    with pytest.raises(OSError, match="truncated image") as caught:
        next(batches)
    assert caught.value.__notes__ == [f"while reading sample {samples} of data set {kind.__name__}"]
    assert caught.traceback[-1].name == "__getitem__"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a traceback has no notes")
def test_an_error_in_a_worker_shows_its_own_traceback_and_names_the_sample():
    with pytest.raises(OSError, match=r"(?s)in __getitem__.*truncated image.*sample 5 of data set Damaged"):
        list(make_loader(Damaged(8), batch_size=4, shuffle=False, workers="process", num_workers=1))


def test_a_data_set_that_runs_dry_does_not_end_the_epoch_in_silence():
    class Dry(Counting):
        def __getitem__(self, index):
            return next(iter(range(index, 6)))

    with pytest.raises(DataError, match=r"(?s)reading sample 6 has raised StopIteration.*Dry.*`__len__`"):
        list(make_loader(Dry(8), batch_size=4, shuffle=False))


def test_samples_that_cannot_be_collated_are_named():
    with pytest.raises(RuntimeError, match="equal size") as caught:
        list(make_loader(Ragged(12), batch_size=12, shuffle=False))
    assert caught.value.__notes__ == ["while reading sample 0, 1, 2, 3, 4, 5, 6, 7 and 4 more of data set Ragged"]


def test_a_data_set_that_cannot_be_sent_to_workers_is_refused_with_the_reason():
    dataset = Counting(8)
    dataset.transform = lambda sample: sample
    with pytest.raises(DataError, match=r"(?s)cannot be sent to worker processes: .*lambda.*without workers='process'"):
        list(make_loader(dataset, batch_size=4, workers="process", num_workers=1))


def test_a_data_set_without_indices_or_samples_is_refused():
    class Unsized(Dataset):
        def __getitem__(self, index):
            return index

    for dataset in (Unsized(), {1, 2}):
        with pytest.raises(DataError, match=r"(?s)neither by index nor as a stream.*`__len__` and `__getitem__"):
            make_loader(dataset, batch_size=2)
    with pytest.raises(DataError, match="the data set is empty"):
        make_loader(Counting(0), batch_size=2)


def test_a_batch_of_tensors_costs_at_most_six_python_calls():
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    for dataset in (TensorDataset(torch.rand(400, 3), torch.rand(400)), numbers(400)):
        batches = iter(make_loader(dataset, batch_size=4))
        next(batches)
        calls = 0
        sys.setprofile(count)
        try:
            for _ in islice(batches, 50):
                pass
        finally:
            sys.setprofile(None)
        assert calls / 50 <= 6


# -- layouts -----------------------------------------------------------------------------------------------------------

IMAGES = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
LABELS = np.array([3, 1, 2, 0])


@dataclass
class Folder:
    path: Path
    name: str = "train"


@pytest.fixture
def channel(tmp_path) -> Folder:
    return Folder(tmp_path)


def write_npz(folder):
    np.savez(folder / "digits.npz", zoom=IMAGES[:, 0], image=IMAGES, Label=LABELS)


def write_npy(folder):
    for name, array in {"zoom": IMAGES[:, 0], "image": IMAGES, "y": LABELS}.items():
        np.save(folder / f"{name}.npy", array)


def write_safetensors(folder):
    tensors = {"target": LABELS, "zoom": IMAGES[:, 0].copy(), "image": IMAGES}
    save_file({name: torch.from_numpy(array) for name, array in tensors.items()}, folder / "digits.safetensors")


def write_pt_dict(folder):
    image = torch.from_numpy(IMAGES).clone().requires_grad_()
    torch.save({"labels": torch.from_numpy(LABELS), "zoom": image[:, 0], "image": image}, folder / "digits.pt")


def write_pt_tuple(folder):
    image = torch.from_numpy(IMAGES)
    torch.save(
        (image, image[:, 0], torch.from_numpy(LABELS)), folder / "digits.pth", _use_new_zipfile_serialization=False
    )


@pytest.mark.parametrize("write", [write_npz, write_npy, write_safetensors, write_pt_dict, write_pt_tuple])
def test_each_layout_gives_batches_of_inputs_and_the_label_last(channel, write):
    write(channel.path)
    for marker in (".DS_Store", "_SUCCESS", "train.manifest", "README.md"):
        (channel.path / marker).touch()
    dataset = open_dataset(channel)
    image, zoom, label = dataset.__getitems__([2, 0])
    assert not image.requires_grad
    assert image.tolist() == IMAGES[[2, 0]].tolist()
    assert zoom.tolist() == IMAGES[[2, 0], 0].tolist()
    assert label.tolist() == [2, 3]
    assert [tensor.tolist() for tensor in dataset[1]] == [IMAGES[1].tolist(), IMAGES[1, 0].tolist(), 1]
    assert len(dataset) == 4
    [batch] = make_loader(dataset, batch_size=4, shuffle=False)
    assert batch[2].tolist() == LABELS.tolist()


def test_a_data_set_shows_what_it_holds(channel):
    write_npz(channel.path)
    assert repr(open_dataset(channel)) == "Arrays(4 samples: image (3, 2) float32, zoom (2,) float32, Label () int64)"


def test_npy_files_are_mapped_and_never_written_to(channel):
    write_npy(channel.path)
    before = (channel.path / "image.npy").read_bytes()
    image = open_dataset(channel).tensors[0]
    image += 1
    assert (channel.path / "image.npy").read_bytes() == before
    assert str(channel.path / "image.npy") in Path("/proc/self/maps").read_text()


def test_arrays_without_names_keep_their_order_beyond_ten(channel):
    torch.save([torch.full((2,), i) for i in range(12)], channel.path / "many.pt")
    assert [tensor[0].item() for tensor in open_dataset(channel).tensors] == list(range(12))


def test_a_single_tensor_is_a_data_set(channel):
    torch.save(torch.arange(3), channel.path / "one.pt")
    assert open_dataset(channel)[2] == (torch.tensor(2),)


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        (["a.npz", "b.npz"], "a.npz, b.npz"),
        (["a.npz", "b.pt"], "a.npz, b.pt"),
        (["a.npy", "notes.doc"], "a.npy, notes.doc"),
        (["a.doc"], "a.doc"),
        (["cats/1.mp4", "dogs/1.mp4"], "cats/, dogs/"),
        (["a.npz/1.npy"], "a.npz/"),
        ([f"part-{i:02}.doc" for i in range(12)], "part-08.doc, part-09.doc and 2 more"),
    ],
)
def test_a_channel_of_no_or_of_two_layouts_is_refused_with_what_was_seen_and_what_is_understood(channel, files, seen):
    for file in files:
        (channel.path / file).parent.mkdir(exist_ok=True)
        (channel.path / file).touch()
    with pytest.raises(DataError) as caught:
        open_dataset(channel)
    assert caught.value.what.startswith("no known layout fits what is there: ")
    assert caught.value.what.endswith(seen)
    assert caught.value.where == f"channel 'train' ({channel.path})"
    assert ".safetensors" in caught.value.fix
    assert "build_dataset" in caught.value.fix


def test_a_missing_or_empty_folder_is_named(channel):
    (channel.path / ".hidden").touch()
    with pytest.raises(DataError, match="the folder holds no data"):
        open_dataset(channel)
    with pytest.raises(DataError, match=r"(?s)No such file or directory.*channel 'eval'.*gone"):
        open_dataset(Folder(channel.path / "gone", "eval"))


def test_arrays_of_different_lengths_are_named_with_their_lengths(channel):
    np.savez(channel.path / "digits.npz", image=IMAGES, label=LABELS[:3], scale=np.float32(2))
    with pytest.raises(DataError, match=r"image has 4, scale has none, label has 3"):
        open_dataset(channel)
    np.savez(channel.path / "digits.npz", scale=np.float32(2))
    with pytest.raises(DataError, match="scale has none"):
        open_dataset(channel)
    np.savez(channel.path / "digits.npz")
    with pytest.raises(DataError, match="there are none"):
        open_dataset(channel)


def test_two_labels_are_refused(channel):
    np.savez(channel.path / "digits.npz", image=IMAGES, label=LABELS, y=LABELS)
    with pytest.raises(DataError, match="more than one array could be the label: label, y"):
        open_dataset(channel)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.array(["a", "b"]), "an array of <U1"),
        (np.zeros(2, ">f4"), "an array of >f4"),
        (np.array([{}, 1]), "Object arrays"),
    ],
)
def test_arrays_that_are_no_numbers_are_refused(channel, value, kind):
    np.savez(channel.path / "digits.npz", x=value)
    with pytest.raises(DataError, match=kind):
        open_dataset(channel)
    torch.save({"x": torch.zeros(2), "meta": {"classes": 10}}, channel.path / "digits.pt")
    (channel.path / "digits.npz").unlink()
    with pytest.raises(DataError, match=r"'meta' in digits.pt is dict, which torch has no tensor for"):
        open_dataset(channel)


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_code_in_a_file_is_never_run(channel, monkeypatch):
    monkeypatch.chdir(channel.path)
    for name, write, reason in (
        ("a.pt", torch.save, "UnpicklingError: Weights only load failed"),
        ("b.npy", lambda value, file: np.save(file, np.array([value, 1])), "ValueError: Array can't be memory-mapped"),
    ):
        write(Exploit(), channel.path / name)
        with pytest.raises(DataError, match=f"^{name} cannot be read: {reason}"):
            open_dataset(channel)
        (channel.path / name).unlink()
    assert not (channel.path / "exploited").exists()


def whole_files() -> dict[str, bytes]:
    contents = {}
    for suffix, save in {
        ".npy": lambda file: np.save(file, IMAGES),
        ".npz": lambda file: np.savez(file, image=IMAGES, label=LABELS),
        ".pt": lambda file: torch.save((torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), file),
    }.items():
        file = io.BytesIO()
        save(file)
        contents[suffix] = file.getvalue()
    contents[".safetensors"] = safetensors_bytes({"image": torch.from_numpy(IMAGES)})
    return contents


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_damaged_file_is_named_with_the_reason_and_never_shows_another_librarys_error(tmp_path_factory, suffix, data):
    whole = whole_files()[suffix]
    damaged = data.draw(
        st.one_of(st.integers(0, len(whole) - 1).map(lambda length: whole[:length]), st.binary(max_size=200))
    )
    folder = tmp_path_factory.mktemp("channel")
    (folder / f"data{suffix}").write_bytes(damaged)
    with pytest.raises(DataError) as caught:
        open_dataset(Folder(folder))
    assert f"data{suffix}" in caught.value.what
    assert "\n" not in caught.value.what
    assert not caught.value.what.endswith((" ", ":"))
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), DataError)
