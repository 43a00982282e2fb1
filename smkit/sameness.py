"""What the ranks of a run must have in common, compared before they train: else they wait in vain or mix their numbers.

This room compares; it makes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smkit.data.batches import Loader
from smkit.distributed import Ranks


def require_one_run(
    ranks: Ranks, *, hyperparameters: Mapping[str, Any], train: Loader, validation: Loader | None
) -> None:
    """Return when all ranks have come here, if they have the same settings and the same data.

    Raises:
        ConfigurationError: On all ranks alike, with what is not the same.
    """
    facts: dict[str, Any] = {f"hyperparameter '{name}'": _comparable(value) for name, value in hyperparameters.items()}
    for channel, loader in (("training", train), ("validation", validation)):
        facts[f"the {channel} data"] = {} if loader is None else loader.state_dict()
    ranks.require_same(facts)


def _comparable(value: Any) -> Any:
    """Return a value that is equal on two ranks if the values are: NaN too, sets in one order, of secrets nothing."""
    if isinstance(value, Mapping):
        return {str(name): _comparable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    return value if type(value) in (bool, int, str, type(None)) else repr(value)
