"""The parts of a training, made of what the user's class says: loaders, the model on its device, the records.

Each function makes one part and keeps none; the order in which they are made is the trainer's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from smkit import contract, preflight, report
from smkit.backends import convolves_in_tf32, multiplies_in_tf32
from smkit.compilation import compile_model
from smkit.data.batches import Loader
from smkit.distributed import Ranks
from smkit.metrics import MetricLog
from smkit.monitor import LossGuard, Monitor
from smkit.parallel import shard
from smkit.recomputation import recompute
from smkit.records import Records
from smkit.script import Script
from smkit.throughput import hardware_metrics

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def make_loaders(script: Script[Any], monitor: Monitor) -> tuple[Loader, Loader | None]:
    """Return the loaders of training and, if there is one, of validation.

    Raises:
        SmkitError: A channel is missing or does not hold what it should, or nothing gives the monitored metric.
    """
    train = _make_loader(script, script.train_channel, shuffle=True)
    context, name = script.context, script.validation_channel
    is_written = type(script).validation_step is not Script.validation_step
    if is_written and context.has_channel(name):
        return train, preflight.with_same_classes(train, _make_loader(script, name, shuffle=False))
    if is_written:
        preflight.require_no_near_miss([channel.name for channel in context.channels], name)
    if monitor.metric is not None:
        raise preflight.nothing_to_monitor(monitor.metric, f"channel '{name}'" if is_written else "validation_step")
    return train, None


def _make_loader(script: Script[Any], channel: str, *, shuffle: bool) -> Loader:
    return script.context.dataloader(
        channel,
        build_dataset=script.build_dataset,
        shuffle=shuffle,
        gradient_accumulation_steps=None if shuffle else 1,
        workers=script.workers,
        num_workers=script.num_workers,
        transform=script.build_transform() if shuffle else None,
        on_error="skip" if shuffle and script.skip_budget else "raise",
        skip_budget=script.skip_budget if shuffle else 0,
    )


def make_model(script: Script[Any], ranks: Ranks) -> nn.Module:
    """Return the user's model in training mode, on its device, in parts if each rank is to hold one."""
    hp, device = script.hp, script.placement.device
    is_in_parts = ranks.world_size > 1 and hp.strategy == "fsdp"
    model = preflight.built(script.build_model(), nn.Module, "build_model")
    if not is_in_parts:
        # FSDP takes it there block by block, for as a whole it may not fit.
        model.to(device)
    if script.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not model.training:
        model.train()
    recompute(script.activation_checkpointing(model))
    if is_in_parts:
        shard(model, ranks, device.type)
    if hp.compile:
        compile_model(model, lambda text: report.say(f"note: {text}") if ranks.is_first else None)
    return model


def make_records(script: Script[Any], ranks: Ranks, guard: LossGuard) -> Records:
    """Return the records of the run, which rank 0 alone writes and shows."""
    context, is_first = script.context, ranks.is_first
    log = MetricLog(
        context.output_data_dir / "metrics.jsonl" if is_first else None,
        contract.tensorboard_dir(context.output_dir) if is_first else None,
        prints=is_first,
        gather=ranks.gathered if ranks.world_size > 1 else None,
    )
    return Records(
        log,
        guard,
        total_steps=script.total_steps,
        samples_per_step=script.hp.batch_size,
        hardware=_hardware(script, ranks),
        is_shown=is_first,
    )


def _hardware(script: Script[Any], ranks: Ranks) -> Callable[[float], dict[str, float]]:
    """Return what tells of the GPU at a rate of samples per second."""
    precision: str = script.placement.precision
    convolves = any(isinstance(module, _CONVOLUTIONS) for module in script.model.modules())
    # The faster of the units that it uses, or the share could be more than all.
    if precision == "fp32" and (multiplies_in_tf32() or (convolves and convolves_in_tf32())):
        precision = "tf32"
    return lambda rate: hardware_metrics(
        script.placement.device,
        precision,
        samples_per_second=rate,
        flops_per_sample=script.flops_per_sample,
        world_size=ranks.world_size,
    )
