"""What a run says of itself before its first step: each part in a line, each setting with its origin.

This room decides nothing, and writes nothing: `trainer` says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from smkit import report
from smkit.data.batches import Loader
from smkit.device import Placement

if TYPE_CHECKING:
    from smkit.context import TrainingContext


def start_table(
    title: str,
    context: TrainingContext[Any],
    *,
    placement: Placement,
    train: Loader,
    validation: Loader | None,
    model: nn.Module,
    total_steps: int,
    resumed_step: int | None,
) -> str:
    """Return the table of what was resolved, and where each setting came from."""
    start = "new start" if resumed_step is None else f"goes on after step {resumed_step:,}"
    size = sum(parameter.numel() for parameter in model.parameters())
    an_epoch = "" if train.steps_per_epoch is None else f", {train.steps_per_epoch:,} an epoch"
    size_of_host = "" if context.local_world_size == context.world_size else f", {context.local_world_size} on a host"
    holds = "a part" if context.hp.strategy == "fsdp" else "all"
    together = f"{context.world_size} processes{size_of_host}, each with {holds} of the model ({context.hp.strategy})"
    rows = [
        ("device", placement.describe()),
        *([("together", together)] if context.world_size > 1 else []),
        ("train", train.describe()),
        ("validation", "none" if validation is None else validation.describe()),
        ("model", f"{type(model).__name__.removeprefix('FSDP')}, {size:,} parameters"),
        ("steps", f"{total_steps:,} of {context.hp.batch_size} samples{an_epoch}"),
        ("checkpoints", f"{context.checkpoint_dir}, {start}"),
        ("model goes to", str(context.model_dir)),
    ]
    settings = report.settings_rows(context.hp, context.origins)
    return report.table(rows, title=title) + "\n" + report.table(settings)
