"""Train a GAN on the digits in one process: a loop of one's own that goes on exactly where it was stopped or killed."""

import signal
import sys
import time
from typing import Any

import torch
from gan import GAN
from safetensors.torch import save_file
from settings import GANSettings

import smkit


def main() -> None:
    context = smkit.TrainingContext.load(GANSettings)
    hp, placement = context.hp, smkit.Placement.choose(context.hp.precision)
    torch.manual_seed(hp.seed)
    gan = GAN(hp, placement)
    loader = context.dataloader("train")
    log = smkit.MetricLog(context.output_data_dir / "metrics.jsonl")
    store = smkit.CheckpointStore(context.checkpoint_dir)

    step = 0
    if (checkpoint := store.latest()) is not None:
        step = checkpoint.step
        gan.load_state_dict(checkpoint.state["model"])
        loader.load_state_dict(checkpoint.state["data"])
        log.load_state_dict(checkpoint.state["metrics"], step)

    def state() -> dict[str, Any]:
        return {"model": gan.state_dict(), "data": loader.state_dict(), "metrics": log.state_dict()}

    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    save_time = time.monotonic() + hp.checkpoint_every_seconds
    while loader.epoch < hp.epochs:
        for images, _ in map(placement.move, loader):
            for name, loss in gan.step(images).items():
                log.add(name, loss)
            loader.advance()
            step += 1
            if step % hp.log_every_steps == 0:
                log.write(step, loader.epoch)
            if signals:
                store.save(step, state())
                sys.exit(128 + signals[0])
            if time.monotonic() >= save_time:
                store.start(step, state())  # copied now, written in the background
                save_time = time.monotonic() + hp.checkpoint_every_seconds

    store.save(step, state())
    save_file(gan.generator.state_dict(), context.model_dir / "model.safetensors")
    context.save_settings(context.model_dir)


if __name__ == "__main__":
    main()
