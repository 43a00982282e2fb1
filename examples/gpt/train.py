"""Train a small GPT on the bytes of a text, with all that makes a step fast."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from model import GPT, Block, weight_groups
from settings import GPTSettings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import TensorDataset

import smkit

Batch = tuple[Tensor]  # bytes (N, block_size + 1): of each, the next one is to be predicted


class GPTTrainer(smkit.Trainer[GPTSettings]):
    def build_dataset(self, channel: smkit.Channel) -> TensorDataset:
        text = torch.from_numpy(np.load(channel.path / "text.npy", mmap_mode="c"))  # mapped, not read
        return TensorDataset(text.unfold(0, self.hp.block_size + 1, self.hp.block_size))

    def build_model(self) -> GPT:
        hp = self.hp
        model = GPT(vocabulary=256, block_size=hp.block_size, layers=hp.layers, heads=hp.heads, width=hp.width)
        self.flops_per_sample = model.flops(hp.block_size)  # for train/mfu
        return model

    def activation_checkpointing(self, model: nn.Module) -> Iterable[nn.Module]:
        return [module for module in model.modules() if self.hp.recompute and isinstance(module, Block)]

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        groups = weight_groups(model, self.hp.weight_decay)
        return AdamW(groups, lr=self.hp.learning_rate, betas=(0.9, 0.95), fused=True)

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        warmup, total = self.hp.warmup_steps, self.total_steps
        return LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / warmup) * (0.55 + 0.45 * math.cos(math.pi * step / total))
        )

    def training_step(self, batch: Batch) -> Tensor:
        if (self.step + 1) % self.hp.log_every_steps == 0:
            self.log("train/tokens", (self.step + 1) * self.hp.batch_size * self.hp.block_size)
        return self.loss(batch)

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(batch)}

    def loss(self, batch: Batch) -> Tensor:
        tokens = batch[0].long()
        return cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


if __name__ == "__main__":
    GPTTrainer.main()
