"""Hyperparameters of the images example; torch-free, so that a launch script can import them."""

from pydantic import Field

import smkit


class ImagesSettings(smkit.Hyperparameters):
    """Classify images of scanned digits with a small convolutional network."""

    epochs: int = Field(default=5, ge=1, description="passes over the training data")
    learning_rate: float = Field(default=1e-2, gt=0, description="AdamW learning rate at its peak")
    batch_size: int = Field(default=64, ge=1, description="samples of one optimizer step")
    channels: int = Field(default=16, ge=1, description="filters of the first convolution")
