"""Data that is read from front to end: iterable data sets, with and without a length or a state; a DataLoader."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from smkit.data.batches import Loader
from smkit.data.loader import make_loader
from smkit.errors import ConfigurationError, DataError

pytestmark = pytest.mark.train


class Stream(IterableDataset):
    def __init__(self, n: int) -> None:
        self.n = n
        self.read: list[int] = []

    def __iter__(self):
        for number in range(self.n):
            self.read.append(number)
            yield number


class Sized(Stream):
    said: int | None = None

    def __len__(self):
        return self.n if self.said is None else self.said


class Shuffled(Stream):
    """Its order is drawn from the process's generator at the start, and each sample draws once more."""

    def __iter__(self):
        numbers = list(range(self.n))
        random.shuffle(numbers)
        for number in numbers:
            yield number, torch.rand(())


class Stateful(Stream):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.position = 0

    def __iter__(self):
        while self.position < self.n:
            self.read.append(self.position)
            self.position += 1
            yield self.position - 1
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class StatefulAndDrawing(Stateful):
    """It knows its place, and not what it has drawn."""

    def __iter__(self):
        return ((number, torch.rand(()), random.random()) for number in super().__iter__())


class Once(IterableDataset):
    def __init__(self):
        self.numbers = iter(range(5))

    def __iter__(self):
        return self.numbers


def train(loader: Loader, steps: int) -> list[list[list]]:
    """Do this many steps as the trainer does, over as many epochs as it takes; return what each has seen."""
    done: list[list[list]] = []
    while len(done) < steps:
        batches = iter(loader)
        for group in loader.groups():
            seen = [next(batches) for _ in group.shares]
            assert [len(as_list(batch)) for batch in seen] == list(group.shares)
            loader.advance()
            done.append([as_list(batch) for batch in seen])
            if len(done) == steps:
                break
    return done


def as_list(batch):
    return (
        batch.tolist()
        if isinstance(batch, torch.Tensor)
        else list(zip(*(part.tolist() for part in batch), strict=True))
    )


@pytest.mark.parametrize("kind", [Stream, Sized, Stateful])
def test_a_stream_is_cut_into_steps_and_micro_batches(kind):
    loader = make_loader(kind(11), batch_size=4, gradient_accumulation_steps=2)
    assert isinstance(loader, DataLoader)
    assert train(loader, 3) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8], [9, 10]]]
    if kind is Sized:
        assert (loader.epoch, loader.step, loader.steps_per_epoch, len(loader)) == (1, 0, 3, 6)
    else:
        assert (loader.epoch, loader.step, loader.steps_per_epoch) == (1, 0, None), "a short step is the last one"
        with pytest.raises(TypeError):
            len(loader)
    assert train(loader, 1) == [[[0, 1], [2, 3]]]


@pytest.mark.parametrize("kind", [Stream, Stateful])
def test_that_an_epoch_of_whole_steps_is_over_is_known_when_there_is_no_more(kind):
    loader = make_loader(kind(8), batch_size=4)
    assert train(loader, 2) == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert (loader.epoch, loader.step) == (0, 2)
    assert list(loader.groups()) == []
    assert (loader.epoch, loader.step) == (1, 0)


@pytest.mark.parametrize("samples", [8, 11])
@pytest.mark.parametrize("kind", [Stream, Sized, Stateful])
def test_resumed_right_after_the_last_step_a_stream_begins_the_next_epoch(kind, samples):
    first, resumed = (make_loader(kind(samples), batch_size=4) for _ in range(2))
    epoch = train(first, -(-samples // 4))
    resumed.load_state_dict(first.state_dict())
    assert train(resumed, len(epoch)) == epoch
    if resumed.step:
        assert list(resumed.groups()) == []
    assert (resumed.epoch, resumed.step) == (2, 0)


@pytest.mark.parametrize("kind", [Stream, Sized, Stateful])
def test_a_plain_loop_over_a_stream_counts_whole_epochs(kind):
    loader = make_loader(kind(5), batch_size=2)
    for epoch in range(3):
        assert loader.epoch == epoch
        assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
    next(iter(loader))
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]], "a pass that was given up does not count"
    assert loader.epoch == 4


@pytest.mark.parametrize("kind", [Stream, Sized, Shuffled, Stateful, StatefulAndDrawing])
@pytest.mark.parametrize("steps", [1, 3, 4, 5])
def test_a_resumed_stream_goes_on_with_the_same_batches(kind, steps, caplog):
    whole = train(make_loader(kind(11), batch_size=4, seed=2), 8)
    before = make_loader(kind(11), batch_size=4, seed=2)
    train(before, steps)
    torch.manual_seed(99)
    resumed = make_loader(kind(11), batch_size=4, seed=2)
    resumed.load_state_dict(before.state_dict())
    with caplog.at_level(logging.WARNING):
        assert train(resumed, 8 - steps) == whole[steps:]
    within_an_epoch = before.step > 0
    assert ("has no state_dict" in caplog.text) == (within_an_epoch and not issubclass(kind, Stateful))
    if issubclass(kind, Stateful) and steps == 1:
        assert resumed.dataset.read[:2] == [4, 5], "nothing is read twice"
        assert "on resume" not in resumed.describe()
    elif not issubclass(kind, Stateful):
        assert resumed.describe().endswith("read again from its start on resume")


