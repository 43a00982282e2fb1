"""Hyperparameters: the base class of a script's settings, frozen at every depth.

This room knows what a setting is, not where its value comes from.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from smkit.annotations import nested_model
from smkit.errors import ConfigurationError

RESERVED_NAMES = frozenset({"help", "config", "channel", "run_dir", "model_dir", "output_data_dir", "checkpoint_dir"})
"""Options of every script; they are facts of the context, not choices of the user."""


class Hyperparameters(BaseModel):
    """What a user chooses for a run. Subclass it and add fields; every field is an option of the script.

    Instances are frozen, deeply; unknown names are errors. The fields below are those that every run has.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    epochs: int = Field(1, ge=1)
    """passes over the training data"""
    max_steps: int | None = Field(None, ge=1)
    """stop after this many optimizer steps, whatever the epochs"""
    batch_size: int = Field(32, ge=1)
    """samples per optimizer step, over all processes and accumulation together"""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """parts that a batch is computed in, to save memory"""
    max_grad_norm: float | None = Field(None, gt=0, allow_inf_nan=False)
    """clip gradients to this norm"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """arithmetic of the forward pass; auto: bf16 where the GPU has it, fp16 on V100 and T4, fp32 on a CPU"""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """seed of initial weights, order of samples, dropout"""
    log_every_steps: int = Field(50, ge=1, le=1000)
    """optimizer steps between two metric records"""
    validate_every_steps: int | None = Field(None, ge=1)
    """optimizer steps between two validations; none: at the end of each epoch"""
    checkpoint_every_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    """seconds between two checkpoints; none: as often as costs less than 1 % of the run"""
    monitor: str | None = None
    """validation metric that decides on the best model and on early stopping"""
    monitor_mode: Literal["min", "max"] = "min"
    """whether a smaller or a larger value of the monitored metric is better"""
    early_stopping_patience: int | None = Field(None, ge=1)
    """stop after this many validations without a better value of the monitored metric"""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in inspect.get_annotations(cls):
            if name in RESERVED_NAMES:
                raise ConfigurationError(
                    f"the hyperparameter '{name}' has the name of an option that every script has",
                    where=f"class {cls.__qualname__}",
                    fix=f"drop it and read the context's '{name}', or choose another name",
                )
            if not name.startswith("_") and hasattr(BaseModel, name):
                raise ConfigurationError(
                    f"a hyperparameter cannot be called '{name}': pydantic's BaseModel has an attribute of that name",
                    where=f"class {cls.__qualname__}",
                    fix=f"call it '{name}_' or more precisely, and add Field(alias='{name}') to keep the option",
                )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        for name, field in cls.model_fields.items():
            model = nested_model(field.annotation)
            if model is not None:
                _require_frozen(model, f"class {cls.__qualname__}, hyperparameter '{name}'")

    @model_validator(mode="after")
    def _freeze(self) -> Self:
        for name, value in self.__dict__.items():
            self.__dict__[name] = freeze(value)
        return self


def _require_frozen(model: type[BaseModel], where: str) -> None:
    if issubclass(model, Hyperparameters):
        raise ConfigurationError(
            f"{model.__name__} brings the settings of a whole run ('epochs', 'batch_size', ...) into a part of them",
            where=where,
            fix=f'write `class {model.__name__}(pydantic.BaseModel, frozen=True, extra="forbid")`',
        )
    if not model.model_config.get("frozen") or model.model_config.get("extra") != "forbid":
        raise ConfigurationError(
            f"{model.__name__} can be changed after it is read, or swallows misspelt names",
            where=where,
            fix=f'write `class {model.__name__}(pydantic.BaseModel, frozen=True, extra="forbid")`',
        )
    for name, field in model.model_fields.items():
        inner = nested_model(field.annotation)
        if inner is not None:
            _require_frozen(inner, f"{where}.{name}")


# --- freezing ---------------------------------------------------------------------------------------------------------


def _refuse(self: object, *_: object, **__: object) -> typing.NoReturn:
    raise TypeError(f"this {type(self).__mro__[1].__name__} belongs to frozen hyperparameters; change a copy of it")


class _FrozenList(list[Any]):
    """A list that cannot change; copies and pickles are ordinary lists."""

    append = extend = insert = pop = remove = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce_ex__(self, _: object) -> tuple[Any, ...]:
        return (list, (list(self),))


class _FrozenDict(dict[Any, Any]):
    """A dict that cannot change; copies and pickles are ordinary dicts."""

    clear = pop = popitem = setdefault = update = _refuse
    __setitem__ = __delitem__ = __ior__ = _refuse

    def __reduce_ex__(self, _: object) -> tuple[Any, ...]:
        return (dict, (dict(self),))


class _FrozenSet(set[Any]):
    """A set that cannot change; copies and pickles are ordinary sets."""

    add = clear = discard = pop = remove = update = _refuse
    difference_update = intersection_update = symmetric_difference_update = _refuse
    __iand__ = __ior__ = __isub__ = __ixor__ = _refuse

    def __reduce_ex__(self, _: object) -> tuple[Any, ...]:
        return (set, (set(self),))


def freeze(value: Any) -> Any:
    """Return `value` with every list, dict and set in it, at any depth, made unchangeable."""
    if isinstance(value, BaseModel):
        for name, item in value.__dict__.items():
            value.__dict__[name] = freeze(item)
        return value
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(freeze(item) for item in value)
    if type(value) is list:
        return _FrozenList(freeze(item) for item in value)
    if type(value) is dict:
        return _FrozenDict((key, freeze(item)) for key, item in value.items())
    if type(value) is set:
        return _FrozenSet(value)
    return value
