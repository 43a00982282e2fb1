"""The moving average of the weights: what it is, where it is applied, how it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from smkit.averaging import WeightAverage
from smkit.errors import CheckpointError, ConfigurationError

pytestmark = pytest.mark.train


class Tied(nn.Module):
    """Two layers that share one weight, a buffer, integers, and a parameter in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.low = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.codes = nn.Parameter(torch.arange(3), requires_grad=False)


def drift(model: nn.Module, step: int) -> None:
    """Change every number of a model."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(step)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_it_starts_from_the_first_weights_and_follows_by_the_formula() -> None:
    model = Tied()
    expected = {name: value.detach().double() for name, value in model.named_parameters()}
    average = WeightAverage(model, decay=0.3)
    for step in range(6):
        drift(model, step)
        average.update()
        keep = min(0.3, (1 + step) / (10 + step))
        for name, value in model.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * value.detach().double()
    del expected["codes"]
    state = average.state_dict()
    assert state["updates"] == 6
    assert state["weights"].keys() == expected.keys()
    assert "second.weight" not in expected
    for name, value in state["weights"].items():
        torch.testing.assert_close(value.double(), expected[name])


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
def test_an_update_is_one_call_for_all_weights_of_a_kind_and_reads_nothing_back() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))
    average = WeightAverage(model, decay=0.9)
    with torch.profiler.profile() as profile:
        average.update()
    assert [event.name for event in profile.events() if event.cpu_parent is None] == ["aten::_foreach_lerp_"]


def test_a_half_precision_weight_is_averaged_where_its_own_precision_would_stand_still() -> None:
    model = Tied()
    average = WeightAverage(model, decay=0.999)
    average.load_state_dict({**average.state_dict(), "updates": 10**6})
    with torch.no_grad():
        model.low.add_(0.5)
    for _ in range(50):
        average.update()
    assert average.state_dict()["weights"]["low"].tolist() == pytest.approx([1 + 0.5 * (1 - 0.999**50)] * 2)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_holds_the_averages_in_a_block_and_its_own_weights_after_it(*, fails: bool) -> None:
    model = Tied()
    average = WeightAverage(model, decay=0.5)
    drift(model, 1)
    average.update()
    before, places = weights(model), [value.data_ptr() for value in model.state_dict().values()]
    with pytest.raises(KeyError) if fails else torch.inference_mode(), average.applied():
        inside = weights(model)
        for name, value in average.state_dict()["weights"].items():
            torch.testing.assert_close(inside[name], value.to(inside[name].dtype))
            assert not inside[name].equal(before[name])
        assert inside["second.weight"].equal(inside["first.weight"])
        assert inside["norm.running_mean"].equal(before["norm.running_mean"])
        if fails:
            raise KeyError
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert [value.data_ptr() for value in model.state_dict().values()] == places
    model.first(torch.ones(1, 3)).sum().backward()


def test_it_goes_on_from_a_saved_state_bit_for_bit() -> None:
    model = Tied()
    whole = WeightAverage(model, decay=0.9)
    with torch.inference_mode():
        resumed = WeightAverage(model, decay=0.9)
    for step in range(4):
        if step == 2:
            saved = whole.state_dict()
            resumed.load_state_dict({**saved, "weights": {name: v.clone() for name, v in saved["weights"].items()}})
        drift(model, step)
        whole.update()
        if step >= 2:
            resumed.update()
    assert resumed.state_dict()["updates"] == 4
    assert all(resumed.state_dict()["weights"][name].equal(v) for name, v in whole.state_dict()["weights"].items())


def test_averages_of_another_model_and_a_senseless_decay_are_refused() -> None:
    average = WeightAverage(nn.Linear(2, 2), decay=0.9)
    for other in (nn.Linear(2, 3), nn.Linear(2, 2, bias=False), nn.Bilinear(2, 2, 2)):
        with pytest.raises(CheckpointError, match=r"differ in (bias|weight)"):
            average.load_state_dict(WeightAverage(other, decay=0.9).state_dict())
    for decay in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="ema_decay"):
            WeightAverage(nn.Linear(2, 2), decay)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process only."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_sharded_model_has_sharded_averages_and_forgets_what_it_gathered() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def built(*, is_sharded: bool) -> tuple[nn.Module, WeightAverage]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
        if is_sharded:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        return model, WeightAverage(model, decay=0.5)

    (plain, of_plain), (sharded, of_sharded) = built(is_sharded=False), built(is_sharded=True)
    batch = torch.ones(4, 3)
    for model, average in ((plain, of_plain), (sharded, of_sharded)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            # What a validation gathers must not be what training goes on with, nor the other way round.
            with average.applied(), torch.no_grad():
                model(batch)
            model(batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update()
            with torch.no_grad():
                model(batch)
    with of_plain.applied(), of_sharded.applied(), torch.no_grad():
        torch.testing.assert_close(sharded(batch), plain(batch))
    torch.testing.assert_close(sharded(batch), plain(batch))
    for name, value in of_sharded.state_dict()["weights"].items():
        torch.testing.assert_close(value.full_tensor(), of_plain.state_dict()["weights"][name])

    of_sharded.update()
    of_sharded.load_state_dict(of_plain.state_dict())
    of_sharded.load_state_dict(of_sharded.state_dict())
    for name, value in of_sharded.state_dict()["weights"].items():
        assert value.full_tensor().equal(of_plain.state_dict()["weights"][name])
