"""One function per framework: train a `Job` in the framework's own idiom, at its best reasonable settings.

Each returns the validation accuracy of a complete job, else None. A framework is imported inside its function, so
that a process pays for the one it uses.
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from digits import BATCH_SIZE, Batch, Job, as_it_is
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

ROOT = Path(__file__).resolve().parents[2]


def bare(job: Job) -> float | None:
    """The loop that everybody would write; what the others are measured against."""
    writer = None
    if job.log_every_steps and job.rank == 0:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(job.output))
    model: nn.Module = job.model()
    optimizer = job.optimizer(model)
    loader = job.training_loader()
    if job.world_size > 1:
        torch.distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
        loader = sharded(loader)
    model.train()
    for step, (pixels, labels) in enumerate(loader, start=1):
        optimizer.zero_grad()
        loss = cross_entropy(model(pixels), labels)
        loss.backward()
        optimizer.step()
        if writer is not None and step % job.log_every_steps == 0:
            writer.add_scalar("train/loss", loss.item(), step)
    accuracy = None
    if job.complete:
        accuracy = measure_accuracy(model, job.validation_loader())
        if writer is not None:
            writer.add_scalar("validation/accuracy", accuracy, step)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, job.output / "checkpoint.pt")
    if writer is not None:
        writer.close()
    return accuracy


def bare_without_log(job: Job) -> float | None:
    """The bare loop without TensorBoard."""
    return bare(replace(job, log_every_steps=0))


def sharded(loader: DataLoader[Batch]) -> DataLoader[Batch]:
    """Return the part of a loader that is this rank's, shuffled."""
    sampler = DistributedSampler[Batch](loader.dataset)
    return DataLoader(loader.dataset, batch_size=loader.batch_size, sampler=sampler, collate_fn=loader.collate_fn)


def smkit(job: Job) -> float | None:
    """The Trainer, from the tree that this file lies in."""
    # Not for the others: Accelerate searches the whole path in every step, 38 Python calls for each folder.
    sys.path.insert(0, str(ROOT))
    import smkit

    class Settings(smkit.Hyperparameters):
        pass

    class DigitsTrainer(smkit.Trainer[Settings]):
        def build_model(self) -> nn.Module:
            return job.model()

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return job.optimizer(model)

        def build_dataset(self, channel: smkit.Channel) -> torch.utils.data.Dataset[Batch]:
            return job.training_set() if channel.name == "train" else job.validation_set()

        def training_step(self, batch: Batch) -> Tensor:
            pixels, labels = batch
            return cross_entropy(self.model(pixels), labels)

        def validation_step(self, batch: Batch) -> dict[str, Tensor]:
            pixels, labels = batch
            return {"accuracy": (self.model(pixels).argmax(1) == labels).float().mean()}

    argv = ["--run-dir", str(job.output), "--channel", f"train={job.data / 'train'}"]
    if job.complete:
        argv += ["--channel", f"validation={job.data / 'validation'}"]
    argv += ["--epochs", "1", "--batch-size", str(BATCH_SIZE * job.world_size)]
    argv += ["--log-every-steps", str(job.log_every_steps)]
    argv += ["--checkpoint-every-seconds", "86400"]
    record = DigitsTrainer(smkit.TrainingContext.load(Settings, argv=argv)).fit()
    return record.get("validation/accuracy")


def fabric(job: Job) -> float | None:
    """Lightning Fabric: a loop of one's own."""
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import TensorBoardLogger

    quiet("lightning.fabric")
    strategy = "ddp" if job.world_size > 1 else "auto"
    loggers = TensorBoardLogger(job.output)
    runner = Fabric(accelerator="cpu", devices=job.world_size, strategy=strategy, loggers=loggers)
    runner.launch()
    plain_model = job.model()
    model, optimizer = runner.setup(plain_model, job.optimizer(plain_model))
    loader = runner.setup_dataloaders(job.training_loader())
    model.train()
    for step, (pixels, labels) in enumerate(loader, start=1):
        optimizer.zero_grad()
        loss = cross_entropy(model(pixels), labels)
        runner.backward(loss)
        optimizer.step()
        if step % job.log_every_steps == 0:
            runner.log("train/loss", loss.item(), step)
    if not job.complete:
        return None
    accuracy = measure_accuracy(model, runner.setup_dataloaders(job.validation_loader()))
    runner.log("validation/accuracy", accuracy, step)
    runner.save(job.output / "checkpoint.ckpt", {"model": model, "optimizer": optimizer})
    return accuracy


