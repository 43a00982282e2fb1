"""What is known of GPUs by their names, and what is made of it."""

from __future__ import annotations

import pytest
import torch

from smkit.throughput import hardware_metrics, peak_flops

pytestmark = pytest.mark.train


@pytest.mark.parametrize(
    ("name", "fp32", "tf32", "fp16", "bf16"),
    [
        ("Tesla V100-SXM2-16GB", 15.7e12, 15.7e12, 125e12, None),
        ("Tesla V100-SXM2-32GB", 15.7e12, 15.7e12, 125e12, None),
        ("Tesla T4", 8.1e12, 8.1e12, 65e12, None),
        ("NVIDIA A10G", 35e12, 35e12, 70e12, 70e12),
        ("NVIDIA A100-SXM4-40GB", 19.5e12, 156e12, 312e12, 312e12),
        ("NVIDIA A100-SXM4-80GB", 19.5e12, 156e12, 312e12, 312e12),
        ("NVIDIA L4", 30.3e12, 60e12, 121e12, 121e12),
        ("NVIDIA L40S", 91.6e12, 183e12, 362.05e12, 362.05e12),
        ("NVIDIA H100 80GB HBM3", 67e12, 494.5e12, 989.5e12, 989.5e12),
        ("NVIDIA H200", 67e12, 494.5e12, 989.5e12, 989.5e12),
        ("NVIDIA B200", 75e12, 1125e12, 2250e12, 2250e12),
    ],
)
def test_the_gpus_that_sagemaker_rents_are_known(
    name: str, fp32: float, tf32: float, fp16: float, bf16: float | None
) -> None:
    assert [peak_flops(name, precision) for precision in ("fp32", "tf32", "fp16", "bf16")] == [fp32, tf32, fp16, bf16]


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA L40", "NVIDIA GB200"),
        *("NVIDIA A10", "Tesla P100-PCIE-16GB", "NVIDIA T400", "AMD Instinct MI300X", ""),
    ],
)
def test_a_gpu_that_is_only_called_alike_is_not_known(name: str) -> None:
    assert peak_flops(name, "fp16") is None


def test_no_figure_is_made_up_for_another_precision() -> None:
    assert peak_flops("NVIDIA B200", "fp8") is None
    assert peak_flops("NVIDIA B200", "index") is None


def test_the_share_is_of_all_gpus_and_left_out_where_a_figure_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA A10G", "NVIDIA T400"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1_500_000_000 * (1 + device.index))

    def metrics(device: str, precision: str = "bf16", flops: float | None = 7e9) -> dict[str, float]:
        used = torch.device(device)
        return hardware_metrics(used, precision, samples_per_second=8000, flops_per_sample=flops, world_size=2)

    assert metrics("cuda:0") == {"train/gpu_memory_gb": 1.5, "train/mfu_percent": pytest.approx(40)}
    assert metrics("cuda:0", "fp32")["train/mfu_percent"] == pytest.approx(80)
    assert metrics("cuda:0", flops=None) == {"train/gpu_memory_gb": 1.5}
    assert metrics("cuda:1") == {"train/gpu_memory_gb": 3.0}
    assert metrics("cpu") == {}
