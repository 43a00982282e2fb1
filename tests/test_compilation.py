"""A model is compiled in place where that works; where it does not, it runs as it was, and says so once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smkit.compilation import compile_model

# torch's compiler imports what torch itself has deprecated; all of it is torch's, and the C++ compiler takes its time.
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.train, pytest.mark.endurance, QUIET]

BATCH = torch.arange(8.0).reshape(2, 4)


class Small(nn.Module):
    """A model with one kernel to compile, when it trains: the C++ compiler takes seconds for each."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3, bias=False)

    def forward(self, batch: torch.Tensor, fault: Exception | None = None) -> torch.Tensor:
        if fault is not None:
            raise fault
        return self.last(batch.sin() * 2 if self.training else batch)


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Torch's compiler with a cache of its own, in this process only, and without what costs tests time."""
    import torch._dynamo
    import torch._inductor.config as settings

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # The compiler sets it for itself, and leaves it.
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "")
    quick = {"compile_threads": 1, "cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with settings.patch(quick):
        yield settings
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def gradients(model: nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    model(BATCH).sum().backward()
    return [value.grad for value in model.parameters() if value.grad is not None]


def test_a_compiled_model_is_the_same_module_with_the_same_numbers_alone_and_inside_of_ddp(tmp_path: Path) -> None:
    model, notes = Small(), []
    eager = copy.deepcopy(model)
    compile_model(model, notes.append)
    assert model.state_dict().keys() == eager.state_dict().keys()
    torch.testing.assert_close(gradients(model), gradients(eager))
    assert graphs() == 1
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(BATCH), eager.eval()(BATCH))
    assert graphs() == 2
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        ddp = DistributedDataParallel(model.train())
        torch.testing.assert_close(gradients(ddp), gradients(eager.train()))
    finally:
        dist.destroy_process_group()
    assert graphs() >= 2
    assert notes == []

    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.last.weight.mul_(2)
    torch.testing.assert_close(copied(BATCH), model(BATCH) * 2)


@pytest.mark.parametrize("build", [Small, lambda: nn.Sequential(nn.Linear(4, 1), nn.Tanh())])
def test_without_a_compiler_the_model_runs_eagerly_and_says_so_once(build: Any, compiler: Any) -> None:
    model, notes = build(), []
    eager = copy.deepcopy(model)
    compile_model(model, notes.append)
    with compiler.patch("cpp.cxx", (None, "/nonexistent/g++")):
        for _ in range(2):
            torch.testing.assert_close(gradients(model), gradients(eager))
    (line,) = notes
    assert line.startswith("torch.compile failed (InvalidCxxCompiler: No working C++ compiler found")
    assert line.endswith("/nonexistent/g++')); the model runs eagerly")
    with torch.no_grad():
        assert model(BATCH[:1]).equal(eager(BATCH[:1]))
    assert len(notes) == 1


def test_an_error_of_the_models_own_goes_through_even_where_the_compiler_meets_it_first(compiler: Any) -> None:
    model, notes = Small(), []
    compile_model(model, notes.append)
    fault = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        model(BATCH, fault)
    assert caught.value is fault
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as wrong_shape:
        model(torch.ones(2, 5))
    assert type(wrong_shape.value) is RuntimeError
    assert wrong_shape.value.__context__ is None
    assert notes == []
