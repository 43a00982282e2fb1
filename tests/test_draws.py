"""Random numbers that belong to a sample, and data sets that draw from the process's generators."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from smkit.data.arrays import Arrays
from smkit.data.draws import SampleRandom
from smkit.data.loader import make_loader
from smkit.errors import ConfigurationError, DataError

pytestmark = pytest.mark.train


def flip(batch, random):
    """A batch transform as users write it, at module level, so that worker processes find it."""
    numbers, values = batch
    generators = [torch.rand(2, generator=generator) for generator in random.generators()]
    return numbers, values, random.uniform(), random.normal(3), random.integers(10, 2, 2), torch.stack(generators)


class Drawing(Dataset):
    """Draws from all three generators of the process, as most augmentation does."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return index, random.random(), np.random.random(), torch.rand(2)


class DrawingAtOnce(Drawing):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Lazy(Drawing):
    """Draws for one sample alone, the last one."""

    def __getitem__(self, index):
        return index, torch.rand(()) if index == 23 else torch.zeros(())


def by_sample(batches, ranks_interleaved=()):
    """Everything that was drawn, by the sample that it was drawn for."""
    drawn = {}
    for batch in batches:
        for row, sample in enumerate(batch[0].tolist()):
            drawn[sample] = [column[row].tolist() for column in batch[1:]]
    return drawn


def arrays(n: int) -> Arrays:
    return Arrays({"number": torch.arange(n), "value": torch.rand(n, generator=torch.Generator().manual_seed(0))})


OPTIONS = {"batch_size": 12, "seed": 5}


def test_random_numbers_of_a_transform_belong_to_the_sample_and_the_epoch_and_to_nothing_else():
    loader = make_loader(arrays(24), transform=flip, **OPTIONS)
    first, second = by_sample(loader), by_sample(loader)
    assert len(first) == 24
    assert all(first[sample][1:] != second[sample][1:] for sample in first)
    assert by_sample(make_loader(arrays(24), transform=flip, batch_size=4, seed=5, shuffle=False)) == first
    assert by_sample(make_loader(arrays(24), transform=flip, workers="process", num_workers=2, **OPTIONS)) == first
    assert by_sample(make_loader(arrays(24), transform=flip, workers="thread", **OPTIONS)) == first
    ranks = [make_loader(arrays(24), transform=flip, rank=rank, world_size=3, **OPTIONS) for rank in range(3)]
    assert {sample: drawn for rank in ranks for sample, drawn in by_sample(rank).items()} == first
    resumed = make_loader(arrays(24), transform=flip, **OPTIONS)
    resumed.advance()
    rest = by_sample(resumed)
    assert len(rest) == 12
    assert rest == {sample: first[sample] for sample in rest}
    assert by_sample(make_loader(arrays(24), transform=flip, batch_size=12, seed=6)) != first


def test_random_numbers_have_the_shapes_and_distributions_that_they_say():
    draws = SampleRandom(1, 0, torch.arange(20_000))
    uniform, normal, integers = draws.uniform(3), draws.normal(2, 2), draws.integers(7)
    assert (uniform.shape, normal.shape, integers.shape) == ((20_000, 3), (20_000, 2, 2), (20_000,))
    assert (uniform.dtype, normal.dtype, integers.dtype) == (torch.float32, torch.float32, torch.int64)
    assert 0 <= float(uniform.min()) < 0.001 < 0.999 < float(uniform.max()) < 1
    assert float(uniform.double().mean()) == pytest.approx(0.5, abs=0.005)
    assert float(normal.double().mean()) == pytest.approx(0, abs=0.02)
    assert float(normal.double().std()) == pytest.approx(1, abs=0.02)
    counts = torch.bincount(integers, minlength=7).double()
    assert float(((counts - 20_000 / 7) ** 2 / (20_000 / 7)).sum()) < 30
    columns = torch.cat([uniform, draws.uniform(2)], dim=1)
    assert float((torch.corrcoef(columns.T) - torch.eye(5)).abs().max()) < 0.04
    neighbours = torch.corrcoef(torch.stack([uniform[:-1, 0], uniform[1:, 0]]))[0, 1]
    assert abs(float(neighbours)) < 0.04
    assert len(draws) == 20_000
    with pytest.raises(ConfigurationError, match="0 is out of range"):
        draws.integers(0)


def test_random_numbers_never_change_between_versions():
    draws = SampleRandom(0, 0, torch.tensor([3, 0]))
    assert draws.integers(1000, 2).tolist() == [[713, 791], [834, 421]]
    assert [generator.initial_seed() % 1000 for generator in draws.generators()] == [506, 745]


@pytest.mark.parametrize("dataset", [Drawing(), Lazy()])
def test_what_a_data_set_draws_from_the_process_is_the_samples_own_whoever_reads(dataset):
    loader = make_loader(dataset, **OPTIONS)
    first, second = by_sample(loader), by_sample(loader)
    assert first != second
    assert by_sample(make_loader(dataset, workers="process", num_workers=2, **OPTIONS)) == first
    ranks = [make_loader(dataset, rank=rank, world_size=2, **OPTIONS) for rank in range(2)]
    assert {sample: drawn for rank in ranks for sample, drawn in by_sample(rank).items()} == first
    resumed = make_loader(dataset, **OPTIONS)
    resumed.advance()
    rest = by_sample(resumed)
    assert rest == {sample: first[sample] for sample in rest}


def test_a_data_set_that_reads_whole_batches_draws_the_same_for_the_same_batch():
    first = by_sample(make_loader(DrawingAtOnce(), **OPTIONS))
    assert by_sample(make_loader(DrawingAtOnce(), workers="process", num_workers=1, **OPTIONS)) == first


def careless(batch, random):
    """Draws as the model does, and leaves what it is given alone."""
    numbers, values = batch
    return numbers, torch.rand_like(values)


class Waiting(Arrays):
    """Takes so long that a thread reads it."""

    def batch_bytes(self, samples):
        return None


@pytest.mark.parametrize("kind", [Arrays, Waiting])
def test_a_transform_that_draws_from_the_process_is_exact_all_the_same(kind):
    dataset = kind({"number": torch.arange(24), "value": torch.zeros(24)})

    def drawn(**options):
        torch.manual_seed(9)
        loader = make_loader(dataset, transform=careless, **OPTIONS, **options)
        drawn, model = [], []
        for batch in loader:
            drawn.append(by_sample([batch]))
            model.append(torch.rand(()).item())
        return drawn, model

    first = drawn()
    assert drawn() == drawn(workers="none") == drawn(workers="process", num_workers=2) == first
    with pytest.raises(DataError, match="draws from the process's random generators"):
        drawn(workers="thread")


def test_the_models_random_numbers_do_not_depend_on_what_the_data_draws():
    def dropout(dataset):
        torch.manual_seed(3)
        return [torch.rand(()).item() for _ in make_loader(dataset, **OPTIONS)]

    assert dropout(Drawing()) == dropout(arrays(24))


def test_a_thread_is_refused_to_a_data_set_that_draws_as_the_model_does():
    with pytest.raises(DataError, match=r"(?s)draws from the process's random generators.*`transform`"):
        list(make_loader(Drawing(), workers="thread", **OPTIONS))
    plain = list(make_loader(list(range(24)), workers="thread", **OPTIONS))
    assert [batch.tolist() for batch in plain] == [b.tolist() for b in make_loader(list(range(24)), **OPTIONS)]
