"""Settings of torch's backends that hold for the whole process, set for a block and put back after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def backend_settings(*, float32_matmul_precision: str | None, cudnn_benchmark: bool | None) -> Iterator[None]:
    """Compute with these settings inside of a block, and with those of before after it; None leaves one as it is.

    Args:
        float32_matmul_precision: How exactly matrices in fp32 are multiplied: "highest" in fp32, "high" in TF32 on GPUs
            that have it (sm_80, A100, is the first), "medium" in what is fastest; a V100 and a T4 know but fp32.
        cudnn_benchmark: Whether cuDNN tries its ways to do a convolution and keeps the fastest; worth it for inputs of
            few shapes.
    """
    with _without_advice():
        put_back = _matmul_settings()
        if float32_matmul_precision is not None:
            torch.set_float32_matmul_precision(float32_matmul_precision)
    benchmark = torch.backends.cudnn.benchmark
    if cudnn_benchmark is not None:
        torch.backends.cudnn.benchmark = cudnn_benchmark
    try:
        yield
    finally:
        if cudnn_benchmark is not None:
            torch.backends.cudnn.benchmark = benchmark
        if float32_matmul_precision is not None:
            with _without_advice():
                put_back()


def multiplies_in_tf32() -> bool:
    """Whether matrices in fp32 are multiplied in TF32, on a GPU that has it."""
    own = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    return own == "tf32" if own not in ("none", "") else _common_precision() != "highest"


def convolves_in_tf32() -> bool:
    """Whether convolutions in fp32 are computed in TF32, on a GPU that has it: torch's default for them alone."""
    cudnn: Any = torch.backends.cudnn
    own = getattr(getattr(cudnn, "conv", None), "fp32_precision", None)
    return bool(cudnn.allow_tf32) if own is None else own == "tf32"


def _common_precision() -> str:
    """Return the one setting for all backends; torch refuses to say it once a script has set one of them."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def _matmul_settings() -> Callable[[], None]:
    """Return what puts back how matrices are multiplied.

    Beside the one setting, torch 2.9 has one for each backend. Once a script has used these, the one cannot be read.
    """
    # Of any type: torch 2.6 has none of it, and what 2.13 has is not typed.
    places: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    own = [(place, place.fp32_precision) for place in places if hasattr(place, "fp32_precision")]
    common = _common_precision()

    def put_back() -> None:
        torch.set_float32_matmul_precision(common)
        for place, precision in own:
            if place.fp32_precision != precision:
                place.fp32_precision = precision

    return put_back


@contextmanager
def _without_advice() -> Iterator[None]:
    # torch 2.9 and 2.10 advise against the one setting, but their own compiler fails where it cannot be read.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        yield
