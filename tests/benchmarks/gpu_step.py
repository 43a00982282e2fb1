"""Steady steps on a GPU: smkit's Trainer and its peers beside the loop that everybody would write, taken in turns.

    python tests/benchmarks/gpu_step.py [--rounds N] [--seconds S] [--tasks resnet,gpt] [--cases fp32,tf32,bf16,fp16]
        [--peers fabric,accelerate,lightning]

Each loop runs in a thread of its own, and only the one whose turn it is moves: it does a block of steps between two
waits for the GPU, then the next loop does. The hand-written loop is there twice, so that one sees what the method
resolves. Everybody is given batches that lie ready in page-locked memory; of images there are two rows more, of a loop
that reads its batches by torch's DataLoader in eight processes, and of smkit with its own loader. All of them log the
loss every ten steps, to TensorBoard. Before, each loop runs alone for memory, and for the waits in nine steps
between two records (`torch.cuda.set_sync_debug_mode`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from frameworks import ROOT, quiet
from gpu_tasks import TASKS, Batch, Task
from report import describe_machine, spread, table
from torch import Tensor, nn

LOG_EVERY = 10
WARM_BLOCKS = 1
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Pause = Callable[[], None]
Loop = Callable[[Pause], None]


@dataclass(frozen=True)
class Case:
    """How precisely is computed, and whether it is compiled."""

    name: str
    precision: str = "fp32"
    matmul: str = "highest"
    is_compiled: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)


CASES = {
    case.name: case
    for case in (
        Case("fp32"),
        Case("tf32", matmul="high"),
        Case("bf16", "bf16"),
        Case("fp16", "fp16"),
        Case("bf16, compiled", "bf16", is_compiled=True),
    )
}


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


# -- the loops ---------------------------------------------------------------------------------------------------------


def ring(task: Task) -> Iterator[Batch]:
    """Return batches without end that lie ready."""
    batches = list(zip(*(tensor[: 8 * task.batch_size].split(task.batch_size) for tensor in task.samples), strict=True))
    if DEVICE.type == "cuda":
        batches = [tuple(tensor.pin_memory() for tensor in batch) for batch in batches]
    return itertools.cycle(batches)


def placed(task: Task, case: Case) -> nn.Module:
    torch.manual_seed(0)
    model = task.model().to(DEVICE)
    if task.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if case.is_compiled:
        model.compile()
    return model


def loaded(task: Task) -> Iterator[Batch]:
    """Return batches without end as torch's DataLoader reads them."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*task.samples),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=8,
        pin_memory=True,
        persistent_workers=True,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def bare(task: Task, case: Case, folder: Path, steps: int, read: Callable[[Task], Iterator[Batch]] = ring) -> Loop:
    """The loop that everybody would write."""

    def loop(pause: Pause) -> None:
        from torch.utils.tensorboard import SummaryWriter

        model, batches = placed(task, case), read(task)
        optimizer = task.optimizer(model)
        scaler = torch.amp.GradScaler(DEVICE.type, enabled=case.precision == "fp16")
        with SummaryWriter(str(folder)) as writer:
            for step in range(1, steps + 1):
                batch = tuple(tensor.to(DEVICE, non_blocking=True) for tensor in next(batches))
                pause()
                with torch.autocast(DEVICE.type, case.dtype, enabled=case.dtype is not None):
                    loss = task.loss(model, batch)
                scaler.scale(loss).backward()
                if task.max_grad_norm is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), task.max_grad_norm)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                if step % LOG_EVERY == 0:
                    writer.add_scalar("train/loss", loss.item(), step)

    return loop


class Ready(torch.utils.data.Dataset[Batch]):
    """A data set whose batches lie ready."""

    def __init__(self, task: Task) -> None:
        self._size = len(task.samples[0])
        self._ring = ring(task)

    def __len__(self) -> int:
        return self._size

    def __getitems__(self, indices: list[int]) -> Batch:
        return next(self._ring)


