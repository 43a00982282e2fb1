"""Trainer: the training loop, readable from top to bottom, written in terms of the other rooms of this wing.

A user subclasses it, builds a model and an optimizer, and writes the step. This room decides the order of things;
how data is fetched, numbers computed, states saved and metrics written it leaves to the rooms that know.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor
from torch.optim import Optimizer

from smkit import contract, preflight, report
from smkit.agreement import Agreement
from smkit.assembly import make_loaders, make_model, make_records
from smkit.averaging import WeightAverage
from smkit.backends import backend_settings
from smkit.cadence import next_multiple
from smkit.checkpoint import CheckpointStore
from smkit.claim import claimed
from smkit.data.batches import Group, Loader
from smkit.device import Placement
from smkit.disk import sync_tree
from smkit.distributed import LostRankError
from smkit.errors import CheckpointError
from smkit.explanations import LostGPUError, explaining
from smkit.monitor import LossGuard, Monitor
from smkit.parallel import parallel_step, share_buffers, whole_model
from smkit.profiling import ProfileWindow
from smkit.progress import duration
from smkit.randomness import rank_seed, seed_all
from smkit.run_state import RunState, Saves
from smkit.sameness import require_one_run
from smkit.script import HP, Script
from smkit.sharding import mesh_of, whole
from smkit.start_table import start_table
from smkit.stopping import StopRequest
from smkit.validation import validate

if TYPE_CHECKING:
    # At run time it comes with the user's own script; the loop alone does not pay for importing pydantic.
    from smkit.context import TrainingContext

logger = logging.getLogger(__name__)


class Trainer(Script[HP]):
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

    def __init__(self, context: TrainingContext[HP]) -> None:
        super().__init__(context)
        self._stop = StopRequest()

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
        if context.world_size > 1:
            program = f"{program}, rank {context.rank}"
        try:
            if not context.is_sagemaker and context.local_rank == 0:
                preflight.forget(contract.failure_file(context.output_dir))
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
            status = report.end(error, program=program, output_dir=context.output_dir)
            # Threads that still wait within torch would abort a process that tidies up.
            if isinstance(error, (LostGPUError, LostRankError)):
                report.end_at_once(status)
            sys.exit(status)
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
                    clip, optimizer step, scheduler step           # gradients are means over all ranks
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
        self.step, self._stop = 0, StopRequest()
        # The processes that this one is to meet may have been stopped before they came.
        self._stop.is_obeyed_at_once = True
        with (
            self._stop.listening(on_deadline=self._miss_deadline),
            self.context.join(self.timeout_seconds) as self._ranks,
            backend_settings(
                float32_matmul_precision=self.hp.float32_matmul_precision, cudnn_benchmark=self.cudnn_benchmark
            ),
            ExitStack() as self._at_the_end,
            explaining(),
        ):
            self._stop.is_obeyed_at_once = False
            self._prepare()
            while not self._is_finished():
                batches = iter(self._loader)
                for group in self._loader.groups():
                    try:
                        self._train_on(batches, group)
                    except RuntimeError:
                        # A request to stop that reaches the processes of a user's own DataLoader takes their data away.
                        if self._stop and self._ranks.world_size == 1:
                            self._leave()
                        raise
                    # Asked at every step: three comparisons, and no call.
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
        return self._records.latest

    # --- the loop's parts, in the order in which they happen ----------------------------------------------------------

    def _prepare(self) -> None:
        """Check the places, build every part, go on from a checkpoint, and say what was resolved."""
        self._began, hp, context = time.monotonic(), self.hp, self.context
        preflight.require_writable(context.model_dir, context.checkpoint_dir)
        if self._ranks.is_first:
            self._at_the_end.enter_context(claimed(context.checkpoint_dir))
        self._profile = ProfileWindow(hp.profile_steps, context.output_data_dir / "profile", self._ranks.rank)
        self._at_the_end.callback(self._profile.close)
        self._monitor = Monitor(hp.monitor_metric, hp.monitor_mode, hp.early_stopping_patience)
        self.placement = Placement.choose(hp.precision, context.local_rank)
        self._autocast = self.placement.autocast()
        preflight.warn_of_idle_gpus(self.placement.device.type, context.num_gpus)
        seed_all(hp.seed)
        self._loader, self._validation_loader = make_loaders(self, self._monitor)
        require_one_run(
            self._ranks,
            hyperparameters=hp.model_dump(),
            train=self._loader,
            validation=self._validation_loader,
        )
        self.total_steps = preflight.total_steps(self._loader.steps_per_epoch, hp.epochs, hp.max_steps)
        self.model = make_model(self, self._ranks)
        self.optimizer = preflight.built(self.build_optimizer(self.model), Optimizer, "build_optimizer")
        preflight.require_own_parameters(self.optimizer, self.model)
        self.scheduler = preflight.step_scheduler(self.build_scheduler(self.optimizer))
        # Only now is it known what is trained: an optimizer's builder may freeze a part of the model.
        self._parallel = parallel_step(
            self.training_step,
            self.model,
            self._ranks,
            hp.strategy,
            find_unused_parameters=self.find_unused_parameters,
        )
        self._average = None if hp.ema_decay is None else WeightAverage(self.model, hp.ema_decay)
        # To ask whether a step was skipped can mean to wait for the GPU.
        self._follows_steps = self.scheduler is not None or self._average is not None
        if self._ranks.rank:
            # The weights are those of one seed; what is drawn in a step is each rank's own.
            seed_all(rank_seed(hp.seed, self._ranks.rank, 0))
        self._agreement, self._is_stopping = Agreement(self._ranks), False
        scaler = self.placement.scaler
        guard = LossGuard(None if scaler is None else scaler.get_scale)
        self._records = make_records(self, self._ranks, guard)
        self._at_the_end.callback(self._records.close)
        self._resume(guard)
        self._records.begin(self.step)
        self._polled_step = self.step
        self._between_steps()

    def _resume(self, guard: LossGuard) -> None:
        """Go on from the newest whole checkpoint, if there is one, and say what this run is."""
        run = RunState(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            average=self._average,
            placement=self.placement,
            loader=self._loader,
            log=self._records.log,
            monitor=self._monitor,
            loss_guard=guard,
            own=self,
            ranks=self._ranks,
            hyperparameters=self.context.settings_document()["hyperparameters"],
        )
        store = CheckpointStore(
            self.context.checkpoint_dir,
            ranks=self._ranks,
            mesh=mesh_of(self.model),
            companions=self._records.log.files,
        )
        self._saves = Saves(run, store, self.hp.checkpoint_every_seconds, is_mirrored=self.context.is_sagemaker)
        self._at_the_end.callback(self._saves.close)
        self._saves.check()
        resumed = self._saves.resume()
        self.step, changed = resumed or (0, [])
        self._say(
            start_table(
                type(self).__name__,
                self.context,
                placement=self.placement,
                train=self._loader,
                validation=self._validation_loader,
                model=self.model,
                total_steps=self.total_steps,
                resumed_step=None if resumed is None else self.step,
            )
        )
        for change in changed:
            self._say(f"note: goes on with another {change}; optimizer and schedule keep what the checkpoint holds")

    def _say(self, text: str) -> None:
        """Say something that all ranks would say, once."""
        if self._ranks.is_first:
            report.say(text)

    def _train_on(self, batches: Iterator[Any], group: Group) -> None:
        """Do one optimizer step on the next micro-batches, those of `group`."""
        placement, records, world_size = self.placement, self._records, self._ranks.world_size
        last = len(group.shares) - 1
        mean_loss: Tensor | None = None
        for number, share in enumerate(group.shares):
            began = time.perf_counter()
            batch = placement.move(next(batches))
            records.waited_seconds += time.perf_counter() - began
            records.share = share
            with self._parallel.turn(is_last=number == last):
                with self._autocast:
                    loss: Any = self._parallel.call(batch)
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    raise preflight.no_loss(loss, f"{type(self).__name__}.training_step, step {self.step + 1}")
                weight = share * world_size / group.samples
                if weight != 1:
                    loss = loss * weight
                placement.backward(loss)
            mean_loss = loss.detach() if mean_loss is None else mean_loss + loss.detach()
        norm = placement.step(self.optimizer, self._clipped_parameters(), self.hp.max_grad_norm)
        self.optimizer.zero_grad(set_to_none=True)
        if self._follows_steps and not placement.skipped:
            if self.scheduler is not None:
                self.scheduler.step()
            if self._average is not None:
                self._average.update()
        self._loader.advance()
        self.step += 1
        # Each rank's word weighs the same, and all of them together weigh as much as the one of a run that is alone.
        if mean_loss is not None:
            records.log.add("train/loss", mean_loss, 1 / world_size)
        if norm is not None:
            records.log.add("train/grad_norm", whole(norm), 1 / world_size)

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
        hp, records = self.hp, self._records
        if self.step % hp.log_every_steps == 0 or self._is_finished():
            records.write(self.step, self.epoch, self.optimizer)
        self._saves.prepare(self.step)
        saves = self._poll(self.step - self._polled_step)
        self._polled_step = self.step
        if self._validation_loader is not None and self._is_validation_due() and not self._is_stopping:
            self._validate(self._validation_loader)
            saves |= self._poll(0)
        if self._is_stopping:
            self._leave()
        if saves:
            self._saves.save(self.step)
        trace = self._profile.at(self.step)
        if trace is not None:
            self._say(f"note: a trace of what was profiled is in {trace}")
        records.draw_if_due(self.step)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Note the step and the time by which something is due again."""
        hp = self.hp
        # Of a stream without a length the end of an epoch is known when it is there.
        epoch_end = self.step + (self._loader.steps_per_epoch or math.inf) - self._loader.step
        validation = epoch_end if hp.validate_every_steps is None else next_multiple(self.step, hp.validate_every_steps)
        poll = self.step + self._agreement.ticks_left
        self._event_step = min(
            next_multiple(self.step, hp.log_every_steps), validation, self.total_steps, poll, self._profile.due_step
        )
        self._event_time = min(self._saves.due_time, self._records.due_time)

    def _poll(self, ticks: int) -> bool:
        """Ask, after so many steps or batches, whether all ranks are to stop or, the answer, to save."""
        wants_save = self._saves.are_due(self.step)
        signal, saves = self._agreement.poll(ticks, signal=self._stop.signal, wants_save=wants_save)
        if signal is not None:
            self._stop.signal = signal
            self._is_stopping = True
        return saves

    def _is_validation_due(self) -> bool:
        every = self.hp.validate_every_steps
        is_its_time = self._loader.step == 0 if every is None else self.step % every == 0
        return (is_its_time or self.step >= self.total_steps) and self.step != self._monitor.judged_step

    def _validate(self, loader: Loader) -> None:
        """Write the means over all samples of the validation channel, and save what is best; a stop abandons it."""

        def is_stopped() -> bool:
            self._poll(1)
            return self._is_stopping

        share_buffers(self.model, self._ranks)
        self._agreement.change_pace()
        with nullcontext() if self._average is None else self._average.applied():
            values = validate(
                self.model,
                self.validation_step,
                loader,
                self.placement,
                is_stopped=is_stopped,
                gather=self._ranks.gathered,
            )
        self._agreement.change_pace()
        if values is None:
            return
        self._records.write_validation(self.step, self.epoch, values)
        if self._monitor.judge(values, self.step):
            self._saves.save(self.step, score=self._monitor.best_score)

    def _leave(self) -> NoReturn:
        """Save where the run stands, and leave with the status of the signal."""
        self._records.clear()
        interrupted = self._stop.exit_status == contract.INTERRUPTED_EXIT_STATUS
        outcome = (
            f"step {self.step:,} is saved in {self.context.checkpoint_dir}" if self.step else "nothing was trained yet"
        )
        try:
            self._saves.finish(self.step)
        except CheckpointError as error:
            outcome = f"step {self.step:,} could not be saved: {error}"
        self._say(f"stopped by {'Ctrl-C' if interrupted else 'SIGTERM'}: {outcome}")
        self._ranks.part()
        if interrupted:
            raise KeyboardInterrupt
        raise SystemExit(self._stop.exit_status)

    def _miss_deadline(self) -> None:
        text = f"asked to stop, and not done after {contract.STOP_DEADLINE_SECONDS:.0f} s, at step {self.step}"
        report.write_failure(self.context.output_dir, text)

    def _finish(self) -> None:
        """Save the last state, put the best weights back, write the model and its settings."""
        self._records.write(self.step, self.epoch, self.optimizer)
        self._agreement.close()
        try:
            self._saves.finish(self.step)
        except CheckpointError as error:
            logger.warning("the last checkpoint could not be saved, the model goes on its way: %s", error)
        which = self._use_best_model()
        with nullcontext() if self._average is None else self._average.applied():
            self.model = whole_model(self.model, self.build_model, self._ranks)
            self.model.eval()
            if self._ranks.is_first:
                self._hand_over(self.context.model_dir)
        self._records.clear()
        took = duration(time.monotonic() - self._began)
        # The others wait here for rank 0, which writes the model.
        skipped = sum(self._ranks.gathered_patiently(len(self._loader.skipped)))
        replaced = f", {skipped} unreadable samples replaced" if skipped else ""
        self._say(f"finished: {self.step:,} steps in {took}{replaced}; {which} is in {self.context.model_dir}")

    def _hand_over(self, directory: Path) -> None:
        preflight.require_numbers(self.model)
        try:
            self.export_model(directory)
            self.context.save_settings(directory)
            sync_tree(directory)
        except OSError as error:
            raise preflight.unwritable(directory, error, kept=self.context.checkpoint_dir) from error

    def _use_best_model(self) -> str:
        if self._monitor.best_score is None:
            return "the model"
        step = self._saves.use_best_model(self._monitor.best_score)
        if step is None:
            logger.warning("the best checkpoint is damaged or gone; the model is that of step %d", self.step)
        return f"the model of step {self.step:,}" if step is None else f"the best model, of step {step:,},"
