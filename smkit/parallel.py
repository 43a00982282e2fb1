"""How several processes train one model: each holds all of it (DDP), or each a part (FSDP2).

The user's module stays what it is: under DDP it is the step that is wrapped and not the model, so that its state has
the same names in any number of processes, and whatever method a step calls takes part. This room knows no loop.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smkit.distributed import Ranks
from smkit.errors import ConfigurationError
from smkit.sharding import mesh_of, whole

Strategy = Literal["ddp", "fsdp"]
Step = Callable[[Any], Any]

_AT_ONCE: AbstractContextManager[object] = nullcontext()
_FSDP_ON_CPU_SINCE = (2, 7)


class ParallelStep:
    """A training step that takes part in the others': the gradients that it leaves are the mean over all ranks."""

    def __init__(self, step: Step, ddp: Any = None) -> None:
        self.call: Step = step if ddp is None else ddp
        self._ddp = ddp

    def turn(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Return the context for a micro-batch, whose gradients wait for those of the last one of its group."""
        return _AT_ONCE if is_last or self._ddp is None else self._ddp.no_sync()


class _StepModule(nn.Module):
    """The model and the step as one module, which is what DDP can wrap."""

    def __init__(self, model: nn.Module, step: Step) -> None:
        super().__init__()
        self.model = model
        self._step = step

    def forward(self, batch: Any) -> Any:
        return self._step(batch)


def shard(model: nn.Module, ranks: Ranks, device_type: str) -> None:
    """Leave each rank a part of every parameter, which is put together when a block of the model needs it (FSDP2).

    The parts are those of rank 0's parameters. Each member of an outermost `nn.ModuleList` or `nn.Sequential` is such a
    block, as layers of a transformer are; what is left is one more.

    Raises:
        ConfigurationError: FSDP cannot cut one of the parameters, or the ranks have different models.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device_type == "cpu" and tuple(map(int, torch.__version__.split(".")[:2])) < _FSDP_ON_CPU_SINCE:
        raise ConfigurationError(
            f"PyTorch {torch.__version__} cannot train in parts on the CPU",
            where="strategy",
            fix="use --strategy ddp, a GPU, or PyTorch 2.7 or newer",
        )
    _require_what_can_be_cut(model)
    _require_same_model(model, ranks)
    everything = (*model.parameters(), *model.buffers())
    ranks.copy_from_first(one.detach() for one in everything if one.numel() and 0 not in one.stride())
    mesh = init_device_mesh(device_type, (ranks.world_size,))
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for block in _blocks(model):
        own = Counter(id(parameter) for _, parameter in block.named_parameters(remove_duplicate=False))
        # What is tied to another block's must be put together with it: both stay with what is left.
        if all(uses[parameter] == count for parameter, count in own.items()):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _require_what_can_be_cut(model: nn.Module) -> None:
    """Refuse models that FSDP ends with a traceback of its own, some of them only in the first step."""
    use_ddp = "or use --strategy ddp"
    if type(model).forward is nn.Module.forward:
        raise ConfigurationError(
            f"FSDP puts a model together when it is called, and {type(model).__name__} has no forward",
            where="strategy",
            fix=f"give the model a forward, and call it in training_step; {use_ddp}",
        )
    for name, parameter in model.named_parameters():
        if not parameter.dim() or not parameter.numel() or not parameter.is_contiguous():
            raise ConfigurationError(
                f"FSDP cannot cut '{name}', of shape {tuple(parameter.shape)} and strides {parameter.stride()}",
                where="strategy",
                fix="give a scalar the shape (1,) and what is transposed its own memory, and leave channels_last out; "
                + use_ddp,
            )
    dtypes = sorted({str(one.dtype) for one in model.parameters() if one.requires_grad})
    if len(dtypes) > 1:
        raise ConfigurationError(
            f"the model trains parameters of {' and '.join(dtypes)}, and FSDP puts a block together in one dtype",
            where="strategy",
            fix=f"give all trained parameters one dtype, and let --precision choose that of the arithmetic; {use_ddp}",
        )


def _require_same_model(model: nn.Module, ranks: Ranks) -> None:
    """Refuse models of ranks that differ in what they hold, which would wait for each other or mix their numbers."""
    parameters = dict(model.named_parameters())
    form = [(name, tuple(one.shape), str(one.dtype), one.requires_grad) for name, one in parameters.items()]
    form += [(name, tuple(one.shape), str(one.dtype), False) for name, one in model.named_buffers()]
    digest = hashlib.sha256(repr(form).encode()).hexdigest()[:8]
    count = sum(one.numel() for one in parameters.values())
    ranks.require_same(
        {"the model": f"{count:,} parameters in {len(parameters)} tensors, names, order and shapes {digest}"}
    )


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    is_row = isinstance(module, (nn.ModuleList, nn.Sequential))
    for child in module.children():
        # A list within a list is never called, and the call of a block is what puts it together.
        if is_row and type(child).forward is not nn.Module.forward:
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _blocks(child)


def parallel_step(
    step: Step, model: nn.Module, ranks: Ranks, strategy: Strategy, *, find_unused_parameters: bool
) -> ParallelStep:
    """Return `step` such that its gradients become the mean over all ranks; under DDP the model takes rank 0's weights.

    Raises:
        ConfigurationError: No parameter of the model is trained, or the ranks have different models.
    """
    if ranks.world_size == 1 or strategy == "fsdp":
        return ParallelStep(step)
    from torch.nn.parallel import DistributedDataParallel

    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigurationError(
            "the model has no parameter to train", where="build_model", fix="let one require a gradient"
        )
    _require_same_model(model, ranks)
    ddp = DistributedDataParallel(
        _StepModule(model, step), gradient_as_bucket_view=True, find_unused_parameters=find_unused_parameters
    )
    return ParallelStep(step, ddp)


def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank those buffers of rank 0 that each has counted by itself since a step: statistics, no integers."""
    if ranks.world_size == 1:
        return
    alike: dict[Any, list[Tensor]] = {}
    for buffer in model.buffers():
        # What is expanded is one value for all its places, and no statistic.
        if buffer.is_floating_point() and 0 not in buffer.stride():
            alike.setdefault((buffer.device, buffer.dtype), []).append(buffer.detach())
    for buffers in alike.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        ranks.copy_from_first([flat])
        for buffer, values in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view(buffer.shape))


def whole_model(model: nn.Module, build: Callable[[], nn.Module], ranks: Ranks) -> nn.Module:
    """Return a model that is in parts as a whole one in CPU memory, on rank 0; any other as it is."""
    if mesh_of(model) is None:
        return model
    state = {}
    for name, value in model.state_dict().items():
        gathered = whole(value)
        if ranks.is_first:
            state[name] = gathered.cpu()
    if not ranks.is_first:
        return model
    rebuilt = build().cpu()
    rebuilt.load_state_dict(state)
    return rebuilt
