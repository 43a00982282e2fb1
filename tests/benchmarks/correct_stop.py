"""A long training that is asked to stop by SIGTERM; says where its checkpoints would be, and how it ended.

    python correct_stop.py CONTESTANT FOLDER

A rank writes `pid-RANK` after its tenth step, and `status-RANK` if Python comes to the end of the script: the status
that it would leave with. One that is killed writes none. Each leaves its checkpoints where it likes within FOLDER.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from digits import as_it_is
from frameworks import ROOT, quiet
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

SAMPLES, BATCH_SIZE = 32 * 100_000, 32
SECONDS_OF_A_STEP = 0.02
RANK, WORLD_SIZE = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))

Batch = dict[str, Tensor]


class Noise(Dataset[Batch]):
    """Random samples without an end."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Batch:
        raise NotImplementedError

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return {"x": torch.randn(len(indices), 64), "labels": torch.zeros(len(indices), dtype=torch.long)}


class Slow(nn.Module):
    """A linear classifier that takes 20 ms and says when it is well under way."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.folder = folder
        self.steps = 0

    def forward(self, x: Tensor, labels: Tensor) -> Batch:
        self.steps += 1
        if self.steps == 10:
            part = self.folder / f"pid-{RANK}.part"
            part.write_text(str(os.getpid()))
            part.rename(part.with_suffix(""))
        time.sleep(SECONDS_OF_A_STEP)
        logits = self.linear(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def loader() -> DataLoader[Batch]:
    return DataLoader(Noise(), batch_size=BATCH_SIZE, collate_fn=as_it_is)


def smkit(folder: Path) -> None:
    sys.path.insert(0, str(ROOT))
    import smkit

    class Settings(smkit.Hyperparameters):
        pass

    class NoiseTrainer(smkit.Trainer[Settings]):
        def build_model(self) -> nn.Module:
            return Slow(folder)

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return optimizer_of(model)

        def build_dataset(self, channel: smkit.Channel) -> Dataset[Any]:
            return Noise()

        def training_step(self, batch: Batch) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

    sys.argv[1:] = ["--run-dir", str(folder / "run"), "--channel", f"train={folder}"]
    NoiseTrainer.main()


def lightning(folder: Path, *, on_exception: bool = False) -> None:
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    quiet("lightning", "lightning.pytorch", "lightning.fabric")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Slow(folder)

        def training_step(self, batch: Batch, _: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.model)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=WORLD_SIZE,
        **({"strategy": "ddp"} if WORLD_SIZE > 1 else {}),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, save_on_exception=on_exception)],
        default_root_dir=folder,
    )
    trainer.fit(Module(), loader())


def lightning_best(folder: Path) -> None:
    lightning(folder, on_exception=True)


def accelerate(folder: Path) -> None:
    """It has nothing for this."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    plain_model = Slow(folder)
    model, optimizer, batches = accelerator.prepare(plain_model, optimizer_of(plain_model), loader())
    for batch in batches:
        optimizer.zero_grad()
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()


def huggingface(folder: Path, **options: Any) -> None:
    from transformers import Trainer, TrainingArguments
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **({"ddp_backend": "gloo"} if WORLD_SIZE > 1 else {}),
        **options,
    )
    Trainer(model=Slow(folder), args=arguments, train_dataset=Noise(), data_collator=as_it_is).train()


def huggingface_best(folder: Path) -> None:
    huggingface(folder, enable_jit_checkpoint=True)


def raw(folder: Path) -> None:
    model: nn.Module = Slow(folder)
    if WORLD_SIZE > 1:
        torch.distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = optimizer_of(model)
    for batch in loader():
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()


JOBS: dict[str, Callable[[Path], None]] = {
    "smkit": smkit,
    "lightning": lightning,
    "lightning-best": lightning_best,
    "accelerate": accelerate,
    "huggingface": huggingface,
    "huggingface-best": huggingface_best,
    "raw": raw,
}
CHECKPOINTS = {
    "smkit": "run/checkpoints/*/manifest.json",
    "lightning": "**/*.ckpt",
    "huggingface": "checkpoint-*/trainer_state.json",
}
"""What is there only if a checkpoint is whole."""
INCOMPLETE = "checkpoint-*/checkpoint-is-incomplete.txt"
"""What Hugging Face's Trainer leaves in one that is not."""


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    status: Any = 1
    try:
        JOBS[name](folder)
        status = 0
    except SystemExit as end:
        status = end.code or 0
        raise
    finally:
        (folder / f"status-{RANK}").write_text(str(status))


if __name__ == "__main__":
    main()
