"""Settings of the process hold for a block, whichever way they were set before."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import pytest
import torch

from smkit.backends import backend_settings, convolves_in_tf32, multiplies_in_tf32

pytestmark = pytest.mark.train

HAS_OWN = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def settings() -> tuple[object, ...]:
    own = [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision] if HAS_OWN else []
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:
        common = "cannot be read"
    return (common, torch.backends.cudnn.benchmark, *own)


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    assert settings()[:2] == ("highest", False)


@pytest.mark.parametrize("before", ["highest", "high", "one for each backend"])
@pytest.mark.parametrize("chosen", ["highest", "high", "medium"])
def test_settings_hold_for_a_block_and_are_put_back_without_a_warning(before: str, chosen: str) -> None:
    if before != "one for each backend":
        torch.set_float32_matmul_precision(before)
    elif HAS_OWN:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert settings()[0] == "cannot be read"
    torch.backends.cudnn.benchmark = before == "high"
    ours = settings()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with (
            contextlib.suppress(KeyError),
            backend_settings(float32_matmul_precision=chosen, cudnn_benchmark=before != "high"),
        ):
            assert settings()[:2] == (chosen, before != "high")
            assert torch.backends.cuda.matmul.allow_tf32 == (chosen != "highest")
            raise KeyError
    assert settings() == ours


def test_convolutions_have_a_setting_of_their_own() -> None:
    assert (multiplies_in_tf32(), convolves_in_tf32()) == (False, True)
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not convolves_in_tf32()
    torch.set_float32_matmul_precision("high")
    assert (multiplies_in_tf32(), convolves_in_tf32()) == (True, True)
