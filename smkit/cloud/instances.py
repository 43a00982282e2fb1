"""What an instance type computes with: how many GPUs, of which kind, and the architecture that kernels are built for.

Sources: the counts of p2, p3, p4d, p4de, p5, g4dn and g5 are those of `instance_gpu_info.json` in the SDK v2 (2.257.7).
Those of the younger families are EC2's, as its pages of accelerated instance types have them, and were not looked up
again; the architecture ("sm_70") of a GPU is its compute capability in NVIDIA's list. A type that is not known for
certain has None: nothing is guessed here. Which types there are at all, botocore's model lists (`service_model`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Accelerators:
    """What an instance type computes with.

    Args:
        kind: `none` for an instance type of CPUs only.
        name: The name of the chip; empty where it is not known or there is none.
        capability: The compute capability of a GPU as PyTorch's builds write it: 70 for sm_70. None if not known.
        count: How many a host has; None if not known.
    """

    kind: Literal["GPU", "Neuron", "none"]
    name: str = ""
    capability: int | None = None
    count: int | None = None

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.capability})" if self.capability else self.name or self.kind


_SMALL_TO_LARGE = {"xlarge": 1, "2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "12xlarge": 4, "16xlarge": 1}
_UP_TO_EIGHT = {**_SMALL_TO_LARGE, "24xlarge": 4, "48xlarge": 8}
_GPUS: dict[str, tuple[str, int | None, dict[str, int]]] = {
    "p2": ("K80", 37, {"xlarge": 1, "8xlarge": 8, "16xlarge": 16}),
    "p3": ("V100", 70, {"2xlarge": 1, "8xlarge": 4, "16xlarge": 8}),
    "p3dn": ("V100", 70, {"24xlarge": 8}),
    "p4d": ("A100", 80, {"24xlarge": 8}),
    "p4de": ("A100", 80, {"24xlarge": 8}),
    "p5": ("H100", 90, {"4xlarge": 1, "48xlarge": 8}),
    "p5e": ("H200", 90, {"48xlarge": 8}),
    "p5en": ("H200", 90, {"48xlarge": 8}),
    "p6-b200": ("B200", 100, {"48xlarge": 8}),
    "p6-b300": ("B300", 103, {"48xlarge": 8}),
    "p6e-gb200": ("GB200", 100, {"36xlarge": 4}),
    "g4dn": ("T4", 75, _SMALL_TO_LARGE),
    "g5": ("A10G", 86, _UP_TO_EIGHT),
    "g6": ("L4", 89, _UP_TO_EIGHT),
    "g6e": ("L40S", 89, _UP_TO_EIGHT),
    "g7": ("", None, {}),
    "g7e": (
        "RTX PRO 6000 Blackwell",
        120,
        {"2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "12xlarge": 2, "24xlarge": 4, "48xlarge": 8},
    ),
}
_ARM = frozenset({"p6e-gb200"})
"""Families whose hosts have Arm processors (NVIDIA's Grace)."""
_NEURON = re.compile(r"(trn|inf)\d.*")
_OTHER_GPU = re.compile(r"(p|g|gr)\d.*")
"""How AWS names its GPU families: one that is younger than this table is no CPU type for that."""


def accelerators(instance_type: str) -> Accelerators:
    """Return what a host of an instance type computes with; a misspelled name is read as far as it goes."""
    _, _, rest = str(instance_type).partition("ml.")
    family, _, size = rest.partition(".")
    if family in _GPUS:
        name, capability, counts = _GPUS[family]
        return Accelerators("GPU", name, capability, counts.get(size))
    if _NEURON.fullmatch(family):
        return Accelerators("Neuron", "Neuron")
    if _OTHER_GPU.fullmatch(family):
        return Accelerators("GPU")
    return Accelerators("none", count=0)


def has_arm_processors(instance_type: str) -> bool:
    """Whether a host of an instance type runs only programs that are built for Arm."""
    return instance_type.removeprefix("ml.").partition(".")[0] in _ARM
