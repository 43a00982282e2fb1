"""Train a small convolutional network on a channel of images, which needs no data set of one's own."""

from settings import ImagesSettings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

import smkit

Batch = tuple[Tensor, Tensor]  # images (N, 3, 8, 8) from 0 to 255, labels (N,): indices of the class folders


class ImagesTrainer(smkit.Trainer[ImagesSettings]):
    channels_last = True
    cudnn_benchmark = True

    def build_model(self) -> nn.Module:
        narrow, wide = self.hp.channels, 2 * self.hp.channels
        return nn.Sequential(
            *(nn.Conv2d(3, narrow, 3, padding=1), nn.BatchNorm2d(narrow), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(4 * wide, 10)),
        )

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=self.hp.learning_rate)

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return OneCycleLR(optimizer, max_lr=self.hp.learning_rate, total_steps=self.total_steps)

    def training_step(self, batch: Batch) -> Tensor:
        images, labels = batch
        return cross_entropy(self.model(images.float() / 255), labels)

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        return {"accuracy": (self.model(images.float() / 255).argmax(dim=1) == labels).float()}


if __name__ == "__main__":
    ImagesTrainer.main()
