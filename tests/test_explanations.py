"""What torch's errors become before a person reads them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lines import Batch, LineTrainer, Run
from patience import SECONDS
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import smkit
from smkit.explanations import LostGPUError, explained

pytestmark = pytest.mark.train

# As torch 2.11 says it on an H200.
FULL = (
    "CUDA out of memory. Tried to allocate 372.53 GiB. GPU 0 has a total capacity of 139.80 GiB of which 138.70 GiB is "
    "free. Including non-PyTorch memory, this process has 1.09 GiB memory in use. Of the allocated memory 512 bytes is "
    "allocated by PyTorch, and 2.00 MiB is reserved by PyTorch but unallocated."
)
ASSERTION = (
    "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in https://docs.nvidia.com/ for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.within(tmp_path)


class Failing(LineTrainer):
    failure: Exception

    def training_step(self, batch: Batch) -> Tensor:
        if self.step == 2:
            raise self.failure
        return super().training_step(batch)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (
            torch.OutOfMemoryError(FULL),
            r"memory of the GPU is full: CUDA out of memory. Tried to allocate 372.53 GiB.*",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), "memory of the GPU is full: CUDA er"),
        (RuntimeError(ASSERTION), r"(?s)value out of its range \(device-side assert\).*label.*CUDA_LAUNCH_BLOCKING=1"),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
            "access was encountered\n  where: ",
        ),
        (
            BackendCompilerFailed(print, KeyError("tl.dot"), None),
            r"(?s)backward pass \(KeyError: 'tl.dot'\).*--compile",
        ),
    ],
)
def test_an_error_of_torchs_says_what_it_means_and_what_to_do(failure: Exception, text: str, run: Run) -> None:
    trainer = run(Failing, "--batch-size", "8")
    trainer.failure = failure
    with pytest.raises(smkit.SmkitError, match=text) as caught:
        trainer.fit()
    assert caught.value.__cause__ is failure
    assert "Of the allocated memory" not in str(caught.value)
    assert isinstance(caught.value, LostGPUError) == str(failure).startswith(("CUDA error: dev", "CUDA error: an ill"))


def test_a_full_gpu_is_told_with_the_users_own_line(run: Run) -> None:
    trainer = run(Failing, "--batch-size", "8")
    trainer.failure = torch.OutOfMemoryError(FULL)
    with pytest.raises(smkit.SmkitError) as caught:
        trainer.fit()
    assert f"{__file__}:" in caught.value.where
    assert "in training_step: raise self.failure" in caught.value.where
    assert "--gradient-accumulation-steps" in caught.value.fix


class Normalizing(LineTrainer):
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(3, dtype=torch.float64), super().build_model())


def test_one_sample_left_over_for_a_batch_normalization_is_told(run: Run) -> None:
    with pytest.raises(smkit.SmkitError, match="was given one sample, of which there is no variance") as caught:
        run(Normalizing, "--batch-size", "37").fit()
    assert "in training_step: return mse_loss(" in caught.value.where
    run(Normalizing, "--batch-size", "36").fit()


def test_a_process_whose_gpu_is_lost_ends_with_its_status_whatever_would_be_tidied_up() -> None:
    program = "import atexit, os; from smkit import report; atexit.register(os.abort); print('said'); "
    command = [sys.executable, "-c", program + "report.end_at_once(1)"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (ended.returncode, ended.stdout) == (1, "said\n")


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("CUDA out of memory"), OSError()]
)
def test_what_says_it_itself_is_left_alone(error: Exception) -> None:
    assert explained(error) is None


def test_a_failed_assertion_is_the_compilers_only_where_it_stands_in_the_compiler() -> None:
    for module, is_the_compilers in (("torch._dynamo.symbolic_convert", True), ("model", False)):
        namespace: dict[str, Any] = {"__name__": module}
        exec("def fail():\n    raise AssertionError", namespace)
        with pytest.raises(AssertionError) as caught:
            namespace["fail"]()
        assert (explained(caught.value) is not None) == is_the_compilers
