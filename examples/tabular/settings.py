"""Hyperparameters of the tabular example; torch-free, so that a launch script can import them."""

from pydantic import Field

import smkit


class TabularSettings(smkit.Hyperparameters):
    """Tell benign from malignant tumours by 30 measurements."""

    epochs: int = Field(default=20, ge=1, description="passes over the training data")
    learning_rate: float = Field(default=1e-2, gt=0, description="AdamW learning rate at its peak")
    hidden: int = Field(default=32, ge=1, description="width of the hidden layer")
