"""Peers that are asked to stop in a step, each as its documentation says, saving every tenth step.

A peer has survived if the last finished step is saved, and its status says that it was stopped. Lost: steps that were
done are not saved. Silent: its status says that the training is done, or what is half trained was handed over as such.

    python -m torture.stops.peers NAME FOLDER
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torture.tally import Campaign, Outcome

STEPS = 300
SAVED_EVERY = 10
STEP_SECONDS = 0.02
ENDS_SECONDS = 120.0
SHARE_OF_ROUNDS = 10


def attack(campaign: Campaign, peer: str) -> None:
    draw = campaign.draws(f"stops {peer}")
    for number in range(max(3, campaign.rounds // SHARE_OF_ROUNDS)):
        folder = campaign.folder / f"{peer}-{number}"
        folder.mkdir()
        steps, signals = draw.randint(5, 60), [draw.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT))]
        outcome, text = stopped(peer, folder, steps, signals[0])
        note = f"round {number}, seed {campaign.seed} ({signals[0].name} in step {steps}): {text}"
        campaign.tally.count("stops: in a step", peer, outcome, note)


def stopped(peer: str, folder: Path, steps: int, number: signal.Signals) -> tuple[Outcome, str]:
    command = [sys.executable, "-m", "torture.stops.peers", peer, str(folder)]
    tests = Path(__file__).parent.parent.parent
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + ENDS_SECONDS
    while len(words(folder)) < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    try:
        status = process.wait(ENDS_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Outcome.LOST, "it did not end within 120 s"
    done, saved = len(words(folder)), SAVED[peer](folder)
    if status == 0 or (folder / "model").exists():
        published = ", and the half-trained model is handed over" if (folder / "model").exists() else ""
        return Outcome.SILENT, f"status {status}{published}; {done} steps done, {saved} saved"
    if saved != done:
        return Outcome.LOST, f"status {status}; {done} steps done, {saved} saved"
    return Outcome.SURVIVED, ""


def words(folder: Path) -> list[str]:
    file = folder / "notes"
    return file.read_text().splitlines() if file.exists() else []


def newest_number(folder: Path, pattern: str, file: str) -> int:
    found = [re.fullmatch(pattern, path.parent.name) for path in folder.glob(f"**/{file}")]
    return max((int(match[1]) for match in found if match), default=0)


def step_of_lightning(folder: Path) -> int:
    import torch

    files = list((folder / "run").glob("*.ckpt"))
    return max((int(torch.load(file, weights_only=False)["global_step"]) for file in files), default=0)


SAVED: dict[str, Callable[[Path], int]] = {
    "lightning": step_of_lightning,
    "accelerate": lambda folder: newest_number(folder, r"step_(\d+)", "optimizer.bin"),
    "huggingface": lambda folder: newest_number(folder, r"checkpoint-(\d+)", "trainer_state.json"),
}
"""The last step that a peer has saved."""


def noting(folder: Path) -> Any:
    """Return an optimizer class that notes each step when it is done."""
    from torch.optim import SGD

    file = os.open(folder / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    class NotingSGD(SGD):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            os.write(file, b"done\n")
            time.sleep(STEP_SECONDS)
            return result

    return NotingSGD


def lightning(folder: Path) -> None:
    import lightning.pytorch as lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    from torture.subjects.training import Samples

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 4)

        def training_step(self, batch: Any, _: int) -> Any:
            return torch.nn.functional.cross_entropy(self.layer(batch["pixels"]), batch["labels"])

        def configure_optimizers(self) -> Any:
            return noting(folder)(self.parameters(), lr=0.1)

    saves = ModelCheckpoint(folder / "run", every_n_train_steps=SAVED_EVERY, save_last=True)
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[saves]
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(Samples(), batch_size=4, shuffle=True))
    trainer.save_checkpoint(folder / "model")


def accelerate(folder: Path) -> None:
    import torch
    from accelerate import Accelerator

    from torture.subjects.training import Samples

    accelerator = Accelerator(cpu=True)
    own = torch.nn.Linear(16, 4)
    loader = torch.utils.data.DataLoader(Samples(), batch_size=4, shuffle=True)
    model, optimizer, loader = accelerator.prepare(own, noting(folder)(own.parameters(), lr=0.1), loader)
    step = 0
    while step < STEPS:
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(torch.nn.functional.cross_entropy(model(batch["pixels"]), batch["labels"]))
            optimizer.step()
            step += 1
            if step % SAVED_EVERY == 0:
                accelerator.save_state(str(folder / "run" / f"step_{step}"))
    accelerator.save_model(model, str(folder / "model"))


def huggingface(folder: Path) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    from torture.subjects.training import Samples

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 4)

        def forward(self, pixels: Any, labels: Any, index: Any) -> Any:
            logits = self.layer(pixels)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = Model()
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=SAVED_EVERY,
        enable_jit_checkpoint=True,
    )
    optimizer = noting(folder)(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = Trainer(model=model, args=arguments, train_dataset=Samples(), optimizers=(optimizer, scheduler))
    trainer.train()
    trainer.save_model(str(folder / "model"))


WAYS: dict[str, Callable[[Path], None]] = {
    "lightning": lightning,
    "accelerate": accelerate,
    "huggingface": huggingface,
}

if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]))
