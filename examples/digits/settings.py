"""Hyperparameters of the digits example; torch-free, so that the launch script can import them."""

from pydantic import Field

import smkit


class DigitsSettings(smkit.Hyperparameters):
    """Classify scanned digits with a small network."""

    epochs: int = Field(default=20, ge=1, description="passes over the training data")
    learning_rate: float = Field(default=3e-3, gt=0, description="AdamW learning rate at its peak")
    hidden: int = Field(default=128, ge=1, description="width of the hidden layer")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="share of hidden units dropped while training")
