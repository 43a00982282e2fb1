"""What only a GPU shows: copies that overlap, precisions that round, kernels that fail long after they were called."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lines import LineTrainer, Run
from patience import SECONDS
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset, TensorDataset

import smkit
from smkit.data.arrays import Arrays
from smkit.device import check_kernels
from smkit.distributed import Ranks
from smkit.parallel import parallel_step, shard
from smkit.sharding import mesh_of, whole

NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees")
QUIET = pytest.mark.filterwarnings(
    *("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:TensorFloat32", "ignore:dynamo_pgo force"),
    "ignore:Synchronization debug mode is a prototype",
)
pytestmark = [pytest.mark.train, pytest.mark.endurance, NEEDS_A_GPU, QUIET]

SCRIPT = Path(__file__).with_name("gpu_script.py")
ROOT = Path(__file__).parent.parent
Batch = tuple[Tensor, ...]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.within(tmp_path)


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """The GPU, of which a test leaves nothing taken."""
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    yield device
    assert taken() == 0


def taken() -> int:
    """Bytes of the GPU that tensors hold; not those that cuBLAS keeps for itself."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


class Delay:
    """Kernels that keep the GPU busy, so that whatever is queued after them lags behind."""

    def __init__(self, device: torch.device, size: int = 4096) -> None:
        self._matrix = torch.randn(size, size, device=device)

    def __call__(self, products: int = 20) -> None:
        for _ in range(products):
            self._matrix @ self._matrix


class DenseTrainer(LineTrainer):
    """The line in fp32, which autocast can lower, by an optimizer with a state."""

    fused = True

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=0.01, fused=self.fused)

    def build_dataset(self, channel: smkit.Channel) -> Dataset[Any]:
        inputs = torch.randn(self.samples, 3, generator=torch.Generator().manual_seed(1))
        return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpu")
def test_the_gpu_is_chosen_in_its_own_best_precision_and_has_kernels() -> None:
    capability = torch.cuda.get_device_capability()
    check_kernels(
        capability,
        torch.cuda.get_arch_list(),
        device_name=torch.cuda.get_device_name(),
        torch_version=torch.__version__,
        cuda_version=torch.version.cuda,
    )
    placement = smkit.Placement.choose()
    assert placement.device == torch.device("cuda", 0)
    assert placement.precision == ("bf16" if capability >= (8, 0) else "fp16")
    assert placement.describe().startswith(f"{torch.cuda.get_device_name()} (sm_{capability[0]}{capability[1]}), ")
    assert smkit.Placement.choose("fp16").describe().endswith("fp16 with gradient scaling")
    with pytest.raises(smkit.ConfigurationError, match="has no GPU of its own"):
        smkit.Placement.choose(local_rank=torch.cuda.device_count())


# --- batches on their way ---------------------------------------------------------------------------------------------

SAMPLES, WIDTH = 4096, 1024


def numbered() -> Tensor:
    """Rows that hold their own number everywhere, of 4 kB each."""
    return torch.arange(SAMPLES, dtype=torch.float32)[:, None].expand(SAMPLES, WIDTH).contiguous()


