"""The peers, each with what its documentation says of saving, after each step, and of going on by the same command."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torture.subjects.order import STEPS_PER_EPOCH
from torture.subjects.training import BATCH_SIZE, SEED, Batch, Counting, Network, Notes, Samples

KEPT = 2
"""Checkpoints, where a peer lets its user say."""


def _loader() -> DataLoader[Any]:
    return DataLoader(Samples(), batch_size=BATCH_SIZE, shuffle=True)


class Position:
    """Where a loop of the user's own stands."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def torch_save(notes: Notes) -> None:
    """A loop of the user's own that saves all it has into a temporary file and renames it over the last one."""
    torch.manual_seed(SEED)
    order = notes.order
    model = Network(notes)
    optimizer = Counting(model)
    file = order.folder / "checkpoint.pt"
    step = 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        step = state["step"]
    notes.began(step, model, optimizer)
    while step < order.total_steps:
        for batch in _loader():
            if step >= order.total_steps:
                break
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
            step += 1
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            part = file.with_suffix(".tmp")
            torch.save({**state, "random": torch.get_rng_state()}, part)
            part.replace(file)
            notes.committed(step)
    torch.save(model.state_dict(), order.folder / "model.pt")
    notes.ended(step, model, optimizer)


def lightning(notes: Notes) -> None:
    """ModelCheckpoint with the best and the last, and `ckpt_path="last"`."""
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    lightning.seed_everything(SEED, verbose=False)
    order = notes.order

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network(notes)

        def training_step(self, batch: Batch, _: int) -> Tensor:
            loss: Tensor = self.network(**batch)["loss"]
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Counting(self)

    class Noting(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            notes.began(trainer.global_step, pl_module, trainer.optimizers[0])

    class NotedCheckpoint(ModelCheckpoint):
        def on_train_batch_end(self, trainer: Any, *arguments: Any, **more: Any) -> None:
            super().on_train_batch_end(trainer, *arguments, **more)
            notes.committed(trainer.global_step)

    saves = NotedCheckpoint(order.folder, monitor="train_loss", every_n_train_steps=1, save_top_k=1, save_last=True)
    trainer = lightning.Trainer(
        max_steps=order.total_steps,
        max_epochs=order.epochs + 1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Noting(), saves],
        default_root_dir=order.folder,
        log_every_n_steps=1,
    )
    module = Module()
    trainer.fit(module, _loader(), ckpt_path="last")
    trainer.save_checkpoint(order.folder / "model.ckpt", weights_only=True)
    notes.ended(trainer.global_step, module, trainer.optimizers[0])


def accelerate(notes: Notes) -> None:
    """`save_state` with automatic names and a limit, `load_state` of the latest, `skip_first_batches`."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration, set_seed

    set_seed(SEED)
    order = notes.order
    project = ProjectConfiguration(str(order.folder), automatic_checkpoint_naming=True, total_limit=KEPT)
    accelerator = Accelerator(cpu=True, project_config=project)
    own = Network(notes)
    own_optimizer = Counting(own)
    model, optimizer, loader = accelerator.prepare(own, own_optimizer, _loader())
    position = Position()
    accelerator.register_for_checkpointing(position)
    if any((order.folder / "checkpoints").glob("*")):
        accelerator.load_state()
        # As its message says: the names go on where the numbers stood.
        project.iteration = position.step
    notes.began(position.step, own, own_optimizer)
    while position.step < order.total_steps:
        done = position.step % STEPS_PER_EPOCH
        for batch in accelerator.skip_first_batches(loader, done) if done else loader:
            if position.step >= order.total_steps:
                break
            optimizer.zero_grad()
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            position.step += 1
            accelerator.save_state()
            notes.committed(position.step)
    accelerator.save_model(model, str(order.folder / "model"))
    notes.ended(position.step, own, own_optimizer)


def huggingface(notes: Notes) -> None:
    """The Trainer with `save_total_limit` and `resume_from_checkpoint=True`, once there is something to resume from."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    set_seed(SEED)
    order = notes.order
    model = Network(notes)
    optimizer = Counting(model)
    arguments = TrainingArguments(
        output_dir=str(order.folder),
        num_train_epochs=order.epochs,
        per_device_train_batch_size=BATCH_SIZE,
        use_cpu=True,
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        seed=SEED,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=KEPT,
    )

    class Noting(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            notes.began(state.global_step, model, optimizer)

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            notes.committed(state.global_step)

    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Samples(), optimizers=(optimizer, scheduler), callbacks=[Noting()]
    )
    trainer.train(resume_from_checkpoint=True if get_last_checkpoint(str(order.folder)) else None)
    trainer.save_model(str(order.folder / "model"))
    notes.ended(trainer.state.global_step, model, optimizer)


def imported(name: str) -> None:
    """Import a peer, once for all of the runs that are forked afterwards."""
    warnings.filterwarnings("ignore")
    if name == "lightning":
        import lightning.pytorch  # noqa: F401
    elif name == "accelerate":
        import accelerate
        import accelerate.utils  # noqa: F401
    elif name == "huggingface":
        import transformers
        from transformers import Trainer  # noqa: F401

        transformers.utils.logging.set_verbosity_error()
    for logger in ("lightning", "lightning.pytorch", "lightning.fabric", "accelerate"):
        logging.getLogger(logger).setLevel(logging.ERROR)


RUNS = {"torch.save": torch_save, "lightning": lightning, "accelerate": accelerate, "huggingface": huggingface}
