"""Hyperparameters: the base class of a script's settings, frozen at every depth.

This room knows what a setting is, not where its value comes from.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from typing_extensions import Self

from smkit.annotations import classes_with_fields, is_secret_of_a_kind
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
        ser_json_inf_nan="constants",
    )

    epochs: int = Field(default=1, ge=1)
    """passes over the training data"""
    max_steps: int | None = Field(default=None, ge=1)
    """stop after this many optimizer steps, whatever the epochs"""
    batch_size: int = Field(default=32, ge=1)
    """samples per optimizer step, over all processes and accumulation together"""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """parts that a batch is computed in, to save memory"""
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """clip gradients to this norm"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """arithmetic of the forward pass; auto: bf16 where the GPU has it, fp16 on V100 and T4, fp32 on a CPU"""
    float32_matmul_precision: Literal["highest", "high", "medium"] | None = None
    """how fp32 matrices are multiplied; high: in TF32 where the GPU has it (sm_80 and newer), none: as torch does"""
    compile: bool = False
    """compile the model's forward with torch.compile"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """how several processes train one model; ddp: each holds all of it, fsdp: each holds a part"""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """validate and export a moving average of the weights, of which each step keeps this share"""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """seed of initial weights, order of samples, dropout"""
    log_every_steps: int = Field(default=50, ge=1, le=1000)
    """optimizer steps between two metric records"""
    validate_every_steps: int | None = Field(default=None, ge=1)
    """optimizer steps between two validations; none: at the end of each epoch"""
    checkpoint_every_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """seconds between two checkpoints; none: as often as costs less than 1 % of the run"""
    monitor_metric: str | None = None
    """validation metric that decides on the best model and on early stopping"""
    monitor_mode: Literal["min", "max"] = "min"
    """whether a smaller or a larger value of the monitored metric is better"""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """stop after this many validations without a better value of the monitored metric"""
    profile_steps: str | None = Field(default=None, pattern=r"^[0-9]+:[0-9]+$")
    """steps to profile, FIRST:LAST; the trace is for TensorBoard, Chrome and Perfetto"""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in inspect.get_annotations(cls):
            if not name.startswith("_") and hasattr(BaseModel, name):
                raise ConfigurationError(
                    f"a hyperparameter cannot be called '{name}': pydantic's BaseModel has an attribute of that name",
                    where=f"class {cls.__qualname__}",
                    fix=f"call it '{name}_' or more precisely, and add Field(alias='{name}') to keep the option",
                )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        where = f"class {cls.__qualname__}"
        if not _is_strict(cls):
            raise ConfigurationError(
                "the settings of a run are frozen and take no unknown names",
                where=where,
                fix="drop 'frozen' and 'extra' from the class's configuration",
            )
        _check_spellings(cls, where)
        for name, field in cls.model_fields.items():
            _check_parts(field.annotation, f"{where}, hyperparameter {name}", above=())

    @model_validator(mode="after")
    def _freeze(self) -> Self:
        for name, value in self.__dict__.items():
            try:
                self.__dict__[name] = freeze(value)
            except RecursionError as error:
                raise ValueError(f"{name} is nested more than {_MAX_DEPTH} levels deep") from error
        return self


def spellings(name: str, field: FieldInfo) -> list[str]:
    """Return every name that a field can be given by: its own, its alias, the texts among its validation aliases."""
    given: list[Any] = [name, field.alias, field.validation_alias]
    if isinstance(field.validation_alias, AliasChoices):
        given += field.validation_alias.choices
    return list(dict.fromkeys(spelling for spelling in given if isinstance(spelling, str)))


def _check_spellings(settings: type[Hyperparameters], where: str) -> None:
    """Refuse two fields with one option, and a field with the option of something else."""
    owners: dict[str, str] = {}
    for name, field in settings.model_fields.items():
        for option in {spelling.replace("-", "_") for spelling in spellings(name, field)}:
            if option in RESERVED_NAMES:
                raise ConfigurationError(
                    f"the hyperparameter '{name}' has the name of an option that every script has: '{option}'",
                    where=where,
                    fix="choose another name; folders and channels are read from the context",
                )
            if owners.setdefault(option, name) != name:
                raise ConfigurationError(
                    f"the hyperparameters '{owners[option]}' and '{name}' share the option '{option}'",
                    where=where,
                    fix="give one of them another name or alias",
                )


def _is_strict(model: type[BaseModel]) -> bool:
    return bool(model.model_config.get("frozen")) and model.model_config.get("extra") == "forbid"


def _check_parts(annotation: Any, where: str, above: tuple[type, ...]) -> None:
    """Refuse classes in an annotation that could change after they are read, or would swallow a misspelt name."""
    if is_secret_of_a_kind(annotation):
        raise ConfigurationError(
            "a secret is a text or bytes here, for what travels in its place is a text, a reference to it",
            where=where,
            fix="write pydantic.SecretStr or SecretBytes in the place of Secret[...]",
        )
    for part in classes_with_fields(annotation):
        name = part.__name__
        fix = f'write `class {name}(pydantic.BaseModel, frozen=True, extra="forbid")`'
        if part in above:
            problem, fix = f"{name} holds itself, and its options have no end", "write one class for each level"
        elif issubclass(part, Hyperparameters):
            problem = f"{name} brings the settings of a whole run ('epochs', 'batch_size', ...) into a part of them"
        elif not issubclass(part, BaseModel):
            problem = f"{name} is a dataclass, which can change after it is read"
        elif not _is_strict(part):
            problem = f"{name} can be changed after it is read, or swallows misspelt names"
        else:
            for inner, field in part.model_fields.items():
                _check_parts(field.annotation, f"{where}.{inner}", (*above, part))
            continue
        raise ConfigurationError(problem, where=where, fix=fix)


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


_MAX_DEPTH = 100
"""A value must be able to go into a checkpoint; pydantic writes 255 levels."""


def freeze(value: Any, depth: int = 0) -> Any:
    """Return `value` with every list, dict and set in it, at any depth, made unchangeable.

    Raises:
        RecursionError: The value is nested more than 100 levels deep, or holds itself.
    """
    if depth > _MAX_DEPTH:
        raise RecursionError
    if isinstance(value, BaseModel):
        for name, item in value.__dict__.items():
            value.__dict__[name] = freeze(item, depth + 1)
        return value
    if type(value) is tuple:
        return tuple(freeze(item, depth + 1) for item in value)
    if type(value) is list:
        return _FrozenList(freeze(item, depth + 1) for item in value)
    if type(value) is dict:
        return _FrozenDict((key, freeze(item, depth + 1)) for key, item in value.items())
    if type(value) is set:
        return _FrozenSet(value)
    return value
