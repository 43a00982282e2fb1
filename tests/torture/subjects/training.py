"""The training that every subject does, small and with every value known; and the notes that a run leaves of itself.

All values of the parameter `counted` and of its optimizer state equal the number of steps; the layers learn with
dropout, momentum and shuffled samples, and come out bit by bit the same only if a resumed run forgets nothing.
The notes are lines of JSON in a file of their own, outside of what is attacked; a run that is killed has left them.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import Dataset

from torture.subjects.order import SAMPLES, Order

BATCH_SIZE = 4
SEED = 7

Batch = dict[str, Tensor]


class Samples(Dataset[Batch]):
    """Random samples that know their numbers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(SAMPLES, 16, generator=generator)
        self.labels = torch.randint(4, (SAMPLES,), generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Batch:
        return {"pixels": self.pixels[index], "labels": self.labels[index], "index": torch.tensor(index)}


class Network(nn.Module):
    """Layers that learn, and a parameter that counts; it notes the samples that it is given."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
        self.counted = nn.Parameter(torch.zeros(notes.order.values))
        self.notes = notes

    def forward(self, pixels: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.notes.step(index)
        logits = self.layers(pixels)
        # Its gradient is zero; that it has one, several processes want to see.
        return {"loss": cross_entropy(logits, labels) + 0.0 * self.counted.sum(), "logits": logits}


class Counting(Optimizer):
    """Momentum for what learns; one more in each step for each value of what counts, and of its state."""

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        learned = [parameter for name, parameter in named if "counted" not in name]
        counted = [parameter for name, parameter in named if "counted" in name]
        groups = [{"params": learned, "counts": False}, {"params": counted, "counts": True}]
        super().__init__(groups, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                memory = self.state[parameter].setdefault("memory", torch.zeros_like(parameter))
                if group["counts"]:
                    memory.add_(1)
                    parameter.add_(1)
                elif parameter.grad is not None:
                    memory.mul_(0.9).add_(parameter.grad)
                    parameter.sub_(group["lr"] * memory)
        return loss


class Notes:
    """What a run says of itself: its start, each step, each save, each checkpoint that it counts as saved, its end."""

    def __init__(self, order: Order) -> None:
        self.order = order
        path = f"{order.notes}.{order.rank}" if order.rank else order.notes
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._disk = ctypes.CDLL(None)
        self._is_watched = hasattr(self._disk, "faulty_disk_obey")
        self._clock = random.Random(f"{order.clock} {order.notes}")
        self._parts: tuple[nn.Module, Any] | None = None

    def write(self, **words: Any) -> None:
        os.write(self._file, json.dumps(words).encode() + b"\n")

    def watch_disk(self) -> None:
        """Let the faulty disk, if this process has one and is to, obey from now on."""
        if self.order.disk and self.order.faulty_rank in (None, self.order.rank):
            if not self._is_watched:
                raise RuntimeError("this process has no faulty disk: LD_PRELOAD it")
            self._disk.faulty_disk_obey(self.order.disk.encode())

    @property
    def has_begun(self) -> bool:
        return self._parts is not None

    def began(self, step: int, model: nn.Module, optimizer: Any) -> None:
        """Note where the framework says that it goes on, and what the values say."""
        self._parts = (model, optimizer)
        self.write(event="began", step=step, **values_of(model, optimizer))

    def step(self, index: Tensor) -> None:
        """Note the samples of a step before it is done, and what has been learned until then."""
        learned = values_of(*self._parts)["learned"] if self._parts else None
        self.write(event="step", samples=index.tolist(), learned=learned)
        self.set_clock()
        if self.order.seconds_per_step:
            time.sleep(self.order.seconds_per_step)

    def set_clock(self) -> None:
        """Make the clock wrong, if it is to be."""
        if self.order.clock:
            self._disk.wrong_clock_set(int(self._clock.uniform(-1, 1) * self.order.clock))

    def saving(self, step: int) -> None:
        """Note that a save of a step is begun."""
        self.write(event="saving", step=step)

    def committed(self, step: int) -> None:
        """Note that the framework has said: this step is saved."""
        self.write(event="committed", step=step)
        if self._is_watched:
            # Among the calls that the disk has seen, too.
            self._disk.faulty_disk_mark(f"committed {step}".encode())

    def ended(self, step: int, model: nn.Module, optimizer: Any) -> None:
        self.write(event="ended", step=step, **values_of(model, optimizer))
        if self._is_watched:
            self._disk.faulty_disk_mark(b"ended")


def values_of(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Return the least and the greatest of what counts, and a digest of what has been learned."""
    counted = [_here(parameter) for name, parameter in model.named_parameters() if "counted" in name]
    learned = [_here(parameter) for name, parameter in model.named_parameters() if "counted" not in name]
    memories = [
        optimizer.state.get(parameter, {}).get("memory")
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    own = [_here(memory) for memory in memories if memory is not None]
    return {
        "weights": _extremes(counted),
        # What counts is the last; before the first step there is no state.
        "memory": _extremes(own[-1:]) if own else [0.0, 0.0],
        "learned": _digest([*learned, *own]),
    }


def _here(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor that several may hold parts of."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach()


def _extremes(tensors: Iterable[Tensor]) -> list[float]:
    return [float(value) for tensor in tensors for value in (tensor.min(), tensor.max())]


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
