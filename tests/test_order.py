"""Orders of samples: what a billion of them cost, what a window keeps together, how parts on several hosts are cut."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smkit.data import order
from smkit.data.epoch import EpochPlan
from smkit.data.order import Windows, epoch_order

pytestmark = pytest.mark.train


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 3000), seed=st.integers(0, 3), epoch=st.integers(0, 3), data=st.data())
def test_a_bijection_gives_each_sample_once_whatever_the_slices(n, seed, epoch, data):
    bijection = order.Bijection(n, seed, epoch)
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=8))})
    samples = torch.cat([bijection[start:stop] for start, stop in itertools.pairwise(cuts)])
    assert samples.dtype == torch.int64
    assert samples.sort().values.equal(torch.arange(n))
    assert samples.equal(bijection[0:n])


def test_a_billion_samples_cost_neither_memory_nor_time():
    tracemalloc.start()
    samples = epoch_order(10**9, seed=0, epoch=0, shuffle=True)
    first = samples[0:1024]
    last = epoch_order(10**9, seed=0, epoch=0, shuffle=False)[10**9 - 2 : 10**9]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    assert len(set(first.tolist())) == 1024
    assert 0 <= int(first.min()) < 10**7
    assert 0.99 * 10**9 < int(first.max()) < 10**9
    assert last.tolist() == [10**9 - 2, 10**9 - 1]
    assert first[:4].tolist() == samples[0:4].tolist() == [615800139, 752899252, 363015418, 645412805]


def test_places_and_samples_of_a_bijection_are_not_related():
    """Where a thousand neighbours go, and which numbers come next to each other, looks like chance (4 sigma)."""
    n = 2_000_000
    samples = order.Bijection(n, 7)[0:n].double()
    correlation = torch.corrcoef(torch.stack([torch.arange(n).double(), samples]))[0, 1]
    neighbours = torch.corrcoef(torch.stack([samples[:-1], samples[1:]]))[0, 1]
    assert abs(correlation) < 4 / n**0.5
    assert abs(neighbours) < 4 / n**0.5
    buckets = torch.bincount((samples[:200_000] * 1000 / n).long(), minlength=1000).double()
    chi_square = float(((buckets - 200) ** 2 / 200).sum())
    assert abs(chi_square - 999) < 4 * (2 * 999) ** 0.5


@settings(deadline=None, max_examples=100)
@given(
    segments=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    first=st.integers(1, 9),
    largest=st.integers(9, 60),
    data=st.data(),
)
def test_windows_keep_to_a_sequence_of_whole_segments(segments, first, largest, data):
    n = sum(segments)
    if not n:
        return
    windows = Windows(tuple(segments), largest, first, epochs=1)
    windowed = epoch_order(n, seed=1, epoch=0, shuffle=True, windows=windows)
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=6))})
    samples = torch.cat([windowed[start:stop] for start, stop in itertools.pairwise(cuts)]).tolist()
    assert sorted(samples) == list(range(n))
    assert samples == windowed[0:n].tolist()
    # Samples that come out lie in one window of a sequence of segments: that sequence is read from front to end.
    places = {sample: place for place, sample in enumerate(samples)}
    assert any(
        all(abs(place - places[sample]) < largest for place, sample in enumerate(sequence))
        for sequence in sequences_of(segments, places)
    )
    assert epoch_order(n, seed=1, epoch=1, shuffle=True, windows=windows)[0:n].equal(
        epoch_order(n, seed=1, epoch=1, shuffle=True)[0:n]
    )


def sequences_of(segments: list[int], places: dict[int, int]) -> Iterator[list[int]]:
    """All sequences of whole segments, first that by the mean place of their samples, which mostly fits."""
    bounds = [0, *itertools.accumulate(segments)]
    owned = [range(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]
    owned.sort(key=lambda segment: sum(places[sample] for sample in segment) / len(segment))
    return (list(itertools.chain(*sequence)) for sequence in itertools.permutations(owned))


def test_windows_grow_so_that_the_first_batch_comes_early_and_most_samples_are_mixed_widely():
    windows = Windows((100_000,), largest=16_384, first=1024)
    samples = epoch_order(100_000, seed=0, epoch=5, shuffle=True, windows=windows)[0:100_000]
    assert int(samples[:1024].max()) < 1024
    assert int(samples[:2048].max()) < 2048
    assert int(samples[2048:4096].max()) < 4096
    assert int(samples[2048:4096].min()) >= 2048
    distances = (samples - torch.arange(100_000)).abs()
    assert int(distances.max()) < 16_384
    assert float(distances[-50_000:].double().mean()) > 4000
    assert windows.describe() == "shuffled by windows of up to 16,384 samples"
    assert Windows((5, 6), 4, 2, 1).describe() == (
        "shuffled in the first epoch by 2 files in random order, then windows of up to 4 samples"
    )


@settings(deadline=None, max_examples=150)
@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    local=st.integers(1, 3),
    per_rank=st.integers(1, 4),
    accumulation=st.integers(1, 3),
)
def test_hosts_with_parts_of_their_own_end_with_the_same_step_and_have_shown_each_sample_once(
    shards, local, per_rank, accumulation
):
    batch_size = per_rank * local * accumulation
    plans = [
        [EpochPlan(samples, batch_size, accumulation, rank, local, tuple(shards)) for rank in range(local)]
        for samples in shards
    ]
    ranks = [plan for host in plans for plan in host]
    groups = [list(plan.groups(0)) for plan in ranks]
    steps = [[samples for samples, _ in of_rank] for of_rank in groups]
    assert all(samples == steps[0] for samples in steps)
    assert {plan.steps for plan in ranks} == {len(steps[0])} == {-(-sum(shards) // batch_size)}
    assert sum(steps[0]) == sum(shards)
    for samples, host in zip(shards, plans, strict=True):
        shares = [list(plan.shares(0)) for plan in host]
        assert len({len(share) for share in shares}) == 1
        assert len(shares[0]) == host[0].micro_batches
        own = [[share for _, of_step in plan.groups(0) for share in of_step] for plan in host]
        # Where a share is empty, what is read stands in and does not count.
        counted = [
            part
            for read, counts in zip(shares, own, strict=True)
            for part, count in zip(read, counts, strict=True)
            if count
        ]
        assert all(part.stop > part.start for read in shares for part in read)
        assert Counter(sample for part in counted for sample in range(part.start, part.stop)) == Counter(range(samples))
        middle = len(steps[0]) // 2
        done = sum(len(of_step) for _, of_step in groups[0][:middle])
        assert [list(plan.shares(middle)) for plan in host] == [share[done:] for share in shares]
    for number, samples in enumerate(steps[0]):
        assert sum(sum(of_rank[number].shares) for of_rank in groups) == samples
