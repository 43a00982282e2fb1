"""Where and how precisely a model is computed: device, precision, autocast and gradient scaling.

What to choose is decided by pure functions of the GPU's compute capability; `Placement` applies it. This room knows
neither data nor ranks nor checkpoints, and sets nothing global but the process's current GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer

from smkit.errors import ConfigurationError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
ChosenPrecision = Literal["fp32", "bf16", "fp16"]
Batch = TypeVar("Batch")

_BF16_SINCE = (8, 0)
_TENSOR_CORES_SINCE = (7, 0)
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NO_AUTOCAST = nullcontext()
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def choose_precision(asked: Precision, capability: tuple[int, int] | None) -> ChosenPrecision:
    """Return the precision to compute in on a GPU of this compute capability, or on the CPU (None).

    `torch.cuda.is_bf16_supported()` has no say: it is true where bf16 is only emulated, as on V100 and T4.

    Raises:
        ConfigurationError: The device has not got what was asked for, or has it only slower than fp32.
    """
    if asked == "auto":
        if capability is None or capability < _TENSOR_CORES_SINCE:
            return "fp32"
        return "bf16" if capability >= _BF16_SINCE else "fp16"
    if asked not in ("fp32", "bf16", "fp16"):
        raise ConfigurationError(
            f"{asked!r} is not a precision", where="precision", fix="choose 'auto', 'fp32', 'bf16' or 'fp16'"
        )
    if capability is None and asked == "fp16":
        raise ConfigurationError(
            "fp16 is for GPUs, and there is none here",
            where="precision",
            fix="choose 'auto', which is fp32 on a CPU, or 'bf16'",
        )
    if capability is not None and capability < _BF16_SINCE and asked == "bf16":
        raise ConfigurationError(
            f"a GPU of {_machine_code(capability)} only emulates bf16, slower than fp32; sm_80 (A100) first has it",
            where="precision",
            fix=f"choose 'auto', which is {choose_precision('auto', capability)} on this GPU",
        )
    return asked


def check_kernels(
    capability: tuple[int, int],
    arch_list: Sequence[str],
    *,
    device_name: str,
    torch_version: str,
    cuda_version: str | None,
) -> None:
    """Refuse a GPU that this build of PyTorch has no kernels for: its first operation would fail.

    Args:
        capability: The GPU's compute capability; (7, 0) for a V100.
        arch_list: What `torch.cuda.get_arch_list()` returns. `sm_XY` is machine code, which runs on GPUs of the same
            major version from that minor one on; `compute_XY` is PTX, which the driver compiles for any later GPU.
        device_name: The GPU's name; this and what follows is for the message.
        torch_version: The version of PyTorch.
        cuda_version: The version of CUDA that it was built for.

    Raises:
        ConfigurationError: There is no kernel; the message names images and wheels that have one.
    """
    built = [match.groups() for name in arch_list if (match := _ARCHITECTURE.fullmatch(name))]
    if not built or any(_runs(kind, (int(major), int(minor)), only, capability) for kind, major, minor, only in built):
        return
    too_old = capability < min((int(major), int(minor)) for _, major, minor, _ in built)
    raise ConfigurationError(
        f"PyTorch {torch_version} (CUDA {cuda_version}) has no kernels for the {device_name}, which is "
        f"{_machine_code(capability)}; it has {', '.join(arch_list)}",
        where="the GPU of this machine",
        fix=_FOR_AN_OLD_GPU if too_old else _FOR_A_NEW_GPU,
    )


_FOR_AN_OLD_GPU = (
    "use the PyTorch 2.6 training image (CUDA 12.6), or a wheel for CUDA 12.6: "
    "pip install torch --index-url https://download.pytorch.org/whl/cu126"
)
_FOR_A_NEW_GPU = "use a newer PyTorch training image, or a wheel for a newer CUDA"


def _runs(kind: str, version: tuple[int, int], only: str, capability: tuple[int, int]) -> bool:
    if only == "a":
        return version == capability
    if kind == "compute" and not only:
        return version <= capability
    return version[0] == capability[0] and version[1] <= capability[1]


def _machine_code(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


class Placement:
    """A device and a precision, and how one training step is done in them.

        placement = Placement.choose()
        model.to(placement.device)
        with placement.autocast():
            loss = training_step(placement.move(batch))
        placement.backward(loss)
        norm = placement.step(optimizer, model.parameters(), max_grad_norm=1.0)

    Args:
        device: Where to compute.
        precision: fp32, or what `autocast` lowers suitable operations to; parameters stay fp32.
        scaler: For fp16 only, which has one of torch's defaults if none is given: small gradients would become zero.
    """

    def __init__(self, device: torch.device, precision: ChosenPrecision, scaler: GradScaler | None = None) -> None:
        self.device = device
        self.precision = precision
        self.scaler = (scaler or GradScaler(device.type)) if precision == "fp16" else None
        self._autocast_dtype = _AUTOCAST.get(precision)
        self._is_cpu = device.type == "cpu"
        self._skipped: bool | Tensor = False
        self._begun: Optimizer | None = None

    @classmethod
    def choose(cls, precision: Precision = "auto", local_rank: int = 0) -> Placement:
        """Return the placement on this process's GPU, which becomes torch's current one, or else on the CPU.

        Raises:
            ConfigurationError: There are fewer GPUs than processes, the GPU cannot do `precision`, or PyTorch has no
                kernels for it.
        """
        if not torch.cuda.is_available():
            return cls(torch.device("cpu"), choose_precision(precision, None))
        if local_rank >= torch.cuda.device_count():
            raise ConfigurationError(
                f"local rank {local_rank} has no GPU of its own: {torch.cuda.device_count()} can be seen",
                where="the GPUs of this machine",
                fix="start as many processes on a host as it has GPUs, and check CUDA_VISIBLE_DEVICES",
            )
        capability = torch.cuda.get_device_capability(local_rank)
        check_kernels(
            capability,
            torch.cuda.get_arch_list(),
            device_name=torch.cuda.get_device_name(local_rank),
            torch_version=torch.__version__,
            cuda_version=torch.version.cuda,
        )
        chosen = choose_precision(precision, capability)
        torch.cuda.set_device(local_rank)
        return cls(torch.device("cuda", local_rank), chosen)

    def describe(self) -> str:
        """Return device and precision in one line, as `NVIDIA V100 (sm_70), fp16 with gradient scaling`."""
        if self.device.type != "cuda":
            threads = torch.get_num_threads()
            return f"{self.device}, {self.precision}, {threads} thread{'' if threads == 1 else 's'}"
        name, capability = torch.cuda.get_device_name(self.device), torch.cuda.get_device_capability(self.device)
        scaling = " with gradient scaling" if self.scaler else ""
        return f"{name} ({_machine_code(capability)}), {self.precision}{scaling}"

    def move(self, batch: Batch) -> Batch:
        """Return `batch` on the device: tensors in tuples, lists and dicts, and what has a `to` of its own.

        Copies from pinned memory do not wait. On the CPU the batch is returned as it is.
        """
        return batch if self._is_cpu else _to(batch, self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for the forward pass and the loss; it does nothing in fp32.

        To make one can cost more than to enter it: a loop may keep it, and enter it again and again, but not in itself.
        """
        return torch.autocast(self.device.type, self._autocast_dtype) if self._autocast_dtype else _NO_AUTOCAST

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, scaled in fp16, to those of the parameters."""
        torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))

    def step(self, optimizer: Optimizer, parameters: Iterable[Tensor], max_grad_norm: float | None) -> Tensor | None:
        """Step `optimizer`, the gradients of `parameters` first clipped to a total norm of `max_grad_norm`.

        Returns:
            The norm before clipping, on the device; None if `max_grad_norm` is. In fp16 it is not finite where the step
            is skipped, see `skipped`.
        """
        scaler = self.scaler
        if scaler is None:
            norm = None if max_grad_norm is None else torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            return norm
        if self._begun is not optimizer:
            _begin_momentum(optimizer)
            self._begun = optimizer
        norm = None
        if max_grad_norm is not None:
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        self._skipped = True
        with optimizer.register_step_post_hook(self._note_step):
            scaler.step(optimizer)
        scaler.update()
        return norm

    def _note_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        # A fused optimizer is called in any case, and skips on the GPU if this tensor says so.
        self._skipped = getattr(optimizer, "found_inf", False)

    @property
    def skipped(self) -> bool:
        """Whether the last `step` changed nothing, because a gradient overflowed; always False but in fp16.

        It is known without waiting for the GPU, for torch has read it already to decide; only with a fused optimizer,
        which decides on the GPU, does asking wait.
        """
        return bool(self._skipped)

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state, plain numbers; empty but in fp16. Reading it waits for the GPU."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a saved scale. A state of another precision is left aside: a scaler soon finds its scale anew."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(dict(state))


def _begin_momentum(optimizer: Optimizer) -> None:
    """Give a fused SGD the momentum of no step.

    torch (2.6 to 2.13 at least) takes memory that nobody has written for it, and writes it in the first step, unless
    that step is skipped, as the first ones in fp16 usually are: then chance is what the weights move by.
    """
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        if not group["fused"] or not group["momentum"]:
            continue
        if group["dampening"]:
            raise ConfigurationError(
                "fused SGD with dampening begins with memory that nobody has written if its first step is skipped",
                where="build_optimizer, in fp16",
                fix="leave out fused=True or dampening",
            )
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, tuple):
        values = [_to(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, list):
        return [_to(value, device) for value in batch]
    if isinstance(batch, dict):
        moved = copy(batch)
        moved.update((key, _to(value, device)) for key, value in batch.items())
        return moved
    return batch