def test_the_model_draws_the_same_whatever_a_stream_draws():
    def dropout(kind):
        torch.manual_seed(3)
        return [torch.rand(()).item() for _ in make_loader(kind(11), batch_size=4)]

    assert dropout(Shuffled) == dropout(Stream)


def test_ranks_share_each_step_of_a_stream():
    ranks = [make_loader(Stream(10), batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    shares = [[batch.tolist() for batch in rank] for rank in ranks]
    assert shares == [[[0, 1], [4, 5], [8]], [[2, 3], [6, 7], [9]]]
    last = make_loader(Stream(9), batch_size=4, rank=0, world_size=2)
    assert [batch.tolist() for batch in last] == [[0, 1], [4, 5], [8]]
    batches = iter(last)
    assert [(next(batches), group.shares)[1] for group in last.groups() if not last.advance()] == [(2,), (2,), (0,)]


def test_a_transform_of_a_stream_draws_by_the_place_in_the_stream():
    def jitter(batch, random):
        return torch.stack([batch.double(), random.uniform().double()])

    whole = torch.cat(list(make_loader(Stream(10), batch_size=4, transform=jitter)), dim=1)
    others = torch.cat(list(make_loader(Stream(10), batch_size=2, transform=jitter)), dim=1)
    assert torch.equal(whole, others)
    assert len(set(whole[1].tolist())) == 10


def test_a_dataloader_of_the_users_is_read_as_it_is():
    numbers = torch.arange(10)
    loader = make_loader(DataLoader(numbers, batch_size=3, shuffle=True), batch_size=99, gradient_accumulation_steps=3)
    whole = train(loader, 4)
    assert [[len(batch) for batch in step] for step in whole] == [[3, 3, 3], [1]] * 2
    assert sorted(sample for step in whole[:2] for batch in step for sample in batch) == list(range(10))
    assert whole[:2] != whole[2:], "each epoch has an order of its own"
    assert (len(loader), loader.steps_per_epoch) == (4, 2)
    resumed = make_loader(DataLoader(numbers, batch_size=3, shuffle=True), batch_size=99, gradient_accumulation_steps=3)
    train(resumed, 1)
    again = make_loader(DataLoader(numbers, batch_size=3, shuffle=True), batch_size=99, gradient_accumulation_steps=3)
    again.load_state_dict(resumed.state_dict())
    assert train(again, 3) == whole[1:]


def test_batches_whose_samples_cannot_be_counted_are_refused():
    loader = make_loader(DataLoader(["a", "b"], batch_size=1), batch_size=1)
    with pytest.raises(DataError, match="begins with no tensor"):
        next(iter(loader))
    dicts = make_loader(DataLoader([{"x": 1.0}, {"x": 2.0}], batch_size=2), batch_size=2)
    assert next(dicts.groups()) == (2, (2,))


def test_a_stream_of_another_length_than_it_says_is_refused():
    stream = Sized(11)
    stream.said = 16
    with pytest.raises(DataError, match="its length is 16, and it has ended after 11"):
        train(make_loader(stream, batch_size=4), 5)
    stream.said = 12
    with pytest.raises(DataError, match="its length is 12, and it has ended after 11"):
        list(make_loader(stream, batch_size=4))
    stream.said = 8
    with pytest.raises(DataError, match="its length is 8, and it goes on after 8"):
        train(make_loader(stream, batch_size=4), 5)


def test_a_stream_that_can_be_read_once_only_does_not_loop_for_ever():
    with pytest.raises(DataError, match=r"(?s)given nothing in epoch 2.*`__iter__` begin anew"):
        train(make_loader(Once(), batch_size=4), 3)


def test_a_stream_that_has_become_shorter_is_not_resumed():
    before = make_loader(Stream(11), batch_size=4)
    train(before, 2)
    resumed = make_loader(Stream(6), batch_size=4)
    resumed.load_state_dict(before.state_dict())
    with pytest.raises(DataError, match="8 samples had been read, and now there are 6"):
        next(iter(resumed))
    with pytest.raises(DataError, match=r"batch_size was 4 and is 2 now"):
        make_loader(Stream(11), batch_size=2).load_state_dict(before.state_dict())
    with pytest.raises(DataError, match="no batch_size, epoch"):
        resumed.load_state_dict({"seed": 0})


def test_what_a_stream_cannot_give_is_refused_all_at_once():
    with pytest.raises(ConfigurationError) as caught:
        make_loader(Stream(3), batch_size=2, workers="process", on_error="skip", shards=[1, 2])
    assert str(caught.value) == (
        "3 problems in what is asked of an iterable data set:\n"
        "  - workers='process': it reads itself; give it workers of its own\n"
        "  - on_error='skip': it has no samples by index; let it pass over the damaged ones\n"
        "  - shards: its samples are not known beforehand\n"
        "  where: data set Stream\n"
        "  fix:   leave these out, or give a data set with `__len__` and `__getitem__`"
    )
    with pytest.raises(ConfigurationError, match="nothing says which samples its batches hold"):
        make_loader(DataLoader([1, 2]), batch_size=2, world_size=2)
