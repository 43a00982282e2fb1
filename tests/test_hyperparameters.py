"""The settings class itself: strict, frozen at every depth, and clear about a class that cannot work."""

# ruff: noqa: RUF012 - pydantic copies a default

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import AliasChoices, BaseModel, Field, SecretStr, ValidationError

import smkit


class Schedule(BaseModel, frozen=True, extra="forbid"):
    warmup: int = 0
    steps: list[int] = [1, 2]


class Settings(smkit.Hyperparameters):
    learning_rate: float = 1e-3
    layers: list[int] = [64, 128]
    weights: dict[str, list[float]] = {"a": [1.0]}
    tags: set[str] = {"x"}
    pairs: tuple[list[int], ...] = ([1],)
    schedule: Schedule = Schedule()
    schedules: list[Schedule] = [Schedule()]
    token: SecretStr | None = None


CHANGES: list[Callable[[Any], object]] = [
    lambda hp: setattr(hp, "epochs", 2),
    lambda hp: hp.layers.append(1),
    lambda hp: hp.layers.__setitem__(0, 1),
    lambda hp: hp.layers.__iadd__([1]),
    lambda hp: hp.layers.sort(),
    lambda hp: hp.weights.__setitem__("a", []),
    lambda hp: hp.weights.update(a=[]),
    lambda hp: hp.weights.pop("a"),
    lambda hp: hp.weights["a"].append(1.0),
    lambda hp: hp.tags.add("y"),
    lambda hp: hp.tags.__ior__({"y"}),
    lambda hp: hp.pairs[0].append(1),
    lambda hp: setattr(hp.schedule, "warmup", 1),
    lambda hp: hp.schedule.steps.append(1),
    lambda hp: setattr(hp.schedules[0], "warmup", 1),
    lambda hp: hp.schedules[0].steps.clear(),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("given", [{}, {"layers": [3], "weights": {"a": [2.0]}, "tags": {"z"}, "pairs": [[4]]}])
def test_settings_cannot_be_changed_at_any_depth(change: Callable[[Any], object], given: dict[str, Any]) -> None:
    settings = Settings(**given)
    before = settings.model_dump()
    with pytest.raises((ValidationError, TypeError), match=r"[Ff]rozen"):
        change(settings)
    assert settings.model_dump() == before


def test_frozen_values_are_the_lists_dicts_and_sets_that_they_look_like() -> None:
    settings = Settings()
    assert settings.layers == [64, 128]
    assert settings.layers + [1] == [64, 128, 1]  # noqa: RUF005
    assert settings.weights | {"b": []} == {"a": [1.0], "b": []}
    assert settings.tags | {"y"} == {"x", "y"}
    assert isinstance(settings.layers, list)
    assert repr(settings.layers) == "[64, 128]"


@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_and_pickles_of_frozen_values_are_ordinary_ones(again: Callable[[Any], Any]) -> None:
    settings = Settings(token=SecretStr("hunter2"))
    assert again(settings) == settings
    layers, weights, tags = again([settings.layers, settings.weights, settings.tags])
    layers.append(1)
    weights["a"].append(2.0)
    tags.add("y")
    assert (type(layers), type(weights), type(tags)) == (list, dict, set)
    assert settings == Settings(token=SecretStr("hunter2"))


def test_two_instances_share_no_default_and_are_equal() -> None:
    assert Settings() == Settings()
    assert Settings(layers=[1]) != Settings()


def test_a_misspelt_or_impossible_value_is_refused_when_an_instance_is_made() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        Settings(learning_rat=1.0)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="epochs"):
        Settings(epochs=0)


def test_a_secret_is_masked_and_no_error_shows_an_input() -> None:
    assert "hunter2" not in repr(Settings(token=SecretStr("hunter2")))
    with pytest.raises(ValidationError) as refused:
        Settings(token=SecretStr("hunter2"), epochs="hunter2")  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)


# --- classes that cannot work -----------------------------------------------------------------------------------------


class Loose(BaseModel):
    width: int = 1


class Deep(BaseModel, frozen=True, extra="forbid"):
    loose: list[Loose] = []


class Tree(BaseModel, frozen=True, extra="forbid"):
    children: "list[Tree]" = []


@dataclass
class Part:
    width: int = 1


RESERVED = ("help", "config", "channel", "run_dir", "model_dir", "output_data_dir", "checkpoint_dir")


@pytest.mark.parametrize("name", RESERVED)
def test_the_options_of_every_script_are_no_names_for_hyperparameters(name: str) -> None:
    message = f"the hyperparameter '{name}' has the name of an option that every script has: '{name}'"
    with pytest.raises(smkit.ConfigurationError, match=message):
        type("Bad", (smkit.Hyperparameters,), {"__annotations__": {name: str}, name: "x", "__module__": __name__})


@pytest.mark.parametrize("name", ["json", "copy", "model_dump", "model_fields"])
def test_what_pydantic_needs_is_no_name_for_a_hyperparameter(name: str) -> None:
    with pytest.raises(smkit.ConfigurationError, match=f"cannot be called '{name}'.*\n.*\n.*Field\\(alias='{name}'\\)"):
        type("Bad", (smkit.Hyperparameters,), {"__annotations__": {name: str}, name: "x", "__module__": __name__})


def test_such_a_name_can_still_be_the_option_by_an_alias() -> None:
    class Good(smkit.Hyperparameters):
        json_: str = Field("x", alias="json")

    assert smkit.parse_args(Good, ["--json", "y", "--run-dir", "/dev/null/none"], {"SM_HPS": "{}"}).json_ == "y"


@pytest.mark.parametrize("alias", ["epochs", "learning-rate", "learning_rate"])
def test_two_hyperparameters_cannot_share_an_option(alias: str) -> None:
    with pytest.raises(smkit.ConfigurationError, match=r"share the option '\w+'"):

        class Bad(Settings):
            other: float = Field(1.0, validation_alias=AliasChoices("other", alias))


def test_an_alias_cannot_take_a_reserved_option_either() -> None:
    with pytest.raises(smkit.ConfigurationError, match=r"'folder' has the name of an option .* 'run_dir'"):

        class Bad(smkit.Hyperparameters):
            folder: str = Field("x", alias="run-dir")


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        (Loose, "Loose can be changed after it is read, or swallows misspelt names"),
        (Loose | None, "Loose can be changed"),
        (list[Loose], "Loose can be changed"),
        (dict[str, tuple[Loose, ...]], "Loose can be changed"),
        (Deep, r"Loose can be changed[^\n]*\n  where: class Bad, hyperparameter part.loose\n"),
        (Part, "Part is a dataclass, which can change"),
        (Settings, "Settings brings the settings of a whole run"),
        (Tree, "Tree holds itself"),
    ],
)
def test_the_parts_of_settings_are_as_strict_as_the_whole(annotation: Any, problem: str) -> None:
    body = {"__annotations__": {"part": annotation}, "__module__": __name__, "__qualname__": "Bad"}
    with pytest.raises(smkit.ConfigurationError, match=problem):
        type("Bad", (smkit.Hyperparameters,), body)


def test_a_subclass_cannot_take_the_strictness_back() -> None:
    with pytest.raises(smkit.ConfigurationError, match="take no unknown names"):

        class Bad(smkit.Hyperparameters, extra="ignore"):
            pass