def smkit(task: Task, case: Case, folder: Path, steps: int, *, reads: bool = False) -> Loop:
    """The Trainer, which logs what it always logs."""
    sys.path.insert(0, str(ROOT))
    import smkit

    class Settings(smkit.Hyperparameters):
        pass

    class Trainer(smkit.Trainer[Settings]):
        channels_last = task.channels_last
        flops_per_sample = task.flops_per_sample

        def build_model(self) -> nn.Module:
            return task.model()

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return task.optimizer(model)

        def build_dataset(self, channel: smkit.Channel) -> torch.utils.data.Dataset[Batch]:
            return torch.utils.data.TensorDataset(*task.samples) if reads else Ready(task)

        def training_step(self, batch: Batch) -> Tensor:
            self.pause()
            return task.loss(self.model, batch)

        def export_model(self, directory: Path) -> None:
            """Nobody wants it."""

    data = folder / "data"
    data.mkdir(parents=True)
    (data / "present").touch()
    argv = ["--run-dir", str(folder / "run"), f"--channel=train={data}", "--batch-size", str(task.batch_size)]
    argv += ["--epochs", "1000000", "--max-steps", str(steps), "--log-every-steps", str(LOG_EVERY)]
    argv += ["--checkpoint-every-seconds", "86400", "--float32-matmul-precision", case.matmul]
    argv += ["--precision", case.precision] + (["--compile"] if case.is_compiled else [])
    if task.max_grad_norm is not None:
        argv += ["--max-grad-norm", str(task.max_grad_norm)]

    def loop(pause: Pause) -> None:
        trainer = Trainer(smkit.TrainingContext.load(Settings, argv=argv, env={}))
        trainer.pause = pause
        trainer.fit()

    return loop


def fabric(task: Task, case: Case, folder: Path, steps: int) -> Loop:
    """Lightning Fabric."""
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import TensorBoardLogger

    quiet("lightning.fabric")
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[case.precision]

    def loop(pause: Pause) -> None:
        logger = TensorBoardLogger(folder)
        runner = Fabric(accelerator=DEVICE.type, devices=1, precision=precision, loggers=logger)
        plain, batches = placed(task, case), ring(task)
        model, optimizer = runner.setup(plain, task.optimizer(plain))
        for step in range(1, steps + 1):
            batch = runner.to_device(next(batches))
            pause()
            loss = task.loss(model, batch)
            runner.backward(loss)
            if task.max_grad_norm is not None:
                runner.clip_gradients(model, optimizer, max_norm=task.max_grad_norm, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            if step % LOG_EVERY == 0:
                runner.log("train/loss", loss.item(), step)

    return loop


def accelerate(task: Task, case: Case, folder: Path, steps: int) -> Loop:
    """Hugging Face Accelerate."""
    from accelerate import Accelerator

    precision = {"fp32": "no"}.get(case.precision, case.precision)

    def loop(pause: Pause) -> None:
        accelerator = Accelerator(
            cpu=DEVICE.type == "cpu", mixed_precision=precision, log_with="tensorboard", project_dir=str(folder)
        )
        accelerator.init_trackers("run")
        plain, batches = placed(task, case), ring(task)
        model, optimizer = accelerator.prepare(plain, task.optimizer(plain))
        for step in range(1, steps + 1):
            batch = tuple(tensor.to(accelerator.device, non_blocking=True) for tensor in next(batches))
            pause()
            loss = task.loss(model, batch)
            accelerator.backward(loss)
            if task.max_grad_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), task.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if step % LOG_EVERY == 0:
                accelerator.log({"train/loss": loss.item()}, step=step)
        accelerator.end_training()

    return loop


