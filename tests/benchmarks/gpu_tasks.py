"""What `gpu_step.py` trains: a ResNet-50 on images and a GPT of 124 million parameters on tokens, data made up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.optim import SGD, AdamW, Optimizer

Batch = tuple[Tensor, ...]


class Task(ABC):
    """A model, its optimizer, its loss and the samples that it is trained on."""

    title: str
    batch_size: int
    max_grad_norm: float | None = None
    channels_last = False
    flops_per_sample: float

    @abstractmethod
    def model(self) -> nn.Module: ...

    @abstractmethod
    def optimizer(self, model: nn.Module, *, fused: bool = True) -> Optimizer: ...

    @abstractmethod
    def make_samples(self) -> Batch: ...

    @cached_property
    def samples(self) -> Batch:
        """The data: tensors in CPU memory, a sample a row."""
        return self.make_samples()

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        is_same = stride == 1 and inputs == outputs
        shortcut = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if is_same else nn.Sequential(*shortcut)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


class ResNet50(Task):
    title = "ResNet-50, 224 x 224, channels_last, SGD"
    batch_size = 128
    channels_last = True
    flops_per_sample = 3 * 2 * 4.09e9
    """Multiplications and additions of the forward pass, and twice that for the backward pass."""

    def model(self) -> nn.Module:
        stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        inputs = 64
        for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for number in range(depth):
                blocks.append(Bottleneck(inputs, width, stride if number == 0 else 1))
                inputs = 4 * width
        return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))

    def optimizer(self, model: nn.Module, *, fused: bool = True) -> Optimizer:
        return SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=fused)

    def make_samples(self) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2048, 3, 224, 224), dtype=torch.uint8, generator=generator)
        # An epoch of 128 steps, whose end is not what is measured.
        return images.repeat(8, 1, 1, 1), torch.randint(0, 1000, (16384,), generator=generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        pixels = images.contiguous(memory_format=torch.channels_last).float() / 255
        return cross_entropy(model(pixels), labels)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.projected = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        mixed = self.mixed(self.before_attention(hidden)).view(batch, length, 3, self.heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.projected(attended.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.feed(self.before_feed(hidden))


class Transformer(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.last(self.blocks(hidden)))


class GPT(Task):
    vocabulary, length, width, heads, depth = 50304, 1024, 768, 12, 12
    title = "GPT, 124 million parameters, 1,024 tokens, AdamW, clipped"
    batch_size = 16
    max_grad_norm = 1.0
    flops_per_sample = length * (6 * 124.4e6 + 12 * depth * width * length)
    """6 for each parameter and token, and attention, as the paper of PaLM counts them."""

    def model(self) -> nn.Module:
        return Transformer(self.vocabulary, self.length, self.width, self.heads, self.depth)

    def optimizer(self, model: nn.Module, *, fused: bool = True) -> Optimizer:
        return AdamW(model.parameters(), lr=1e-4, fused=fused)

    def make_samples(self) -> Batch:
        generator = torch.Generator().manual_seed(0)
        return (torch.randint(0, self.vocabulary, (4096, self.length + 1), generator=generator),)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        (tokens,) = batch
        logits = model(tokens[:, :-1])
        return cross_entropy(logits.reshape(-1, self.vocabulary), tokens[:, 1:].reshape(-1))


class Small(Task):
    """For a look at the harness where there is no GPU."""

    title = "a small network"
    batch_size = 32
    flops_per_sample = 6 * 64 * 64

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def optimizer(self, model: nn.Module, *, fused: bool = True) -> Optimizer:
        return AdamW(model.parameters(), fused=fused)

    def make_samples(self) -> Batch:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(512, 64, generator=generator), torch.randint(0, 10, (512,), generator=generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])


TASKS: dict[str, type[Task]] = {"resnet": ResNet50, "gpt": GPT, "small": Small}
