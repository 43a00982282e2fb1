"""Killed in mid-epoch and resumed: one run of three epochs, framework by framework, with what each has for resuming.

    python correct_resume.py CONTESTANT whole|killed|resumed FOLDER KILL_STEP

Dropout, shuffling, Adam, a schedule that changes in every step. `killed` saves at step 70 (smkit: every 50 ms) and is
killed by SIGKILL in the forward of `KILL_STEP`. A process leaves the samples of each batch in `PHASE.jsonl`, and its
weights, if it comes to the end, in `PHASE.pt`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from frameworks import ROOT, quiet
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

SAMPLES, BATCH_SIZE, EPOCHS = 1437, 32, 3
STEPS_PER_EPOCH = 45
STEPS = EPOCHS * STEPS_PER_EPOCH
SAVED_STEP = 70
SEED = 7
SECONDS_OF_A_STEP = 0.005  # smkit saves by the clock

Batch = dict[str, Tensor]


class Numbered(Dataset[Batch]):
    """Random samples that know their numbers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(SAMPLES, 64, generator=generator)
        self.labels = torch.randint(10, (SAMPLES,), generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Batch:
        return {"pixels": self.pixels[index], "labels": self.labels[index], "index": torch.tensor(index)}


@dataclass(frozen=True)
class Run:
    """One process of the case."""

    phase: str
    folder: Path
    kill_step: int

    @property
    def is_resumed(self) -> bool:
        return self.phase == "resumed"

    def model(self) -> Network:
        return Network(self)

    def loader(self, kind: type[DataLoader[Any]] = DataLoader) -> DataLoader[Any]:
        return kind(Numbered(), batch_size=BATCH_SIZE, shuffle=True)

    def finish(self, model: nn.Module) -> None:
        torch.save(model.state_dict(), self.folder / f"{self.phase}.pt")


class Network(nn.Module):
    """A classifier with dropout that notes the samples it is given, and is the place where the process dies."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
        self.run = run
        self.seen = 0

    def forward(self, pixels: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.seen += 1
            if self.run.phase == "killed" and self.seen == self.run.kill_step:
                os.kill(os.getpid(), signal.SIGKILL)
            with (self.run.folder / f"{self.run.phase}.jsonl").open("a") as file:
                file.write(json.dumps(index.tolist()) + "\n")
            time.sleep(SECONDS_OF_A_STEP)
        logits = self.layers(pixels)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def optimizer_of(model: nn.Module) -> Adam:
    return Adam(model.parameters(), lr=0.01)


def schedule_of(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1 - step / STEPS)


def smkit(run: Run) -> None:
    """The same command, run again."""
    sys.path.insert(0, str(ROOT))
    import smkit

    class Settings(smkit.Hyperparameters):
        pass

    class NumberedTrainer(smkit.Trainer[Settings]):
        def build_model(self) -> nn.Module:
            return run.model()

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return optimizer_of(model)

        def build_scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
            return schedule_of(optimizer)

        def build_dataset(self, channel: smkit.Channel) -> Dataset[Any]:
            return Numbered()

        def training_step(self, batch: Batch) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

    name = "whole" if run.phase == "whole" else "stopped"
    argv = ["--run-dir", str(run.folder / name), "--channel", f"train={run.folder}", "--seed", str(SEED)]
    argv += ["--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--checkpoint-every-seconds", "0.05"]
    trainer = NumberedTrainer(smkit.TrainingContext.load(Settings, argv=argv))
    trainer.fit()
    run.finish(trainer.model)


def lightning(run: Run, loader_kind: type[DataLoader[Any]] = DataLoader) -> None:
    """Lightning with ModelCheckpoint and `ckpt_path`."""
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    quiet("lightning", "lightning.pytorch", "lightning.fabric")
    lightning.seed_everything(SEED, verbose=False)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = run.model()

        def training_step(self, batch: Batch, _: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_of(self.model)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule_of(optimizer), "interval": "step"},
            }

    saves = ModelCheckpoint(
        run.folder, filename="saved", every_n_train_steps=SAVED_STEP, save_top_k=1, enable_version_counter=False
    )
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=run.phase == "killed",
        callbacks=[saves] if run.phase == "killed" else None,
        default_root_dir=run.folder,
    )
    checkpoint = str(run.folder / "saved.ckpt") if run.is_resumed else None
    trainer.fit(module, run.loader(loader_kind), ckpt_path=checkpoint)
    run.finish(module.model)


def lightning_at_best(run: Run) -> None:
    """... with torchdata's StatefulDataLoader, which Lightning's documentation recommends."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    lightning(run, StatefulDataLoader)


def accelerate(run: Run, *, stateful: bool = False) -> None:
    """Accelerate's `save_state`, `load_state`, `skip_first_batches`, as its documentation has them."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed

    set_seed(SEED)
    options = DataLoaderConfiguration(use_seedable_sampler=stateful, use_stateful_dataloader=stateful)
    accelerator = Accelerator(cpu=True, dataloader_config=options)
    plain_model = run.model()
    plain_optimizer = optimizer_of(plain_model)
    model, optimizer, schedule, loader = accelerator.prepare(
        plain_model, plain_optimizer, schedule_of(plain_optimizer), run.loader(_stateful() if stateful else DataLoader)
    )
    step = 0
    if run.is_resumed:
        accelerator.load_state(str(run.folder / "saved"))
        step = SAVED_STEP
    model.train()
    for epoch in range(step // STEPS_PER_EPOCH, EPOCHS):
        # A stateful loader stands where it stood by itself.
        done = 0 if stateful else step % STEPS_PER_EPOCH
        batches = accelerator.skip_first_batches(loader, done) if done else loader
        for each in {id(one): one for one in (loader, batches)}.values():
            if hasattr(each, "set_epoch"):
                each.set_epoch(epoch)
        for batch in batches:
            optimizer.zero_grad()
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            schedule.step()
            step += 1
            if run.phase == "killed" and step == SAVED_STEP:
                accelerator.save_state(str(run.folder / "saved"))
    run.finish(accelerator.unwrap_model(model))


def _stateful() -> type[DataLoader[Any]]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader


def accelerate_at_best(run: Run) -> None:
    """... with a seedable sampler and a stateful loader."""
    accelerate(run, stateful=True)


def huggingface(run: Run) -> None:
    """The Trainer of transformers with `resume_from_checkpoint`."""
    from transformers import Trainer, TrainingArguments, set_seed
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    set_seed(SEED)
    model = run.model()
    optimizer = optimizer_of(model)
    arguments = TrainingArguments(
        output_dir=str(run.folder / "huggingface"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        use_cpu=True,
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.0,
        remove_unused_columns=False,
        seed=SEED,
        save_strategy="steps",
        save_steps=SAVED_STEP,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Numbered(), optimizers=(optimizer, schedule_of(optimizer))
    )
    checkpoint = run.folder / "huggingface" / f"checkpoint-{SAVED_STEP}"
    trainer.train(resume_from_checkpoint=str(checkpoint) if run.is_resumed else None)
    run.finish(model)


RUNS: dict[str, Callable[[Run], None]] = {
    "smkit": smkit,
    "lightning": lightning,
    "lightning-best": lightning_at_best,
    "accelerate": accelerate,
    "accelerate-best": accelerate_at_best,
    "huggingface": huggingface,
}


def main() -> None:
    name, phase, folder, kill_step = sys.argv[1:]
    random.seed(SEED)
    torch.manual_seed(SEED)
    RUNS[name](Run(phase, Path(folder), int(kill_step)))


if __name__ == "__main__":
    main()
