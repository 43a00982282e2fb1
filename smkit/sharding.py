"""Tensors of which each rank holds a part: how they are cut, and put together from the parts of any number of ranks.

The cut is FSDP2's: along one dimension, in as many equal runs as there are ranks, the last ones shorter or empty. This
room knows no files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Cut(NamedTuple):
    """Of what whole a tensor is a part."""

    shape: tuple[int, ...]
    dimension: int

    def bounds(self, ranks: int, rank: int) -> tuple[int, int]:
        """Return from where to where, along the dimension, `rank` of `ranks` holds it."""
        size = self.shape[self.dimension]
        run = -(-size // ranks)
        return min(rank * run, size), min((rank + 1) * run, size)

    def holders(self, ranks: int, start: int, stop: int) -> list[int]:
        """Return the ranks that hold something between `start` and `stop`."""
        bounds = [self.bounds(ranks, rank) for rank in range(ranks)]
        return [rank for rank, (first, last) in enumerate(bounds) if first < stop and last > start]

    def assembled(self, ranks: int, start: int, stop: int, part: Callable[[int], Tensor]) -> Tensor:
        """Return what lies between `start` and `stop` of the parts that `ranks` ranks held; `part` returns one's."""
        pieces = []
        for rank in self.holders(ranks, start, stop):
            first, last = self.bounds(ranks, rank)
            piece = part(rank)
            if piece.shape[self.dimension] != last - first:
                raise ValueError(f"rank {rank} of {ranks} held {tuple(piece.shape)} of {self.shape}")
            begin, end = max(start, first), min(stop, last)
            pieces.append(piece.narrow(self.dimension, begin - first, end - begin))
        if not pieces:
            shape = list(self.shape)
            shape[self.dimension] = 0
            return torch.empty(shape, dtype=part(0).dtype)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, self.dimension)


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is torch's DTensor; the class is not imported for that."""
    return type(tensor).__name__ == "DTensor" and hasattr(tensor, "placements")


def mesh_of(model: nn.Module) -> Any:
    """Return the mesh that the parts of a model lie on, None if it is whole."""
    return next((one.device_mesh for one in model.parameters() if is_distributed(one)), None)  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is in parts as a whole one, on all ranks; any other as it is."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def local_part(tensor: Any) -> tuple[Tensor, Cut | None]:
    """Return what this rank holds of a DTensor, and how it is cut; None for one that every rank has as a whole.

    Raises:
        ValueError: It is cut in a way that this room does not know.
    """
    local = tensor.to_local().detach()
    cuts = [placement for placement in tensor.placements if not placement.is_replicate()]
    if not cuts:
        return local, None
    if tensor.device_mesh.ndim != 1 or type(cuts[0]).__name__ != "Shard":
        raise ValueError(f"it lies as {tensor.placements} on a mesh of {tensor.device_mesh.ndim} dimensions")
    return local, Cut(tuple(tensor.shape), cuts[0].dim)


def distributed(local: Tensor, cut: Cut, mesh: Any) -> Tensor:
    """Return this rank's part of a tensor as a DTensor on a mesh of one dimension."""
    from torch.distributed.tensor import DTensor, Shard

    strides = torch.empty(cut.shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, [Shard(cut.dimension)], run_check=False, shape=torch.Size(cut.shape), stride=strides
    )


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return `value`, whole, in parts as `parameter` is, if that is in parts and has the same shape."""
    if not is_distributed(parameter) or is_distributed(value) or value.shape != parameter.shape:
        return value
    _, cut = local_part(parameter)
    mesh: Any = getattr(parameter, "device_mesh", None)
    if cut is None:
        return value
    start, stop = cut.bounds(mesh.size(), mesh.get_local_rank())
    return distributed(value.narrow(cut.dimension, start, stop - start).to(mesh.device_type), cut, mesh)