class Rows(Dataset[Any]):
    """A data set of a user's, read sample by sample in worker processes."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((WIDTH,), float(index)), torch.tensor(index)


def wrong_rows(device: torch.device, batches: Iterator[Any], move: Callable[[Any], Any]) -> int:
    """Move batches that lag far behind the process; count the samples whose rows do not hold their number."""
    delay, wrong = Delay(device), torch.zeros((), dtype=torch.int64, device=device)
    for batch in batches:
        delay()
        rows, numbers = move(batch)
        wrong += (rows != numbers.float()[:, None]).any(dim=1).sum()
    return int(wrong)


@pytest.mark.parametrize(
    ("kind", "workers", "batch_size"),
    [
        *(("arrays", "none", 1024), ("arrays", "thread", 1024), ("arrays", "auto", 16), ("tensors", "auto", 1024)),
        *(("tensors", "none", 64), ("rows", "none", 256), ("rows", "process", 256)),
    ],
)
def test_a_copy_that_lags_behind_carries_what_its_batch_held(
    kind: str, workers: Any, batch_size: int, gpu: torch.device
) -> None:
    columns = (numbered(), torch.arange(SAMPLES))
    dataset: Any = {
        "arrays": lambda: Arrays({"rows": columns[0], "numbers": columns[1]}),
        "tensors": lambda: TensorDataset(*columns),
        "rows": Rows,
    }[kind]()
    loader = smkit.make_loader(
        dataset,
        batch_size=batch_size,
        workers=workers,
        num_workers=2 if workers == "process" else None,
        pin_memory=True,
    )
    placement = smkit.Placement(gpu, "fp32")
    pinned = []

    def batches() -> Iterator[Any]:
        for _ in range(1 if kind == "rows" else max(1, batch_size // 64)):
            for batch in loader:
                pinned.append(all(column.is_pinned() for column in batch))
                yield batch

    assert wrong_rows(gpu, batches(), placement.move) == 0
    assert all(pinned)
    assert len(pinned) >= SAMPLES // batch_size


def test_the_search_for_late_copies_finds_memory_that_is_used_too_early(gpu: torch.device) -> None:
    """Else the test above could not fail."""
    rows, numbers = numbered(), torch.arange(SAMPLES)
    one = torch.empty(1024, WIDTH, pin_memory=True)

    def batches() -> Iterator[Any]:
        for index in torch.randperm(SAMPLES).split(1024):
            torch.index_select(rows, 0, index, out=one)
            yield one, numbers[index]

    assert wrong_rows(gpu, batches(), smkit.Placement(gpu, "fp32").move) > 0


def test_data_that_lies_on_the_gpu_is_read_there_and_gives_the_same_training(run: Run, tmp_path: Path) -> None:
    class OnTheGpu(DenseTrainer):
        def build_dataset(self, channel: smkit.Channel) -> Dataset[Any]:
            rows = super().build_dataset(channel)
            return TensorDataset(*(tensor.to("cuda") for tensor in rows.tensors))

        def training_step(self, batch: Batch) -> Tensor:
            assert batch[0].is_cuda
            return super().training_step(batch)

    there = run(OnTheGpu, "--batch-size", "8", "--epochs", "2")
    there.fit()
    run.directory = tmp_path / "here"
    here = run(DenseTrainer, "--batch-size", "8", "--epochs", "2")
    here.fit()
    assert all(map(torch.equal, there.model.parameters(), here.model.parameters()))


def test_metrics_of_a_step_may_lie_on_the_cpu_beside_those_on_the_gpu(run: Run) -> None:
    class Noting(DenseTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            self.log("here", torch.tensor(3.0))
            self.log("number", 4.0)
            return super().training_step(batch)

        def validation_step(self, batch: Batch) -> dict[str, Any]:
            return {"both": torch.tensor(2.0), "there": batch[0].sum() * 0 + 5}

    record = run(Noting, "--batch-size", "8", "--epochs", "1", channels=("train", "validation")).fit()
    assert (record["here"], record["number"], record["validation/both"], record["validation/there"]) == (3, 4, 2, 5)


# --- the step ---------------------------------------------------------------------------------------------------------


class Watched(DenseTrainer):
    """Makes torch raise at each wait for the GPU in the steps 11 to 39, between two records."""

    samples = 38 * 20

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: 1 / (step + 1))

    def training_step(self, batch: Batch) -> Tensor:
        if self.step in (10, 39):
            torch.cuda.set_sync_debug_mode("error" if self.step == 10 else "default")
        self.log("mean", batch[0].mean())
        if self.step == self.hp.width:
            batch[0].sum().item()
        return super().training_step(batch)


@pytest.fixture
def waits_are_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


STEADY = (
    "--batch-size",
    "38",
    "--epochs",
    "3",
    "--log-every-steps",
    "50",
    "--max-grad-norm",
    "1",
    "--ema-decay",
    "0.9",
)


@pytest.mark.usefixtures("waits_are_allowed_again")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("arguments", [(), ("--gradient-accumulation-steps", "2")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_gpu(precision: str, arguments: tuple[str, ...], fused: bool, run: Run) -> None:
    class Kind(Watched):
        pass

    Kind.fused = fused
    trainer = run(Kind, *STEADY, "--precision", precision, *arguments)
    trainer.fit()
    assert trainer.step == 60


@pytest.mark.usefixtures("waits_are_allowed_again")
def test_a_fused_step_in_fp16_waits_only_to_know_whether_it_was_skipped(run: Run) -> None:
    class Plain(Watched):
        def build_scheduler(self, optimizer: Optimizer) -> None:
            return None

    run(Plain, *STEADY[:-2], "--precision", "fp16").fit()


@pytest.mark.usefixtures("waits_are_allowed_again")
def test_a_wait_in_the_users_own_step_is_seen(run: Run) -> None:
    with pytest.raises(RuntimeError, match="synchroniz"):
        run(Watched, *STEADY, "--width", "20").fit()


class Overflowing(DenseTrainer):
    """Its loss overflows in the steps 6 and 7, or is never a number at all."""

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: 1 / (step + 1))

    def training_step(self, batch: Batch) -> Tensor:
        loss = super().training_step(batch)
        weights = torch.cat([value.detach().flatten() for value in self.model.parameters()])
        if self.step in (20, 21):
            self.before = weights
        if self.step == 22:
            self.after = weights
        if self.hp.width == 2 and self.step >= 20:
            return loss * float("nan")
        if self.hp.width == 3:
            return loss + (self.model[0].weight * 0).norm().sqrt()
        return loss * float("inf") if self.step in (20, 21) else loss


FP16 = ("--precision", "fp16", "--batch-size", "19", "--max-grad-norm", "1", "--epochs", "30", "--log-every-steps", "4")


@pytest.mark.parametrize("fused", [True, False])
def test_in_fp16_a_skipped_step_is_told_from_divergence(fused: bool, run: Run, tmp_path: Path) -> None:
    class Kind(Overflowing):
        pass

    Kind.fused = fused
    trainer = run(Kind, *FP16)
    record = trainer.fit()
    assert trainer.before.equal(trainer.after)
    skipped = 60 - trainer.scheduler.last_epoch
    assert skipped >= 2
    assert trainer.placement.scaler.get_scale() == 65536 / 2**skipped
    assert record["train/loss"] < 1

    for width, text in (("2", "train/loss is nan at step 41"), ("3", "gradients are not finite")):
        run.directory = tmp_path / width
        with pytest.raises(smkit.SmkitError, match=text):
            run(Kind, *FP16, "--width", width).fit()
        assert list((run.directory / "model").iterdir()) == []


def test_a_full_gpu_is_told_and_nothing_stays_on_it(run: Run, gpu: torch.device) -> None:
    class Greedy(DenseTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            if self.step == 3:
                self.too_much = torch.empty(2**46, device=batch[0].device, dtype=torch.uint8)
            return super().training_step(batch)

    with pytest.raises(smkit.SmkitError, match=r"memory of the GPU is full: .*Tried to allocate") as caught:
        run(Greedy, "--batch-size", "8", "--checkpoint-every-seconds", "0").fit()
    assert "in training_step: self.too_much = torch.empty" in caught.value.where
    del caught
    assert taken() == 0
    trainer = run(DenseTrainer, "--batch-size", "8", "--epochs", "2", "--compile")
    trainer.fit()
    assert trainer.step == 10
    del trainer
    torch._dynamo.reset()


def test_settings_of_the_backends_are_put_back(run: Run) -> None:
    def settings() -> tuple[Any, ...]:
        matmul = torch.backends.cuda.matmul
        own = getattr(matmul, "fp32_precision", None), getattr(torch.backends, "fp32_precision", None)
        return (torch.get_float32_matmul_precision(), matmul.allow_tf32, torch.backends.cudnn.allow_tf32, *own)

    class Exact(DenseTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            self.within = torch.backends.cuda.matmul.allow_tf32
            return super().training_step(batch)

    before = settings()
    trainer = run(Exact, "--batch-size", "8", "--epochs", "1", "--float32-matmul-precision", "high")
    trainer.fit()
    assert trainer.within
    assert settings() == before


def test_the_share_of_the_gpu_is_what_the_clock_says(run: Run) -> None:
    class Large(DenseTrainer):
        flops_per_sample = 6 * 4 * 2048**2
        samples = 1024 * 40

        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(3, 2048), *(nn.Linear(2048, 2048) for _ in range(4)), nn.Linear(2048, 1))

    record = run(Large, "--batch-size", "1024", "--epochs", "1", "--precision", "bf16", "--log-every-steps", "20").fit()
    assert record["train/gpu_memory_gb"] == pytest.approx(torch.cuda.max_memory_allocated() / 1e9, rel=0.5)
    if "train/mfu_percent" in record:
        from smkit.throughput import peak_flops

        done = record["train/samples_per_second"] * Large.flops_per_sample
        assert record["train/mfu_percent"] == pytest.approx(
            100 * done / peak_flops(torch.cuda.get_device_name(), "bf16")
        )
        assert 0 < record["train/mfu_percent"] < 100


# --- compiling and profiling ------------------------------------------------------------------------------------------


def test_compiled_it_is_the_same_training(run: Run, tmp_path: Path) -> None:
    arguments = ("--batch-size", "19", "--epochs", "4", "--precision", "fp32")
    plain = run(DenseTrainer, *arguments)
    plain.fit()
    run.directory = tmp_path / "compiled"
    compiled = run(DenseTrainer, *arguments, "--compile")
    compiled.fit()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    for own, other in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_without_triton_it_runs_eagerly_and_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor.codegen import triton

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no ptxas here")

    torch._dynamo.reset()
    monkeypatch.setattr(triton.TritonScheduling, "define_kernel", fail)
    trainer = run(DenseTrainer, "--batch-size", "19", "--epochs", "2", "--compile")
    with torch._inductor.config.patch(force_disable_caches=True):
        trainer.fit()
    assert trainer.step == 4
    text = capsys.readouterr().err
    assert text.count("torch.compile failed") == 1
    assert "no ptxas here" in text
    torch._dynamo.reset()


def test_what_fails_to_compile_in_the_backward_pass_is_told(run: Run) -> None:
    torch._dynamo.reset()
    seen = []

    def spoil(graph: Any) -> None:
        seen.append(graph)
        if len(seen) > 1:
            raise RuntimeError("no kernel for this gradient")

    trainer = run(DenseTrainer, "--batch-size", "19", "--epochs", "2", "--compile")
    with (
        torch._inductor.config.patch(force_disable_caches=True, post_grad_custom_post_pass=spoil),
        pytest.raises(smkit.SmkitError, match=r"(?s)backward pass .*no kernel for this gradient.*without --compile"),
    ):
        trainer.fit()
    torch._dynamo.reset()


def test_a_trace_holds_the_kernels_of_its_steps(run: Run) -> None:
    run(DenseTrainer, "--batch-size", "8", "--epochs", "3", "--profile-steps", "5:8").fit()
    (file,) = run.directory.rglob("*.pt.trace.json.gz")
    with gzip.open(file) as opened:
        events = json.load(opened)["traceEvents"]
    assert {"kernel", "gpu_memcpy"} & {event.get("cat") for event in events} == {"kernel", "gpu_memcpy"}
    assert {f"ProfilerStep#{step}" for step in (6, 7, 8)} <= {event["name"] for event in events}


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Turbulence:
    """A state on the GPU, 100 MB in many shapes, which kernels in several streams change all the time."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        shapes = [(1024, 1024)] * 20 + [(64, 32, 3, 3)] * 20 + [(7,), (), (3, 5, 2), (0, 4)] * 5
        self.weights = {str(number): torch.randn(shape, device=device) for number, shape in enumerate(shapes)}
        for number in range(20, 40):
            moved = self.weights[str(number)].to(memory_format=torch.channels_last)
            self.weights[str(number)] = moved.bfloat16() if number % 2 else moved
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self._delay = Delay(device)
        self._noise = torch.randn(2**24, device=device)
        self._pinned = torch.empty(2**24, pin_memory=True)
        self._streams = [torch.cuda.Stream() for _ in range(3)]

    def state(self) -> dict[str, Any]:
        return {"model": dict(self.weights), "optimizer": {"step": self.count, "twice": self.weights["0"]}}

    def step(self) -> None:
        """Change all of it in place, while other streams compute, and copy both ways."""
        for number, stream in enumerate(self._streams):
            with torch.cuda.stream(stream):
                if number == 0:
                    self._delay(4)
                elif number == 1:
                    self._pinned.copy_(self._noise, non_blocking=True)
                else:
                    self._noise.sin_()
        for tensor in self.weights.values():
            tensor.mul_(-0.9).add_(0.1)
        self.count += 1


def differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the names of what is not the same to the bit, or lies otherwise in memory."""
    pairs = {**{name: (saved["model"][name], tensor) for name, tensor in wanted["model"].items()}}
    pairs |= {name: (saved["optimizer"][name], tensor) for name, tensor in wanted["optimizer"].items()}
    return [
        name
        for name, (own, other) in pairs.items()
        if not own.equal(other.cpu()) or own.stride() != other.stride() or own.dtype != other.dtype
    ]


def clones(state: dict[str, Any]) -> dict[str, Any]:
    return {part: {name: tensor.clone() for name, tensor in values.items()} for part, values in state.items()}


def differing_saves(device: torch.device, folder: Path, saves: int, *, on_own_stream: bool = False) -> list[int]:
    """Save again and again while the state goes on changing; return the steps that were saved wrongly."""
    turbulence, store, delay = Turbulence(device), smkit.CheckpointStore(folder), Delay(device, 8192)
    store.reserve(turbulence.state())
    stream = torch.cuda.Stream() if on_own_stream else torch.cuda.current_stream()
    stream.wait_stream(torch.cuda.current_stream())
    wrong = []
    with torch.cuda.stream(stream):
        for step in range(1, saves + 1):
            turbulence.step()
            # The copies come long after the writer has begun.
            delay(5)
            wanted = clones(turbulence.state())
            store.start(step, turbulence.state())
            turbulence.step()
            turbulence.step()
            store.wait()
            checkpoint = store.latest()
            assert checkpoint is not None
            assert checkpoint.step == step
            if differences(checkpoint.state, wanted):
                wrong.append(step)
    torch.cuda.synchronize()
    return wrong


@pytest.mark.parametrize("on_own_stream", [False, True])
def test_what_is_saved_is_the_state_of_its_step_whatever_the_next_steps_do(
    on_own_stream: bool, tmp_path: Path, gpu: torch.device
) -> None:
    assert differing_saves(gpu, tmp_path, 60, on_own_stream=on_own_stream) == []


def test_the_copies_lie_in_pinned_memory_that_is_used_again(tmp_path: Path, gpu: torch.device) -> None:
    turbulence, store = Turbulence(gpu), smkit.CheckpointStore(tmp_path)
    store.reserve(turbulence.state())
    store.wait()
    reserved = {name: buffer.data_ptr() for name, buffer in store._buffers.items()}
    for step in (1, 2):
        store.start(step, turbulence.state())
        store.wait()
        assert {name: buffer.data_ptr() for name, buffer in store._buffers.items()} == reserved
        assert all(buffer.is_pinned() for buffer in store._buffers.values() if buffer.numel())


def test_a_save_makes_the_training_wait_for_nothing(tmp_path: Path, gpu: torch.device) -> None:
    turbulence, store, delay = Turbulence(gpu), smkit.CheckpointStore(tmp_path), Delay(gpu)
    store.save(1, turbulence.state())
    torch.cuda.synchronize()
    with waits_raise():
        delay(200)
        store.start(2, turbulence.state())
        turbulence.step()
    store.wait()
    assert store.saved_step == 2


@contextlib.contextmanager
def waits_raise() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_rate_that_is_a_tensor_on_the_gpu_is_no_other_setting_after_a_resume(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    class Capturable(DenseTrainer):
        def build_optimizer(self, model: nn.Module) -> Optimizer:
            return AdamW(model.parameters(), lr=torch.tensor(0.01, device="cuda"), capturable=True)

        def training_step(self, batch: Batch) -> Tensor:
            if self.step == self.hp.width:
                raise OSError("the lights went out")
            return super().training_step(batch)

    arguments = ("--batch-size", "8", "--epochs", "4", "--checkpoint-every-seconds", "0", "--log-every-steps", "1")
    with pytest.raises(OSError, match="lights"):
        run(Capturable, *arguments, "--width", "9").fit()
    capsys.readouterr()
    run(Capturable, *arguments, "--width", "99").fit()
    text = capsys.readouterr().err
    assert "goes on after step 9" in text
    assert "width: 9, now 99" in text
    assert "optimizer" not in text.replace("optimizer and schedule keep", "")


# --- processes that are killed, stopped and broken --------------------------------------------------------------------


class Job:
    """One process of tests/gpu_script.py."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder = folder
        data = folder.parent / "data"
        data.mkdir(exist_ok=True)
        (data / "present").touch()
        command = [sys.executable, str(SCRIPT), *arguments, f"--channel=train={data}", f"--channel=validation={data}"]
        command += ["--batch-size", "60", "--epochs", "6", "--log-every-steps", "7", "--run-dir", str(folder)]
        command += ["--max-grad-norm", "1", "--ema-decay", "0.9"]
        # What torch wants of who asks for deterministic algorithms.
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | own | environment,
        )

    def kill(self) -> None:
        """End it, whatever it does; one that has ended is left alone."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def end(self) -> tuple[int, str]:
        _, text = self._process.communicate(timeout=SECONDS)
        return self._process.returncode, text

    def weights(self) -> bytes:
        return (self.folder / "model" / "model.safetensors").read_bytes()

    def records(self) -> list[dict[str, float]]:
        lines = (self.folder / "output/data/metrics.jsonl").read_text().splitlines()
        timed = ("time", "samples_per_second", "data_wait_percent", "eta_seconds", "gpu_memory_gb")
        return [{key: value for key, value in json.loads(line).items() if not key.endswith(timed)} for line in lines]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """What starts a job in a folder of this name; a test leaves none behind."""
    jobs = []

    def started(name: str, *arguments: str, **environment: str) -> Job:
        jobs.append(Job(tmp_path / name, *arguments, **environment))
        return jobs[-1]

    yield started
    for job in jobs:
        job.kill()


PRECISIONS = [("fp32", "True"), ("fp32", "False"), ("bf16", "True"), ("fp16", "True"), ("fp16", "False")]


@pytest.mark.parametrize(("precision", "fused"), PRECISIONS)
def test_killed_or_stopped_amid_its_kernels_it_ends_with_the_same_weights_to_the_bit(
    precision: str, fused: str, start: Callable[..., Job]
) -> None:
    arguments = ("--precision", precision, "--fused", fused, "--checkpoint-every-seconds", "0.05")
    jobs = {
        name: start(name, *arguments, *more)
        for name, more in {
            "left alone": (),
            "killed": ("--event", "kill", "--at", "33"),
            "stopped": ("--event", "stop", "--at", "23"),
        }.items()
    }
    status, text = jobs["left alone"].end()
    assert status == 0, text
    assert torch.cuda.get_device_name() in text
    assert jobs["killed"].end()[0] == -9
    status, text = jobs["stopped"].end()
    assert status == 143, text
    assert "stopped by SIGTERM: step 24 is saved" in text
    again = {name: start(name, *arguments) for name in ("killed", "stopped")}
    for name, job in again.items():
        status, text = job.end()
        assert status == 0, text
        assert "goes on after step" in text
        assert job.weights() == jobs["left alone"].weights(), name
        assert job.records() == jobs["left alone"].records()


def test_a_value_out_of_range_ends_the_process_with_what_to_look_for(start: Callable[..., Job], tmp_path: Path) -> None:
    broken = ("--checkpoint-every-seconds", "0.05", "--at", "33")
    jobs = [start(event, *broken, "--event", event) for event in ("out of range", "exhaust")]
    status, text = jobs[0].end()
    assert status == 1, text
    assert "device-side assert" in text
    assert "look for a label" in text
    assert "label" in (tmp_path / "out of range/output/failure").read_text()
    status, text = jobs[1].end()
    assert status == 1, text
    assert "memory of the GPU is full" in text
    assert "gradient-accumulation-steps" in (tmp_path / "exhaust/output/failure").read_text()
    for job in [start(name) for name in ("out of range", "exhaust")]:
        status, text = job.end()
        assert status == 0, text
        assert "goes on after step" in text


# --- several processes ------------------------------------------------------------------------------------------------


def places(world_size: int) -> list[dict[str, str]]:
    """Return what torchrun tells ranks of as many hosts, each with its first GPU, which is the same one here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": "1"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": "0"} for rank in range(world_size)]


