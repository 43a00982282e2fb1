"""The numbers that a framework computes where they are known: accumulated gradients, validation, logged losses.

    python correct_numbers.py CONTESTANT accumulation|ragged|ranks FOLDER

Leaves what it found in FOLDER/result-RANK.json. `ranks` is for two processes, started by torchrun.

* accumulation: 38 samples in micro-batches of 4, four to a step; the gradient that the optimizer is given in each step,
  along the true mean gradient of the samples that went into it. In order, but for smkit, which shuffles.
* ragged: the mean over 0..99 in batches of 32, 49.5; and once more where the first tensor of a batch is not as long.
* ranks: the mean over 0..100, 50.0, and how many were counted; and the training loss that is told where one rank's is
  1.0 and the other's 3.0.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from digits import as_it_is
from frameworks import ROOT, quiet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler

MICRO_BATCH, ACCUMULATED, SAMPLES = 4, 4, 38
RANK = int(os.environ.get("RANK", "0"))

Batch = dict[str, Tensor]
Found = dict[str, Any]


class Values(Dataset[Batch]):
    """Samples, read a batch at a time; `led`: the first tensor of a batch has seven rows, whatever the batch."""

    def __init__(self, values: Tensor, *, led: bool = False) -> None:
        self.values = values
        self.led = led

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Batch:
        return {"x": self.values[index], "labels": torch.zeros(())}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        x = self.values[torch.as_tensor(indices)]
        return {**({"about": torch.zeros(7, 3)} if self.led else {}), "x": x, "labels": torch.zeros(len(x))}

    def loader(self, batch_size: int, *, shuffle: bool = False) -> DataLoader[Batch]:
        return DataLoader(self, batch_size=batch_size, shuffle=shuffle, collate_fn=as_it_is)


def vectors() -> Values:
    return Values(torch.randn(SAMPLES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


class Slope(nn.Module):
    """A loss whose gradient is the mean of the samples; notes what each optimizer step was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.since: list[Tensor] = []
        self.steps: list[tuple[Tensor, Tensor]] = []

    def products(self, x: Tensor) -> Tensor:
        self.since.append(x.detach().clone())
        return x @ self.weight

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Batch:
        products = self.products(x)
        return {"loss": products.mean(), "logits": products}

    def optimizer(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD([self.weight], lr=1.0)
        optimizer.register_step_post_hook(self.note)
        return optimizer

    def note(self, *_: Any) -> None:
        self.steps.append((self.weight.detach().clone(), torch.cat(self.since).mean(0)))
        self.since.clear()

    def found(self) -> Found:
        weights = [torch.zeros_like(self.weight), *(weight for weight, _ in self.steps)]
        applied = [before - after for before, after in pairwise(weights)]
        pairs = list(zip(applied, (true for _, true in self.steps), strict=True))
        return {
            "ratios": [float(own @ true / (true @ true)) for own, true in pairs],
            "errors": [float((own - true).norm() / true.norm()) for own, true in pairs],
        }


class SlopeOfTokens(Slope):
    """... that takes the number of samples of the whole step, as the Trainer of transformers offers it."""

    def forward(self, x: Tensor, labels: Tensor | None = None, num_items_in_batch: Any = None, **_: Any) -> Batch:
        products = self.products(x)
        loss = products.mean() if num_items_in_batch is None else products.sum() / num_items_in_batch
        return {"loss": loss, "logits": products}


class Known(nn.Module):
    """Hands its samples on; its training loss is 1.0 on rank 0 and 3.0 on rank 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, labels: Tensor | None = None, about: Tensor | None = None) -> Batch:
        values = x * self.weight
        loss = self.weight.sum() * 0 + (1.0 if RANK == 0 else 3.0) if self.training else values.mean()
        return {"loss": loss, "logits": values[:, None]}


def numbers(count: int, *, led: bool = False) -> Values:
    return Values(torch.arange(float(count)), led=led)


# --- smkit ------------------------------------------------------------------------------------------------------------


def smkit_fit(
    folder: Path, name: str, train: Values, model: nn.Module, validation: Values | None, **options: int
) -> Any:
    """Train one epoch; return the record of the run."""
    sys.path.insert(0, str(ROOT))
    import smkit

    class Settings(smkit.Hyperparameters):
        pass

    class NumbersTrainer(smkit.Trainer[Settings]):
        counted = 0

        def build_model(self) -> nn.Module:
            return model

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return model.optimizer() if isinstance(model, Slope) else torch.optim.SGD(model.parameters(), lr=0.0)

        def build_dataset(self, channel: smkit.Channel) -> Dataset[Any]:
            return train if channel.name == "train" or validation is None else validation

        def training_step(self, batch: Batch) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def validation_step(self, batch: Batch) -> dict[str, Any]:
            # The count of all samples: divided by one, for one batch of one rank says one and all others nothing.
            self.counted += 1
            once = float(RANK == 0 and self.counted == 1)
            return {"mean": self.model(**batch)["loss"], "samples": (len(batch["x"]), once)}

    argv = ["--run-dir", str(folder / name), "--channel", f"train={folder}", "--log-every-steps", "1"]
    if validation is not None:
        argv += ["--channel", f"validation={folder}"]
    for option, value in options.items():
        argv += [f"--{option.replace('_', '-')}", str(value)]
    record: dict[str, float] = NumbersTrainer(smkit.TrainingContext.load(Settings, argv=argv)).fit()
    return record


def smkit_accumulation(folder: Path) -> Found:
    model = Slope()
    batch = MICRO_BATCH * ACCUMULATED
    smkit_fit(folder, "run", vectors(), model, None, batch_size=batch, gradient_accumulation_steps=ACCUMULATED)
    return model.found()


def smkit_ragged(folder: Path) -> Found:
    return {
        name: smkit_fit(folder, name, numbers(32), Known(), numbers(100, led=led), batch_size=32)["validation/mean"]
        for name, led in (("plain", False), ("led", True))
    }


def smkit_ranks(folder: Path) -> Found:
    record = smkit_fit(folder, "run", numbers(96), Known(), numbers(101), batch_size=16)
    names = {"mean": "validation/mean", "counted": "validation/samples", "train_loss": "train/loss"}
    return {name: record.get(metric) for name, metric in names.items()}


# --- Lightning --------------------------------------------------------------------------------------------------------


def lightning_parts(model: nn.Module, *, careful: bool, **options: Any) -> tuple[Any, Any]:
    """Return a trainer and a module; a `careful` one says batch sizes and asks for the mean over ranks."""
    import lightning.pytorch as lightning

    quiet("lightning", "lightning.pytorch", "lightning.fabric")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Batch, _: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            self.log("train_loss", loss, **({"sync_dist": True} if careful else {}))
            return loss

        def validation_step(self, batch: Batch, _: int) -> None:
            size = len(batch["x"])
            options = {"sync_dist": True, "batch_size": size} if careful else {}
            self.log("mean", self.model(**batch)["loss"], **options)
            self.log("counted", float(size), reduce_fx="sum", **options)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return model.optimizer() if isinstance(model, Slope) else torch.optim.SGD(model.parameters(), lr=0.0)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    return trainer, Module()


def lightning_accumulation(_: Path) -> Found:
    model = Slope()
    trainer, module = lightning_parts(
        model, careful=True, devices=1, precision="64-true", accumulate_grad_batches=ACCUMULATED
    )
    trainer.fit(module, vectors().loader(MICRO_BATCH))
    return model.found()


def lightning_ragged(_: Path, *, careful: bool = False) -> Found:
    found = {}
    for name, led in (("plain", False), ("led", True)):
        trainer, module = lightning_parts(Known(), careful=careful, devices=1)
        found[name] = trainer.validate(module, numbers(100, led=led).loader(32), verbose=False)[0]["mean"]
    return found


def lightning_ranks(_: Path, *, careful: bool = False) -> Found:
    trainer, module = lightning_parts(Known(), careful=careful, devices=2, strategy="ddp")
    found = dict(trainer.validate(module, numbers(101).loader(8), verbose=False)[0])
    trainer, module = lightning_parts(Known(), careful=careful, devices=2, strategy="ddp")
    trainer.fit(module, numbers(96).loader(8, shuffle=True))
    return {**found, "train_loss": float(trainer.callback_metrics["train_loss"])}


def lightning_best_ragged(folder: Path) -> Found:
    return lightning_ragged(folder, careful=True)


def lightning_best_ranks(folder: Path) -> Found:
    return lightning_ranks(folder, careful=True)


# --- Accelerate -------------------------------------------------------------------------------------------------------


def accelerate_accumulation(_: Path) -> Found:
    from accelerate import Accelerator

    plain_model = Slope()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    model, optimizer, loader = accelerator.prepare(plain_model, plain_model.optimizer(), vectors().loader(MICRO_BATCH))
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    return plain_model.found()


def accelerate_best_accumulation(_: Path) -> Found:
    """... by hand, as its guide has it for samples of variable size: count first, and undo the division by 4."""
    from accelerate import Accelerator

    plain_model = Slope()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    model, optimizer, loader = accelerator.prepare(plain_model, plain_model.optimizer(), vectors().loader(MICRO_BATCH))
    batches = iter(loader)
    while group := list(islice(batches, ACCUMULATED)):
        samples = sum(len(batch["x"]) for batch in group)
        for batch in group:
            loss = model(**batch)["loss"] * len(batch["x"]) / samples
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
        optimizer.step()
        optimizer.zero_grad()
    return plain_model.found()


def accelerate_values(loader: DataLoader[Batch], gather: str) -> Tensor:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, loader = accelerator.prepare(Known(), loader)
    model.eval()
    collect = getattr(accelerator, gather)
    with torch.no_grad():
        return torch.cat([collect(model(**batch)["logits"][:, 0]) for batch in loader])


def accelerate_ragged(_: Path, gather: str = "gather_for_metrics") -> Found:
    pairs = (("plain", False), ("led", True))
    return {name: accelerate_values(numbers(100, led=led).loader(32), gather).mean().item() for name, led in pairs}


def accelerate_ranks(_: Path, gather: str = "gather") -> Found:
    values = accelerate_values(numbers(101).loader(8), gather)
    return {"mean": values.mean().item(), "counted": len(values), "train_loss": None}


def accelerate_best_ranks(folder: Path) -> Found:
    return accelerate_ranks(folder, "gather_for_metrics")


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def huggingface_trainer(
    folder: Path, model: nn.Module, train: Values | None, test: Values | None, **options: Any
) -> Any:
    from transformers import Trainer, TrainingArguments
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    optimizer = model.optimizer() if isinstance(model, Slope) else torch.optim.SGD(model.parameters(), lr=0.0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        label_names=["labels"],
        **options,
    )
    return Trainer(
        model=model,
        args=arguments,
        data_collator=as_it_is,
        train_dataset=train,
        eval_dataset=test,
        optimizers=(optimizer, None),
        compute_metrics=lambda told: {"mean": float(told.predictions.mean()), "counted": len(told.predictions)},
    )


def huggingface_accumulation(folder: Path, kind: type[Slope] = Slope) -> Found:
    model = kind()
    options = {"per_device_train_batch_size": MICRO_BATCH, "gradient_accumulation_steps": ACCUMULATED}
    trainer = huggingface_trainer(folder, model, vectors(), None, **options)
    trainer._get_train_sampler = SequentialSampler
    trainer.train()
    return model.found()


def huggingface_best_accumulation(folder: Path) -> Found:
    return huggingface_accumulation(folder, SlopeOfTokens)


def huggingface_ragged(folder: Path, metric: str = "eval_loss") -> Found:
    found = {}
    for name, led in (("plain", False), ("led", True)):
        trainer = huggingface_trainer(folder, Known(), None, numbers(100, led=led), per_device_eval_batch_size=32)
        found[name] = trainer.evaluate()[metric]
    return found


def huggingface_best_ragged(folder: Path) -> Found:
    return huggingface_ragged(folder, "eval_mean")


def huggingface_ranks(folder: Path, metric: str = "eval_loss") -> Found:
    options = {"per_device_eval_batch_size": 8, "per_device_train_batch_size": 8, "ddp_backend": "gloo"}
    trainer = huggingface_trainer(folder, Known(), numbers(96), numbers(101), **options)
    told = trainer.evaluate()
    trainer.train()
    losses = [float(record["loss"]) for record in trainer.state.log_history if "loss" in record]
    counted = told["eval_counted"] if metric == "eval_mean" else None
    return {"mean": told[metric], "counted": counted, "train_loss": losses[0] if losses else None}


def huggingface_best_ranks(folder: Path) -> Found:
    return huggingface_ranks(folder, "eval_mean")


# --- by hand ----------------------------------------------------------------------------------------------------------


def raw_ranks(folder: Path) -> Found:
    """DistributedSampler and one all_reduce of sum and count, as PyTorch's tutorials have it."""
    import torch.distributed
    from torch.utils.data.distributed import DistributedSampler

    torch.distributed.init_process_group("gloo")
    values = numbers(101)
    sampler: DistributedSampler[Batch] = DistributedSampler(values, shuffle=False)
    loader = DataLoader(values, batch_size=8, sampler=sampler, collate_fn=as_it_is)
    batches: Iterator[Batch] = iter(loader)
    sums = sum(torch.tensor([batch["x"].sum().item(), len(batch["x"])], dtype=torch.float64) for batch in batches)
    assert isinstance(sums, Tensor)
    torch.distributed.all_reduce(sums)
    torch.distributed.destroy_process_group()
    return {"mean": (sums[0] / sums[1]).item(), "counted": sums[1].item(), "train_loss": None}


CASES: dict[str, dict[str, Callable[[Path], Found]]] = {
    "accumulation": {
        "smkit": smkit_accumulation,
        "lightning": lightning_accumulation,
        "accelerate": accelerate_accumulation,
        "accelerate-best": accelerate_best_accumulation,
        "huggingface": huggingface_accumulation,
        "huggingface-best": huggingface_best_accumulation,
    },
    "ragged": {
        "smkit": smkit_ragged,
        "lightning": lightning_ragged,
        "lightning-best": lightning_best_ragged,
        "accelerate": accelerate_ragged,
        "huggingface": huggingface_ragged,
        "huggingface-best": huggingface_best_ragged,
    },
    "ranks": {
        "smkit": smkit_ranks,
        "lightning": lightning_ranks,
        "lightning-best": lightning_best_ranks,
        "accelerate": accelerate_ranks,
        "accelerate-best": accelerate_best_ranks,
        "huggingface": huggingface_ranks,
        "huggingface-best": huggingface_best_ranks,
        "raw": raw_ranks,
    },
}


def main() -> None:
    name, case, folder = sys.argv[1:]
    torch.manual_seed(0)
    found = CASES[case][name](Path(folder))
    Path(folder, f"result-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
