"""Train a classifier on a channel of CSV files, which needs no data set of one's own."""

from settings import TabularSettings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

import smkit

Batch = tuple[Tensor, Tensor]  # features (N, 30), labels (N,): 0 is malignant, 1 benign


class TabularTrainer(smkit.Trainer[TabularSettings]):
    def build_model(self) -> nn.Module:
        hidden = self.hp.hidden
        # The first layer learns each column's scale, so that the data need not be scaled beforehand.
        return nn.Sequential(nn.BatchNorm1d(30), nn.Linear(30, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=self.hp.learning_rate)

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return OneCycleLR(optimizer, max_lr=self.hp.learning_rate, total_steps=self.total_steps)

    def training_step(self, batch: Batch) -> Tensor:
        features, labels = batch
        return cross_entropy(self.model(features), labels)

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        features, labels = batch
        return {"accuracy": (self.model(features).argmax(dim=1) == labels).float()}


if __name__ == "__main__":
    TabularTrainer.main()