def test_two_ranks_over_gloo_share_one_gpu_and_train_as_one(start: Callable[..., Job]) -> None:
    exact = ("--precision", "fp32", "--group", "gloo", "--max-steps", "12")
    together = [start("two", *exact, **place) for place in places(2)]
    (alone,) = [start("one", *exact, **place) for place in places(1)]
    for job in [*together, alone]:
        status, text = job.end()
        assert status == 0, text
    # Each rank draws noise of its own, so that only what all of them count is the same.
    ours, theirs = together[0].records(), alone.records()
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert ours[-1]["validation/loss"] == pytest.approx(theirs[-1]["validation/loss"], rel=0.2)


def test_two_ranks_that_nccl_refuses_end_with_an_error_that_says_so(start: Callable[..., Job]) -> None:
    jobs = [start("two", "--precision", "fp32", **place) for place in places(2)]
    outcomes = [job.end() for job in jobs]
    assert [status for status, _ in outcomes] == [1, 1], outcomes
    assert any("Duplicate GPU" in text for _, text in outcomes), outcomes


def test_a_second_rank_on_a_host_with_one_gpu_is_refused(start: Callable[..., Job]) -> None:
    if torch.cuda.device_count() != 1:
        pytest.skip("there is more than one GPU")
    jobs = [start("two", **place | {"LOCAL_RANK": place["RANK"], "LOCAL_WORLD_SIZE": "2"}) for place in places(2)]
    outcomes = [job.end() for job in jobs]
    assert all(status != 0 for status, _ in outcomes), outcomes
    assert "local rank 1 has no GPU of its own: 1 can be seen" in outcomes[1][1]
    assert "has no GPU of its own" in outcomes[0][1]


