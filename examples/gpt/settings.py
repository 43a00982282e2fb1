"""Hyperparameters of the GPT example; torch-free, so that a launch script can import them."""

from pydantic import Field

import smkit


class GPTSettings(smkit.Hyperparameters):
    """Predict the next byte of a text."""

    max_steps: int | None = Field(default=300, ge=1, description="optimizer steps")
    batch_size: int = Field(default=32, ge=1, description="blocks of one optimizer step")
    log_every_steps: int = Field(default=10, ge=1, le=1000, description="optimizer steps between two metric records")
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="clip gradients to this norm")
    learning_rate: float = Field(default=3e-3, gt=0, description="AdamW learning rate at its peak")
    warmup_steps: int = Field(default=20, ge=1, description="steps until that peak; then it falls to a tenth")
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW weight decay of matrices")
    block_size: int = Field(default=64, ge=1, description="bytes that the model sees at once")
    layers: int = Field(default=2, ge=1, description="transformer blocks")
    heads: int = Field(default=4, ge=1, description="attention heads of each")
    width: int = Field(default=128, ge=1, description="width of the residual stream, a multiple of the heads")
    recompute: bool = Field(default=False, description="compute activations again in the backward pass, to save memory")