def lightning(task: Task, case: Case, folder: Path, steps: int) -> Loop:
    """Lightning's Trainer."""
    import lightning.pytorch as lightning
    from lightning.pytorch.loggers import TensorBoardLogger

    quiet("lightning", "lightning.pytorch", "lightning.fabric")
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[case.precision]

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = placed(task, case)

        def training_step(self, batch: Batch, _: int) -> Tensor:
            self.pause()
            loss = task.loss(self.model, batch)
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            # With a fused one it clips nothing.
            return task.optimizer(self.model, fused=task.max_grad_norm is None)

    class Endless(torch.utils.data.IterableDataset[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            return ring(task)

    def loop(pause: Pause) -> None:
        module = Module()
        module.pause = pause
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="gpu" if DEVICE.type == "cuda" else "cpu",
            devices=1,
            precision=precision,
            gradient_clip_val=task.max_grad_norm,
            log_every_n_steps=LOG_EVERY,
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(Endless(), batch_size=None))

    return loop


LOOPS = {
    "bare": bare,
    "bare, again": bare,
    "bare, reading": partial(bare, read=loaded),
    "smkit": smkit,
    "smkit, reading": partial(smkit, reads=True),
    "fabric": fabric,
    "accelerate": accelerate,
    "lightning": lightning,
}
TITLES = {
    "bare": "hand-written loop",
    "bare, again": "hand-written loop, again",
    "bare, reading": "hand-written loop, `DataLoader` in 8 processes",
    "smkit": "**smkit Trainer**",
    "smkit, reading": "**smkit Trainer**, its own loader",
    "fabric": "Lightning Fabric",
    "accelerate": "Accelerate",
    "lightning": "Lightning Trainer",
}


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What was found out of one loop."""

    seconds: list[float] = field(default_factory=list)
    memory_gb: float | None = None
    waits: int | None = None
    alone_seconds: float = 0.0
    trouble: str = ""


class Turn:
    """A loop in a thread of its own, which goes on for a block of steps whenever it is told to."""

    def __init__(self, loop: Loop, block: int) -> None:
        self.seconds: list[float] = []
        self.error: BaseException | None = None
        self._block = block
        self._steps = 0
        self._began = 0.0
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()
        self._stands.acquire()

    def _run(self, loop: Loop) -> None:
        try:
            loop(self._pause)
        except BaseException as error:
            traceback.print_exc()
            self.error = error
        self._stands.release()

    def _pause(self) -> None:
        if self._steps % self._block == 0:
            if self._steps:
                wait()
                self.seconds.append((time.perf_counter() - self._began) / self._block)
            self._stands.release()
            self._go.acquire()
            wait()
            self._began = time.perf_counter()
        self._steps += 1

    def move(self) -> None:
        """Let it do a block, and return when it has."""
        if self.error is None:
            self._go.release()
            self._stands.acquire()

    def end(self) -> None:
        """Let it do its last step."""
        self.move()
        self._thread.join()


def alone(loop: Callable[[int], Loop]) -> Found:
    """Run a loop by itself for 21 steps; look at steps 11 to 19, between two records."""
    found = Found()
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    steps = 0
    began = 0.0

    def pause() -> None:
        nonlocal steps, began
        steps += 1
        if steps == LOG_EVERY + 1:
            wait()
            began = time.perf_counter()
            if DEVICE.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
        elif steps == 2 * LOG_EVERY:
            if DEVICE.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
                found.memory_gb = torch.cuda.max_memory_allocated() / 1e9
            wait()
            found.alone_seconds = (time.perf_counter() - began) / (LOG_EVERY - 1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loop(2 * LOG_EVERY + 1)(pause)
        except Exception as error:
            traceback.print_exc()
            found.trouble = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    waits = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    found.waits = len(waits)
    for place in sorted({f"{warning.filename}:{warning.lineno}" for warning in waits}):
        print(f"  waits at {place}", file=sys.stderr)
    return found


def measure(task: Task, case: Case, names: list[str], rounds: int, seconds: float, folder: Path) -> dict[str, Found]:
    """Return what each loop takes, in turns."""
    torch.set_float32_matmul_precision(case.matmul)
    places = (folder / str(number) for number in itertools.count())
    if case.is_compiled:
        # To compile each of them twice takes minutes.
        found = {name: Found() for name in names}
        step_seconds = alone(
            lambda steps: bare(task, replace(case, is_compiled=False), next(places), steps)
        ).alone_seconds
    else:
        found = {name: alone(lambda steps, name=name: LOOPS[name](task, case, next(places), steps)) for name in names}
        step_seconds = max((one.alone_seconds for one in found.values() if not one.trouble), default=seconds)
    block = max(LOG_EVERY, round(seconds / max(step_seconds, 1e-4) / LOG_EVERY) * LOG_EVERY)
    steps = block * (WARM_BLOCKS + rounds) + 1
    turns = {
        name: Turn(LOOPS[name](task, case, next(places), steps), block) for name in names if not found[name].trouble
    }
    for number in range(WARM_BLOCKS + rounds):
        # Whoever comes first in a round comes last in the next one.
        for name in list(turns) if number % 2 else reversed(turns):
            turns[name].move()
    for name, turn in turns.items():
        turn.end()
        found[name].seconds = turn.seconds[WARM_BLOCKS:]
        if turn.error is not None or len(found[name].seconds) < rounds:
            found[name].trouble = f"failed: {turn.error!r}"[:100]
    del turns
    return found


def reported_mfu(folder: Path) -> float | None:
    """Return the best share that smkit has reported in any record of its runs below a folder."""
    rows = [json.loads(line) for file in folder.rglob("metrics.jsonl") for line in file.read_text().splitlines()]
    return max((row["train/mfu_percent"] for row in rows if "train/mfu_percent" in row), default=None)


def row(case: Case, task: Task, name: str, found: dict[str, Found], reported: float | None) -> list[str]:
    """Return the cells of one loop in one case."""
    one, base = found[name], found["bare"]
    if one.trouble or not one.seconds:
        return [case.name, TITLES[name], one.trouble, *[""] * 6]
    ratios = [own / other for own, other in zip(one.seconds, base.seconds, strict=True)]
    peak = None
    if DEVICE.type == "cuda":
        from smkit.throughput import peak_flops

        unit = "tf32" if case.precision == "fp32" and (case.matmul == "high" or task.channels_last) else case.precision
        peak = peak_flops(torch.cuda.get_device_name(), unit)
    rate = task.batch_size / min(one.seconds)
    mfu = "" if peak is None else f"{100 * rate * task.flops_per_sample / peak:.1f}"
    return [
        case.name,
        TITLES[name],
        spread([1000 * value for value in one.seconds]),
        spread(ratios, digits=4),
        f"{task.batch_size / median(one.seconds):,.0f}",
        mfu,
        "" if name != "smkit" or reported is None else f"{reported:.1f}",
        "" if one.memory_gb is None else f"{one.memory_gb:.3f}",
        "" if one.waits is None else str(one.waits),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="timed blocks of each loop")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one block")
    parser.add_argument("--tasks", default="resnet,gpt")
    parser.add_argument("--cases", default=";".join(CASES), help="separated by semicolons")
    parser.add_argument("--peers", default="", help="fabric,accelerate,lightning; in the case bf16 only")
    options = parser.parse_args()
    print(describe_machine(), end="\n\n")
    print(f"* {torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'no GPU'}, CUDA {torch.version.cuda}\n")
    torch.backends.cudnn.benchmark = True
    failed = False
    for task_name in options.tasks.split(","):
        task = TASKS[task_name]()
        rows = []
        for case_name in options.cases.split(";"):
            case = CASES[case_name]
            peers = [name for name in options.peers.split(",") if name and case_name == "bf16"]
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                began = time.monotonic()
                reading = ["bare, reading", "smkit, reading"] if task.channels_last and case_name == "bf16" else []
                names = ["bare", "smkit", *peers, *reading, "bare, again"]
                with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                    found = measure(task, case, names, options.rounds, options.seconds, folder)
                reported = reported_mfu(folder)
            rows_of_case = [row(case, task, loop, found, reported) for loop in names]
            rows += rows_of_case
            print(*map(" | ".join, rows_of_case), sep="\n", file=sys.stderr)
            failed |= any(one.trouble for one in found.values())
            print(f"{task_name}, {case_name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        print(f"### {task.title}, batch of {task.batch_size}\n")
        header = [
            "case",
            "loop",
            "ms a step",
            "× hand-written",
            "samples/s",
            "MFU %, best block",
            "smkit's MFU %, best",
        ]
        header += ["GPU memory GB", "waits in 9 steps"]
        print(table(header, rows), end="\n\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