def test_one_rank_under_torchrun_trains_and_leaves(start: Callable[..., Job]) -> None:
    (job,) = [start("one", **place) for place in places(1)]
    status, text = job.end()
    assert status == 0, text


@pytest.fixture
def one_rank_over_nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """A group of one, in which each exchange is made, and each collective runs through NCCL."""
    for name, value in places(1)[0].items():
        monkeypatch.setenv(name, value)
    ranks = Ranks()
    meeting = threading.Thread(target=ranks._meet, args=("here", 60.0))
    meeting.start()
    meeting.join()
    assert torch.distributed.get_backend(torch.distributed.group.WORLD) in ("cpu:gloo,cuda:nccl", "nccl", "undefined")
    yield ranks
    ranks.part()
    assert not torch.distributed.is_initialized()


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)


def trained(model: nn.Module, step: Callable[[Any], Tensor], optimizer: Optimizer, steps: int) -> None:
    for seed in range(steps):
        inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed)).to("cuda")
        step((inputs, inputs.sum(dim=1, keepdim=True))).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_in_parts_over_nccl_it_trains_is_saved_and_comes_back(one_rank_over_nccl: Ranks, tmp_path: Path) -> None:
    ranks = one_rank_over_nccl

    def built(*, in_parts: bool) -> tuple[nn.Module, Callable[[Any], Tensor], Optimizer]:
        torch.manual_seed(0)
        model = Blocks() if in_parts else Blocks().to("cuda")
        if in_parts:
            shard(model, ranks, "cuda")
        return model, lambda batch: mse_loss(model(batch[0]), batch[1]), AdamW(model.parameters(), lr=0.01, fused=True)

    plain, its_step, its_optimizer = built(in_parts=False)
    trained(plain, its_step, its_optimizer, 6)
    model, step, optimizer = built(in_parts=True)
    assert mesh_of(model) is not None
    trained(model, step, optimizer, 6)
    store = smkit.CheckpointStore(tmp_path, ranks=ranks, mesh=mesh_of(model))
    store.start(6, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    saved = {name: whole(value).clone() for name, value in model.state_dict().items()}
    trained(model, step, optimizer, 3)
    store.wait()
    found = store.latest()
    assert found is not None
    model.load_state_dict(found.state["model"])
    optimizer.load_state_dict(found.state["optimizer"])
    for name, value in plain.state_dict().items():
        assert whole(model.state_dict()[name]).equal(saved[name])
        torch.testing.assert_close(saved[name], value)
    loaded = smkit.CheckpointStore(tmp_path, ranks=ranks).latest()
    assert loaded is not None
    assert all(loaded.state["model"][name].equal(value.cpu()) for name, value in saved.items())


def test_ddp_over_nccl_leaves_the_gradients_of_a_plain_step(one_rank_over_nccl: Ranks) -> None:
    ranks = one_rank_over_nccl
    torch.manual_seed(0)
    model = Blocks().to("cuda")
    plain = Blocks().to("cuda")
    plain.load_state_dict(model.state_dict())
    # It counts as one of two, which nobody but torch is asked about.
    ddp = parallel_step(
        lambda batch: mse_loss(model(batch[0]), batch[1]), model, Ranks(0, 2), "ddp", find_unused_parameters=False
    )
    trained(model, ddp.call, SGD(model.parameters(), lr=0.1), 4)
    trained(plain, lambda batch: mse_loss(plain(batch[0]), batch[1]), SGD(plain.parameters(), lr=0.1), 4)
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other)
    ranks.copy_from_first([torch.ones(3, device="cuda"), torch.ones(2, dtype=torch.bool)])
    assert ranks.gathered("word") == ["word"]
    assert ranks.from_first({"a": 1}) == {"a": 1}
