"""How much of a GPU a run uses: its memory, and the share of the arithmetic it could do.

This room measures no time; it knows what NVIDIA says its GPUs do at best.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch


class _Peak(NamedTuple):
    """TFLOP/s of dense matrices; None where the GPU has no unit for them, and only emulates them."""

    fp32: float
    tf32: float
    fp16: float
    bf16: float | None


# By what stands in the name of the device. Data sheets with sparse figures (*) halve for dense ones.
_PEAKS = {
    # ml.p3: NVIDIA V100 data sheet (January 2020): SXM2 15.7 single-precision, 125 tensor. No TF32.
    "V100-SXM2": _Peak(fp32=15.7, tf32=15.7, fp16=125, bf16=None),
    # ml.g4dn: NVIDIA T4 data sheet: 8.1 single-precision, 65 mixed-precision. No TF32.
    "T4": _Peak(fp32=8.1, tf32=8.1, fp16=65, bf16=None),
    # ml.g5: NVIDIA A10G data sheet for AWS (February 2022): 35 FP32, 35|70* TF32, 70|140* FP16 and BF16.
    "A10G": _Peak(fp32=35, tf32=35, fp16=70, bf16=70),
    # ml.p4d, ml.p4de: NVIDIA A100 data sheet: 19.5 FP32, 156|312* TF32, 312|624* FP16 and BF16.
    "A100-SXM4": _Peak(fp32=19.5, tf32=156, fp16=312, bf16=312),
    # ml.g6: NVIDIA L4 data sheet: 30.3 FP32, 120* TF32, 242* FP16 and BF16.
    "L4": _Peak(fp32=30.3, tf32=60, fp16=121, bf16=121),
    # ml.g6e: NVIDIA L40S data sheet: 91.6 FP32, 183|366* TF32, 362.05|733* FP16 and BF16.
    "L40S": _Peak(fp32=91.6, tf32=183, fp16=362.05, bf16=362.05),
    # ml.p5: NVIDIA H100 data sheet, SXM: 67 FP32, 989* TF32, 1,979* FP16 and BF16.
    "H100 80GB HBM3": _Peak(fp32=67, tf32=494.5, fp16=989.5, bf16=989.5),
    # ml.p5e, ml.p5en: NVIDIA H200 data sheet, SXM: as H100.
    "H200": _Peak(fp32=67, tf32=494.5, fp16=989.5, bf16=989.5),
    # ml.p6-b200: NVIDIA HGX B200 specifications, an eighth of 600 FP32, 18,000* TF32, 36,000* FP16 and BF16.
    "B200": _Peak(fp32=75, tf32=1125, fp16=2250, bf16=2250),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the FLOP/s that a GPU does at best in dense products of matrices, or None where that is not known.

    Args:
        device_name: What `torch.cuda.get_device_name()` returns. Parts of a GPU (MIG) and the slower cards of the same
            name for PCIe slots are not known.
        precision: "fp32", "tf32" (the figure of fp32 on a GPU that lacks it), "bf16" or "fp16".
    """
    name = re.fullmatch(rf"(?:NVIDIA |Tesla )*({'|'.join(_PEAKS)})(?:-\d+GB)?", device_name)
    tflops = _PEAKS[name[1]]._asdict().get(precision) if name else None
    return None if tflops is None else tflops * 1e12


def hardware_metrics(
    device: torch.device,
    precision: str,
    *,
    samples_per_second: float,
    flops_per_sample: float | None,
    world_size: int,
) -> dict[str, float]:
    """Return what is known of the use of the GPU; nothing on the CPU. It does not wait for the GPU.

    Args:
        device: This process's device.
        precision: What it computes in, as for `peak_flops`.
        samples_per_second: Samples that all processes together train in a second.
        flops_per_sample: Operations for one sample, forward and backward; 6 for each parameter and token of a large
            language model.
        world_size: The number of processes, each with a GPU like this one.

    Returns:
        `train/gpu_memory_gb`, the most that tensors have taken so far, in units of 10^9 bytes, and
        `train/mfu_percent`, the share of the possible operations that is done, where both figures are known.
    """
    if device.type != "cuda":
        return {}
    metrics = {"train/gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    peak = peak_flops(torch.cuda.get_device_name(device), precision) if flops_per_sample is not None else None
    if flops_per_sample is not None and peak is not None:
        metrics["train/mfu_percent"] = 100 * samples_per_second * flops_per_sample / (peak * world_size)
    return metrics
