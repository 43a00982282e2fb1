"""The same small training by a peer, as its documentation has it: `peers.py torch|accelerate|lightning`."""

import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

STEPS = 60
PLACES = Path(os.environ["TORTURE_PLACES"]) / f"rank-{os.environ['RANK']}"


def at(place: str) -> None:
    """Note that this rank is here, for whoever watches it."""
    with PLACES.open("a") as file:
        file.write(f"{place} {os.getpid()} {time.time()}\n")


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def data() -> TensorDataset:
    inputs = torch.randn(STEPS * 12, 3)
    return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))


def by_torch() -> None:
    torch.distributed.init_process_group("gloo")
    wrapped = nn.parallel.DistributedDataParallel(model())
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.05)
    for inputs, targets in DataLoader(data(), batch_size=6):
        at("step")
        time.sleep(0.05)
        optimizer.zero_grad()
        mse_loss(wrapped(inputs), targets).backward()
        optimizer.step()
    torch.distributed.destroy_process_group()


def by_accelerate() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    built = model()
    wrapped, optimizer, loader = accelerator.prepare(
        built, torch.optim.AdamW(built.parameters(), lr=0.05), DataLoader(data(), batch_size=6)
    )
    for inputs, targets in loader:
        at("step")
        time.sleep(0.05)
        optimizer.zero_grad()
        accelerator.backward(mse_loss(wrapped(inputs), targets))
        optimizer.step()
    accelerator.end_training()


def by_lightning() -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            at("step")
            time.sleep(0.05)
            inputs, targets = batch
            return mse_loss(self.net(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.05)

    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"]),
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Module(), DataLoader(data(), batch_size=6))


if __name__ == "__main__":
    {"torch": by_torch, "accelerate": by_accelerate, "lightning": by_lightning}[sys.argv[1]]()
