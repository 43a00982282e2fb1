"""Ways to save and to restore a checkpoint, one class each; as a script, the process that measures one of them.

    python checkpoint_ways.py WAY save|restore FOLDER SAVES cpu|cuda

The last line of its output is a JSON object. Everybody is given the same 50 million parameters with Adam: 600 MB. A
framework is imported by the class that needs it. A restoring process checks that it holds what was saved. On a GPU a
stall lasts until the GPU could begin the next step, for copies that are queued hold it up as well.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from frameworks import ROOT
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

WIDTH = 2236
LAYERS = 10
SECONDS_OF_PATIENCE = 300


class Stack(nn.Module):
    """Ten square layers: 200 MB of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, values: Tensor) -> Tensor:
        for layer in self.layers:
            values = layer(values)
        return values


class Way:
    """One way to save; `begin` is the part that holds up the training, `complete` returns when the save counts."""

    title: ClassVar[str]
    needs: ClassVar[str] = "bare"
    knows_gpus: ClassVar[bool] = False

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        self.model = model
        self.optimizer = optimizer
        self.folder = folder

    def begin(self, number: int) -> None:
        raise NotImplementedError

    def complete(self) -> None:
        """Nothing is left to do where `begin` did it all."""

    def restore(self) -> float | None:
        """Put the newest checkpoint back; return the seconds it took where they are not those of this call."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class Clone(Way):
    """What no way that leaves the GPU can be quicker than; nothing is saved."""

    title = "a clone where the state lies, not saved"
    knows_gpus = True

    def begin(self, number: int) -> None:
        self.copy = copy.deepcopy(self.state())

    def restore(self) -> None:
        model, optimizer = trained(0, steps=2, device=next(self.model.parameters()).device.type)
        self.load({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


class TorchSave(Way):
    knows_gpus = True
    title = "`torch.save`, renamed"
    synced = False

    @property
    def file(self) -> Path:
        return self.folder / "checkpoint.pt"

    def begin(self, number: int) -> None:
        part = self.file.with_suffix(".part")
        with part.open("wb") as file:
            torch.save(self.state(), file)
            if self.synced:
                file.flush()
                os.fsync(file.fileno())
        part.replace(self.file)

    def restore(self) -> None:
        self.load(torch.load(self.file, weights_only=True))


class TorchSaveSynced(TorchSave):
    title = "`torch.save`, fsync, renamed"
    synced = True


class Smkit(Way):
    knows_gpus = True
    title = "**smkit** `CheckpointStore.save`"
    needs = "smkit"

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        sys.path.insert(0, str(ROOT))
        from smkit import CheckpointStore

        self.store = CheckpointStore(folder)

    def begin(self, number: int) -> None:
        self.store.save(number, self.state())

    def restore(self) -> None:
        checkpoint = self.store.latest()
        assert checkpoint is not None
        self.load(checkpoint.state)


class SmkitAsynchronous(Smkit):
    title = "**smkit** `CheckpointStore.start`"

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        # As the trainer does after its first step; a run then trains for a minute before its first save.
        self.store.reserve(self.state())
        self.store.wait()

    def begin(self, number: int) -> None:
        self.store.start(number, self.state())

    def complete(self) -> None:
        self.store.wait()


class Lightning(Way):
    title = "Lightning `Trainer.save_checkpoint`"
    needs = "lightning"

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        import lightning.pytorch as lightning

        for name in ("lightning", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.ERROR)

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def training_step(self, *_: Any) -> None: ...

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return optimizer

        self.module = Module()
        self.trainer = lightning.Trainer(
            max_steps=0,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        self.fit()

    def fit(self, checkpoint: Path | None = None) -> float:
        """Attach everything to the trainer, which trains for no step; return the seconds."""
        began = time.perf_counter()
        batches = torch.utils.data.DataLoader(torch.zeros(1, WIDTH))
        self.trainer.fit(self.module, batches, ckpt_path=checkpoint)
        return time.perf_counter() - began

    def begin(self, number: int) -> None:
        self.trainer.save_checkpoint(self.folder / "checkpoint.ckpt")

    def restore(self) -> float:
        without = self.fit()
        return self.fit(self.folder / "checkpoint.ckpt") - without


class Fabric(Way):
    title = "Lightning Fabric `save`"
    needs = "fabric"

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        import lightning.fabric as fabric

        self.runner = fabric.Fabric(accelerator="cpu", devices=1)
        wrapped_model, wrapped_optimizer = self.runner.setup(model, optimizer)
        self.wrapped = {"model": wrapped_model, "optimizer": wrapped_optimizer}

    def begin(self, number: int) -> None:
        self.runner.save(self.folder / "checkpoint.ckpt", self.wrapped)

    def restore(self) -> None:
        self.runner.load(self.folder / "checkpoint.ckpt", self.wrapped)


class Accelerate(Way):
    title = "Accelerate `save_state`"
    needs = "accelerate"

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True)
        self.accelerator.prepare(model, optimizer)

    def begin(self, number: int) -> None:
        self.accelerator.save_state(str(self.folder / "checkpoint"))

    def restore(self) -> None:
        self.accelerator.load_state(str(self.folder / "checkpoint"))


class HuggingFace(Way):
    title = "Hugging Face `Trainer`"
    needs = "huggingface"

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        from transformers import Trainer, TrainingArguments
        from transformers.utils.logging import set_verbosity_error

        set_verbosity_error()
        self.trainer = Trainer(
            model=model,
            args=TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True),
            optimizers=(optimizer, LambdaLR(optimizer, lambda _: 1.0)),
            train_dataset=[0],
        )

    def begin(self, number: int) -> None:
        self.trainer._save_checkpoint(self.model, None)

    def restore(self) -> None:
        self.trainer._load_from_checkpoint(str(self.folder / "checkpoint-0"))
        self.trainer._load_optimizer_and_scheduler(str(self.folder / "checkpoint-0"))


class Distributed(Way):
    knows_gpus = True
    title = "`dcp.save`"

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        import torch.distributed
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import state_dict

        self.dcp, self.state_dicts = dcp, state_dict
        store = torch.distributed.FileStore(str(folder / f"rendezvous-{os.getpid()}"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def state(self) -> dict[str, Any]:
        model, optimizer = self.state_dicts.get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def begin(self, number: int) -> None:
        self.dcp.save(self.state(), checkpoint_id=self.folder / str(number % 2))

    def restore(self) -> None:
        state = self.state()
        self.dcp.load(state, checkpoint_id=max(self.folder.glob("[01]"), key=lambda one: one.stat().st_mtime))
        self.state_dicts.set_state_dict(
            self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )


class DistributedAsynchronous(Distributed):
    title = "`dcp.async_save`"
    future: Any

    def stager(self) -> dict[str, Any]:
        return {}

    def begin(self, number: int) -> None:
        self.future = self.dcp.async_save(self.state(), checkpoint_id=self.folder / str(number % 2), **self.stager())

    def complete(self) -> None:
        future: Future[Any] = getattr(self.future, "upload_completion", self.future)
        future.result(SECONDS_OF_PATIENCE)


class DistributedStaged(DistributedAsynchronous):
    title = "`dcp.async_save`, `DefaultStager` reused"

    def __init__(self, model: Stack, optimizer: torch.optim.Adam, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        is_on_gpu = next(model.parameters()).is_cuda
        options = StagingOptions(
            use_pinned_memory=is_on_gpu,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=is_on_gpu,
        )
        self.one_stager = DefaultStager(options)

    def stager(self) -> dict[str, Any]:
        return {"async_stager": self.one_stager}


WAYS: dict[str, type[Way]] = {
    "clone": Clone,
    "torch": TorchSave,
    "torch-synced": TorchSaveSynced,
    "smkit": Smkit,
    "smkit-asynchronous": SmkitAsynchronous,
    "lightning": Lightning,
    "fabric": Fabric,
    "accelerate": Accelerate,
    "huggingface": HuggingFace,
    "dcp": Distributed,
    "dcp-asynchronous": DistributedAsynchronous,
    "dcp-staged": DistributedStaged,
}


def trained(seed: int, *, steps: int, device: str) -> tuple[Stack, torch.optim.Adam]:
    """Return a model and its optimizer after that many steps on random gradients."""
    torch.manual_seed(seed)
    model = Stack().to(device)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def fingerprint(model: Stack, optimizer: torch.optim.Adam) -> list[float]:
    """Return a number for each tensor of the state, equal only if they are."""
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq", "step")]
    return [float(tensor.double().sum()) for tensor in [*model.parameters(), *moments]]


def memory_mb(name: str) -> float:
    """Return a size of this process, such as VmRSS, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_saves(name: str, folder: Path, saves: int, device: str) -> dict[str, Any]:
    """Save again and again, each time onto a disk that is idle."""
    model, optimizer = trained(0, steps=2, device=device)
    way = WAYS[name](model, optimizer, folder)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    stalls, totals, cpu = [], [], []
    for number in range(saves):
        os.sync()
        wait_for(device)
        began, began_cpu = time.perf_counter(), time.process_time()
        way.begin(number)
        wait_for(device)
        stalls.append(time.perf_counter() - began)
        way.complete()
        totals.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    (folder / "fingerprint.json").write_text(json.dumps(fingerprint(model, optimizer)))
    return {
        "first_stall": stalls[0],
        "stall": median(stalls[1:]),
        "total": median(totals[1:]),
        "cpu": median(cpu[1:]),
        "memory_mb": memory_mb("VmHWM"),
        "extra_mb": memory_mb("VmHWM") - before,
    }


def measure_restore(name: str, folder: Path, device: str) -> dict[str, Any]:
    """Restore once, into a model and an optimizer that have not taken a step."""
    model, optimizer = trained(1, steps=0, device=device)
    way = WAYS[name](model, optimizer, folder)
    wait_for(device)
    began, began_cpu = time.perf_counter(), time.process_time()
    told = way.restore()
    wait_for(device)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    if fingerprint(model, optimizer) != json.loads((folder / "fingerprint.json").read_text()):
        raise RuntimeError("restored something else than was saved")
    return {"restore": seconds if told is None else told, "restore_cpu": cpu}


def main() -> None:
    name, phase, folder, saves, device = sys.argv[1:]
    found: Callable[[], dict[str, Any]] = (
        (lambda: measure_saves(name, Path(folder), int(saves), device))
        if phase == "save"
        else (lambda: measure_restore(name, Path(folder), device))
    )
    print("\n" + json.dumps(found()))


if __name__ == "__main__":
    main()
