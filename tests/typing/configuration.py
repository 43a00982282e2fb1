"""What a type checker makes of settings: checked by mypy and pyright, never run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from typing_extensions import assert_type

import smkit


class Schedule(BaseModel, frozen=True, extra="forbid"):
    warmup: int = 0


class Settings(smkit.Hyperparameters):
    # `default=` by name: mypy takes a field with a positional default for a required one.
    learning_rate: float = Field(default=1e-3, gt=0)
    layers: list[int] = Field(default_factory=lambda: [64, 128])
    optimizer: Literal["sgd", "adam"] = "adam"
    schedule: Schedule = Schedule()


def a_context_knows_its_settings() -> None:
    context = smkit.TrainingContext.load(Settings)
    assert_type(context, smkit.TrainingContext[Settings])
    assert_type(context.hp, Settings)
    assert_type(context.hp.learning_rate, float)
    assert_type(context.hp.layers, list[int])
    assert_type(context.hp.schedule.warmup, int)
    assert_type(context.hp.epochs, int)
    assert_type(context.hp.max_steps, "int | None")
    assert_type(context.channel("train"), smkit.Channel)
    assert_type(context.channel("train").path, Path)
    assert_type(context.hosts, tuple[str, ...])
    assert_type(context.origins, Mapping[str, str])
    _ = context.hp.learning_rat  # type: ignore[attr-defined]
    _ = context.modle_dir  # type: ignore[attr-defined]


def a_trainer_knows_its_settings(trainer: smkit.Trainer[Settings], plain: smkit.Trainer) -> None:
    assert_type(trainer.hp, Settings)
    assert_type(trainer.hp.learning_rate, float)
    assert_type(trainer.context, smkit.TrainingContext[Settings])
    assert_type(plain.hp, smkit.Hyperparameters)
    _ = trainer.hp.learning_rat  # type: ignore[attr-defined]


def a_function_can_ask_for_its_settings(context: smkit.TrainingContext[Settings]) -> float:
    return context.hp.learning_rate


def the_doors_for_argparse_are_typed(parser: argparse.ArgumentParser) -> None:
    assert_type(smkit.parse_args(Settings), Settings)
    assert_type(smkit.from_argparse(parser), argparse.Namespace)
    smkit.parse_args(Schedule)  # type: ignore[type-var]


def a_misspelt_public_name_is_an_error() -> None:
    smkit.lanch("train.py")  # type: ignore[attr-defined]


def a_misspelt_setting_is_an_error() -> None:
    Settings(learning_rate=1.0, epochs=3)
    Settings(learning_rat=1.0)  # type: ignore[call-arg]
    Settings(learning_rate="fast")  # type: ignore[arg-type]


class DigitsTrainer(smkit.Trainer[Settings]):
    def half(self) -> float:
        return assert_type(self.hp.learning_rate, float) / 2


def main_takes_what_load_takes() -> None:
    DigitsTrainer.main()
