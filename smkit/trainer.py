"""Trainer: the training loop, readable from top to bottom, written in terms of the other rooms of this wing.

A user subclasses it, builds a model and an optimizer, and writes the step. This room decides the order of things;
how data is fetched, numbers computed, states saved and metrics written it leaves to the rooms that know.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from typing_extensions import TypeVar

from smkit import contract, preflight, report
from smkit.cadence import next_multiple
from smkit.checkpoint import CheckpointStore
from smkit.data.batches import Group, Loader
from smkit.data.draws import Transform
from smkit.data.layouts import open_dataset
from smkit.data.loader import Workers
from smkit.device import Placement
from smkit.errors import CheckpointError
from smkit.export import write_weights
from smkit.metrics import MetricLog
from smkit.monitor import LossGuard, Monitor
from smkit.progress import Progress, duration
from smkit.randomness import seed_all
from smkit.run_state import RunState, Saves
from smkit.start_table import start_table
from smkit.stopping import StopRequest
from smkit.validation import validate

if TYPE_CHECKING:
    # At run time these come with the user's own script; the loop alone does not pay for importing pydantic.
    from smkit.context import TrainingContext
    from smkit.facts import Channel
    from smkit.hyperparameters import Hyperparameters

logger = logging.getLogger(__name__)

_OWN_METRICS = frozenset({"train/loss", "train/grad_norm", "train/learning_rate"})

HP = TypeVar("HP", bound="Hyperparameters", default="Hyperparameters")


class Trainer(ABC, Generic[HP]):
    """A training run. Subclass it as `Trainer[Settings]`, write the `build_*` methods and the step, call `main`.

    Args:
        context: The run's context, from `TrainingContext.load`.

    Attributes:
        context: As given.
        hp: The context's hyperparameters, typed as the subclass says.
        model: What `build_model` returned, on its device; set by `fit`.
        optimizer: What `build_optimizer` returned; set by `fit`.
        scheduler: What `build_scheduler` returned; set by `fit`.
        placement: Device and precision; set by `fit`.
        step: Optimizer steps done.
        total_steps: Optimizer steps of the whole run; known before `build_optimizer` is called.
    """

    train_channel = "train"
    validation_channel = "validation"
    workers: Workers = "auto"
    """Who reads data: see `smkit.make_loader`."""
    num_workers: int | None = None
    """Processes, if `workers` is "process"."""
    skip_budget = 0
    """How many training samples may be unreadable, and be replaced by others; by default none."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    placement: Placement

    def __init__(self, context: TrainingContext[HP]) -> None:
        self.context = context
        self.hp: HP = context.hp
        self.step = 0
        self.total_steps = 0
        self._stop = StopRequest()
        self._record: dict[str, float] = {}

    # --- what a user writes -------------------------------------------------------------------------------------------

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the model; random generators are seeded already."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of `model`, which is on its device."""

    @abstractmethod
    def training_step(self, batch: Any) -> Tensor:
        """Return the mean loss of `batch` over its samples, a tensor of one element."""

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler | None:  # noqa: ARG002
        """Return a scheduler, stepped once per optimizer step; `self.total_steps` is known. None by default."""
        return None

    def build_dataset(self, channel: Channel) -> Dataset[Any]:
        """Return the data set of a channel, of any kind; by default what `open_dataset` makes of its files."""
        return open_dataset(channel)

    def build_transform(self) -> Transform | None:
        """Return what makes a training batch of a batch that was read, such as augmentation; None by default.

        It is called with random numbers that belong to the batch's samples, see `smkit.SampleRandom`.
        """
        return None

    def validation_step(self, batch: Any) -> Mapping[str, Any]:
        """Return metrics of `batch` by name; written, there is validation, if the run has the channel for it.

        A value is a mean over the batch's samples, a tensor `(samples,)` of one value each, or a pair (sum, count).
        """
        raise NotImplementedError

    def export_model(self, directory: Path) -> None:
        """Write the finished model, in evaluation mode, to `directory`; by default its weights: model.safetensors."""
        write_weights(self.model, directory / "model.safetensors")

    def state_dict(self) -> dict[str, Any]:
        """Return what the run remembers besides model, optimizer and schedule: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up, on resume, what `state_dict` has returned."""

    def log(self, name: str, value: Tensor | float) -> None:
        """Note a metric within a training step; its mean appears in the next record. A tensor stays on its device."""
        if name in _OWN_METRICS or not self.model.training:
            raise preflight.not_to_be_logged(name, is_validating=not self.model.training)
        # A copy: a parameter or a buffer would have changed by the time it is read.
        self._log.add(name, value.detach().clone() if isinstance(value, Tensor) else value)

    # --- the process --------------------------------------------------------------------------------------------------

    @classmethod
    def main(cls) -> NoReturn:
        """Run this trainer as a script: load the context, fit, end the process with the right status.

        Status 0: finished. 2: a mistake in the settings. 1: any other failure; its cause is in the job's failure file.
        143: stopped by SIGTERM, 130: by Ctrl-C, a checkpoint saved; the same command with the same `--run-dir` goes on.
        """
        from smkit.context import TrainingContext

        program = Path(sys.argv[0]).name
        context = TrainingContext.load(preflight.settings_of(cls, Trainer))
        if not context.is_sagemaker:
            contract.failure_file(context.output_dir).unlink(missing_ok=True)
        try:
            cls(context).fit()
        except KeyboardInterrupt:
            report.say(f"{program}: interrupted; {context.checkpoint_dir} holds what was saved")
            sys.exit(contract.INTERRUPTED_EXIT_STATUS)
        except SystemExit as end:
            if not end.code:
                # SageMaker would take a script that leaves in mid-training for one that has finished.
                report.say(f"{program}: something called sys.exit() before the training was done")
                sys.exit(1)
            raise
        except Exception as error:
            sys.exit(report.end(error, program=program, output_dir=context.output_dir))
        sys.exit(0)

    def fit(self) -> dict[str, float]:
        """Train, validate, save and export.

        In pseudocode:

            check the places, build data, model, optimizer, scheduler     # cheap mistakes are found first
            go on from the newest whole checkpoint, if there is one
            until epochs or max_steps are done, or early stopping:
                for each batch of the epoch:
                    for each micro-batch of it:
                        loss = training_step(micro-batch), weighed by its share of the batch's samples
                        backward
                    clip, optimizer step, scheduler step
                    if due: write metrics, validate, save a checkpoint
                    if asked to stop: save a checkpoint, leave
            export the model (the best one, if a metric is monitored)

        Returns:
            The latest value of every metric that was written.

        Raises:
            SmkitError: Something that the user can mend, with what, where and how.
            SystemExit: Status 143, after SIGTERM and a checkpoint.
            KeyboardInterrupt: After Ctrl-C and a checkpoint; at once after a second one.
        """
        self.step, self._stop, self._record = 0, StopRequest(), {}
        with self._stop.listening(on_deadline=self._miss_deadline):
            try:
                self._prepare()
                while not self._is_finished():
                    batches = iter(self._loader)
                    for group in self._loader.groups():
                        try:
                            self._train_on(batches, group)
                        except RuntimeError:
                            # A request to stop that reaches the worker processes too takes their data away.
                            if self._stop:
                                self._leave()
                            raise
                        if (
                            self.step >= self._event_step
                            or time.monotonic() >= self._event_time
                            or self._stop.signal is not None
                        ):
                            self._between_steps()
                            if self._is_finished():
                                break
                    else:
                        if self._loader.steps_per_epoch is None:
                            self._between_steps()
                self._finish()
            finally:
                self._close()
        return self._record

    # --- the loop's parts, in the order in which they happen ----------------------------------------------------------

    def _prepare(self) -> None:
        """Check the places, build every part, go on from a checkpoint, and say what was resolved."""
        self._began, hp, context = time.monotonic(), self.hp, self.context
        preflight.require_one_process(context.world_size)
        preflight.require_writable(context.model_dir, context.checkpoint_dir)
        self._monitor = Monitor(hp.monitor, hp.monitor_mode, hp.early_stopping_patience)
        self.placement = Placement.choose(hp.precision, context.local_rank)
        self._loss_guard = LossGuard(scales_gradients=self.placement.scaler is not None)
        seed_all(hp.seed)
        self._loader = self._make_loader(self.train_channel, shuffle=True)
        self._validation_loader = self._make_validation_loader()
        self.total_steps = preflight.total_steps(self._loader.steps_per_epoch, hp.epochs, hp.max_steps)
        self.model = preflight.built(self.build_model(), nn.Module, "build_model").to(self.placement.device)
        if not self.model.training:
            self.model.train()
        self.optimizer = preflight.built(self.build_optimizer(self.model), Optimizer, "build_optimizer")
        preflight.require_own_parameters(self.optimizer, self.model)
        self.scheduler = preflight.step_scheduler(self.build_scheduler(self.optimizer))
        metrics_file = context.output_data_dir / "metrics.jsonl"
        self._log = MetricLog(metrics_file, contract.tensorboard_dir(context.output_dir))
        self._resume()
        self._progress = Progress(self.total_steps, self.step)
        self._logged_step = self.step - len(self._log.read().get("train/loss", []))
        self._begin_interval()
        self._between_steps()

    def _make_loader(self, channel: str, *, shuffle: bool) -> Loader:
        return self.context.dataloader(
            channel,
            build_dataset=self.build_dataset,
            shuffle=shuffle,
            gradient_accumulation_steps=None if shuffle else 1,
            workers=self.workers,
            num_workers=self.num_workers,
            transform=self.build_transform() if shuffle else None,
            on_error="skip" if shuffle and self.skip_budget else "raise",
            skip_budget=self.skip_budget if shuffle else 0,
        )

    def _make_validation_loader(self) -> Loader | None:
        is_written = type(self).validation_step is not Trainer.validation_step
        has_channel = self.context.has_channel(self.validation_channel)
        if is_written and has_channel:
            return preflight.with_same_classes(self._loader, self._make_loader(self.validation_channel, shuffle=False))
        if is_written:
            preflight.require_no_near_miss([channel.name for channel in self.context.channels], self.validation_channel)
        if self._monitor.metric is not None:
            missing = f"channel '{self.validation_channel}'" if is_written else "validation_step"
            raise preflight.nothing_to_monitor(self._monitor.metric, missing)
        return None

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one, and say what this run is."""
        run = RunState(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            placement=self.placement,
            loader=self._loader,
            log=self._log,
            monitor=self._monitor,
            loss_guard=self._loss_guard,
            own=self,
            hyperparameters=self.context.settings_document()["hyperparameters"],
        )
        self._saves = Saves(run, CheckpointStore(self.context.checkpoint_dir), self.hp.checkpoint_every_seconds)
        self._saves.check()
        resumed = self._saves.resume()
        self.step, changed = resumed or (0, [])
        text = start_table(
            type(self).__name__,
            self.context,
            placement=self.placement,
            train=self._loader,
            validation=self._validation_loader,
            model=self.model,
            total_steps=self.total_steps,
            resumed_step=None if resumed is None else self.step,
        )
        report.say(text)
        for change in changed:
            report.say(f"note: goes on with another {change}; optimizer and schedule keep what the checkpoint holds")

    def _begin_interval(self) -> None:
        self._interval_began, self._interval_step, self._waited_seconds = time.monotonic(), self.step, 0.0

    def _train_on(self, batches: Iterator[Any], group: Group) -> None:
        """Do one optimizer step on the next micro-batches, those of `group`."""
        placement = self.placement
        total = group.samples
        mean_loss: Tensor | None = None
        for size in group.shares:
            began = time.perf_counter()
            batch = placement.move(next(batches))
            self._waited_seconds += time.perf_counter() - began
            with placement.autocast():
                loss: Any = self.training_step(batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise preflight.no_loss(loss, f"{type(self).__name__}.training_step, step {self.step + 1}")
            if size != total:
                loss = loss * (size / total)
            placement.backward(loss)
            mean_loss = loss.detach() if mean_loss is None else mean_loss + loss.detach()
        norm = placement.step(self.optimizer, self._clipped_parameters(), self.hp.max_grad_norm)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None and not placement.skipped:
            self.scheduler.step()
        self._loader.advance()
        self.step += 1
        if mean_loss is not None:
            self._log.add("train/loss", mean_loss)
        if norm is not None:
            self._log.add("train/grad_norm", norm)

    def _clipped_parameters(self) -> list[Tensor]:
        """Return what the optimizer trains by now, if gradients are clipped."""
        if self.hp.max_grad_norm is None:
            return []
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return self._loader.epoch + (1 if self._loader.step else 0)

    def _is_finished(self) -> bool:
        return self.step >= self.total_steps or self._monitor.is_stuck

    def _between_steps(self) -> None:
        """Do what is due by now: metrics, validation, a stop, a checkpoint, the progress line."""
        hp = self.hp
        if self.step > self._logged_step and (self.step % hp.log_every_steps == 0 or self._is_finished()):
            self._write_metrics()
        if self._validation_loader is not None and self._is_validation_due():
            self._validate(self._validation_loader)
        if self._stop:
            self._leave()
        self._saves.save_if_due(self.step)
        if time.monotonic() >= self._progress.due:
            self._progress.draw(self.step, hp.batch_size)
        # Of a stream without a length the end of an epoch is known when it is there.
        epoch_end = self.step + (self._loader.steps_per_epoch or math.inf) - self._loader.step
        validation = epoch_end if hp.validate_every_steps is None else next_multiple(self.step, hp.validate_every_steps)
        self._event_step = min(next_multiple(self.step, hp.log_every_steps), validation, self.total_steps)
        self._event_time = min(self._saves.due_time, self._progress.due)

    def _write_metrics(self) -> None:
        losses = self._log.read().get("train/loss", [])
        self._loss_guard.check(losses, last_step=self.step, are_final=True)
        values = {"train/learning_rate": float(self.optimizer.param_groups[0]["lr"])}
        steps = self.step - self._interval_step
        if steps:
            seconds = max(time.monotonic() - self._interval_began, 1e-9)
            values["train/samples_per_second"] = steps * self.hp.batch_size / seconds
            values["train/data_wait_percent"] = 100 * self._waited_seconds / seconds
            values["train/eta_seconds"] = (self.total_steps - self.step) * seconds / steps
        self._progress.clear()
        self._record |= self._log.write(self.step, self.epoch, values)
        self._progress.note(f"loss {self._record['train/loss']:.4g}")
        self._logged_step = self.step
        self._begin_interval()

    def _is_validation_due(self) -> bool:
        every = self.hp.validate_every_steps
        is_its_time = self._loader.step == 0 if every is None else self.step % every == 0
        return (is_its_time or self.step >= self.total_steps) and self.step != self._monitor.judged_step

    def _validate(self, loader: Loader) -> None:
        """Write the means over all samples of the validation channel, and save what is best; a stop abandons it."""
        values = validate(self.model, self.validation_step, loader, self.placement, self._stop)
        if values is None:
            return
        self._progress.clear()
        self._log.write_values(self.step, self.epoch, values)
        self._record |= values
        if self._monitor.judge(values, self.step):
            self._saves.save(self.step, score=self._monitor.best_score)

    def _leave(self) -> NoReturn:
        """Save where the run stands, and leave with the status of the signal."""
        self._progress.clear()
        interrupted = self._stop.exit_status == contract.INTERRUPTED_EXIT_STATUS
        outcome = (
            f"step {self.step:,} is saved in {self.context.checkpoint_dir}" if self.step else "nothing was trained yet"
        )
        try:
            self._saves.finish(self.step)
        except CheckpointError as error:
            outcome = f"step {self.step:,} could not be saved: {error}"
        report.say(f"stopped by {'Ctrl-C' if interrupted else 'SIGTERM'}: {outcome}")
        if interrupted:
            raise KeyboardInterrupt
        raise SystemExit(self._stop.exit_status)

    def _miss_deadline(self) -> None:
        text = f"asked to stop, and not done after {contract.STOP_DEADLINE_SECONDS:.0f} s, at step {self.step}"
        report.write_failure(self.context.output_dir, text)

    def _finish(self) -> None:
        """Save the last state, put the best weights back, write the model and its settings."""
        if self.step > self._logged_step:
            self._write_metrics()
        try:
            self._saves.finish(self.step)
        except CheckpointError as error:
            logger.warning("the last checkpoint could not be saved, the model goes on its way: %s", error)
        which = self._use_best_model()
        preflight.require_numbers(self.model)
        directory = self.context.model_dir
        self.model.eval()
        try:
            self.export_model(directory)
            self.context.save_settings(directory)
        except OSError as error:
            raise preflight.unwritable(directory, error, kept=self.context.checkpoint_dir) from error
        self._progress.clear()
        took = duration(time.monotonic() - self._began)
        replaced = f", {len(self._loader.skipped)} unreadable samples replaced" if self._loader.skipped else ""
        report.say(f"finished: {self.step:,} steps in {took}{replaced}; {which} is in {directory}")

    def _use_best_model(self) -> str:
        if self._monitor.best_score is None:
            return "the model"
        step = self._saves.use_best_model(self._monitor.best_score)
        if step is None:
            logger.warning("the best checkpoint is damaged or gone; the model is that of step %d", self.step)
        return f"the model of step {self.step:,}" if step is None else f"the best model, of step {step:,},"

    def _close(self) -> None:
        if hasattr(self, "_saves"):
            self._saves.close()
        if hasattr(self, "_log"):
            self._log.close()
        if hasattr(self, "_progress"):
            self._progress.clear()
