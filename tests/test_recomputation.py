"""Modules that compute their activations again: how often, with which gradients, and what they stay."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from smkit.errors import ConfigurationError
from smkit.recomputation import recompute

pytestmark = pytest.mark.train

BATCH = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, batch: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        self.calls += 1
        return self.dropout(self.linear(batch).tanh()) * scale


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            batch = block(batch, scale=2.0)
        return batch

    def calls(self) -> list[int]:
        return [block.calls for block in self.blocks]


def gradients(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(7)
    model.zero_grad()
    model(BATCH).square().sum().backward()
    return [value.grad.clone() for value in model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(first, second, strict=True))


def kept_bytes(run: Callable[[], object]) -> int:
    """What a forward pass keeps for the backward pass."""
    sizes = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(sizes)


def test_activations_are_computed_again_with_the_same_gradients_to_the_bit() -> None:
    plain, model = Model(), Model()
    keys = list(model.state_dict())
    assert recompute([*model.blocks[:2], model.blocks[0]]) == 2
    assert recompute(model.blocks[:2]) == 2
    assert list(model.state_dict()) == keys
    assert same(gradients(model), gradients(plain))
    assert (model.calls(), plain.calls()) == ([2, 2, 1], [1, 1, 1])
    recompute(model.blocks)
    assert kept_bytes(lambda: model(BATCH)) < kept_bytes(lambda: plain(BATCH)) / 2


def test_nothing_is_computed_again_without_gradients_or_in_evaluation() -> None:
    model = Model()
    recompute(model.blocks)
    with torch.no_grad():
        model(BATCH)
    model.eval()(BATCH).sum().backward()
    assert model.calls() == [2, 2, 2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_its_own_weights(copied: Callable[[Model], Model]) -> None:
    model = Model()
    recompute(model.blocks)
    twin = copied(model)
    with torch.no_grad():
        for value in twin.parameters():
            value.zero_()
    assert model(BATCH).any()
    assert not twin(BATCH).any()
    assert (model.calls(), twin.calls()) == ([1, 1, 1], [1, 1, 1])
    assert recompute(twin.blocks) == 3
    gradients(twin)
    assert (model.calls(), twin.calls()) == ([1, 1, 1], [3, 3, 3])


def test_a_forward_that_somebody_else_put_in_place_is_kept() -> None:
    block = Block()
    original = block.forward
    block.forward = lambda batch: original(batch, scale=0.0)
    assert recompute([block]) == 1
    block(BATCH).sum().backward()
    assert not block.linear.weight.grad.any()
    assert block.calls == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "NoneType is no list of modules"),
        (nn.Linear(1, 1), "Linear is no list of modules"),
        ([nn.Linear(1, 1), "blocks.0"], "str is no module"),
        (nn.ModuleDict({"a": nn.Linear(1, 1)}), "str is no module"),
        ([nn.ModuleList([nn.Linear(1, 1)])], "ModuleList is never called"),
    ],
)
def test_what_is_no_module_is_refused_before_any_is_changed(wrong: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s){message}.*where: activation_checkpointing.*model\.blocks"):
        recompute(wrong)  # type: ignore[arg-type]
    if isinstance(wrong, list):
        assert "forward" not in vars(wrong[0])
