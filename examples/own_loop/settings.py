"""Hyperparameters of the loop of one's own; torch-free, so that a launch script can import them."""

from pydantic import Field

import smkit


class GANSettings(smkit.Hyperparameters):
    """Draw digits with a small generative adversarial network."""

    epochs: int = Field(default=30, ge=1, description="passes over the training data")
    checkpoint_every_seconds: float = Field(default=60, ge=0, description="seconds between two checkpoints")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam learning rate of both networks")
    hidden: int = Field(default=128, ge=1, description="width of the hidden layers")
    codes: int = Field(default=16, ge=1, description="random numbers that an image is made of")
