"""Train a digit classifier: the same script on a laptop and inside a SageMaker job."""

from settings import DigitsSettings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

import smkit

Batch = tuple[Tensor, Tensor]  # images (N, 64) from 0 to 1, labels (N,)


class DigitsTrainer(smkit.Trainer[DigitsSettings]):
    def build_model(self) -> nn.Module:
        hidden = self.hp.hidden
        return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(self.hp.dropout), nn.Linear(hidden, 10))

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=self.hp.learning_rate)

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return OneCycleLR(optimizer, max_lr=self.hp.learning_rate, total_steps=self.total_steps)

    def training_step(self, batch: Batch) -> Tensor:
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        logits = self.model(images)
        return {"accuracy": (logits.argmax(dim=1) == labels).float(), "loss": cross_entropy(logits, labels)}


if __name__ == "__main__":
    DigitsTrainer.main()