def accelerate(job: Job) -> float | None:
    """Hugging Face Accelerate: a loop of one's own."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(job.output))
    accelerator.init_trackers("run")
    plain_model = job.model()
    model, optimizer, loader = accelerator.prepare(plain_model, job.optimizer(plain_model), job.training_loader())
    model.train()
    for step, (pixels, labels) in enumerate(loader, start=1):
        optimizer.zero_grad()
        loss = cross_entropy(model(pixels), labels)
        accelerator.backward(loss)
        optimizer.step()
        if step % job.log_every_steps == 0:
            accelerator.log({"train/loss": loss.item()}, step=step)
    accuracy = None
    if job.complete:
        loader = accelerator.prepare(job.validation_loader())
        accuracy = measure_accuracy(model, loader, gather=accelerator.gather_for_metrics)
        accelerator.log({"validation/accuracy": accuracy}, step=step)
        accelerator.save_state(str(job.output / "checkpoint"))
    accelerator.end_training()
    return accuracy


def lightning(job: Job) -> float | None:
    """Lightning's Trainer."""
    import lightning.pytorch as lightning
    from lightning.pytorch.loggers import TensorBoardLogger

    quiet("lightning", "lightning.pytorch", "lightning.fabric")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.model()

        def training_step(self, batch: Batch, _: int) -> Tensor:
            pixels, labels = batch
            loss = cross_entropy(self.model(pixels), labels)
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch: Batch, _: int) -> None:
            pixels, labels = batch
            hits = (self.model(pixels).argmax(1) == labels).float().mean()
            self.log("validation/accuracy", hits, batch_size=len(labels))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return job.optimizer(self.model)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=job.world_size,
        strategy="ddp" if job.world_size > 1 else "auto",
        logger=TensorBoardLogger(job.output),
        log_every_n_steps=job.log_every_steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=job.complete,
        default_root_dir=job.output,
        num_sanity_val_steps=0,
    )
    trainer.fit(Module(), job.training_loader(), job.validation_loader() if job.complete else None)
    return trainer.callback_metrics["validation/accuracy"].item() if job.complete else None


def huggingface(job: Job) -> float | None:
    """The Trainer of transformers."""
    from transformers import EvalPrediction, Trainer, TrainingArguments
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.model()

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(pixels)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}

    model = Module()
    arguments = TrainingArguments(
        output_dir=str(job.output),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        use_cpu=True,
        report_to="tensorboard",
        logging_steps=job.log_every_steps,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_backend="gloo" if job.world_size > 1 else None,
        ddp_find_unused_parameters=False if job.world_size > 1 else None,
        save_strategy="epoch" if job.complete else "no",
        eval_strategy="epoch" if job.complete else "no",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=lambda batch: {"pixels": batch[0], "labels": batch[1]},
        train_dataset=job.training_set(),
        eval_dataset=job.validation_set(),
        optimizers=(job.optimizer(model), None),
        compute_metrics=accuracy,
    )
    trainer.train()
    found = [record["eval_accuracy"] for record in trainer.state.log_history if "eval_accuracy" in record]
    return found[-1] if found else None


def measure_accuracy(model: nn.Module, loader: Iterable[Batch], gather: Callable[[Batch], Batch] = as_it_is) -> float:
    """Return the part of the samples that the model names rightly; `gather` collects a batch over all ranks."""
    model.eval()
    hits = samples = 0
    with torch.inference_mode():
        for pixels, labels in loader:
            predicted, expected = gather((model(pixels).argmax(1), labels))
            hits += (predicted == expected).sum().item()
            samples += len(expected)
    return hits / samples


def quiet(*names: str) -> None:
    """Keep loggers below the rank of an error silent."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)


def trouble(name: str) -> str:
    """Return why the framework called `name` cannot be measured here, or nothing."""
    if name == "smkit":
        return "" if (ROOT / "smkit" / "trainer.py").exists() else "no smkit/trainer.py in this tree"
    return "" if all(find_spec(package) for package in PACKAGES.get(name, ())) else "not installed"


def parse_names(text: str) -> list[str]:
    """Return the names of frameworks in `text`, which are separated by commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in FRAMEWORKS]
    if unknown:
        raise ArgumentTypeError(f"{', '.join(unknown)}; choose from {', '.join(FRAMEWORKS)}")
    return names


FRAMEWORKS: dict[str, Callable[[Job], float | None]] = {
    "bare": bare,
    "smkit": smkit,
    "fabric": fabric,
    "accelerate": accelerate,
    "huggingface": huggingface,
    "lightning": lightning,
}
PACKAGES = {
    "fabric": ("lightning",),
    "accelerate": ("accelerate",),
    "huggingface": ("transformers", "accelerate"),
    "lightning": ("lightning",),
}
TITLES = {
    "bare": "bare PyTorch loop",
    "smkit": "**smkit Trainer**",
    "fabric": "Lightning Fabric",
    "accelerate": "Accelerate",
    "huggingface": "Hugging Face Trainer",
    "lightning": "Lightning Trainer",
}
QUIET_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
}
