"""A GPT in plain PyTorch; it knows nothing of smkit."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        projected = self.attention_in(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = projected.transpose(1, 3).unbind(2)  # each (N, heads, length, width of a head)
        attended = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        thought: Tensor = self.mlp(self.mlp_norm(x))
        return x + thought


class GPT(nn.Module):
    def __init__(self, *, vocabulary: int, block_size: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(block_size, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for weight in self.parameters():
            if weight.dim() >= 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return linear(self.norm(x), self.tokens.weight)  # weight tying: what reads a token also writes it

    def flops(self, length: int) -> float:
        """Return the floating-point operations of a training step on one sequence: forward and backward."""
        multiplied = sum(weight.numel() for weight in self.parameters()) - self.positions.weight.numel()
        attention = 12 * len(self.blocks) * self.norm.weight.numel() * length
        return length * (6.0 * multiplied + attention)


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of an optimizer: matrices decay, biases and gains do not."""
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
