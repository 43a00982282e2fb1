"""The loop: what reaches the user's step, in which order, with which numbers; what is said when something is wrong."""

import gzip
import inspect
import json
import math
import re
import runpy
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lines import Batch, LineTrainer, Run, Settings, weights
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.utils.data import TensorDataset

import smkit
from smkit import contract
from smkit.trainer import HP

pytestmark = pytest.mark.train


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.within(tmp_path)


@pytest.fixture
def data(run: Run) -> Path:
    return run.data


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_there_are_two_frames_from_fit_to_the_step(run: Run) -> None:
    class Watching(LineTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            self.callers = [frame.function for frame in inspect.stack()[1:4]]
            return super().training_step(batch)

    trainer = run(Watching, "--max-steps", "1")
    trainer.fit()
    assert trainer.callers[:2] == ["_train_on", "fit"]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_changes_nothing_not_even_in_a_short_last_batch(parts: int, run: Run, tmp_path: Path) -> None:
    # 38 samples in batches of 16: the last one has 6, which do not divide into equal micro-batches.
    whole = run(LineTrainer, "--epochs", "3", "--batch-size", "16")
    whole.fit()
    run.directory = tmp_path / "parts"
    split = run(LineTrainer, "--epochs", "3", "--batch-size", "16", f"--gradient-accumulation-steps={parts}")
    split.fit()
    assert split.step == whole.step == 9
    assert weights(split) == pytest.approx(weights(whole), rel=1e-12)


def test_a_batch_that_does_not_divide_is_refused_with_those_that_do(run: Run) -> None:
    with pytest.raises(smkit.ConfigurationError, match="choose 12 or 16"):
        run(LineTrainer, "--batch-size", "14", "--gradient-accumulation-steps", "4").fit()


def test_every_sample_is_seen_once_in_an_epoch_and_in_another_order_in_the_next(run: Run) -> None:
    class Noting(LineTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            self.__dict__.setdefault("seen", []).extend(batch[1].flatten().tolist())
            return super().training_step(batch)

    trainer = run(Noting, "--epochs", "2", "--batch-size", "8")
    trainer.fit()
    first, second = trainer.seen[:38], trainer.seen[38:]
    assert sorted(first) == sorted(second)
    assert first != second


def test_steps_are_counted_in_optimizer_steps_and_so_is_the_schedule(run: Run) -> None:
    class Scheduled(LineTrainer):
        def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
            return LambdaLR(optimizer, lambda step: 1 / (step + 1))

    trainer = run(
        Scheduled, "--epochs", "9", "--max-steps", "7", "--batch-size", "16", "--gradient-accumulation-steps=2"
    )
    record = trainer.fit()
    assert trainer.step == 7
    assert record["train/learning_rate"] == pytest.approx(0.1 / 8)


def test_clipping_limits_the_norm_and_logs_it(run: Run) -> None:
    class Watching(LineTrainer):
        def build_optimizer(self, model: nn.Module) -> Optimizer:
            optimizer = super().build_optimizer(model)
            optimizer.register_step_pre_hook(lambda *_: self.norms.append(self.norm()))
            self.norms: list[float] = []
            return optimizer

        def norm(self) -> float:
            return math.sqrt(sum(float(p.grad.norm()) ** 2 for p in self.model.parameters() if p.grad is not None))

    trainer = run(Watching, "--max-grad-norm", "0.01", "--epochs", "1", "--batch-size", "19")
    record = trainer.fit()
    assert trainer.norms == pytest.approx([0.01, 0.01], rel=1e-3)
    assert record["train/grad_norm"] > 0.01


def test_the_step_waits_for_no_number_from_the_device(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Averaged(LineTrainer):
        def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
            return LambdaLR(optimizer, lambda step: 1 / (step + 1))

        def training_step(self, batch: Batch) -> Tensor:
            self.log("first", batch[0][0, 0])
            return super().training_step(batch)

    reads: Counter[str] = Counter()
    # What makes a process wait for its GPU. The loader's own indices are integers in host memory.
    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        read = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, name: str = name, read: Any = read) -> Any:
            reads[name] += self.is_floating_point()
            return read(self, *args)

        monkeypatch.setattr(Tensor, name, counted)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: reads.update(["synchronize"]))

    def reads_of(epochs: int, *arguments: str) -> Counter[str]:
        reads.clear()
        run.directory = run.directory.with_name(f"epochs-{epochs}-{len(arguments)}")
        run(Averaged, f"--epochs={epochs}", "--batch-size", "8", "--log-every-steps", "50", *arguments).fit()
        return reads.copy()

    # Whatever is read at the start and at the end: a hundred more steps and two more records read two lists.
    for more in ((), ("--ema-decay", "0.9", "--max-grad-norm", "1", "--gradient-accumulation-steps", "2")):
        assert reads_of(40, *more) - reads_of(20, *more) == Counter(tolist=2)


def calls_per_step(trainer: Any, first: int, last: int) -> float:
    """Python calls between two training steps, counted exactly."""
    counted = {"calls": 0, "step": 0}
    step = trainer.training_step

    def watched(batch: Any) -> Tensor:
        counted["step"] += 1
        if counted["step"] == first:
            sys.setprofile(lambda frame, event, _: counted.__setitem__("calls", counted["calls"] + (event == "call")))
        if counted["step"] == last:
            sys.setprofile(None)
        return step(batch)  # type: ignore[no-any-return]

    trainer.training_step = watched
    trainer.fit()
    return counted["calls"] / (last - first)


def bare_calls_per_step(dataset: TensorDataset, steps: int) -> float:
    """The same for a loop written by hand on torch's own DataLoader."""

    class Batched(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(dataset)

        def __getitems__(self, indices: list[int]) -> Batch:
            inputs, targets = dataset.tensors
            return inputs[indices], targets[indices]

    loader = torch.utils.data.DataLoader(Batched(), batch_size=1, shuffle=True, collate_fn=lambda batch: batch)
    model = nn.Linear(3, 1, dtype=torch.float64)
    optimizer = SGD(model.parameters(), lr=0.1)

    def loop(limit: int) -> Iterator[None]:
        done = 0
        while True:
            for inputs, targets in loader:
                optimizer.zero_grad(set_to_none=True)
                mse_loss(model(inputs), targets).backward()
                optimizer.step()
                done += 1
                yield
                if done == limit:
                    return

    counted = {"calls": 0}
    for done, _ in enumerate(loop(steps + 40)):
        if done == 20:
            sys.setprofile(lambda frame, event, _: counted.__setitem__("calls", counted["calls"] + (event == "call")))
        if done == 20 + steps:
            sys.setprofile(None)
            break
    return counted["calls"] / steps


def test_a_step_costs_at_most_sixty_python_calls_more_than_a_bare_loop(run: Run) -> None:
    trainer = run(LineTrainer, "--epochs", "10", "--batch-size", "1", "--log-every-steps", "50")
    bare = bare_calls_per_step(trainer.build_dataset(trainer.context.channel("train")), 100)
    assert calls_per_step(trainer, 110, 210) <= bare + 60


# --- validation -------------------------------------------------------------------------------------------------------


class Counting(LineTrainer):
    """Validates on the numbers 0 to 99 in batches of 32, the last one of 4; their mean is 49.5."""

    samples = 100

    def build_dataset(self, channel: smkit.Channel) -> TensorDataset:
        if channel.name == "train":
            return super().build_dataset(channel)
        return TensorDataset(torch.arange(100.0))

    def validation_step(self, batch: tuple[Tensor]) -> dict[str, Any]:
        (values,) = batch
        return {
            "mean": values.mean(),
            "each": values,
            "pair": (values.sum(), len(values)),
            "number": float(values.mean()),
        }


def test_validation_is_exact_on_a_short_last_batch_in_every_form(run: Run) -> None:
    record = run(Counting, "--max-steps", "1", channels=("train", "validation")).fit()
    assert {record[f"validation/{name}"] for name in ("mean", "each", "pair", "number")} == {49.5}


def test_validation_comes_when_it_should_and_leaves_the_random_numbers_alone(run: Run) -> None:
    class Drawing(Counting):
        def training_step(self, batch: Batch) -> Tensor:
            self.__dict__.setdefault("drawn", []).append(torch.rand(1).item())
            return super().training_step(batch)

        def validation_step(self, batch: tuple[Tensor]) -> dict[str, Any]:
            assert not self.model.training
            torch.rand(7)
            self.__dict__.setdefault("validated", []).append(self.step)
            return super().validation_step(batch)

    arguments = ("--epochs", "2", "--batch-size", "25")
    trainer = run(Drawing, *arguments, "--validate-every-steps=3", channels=("train", "validation"))
    trainer.fit()
    assert sorted(set(trainer.validated)) == [3, 6, 8]
    run.directory = run.directory.with_name("without")
    silent = run(Drawing, *arguments)
    silent.fit()
    assert trainer.drawn == silent.drawn
    assert weights(trainer) == weights(silent)


class Rising(LineTrainer):
    """A validation metric that is best after the second epoch."""

    def validation_step(self, batch: Batch) -> dict[str, float]:
        return {"score": {1: 0.5, 2: 0.9, 3: 0.7, 4: math.nan}.get(self.epoch, 0.1)}


def test_it_stops_early_and_exports_the_best_model(run: Run) -> None:
    arguments = (
        "--epochs",
        "20",
        "--monitor-metric",
        "score",
        "--monitor-mode",
        "max",
        "--early-stopping-patience",
        "3",
    )
    trainer = run(Rising, *arguments, channels=("train", "validation"))
    trainer.fit()
    assert trainer.step == 2 * 5
    exported = weights(trainer)
    run.directory = run.directory.with_name("two-epochs")
    two = run(Rising, "--epochs", "2")
    two.fit()
    assert exported == weights(two)


@pytest.mark.parametrize(
    ("arguments", "channels", "text"),
    [
        (
            ("--monitor-metric", "loss"),
            ("train", "validation"),
            "the monitored metric 'loss' is none of: validation/score",
        ),
        (("--monitor-metric", "score"), ("train",), "there is no channel 'validation'"),
        (("--early-stopping-patience", "2"), ("train", "validation"), "does not know which metric"),
    ],
)
def test_a_monitor_without_a_metric_is_a_clear_error(
    arguments: tuple[str, ...], channels: tuple[str, ...], text: str, run: Run
) -> None:
    with pytest.raises(smkit.ConfigurationError, match=text):
        run(Rising, *arguments, channels=channels).fit()


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_reach_cloudwatch_tensorboard_and_a_file(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Logging(Rising):
        def training_step(self, batch: Batch) -> Tensor:
            self.log("train/twice_step", 2.0 * self.step)
            return super().training_step(batch)

    arguments = ("--epochs", "2", "--batch-size", "19", "--log-every-steps", "2")
    record = run(Logging, *arguments, channels=("train", "validation")).fit()
    lines = capfd.readouterr().out.splitlines()
    assert all(line.startswith("[metrics] step=") for line in lines)
    twice = [match[1] for line in lines if (match := re.search(contract.metric_regex("train/twice_step"), line))]
    assert [float(value) for value in twice] == [1.0, 5.0]
    rows = [json.loads(line) for line in (run.directory / "output/data/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2, 4, 4]
    assert rows[-1]["validation/score"] == record["validation/score"] == 0.9
    events = EventAccumulator(str(run.directory / "output" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/twice_step")] == [(2, 1.0), (4, 5.0)]
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_trained_again_and_a_longer_one_goes_on(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run(LineTrainer, "--epochs", "1").fit()
    again = run(LineTrainer, "--epochs", "1")
    again.fit()
    assert "goes on after step 2" in capfd.readouterr().err
    longer = run(LineTrainer, "--epochs", "3", "--learning-rate", "0.2")
    longer.fit()
    assert longer.step == 6
    assert "goes on with another learning_rate: 0.1, now 0.2" in capfd.readouterr().err
    run.directory = run.directory.with_name("at-once")
    at_once = run(LineTrainer, "--epochs", "3")
    at_once.fit()
    assert weights(longer) == weights(at_once)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--width", "2"), r"size mismatch.*changed since: width: 1, now 2"),
        (("--seed", "5"), "seed"),
        (("--batch-size", "8"), "8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(arguments: tuple[str, ...], text: str, run: Run) -> None:
    run(LineTrainer, "--epochs", "1").fit()
    with pytest.raises(smkit.CheckpointError, match=text):
        run(LineTrainer, "--epochs", "2", *arguments).fit()


def test_a_schedule_made_for_another_length_is_refused(run: Run) -> None:
    class OneCycle(LineTrainer):
        def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.total_steps)

    run(OneCycle, "--epochs", "1").fit()
    with pytest.raises(smkit.CheckpointError, match="T_max: 2, now 4"):
        run(OneCycle, "--epochs", "2").fit()


# --- what is wrong with a step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (lambda loss: None, "returned None and no loss"),
        (lambda loss: loss.item(), r"returned [\d.]+ and no loss"),
        (lambda loss: loss.detach(), "depends on no parameter"),
        (lambda loss: loss.expand(4), r"a loss of shape \(4,\)"),
    ],
)
def test_a_step_without_a_usable_loss_is_named(returned: Any, text: str, run: Run) -> None:
    class Wrong(LineTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            return returned(super().training_step(batch))  # type: ignore[no-any-return]

    with pytest.raises(smkit.SmkitError, match=text) as caught:
        run(Wrong).fit()
    assert caught.value.where == "Wrong.training_step, step 1"


def test_a_loss_that_is_no_number_stops_the_run_at_its_step_and_is_never_saved(run: Run) -> None:
    class Breaking(LineTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            loss = super().training_step(batch)
            return loss * math.nan if self.step == 6 else loss

    trainer = run(Breaking, "--epochs", "9", "--checkpoint-every-seconds", "0")
    with pytest.raises(smkit.SmkitError, match="train/loss is nan at step 7"):
        trainer.fit()
    again = run(LineTrainer, "--epochs", "9")
    again.fit()
    assert all(map(math.isfinite, weights(again)))
    assert again.step == 18
    assert not list((run.directory / "model").glob("*.part"))


def test_what_killed_processes_have_left_is_not_handed_over_with_the_model(run: Run) -> None:
    model = run.directory / "model"
    (model / "model.safetensors.part").mkdir(parents=True)
    (model / "model.safetensors.part" / ".tmpAbCdEf").write_text("half a model")
    (model / ".smkit-writes").write_text("smk")
    run(LineTrainer).fit()
    assert {file.name for file in model.iterdir()} == {"model.safetensors", "settings.json"}


def test_a_model_directory_that_cannot_be_written_is_found_before_training(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trainer = run(LineTrainer, "--checkpoint-dir", str(tmp_path / "file" / "inside"))
    with pytest.raises(smkit.SmkitError, match="cannot be written to") as caught:
        trainer.fit()
    assert trainer.step == 0
    assert str(tmp_path / "file") in caught.value.where


@pytest.mark.parametrize(
    ("method", "value", "text"),
    [
        ("build_scheduler", lambda self, optimizer: ReduceLROnPlateau(optimizer), "ReduceLROnPlateau wants a metric"),
        ("build_scheduler", lambda self, optimizer: "cosine", "'cosine' is no scheduler"),
        ("validation_step", lambda self, batch: 0.5, "returned 0.5"),
        ("validation_step", lambda self, batch: {"x": torch.zeros(3, 3)}, r"'validation/x' has the shape \(3, 3\)"),
        ("build_dataset", lambda self, channel: TensorDataset(torch.empty(0, 3)), "the data set is empty"),
    ],
)
def test_a_part_that_the_loop_cannot_use_is_named(method: str, value: Any, text: str, run: Run) -> None:
    kind = type("Wrong", (LineTrainer,), {method: value})
    with pytest.raises(smkit.SmkitError, match=text) as caught:
        run(kind, "--epochs", "1", channels=("train", "validation")).fit()
    assert caught.value.fix


def test_a_process_that_cannot_find_the_others_says_how_to_start_them(data: Path, tmp_path: Path) -> None:
    env = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    context = smkit.TrainingContext.load(Settings, [f"--channel=train={data}", f"--run-dir={tmp_path}"], env)
    with pytest.raises(smkit.ConfigurationError, match=r"one of 2 processes(.|\n)*torchrun"):
        LineTrainer(context).fit()


# --- precision and speed ----------------------------------------------------------------------------------------------


@pytest.fixture
def as_on_a_v100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU stand in for a V100: fp16 with a gradient scaler, which grows and shrinks while anybody watches."""

    def choose(*_: Any) -> smkit.Placement:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
        return smkit.Placement(torch.device("cpu"), "fp16", scaler)

    monkeypatch.setattr(smkit.Placement, "choose", choose)


class Overflowing(LineTrainer):
    """Its gradients overflow in two steps, the second one right after the first."""

    fails_at = 0

    def build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: 1 / (step + 1))

    def training_step(self, batch: Batch) -> Tensor:
        if self.step == self.fails_at > 0:
            raise OSError("the lights went out")
        loss = super().training_step(batch)
        if self.step in (5, 6):
            before = weights(self)
            self.__dict__.setdefault("before", before)
            return loss * math.inf
        if self.step == 7:
            self.after = weights(self)
        return loss


@pytest.mark.usefixtures("as_on_a_v100")
def test_on_a_v100_an_overflow_skips_the_step_and_its_schedule_and_all_goes_on_after_a_resume(
    run: Run, tmp_path: Path
) -> None:
    arguments = ("--batch-size", "19", "--epochs", "10", "--checkpoint-every-seconds", "0", "--max-grad-norm", "1")
    whole = run(Overflowing, *arguments)
    record = whole.fit()
    assert whole.before == whole.after
    assert record["train/learning_rate"] == pytest.approx(0.1 / 19), "of 20 steps two were skipped"
    scale = whole.placement.scaler.state_dict()
    assert scale["scale"] == 1024.0 * 2 / 4 * 2**3

    run.directory = tmp_path / "resumed"
    broken = run(Overflowing, *arguments)
    broken.fails_at = 6
    with pytest.raises(OSError, match="lights"):
        broken.fit()
    resumed = run(Overflowing, *arguments)
    resumed.fit()
    assert weights(resumed) == weights(whole)
    assert resumed.placement.scaler.state_dict() == scale


@pytest.mark.usefixtures("as_on_a_v100")
def test_gradients_that_are_never_finite_end_the_run_though_its_loss_is_a_number(run: Run) -> None:
    class Rootless(LineTrainer):
        def training_step(self, batch: Batch) -> Tensor:
            return super().training_step(batch) + (self.model.weight * 0).norm().sqrt()

    trainer = run(Rootless, "--batch-size", "38", "--epochs", "100", "--log-every-steps", "10")
    with pytest.raises(smkit.SmkitError, match=r"(?s)gradients are not finite.*step \d\d.*sqrt, norm or log of 0"):
        trainer.fit()
    assert trainer.step < 60


def test_a_host_whose_gpus_pytorch_does_not_see_is_told_so(data: Path, tmp_path: Path, caplog: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("PyTorch sees a GPU here")
    argv = [f"--channel=train={data}", f"--run-dir={tmp_path}", "--max-steps=1"]
    LineTrainer(smkit.TrainingContext.load(Settings, argv, {"SM_NUM_GPUS": "8"})).fit()
    assert "this host has 8 GPUs, and PyTorch" in caplog.text
    caplog.clear()
    LineTrainer(smkit.TrainingContext.load(Settings, argv, {"SM_NUM_GPUS": "0"})).fit()
    assert caplog.text == ""


@pytest.mark.endurance
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_recomputed_averaged_and_profiled_it_is_the_same_training(run: Run, tmp_path: Path) -> None:
    class Deep(LineTrainer):
        def build_model(self) -> nn.Module:
            hidden = [nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), nn.Tanh()) for _ in range(2)]
            return nn.Sequential(*hidden, nn.Linear(3, 1, dtype=torch.float64))

        def activation_checkpointing(self, model: nn.Module) -> Iterator[nn.Module]:
            return (part for part in model.children() if isinstance(part, nn.Sequential) and self.hp.width == 2)

        def validation_step(self, batch: Batch) -> dict[str, Tensor]:
            return {"loss": mse_loss(self.model(batch[0]), batch[1])}

    channels = ("train", "validation")
    plain = run(Deep, "--epochs", "3", channels=channels)
    record = plain.fit()
    assert plain.state_dict() == {}
    run.directory = tmp_path / "fast"
    arguments = ("--compile", "true", "--width", "2", "--profile-steps", "1:3", "--float32-matmul-precision", "high")
    fast = run(Deep, "--epochs", "3", *arguments, channels=channels)
    assert fast.fit()["validation/loss"] == pytest.approx(record["validation/loss"], rel=1e-9)
    assert list(fast.model.state_dict()) == list(plain.model.state_dict())
    assert weights(fast) == pytest.approx(weights(plain), rel=1e-9)
    assert torch.get_float32_matmul_precision() == "highest"
    [trace] = (run.directory / "output/data/profile").iterdir()
    assert trace.name == "steps-1-3-rank-0.pt.trace.json.gz"
    with gzip.open(trace, "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"ProfilerStep#2", "ProfilerStep#3"} <= names

    run.directory = tmp_path / "averaged"
    averaged = run(Deep, "--epochs", "3", "--ema-decay", "0.5", channels=channels)
    averages = averaged.fit()["validation/loss"]
    assert averages != pytest.approx(record["validation/loss"], rel=1e-3)
    exported = load_file(run.directory / "model/model.safetensors")
    assert exported["2.bias"].tolist() != averaged.model.state_dict()["2.bias"].tolist()


# --- the process ------------------------------------------------------------------------------------------------------


def test_the_settings_class_is_found_through_every_way_to_inherit() -> None:
    from smkit.preflight import settings_of

    class Derived(LineTrainer):
        pass

    class Generic(smkit.Trainer[HP]):
        pass

    class Filled(Generic[Settings]):  # type: ignore[type-arg]
        pass

    class Bare(smkit.Trainer):  # type: ignore[type-arg]
        pass

    assert [settings_of(kind, smkit.Trainer) for kind in (LineTrainer, Derived, Filled)] == [Settings] * 3
    assert [settings_of(kind, smkit.Trainer) for kind in (Bare, Generic)] == [smkit.Hyperparameters] * 2


def run_as_script(script: Path, *arguments: str) -> None:
    before = sys.argv
    sys.argv = [script.name, *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


def test_a_failure_of_before_that_cannot_be_taken_away_is_a_clear_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text("import smkit\nsmkit.Trainer.main()\n")
    (tmp_path / "run" / "output" / "failure").mkdir(parents=True)
    with pytest.raises(SystemExit) as caught:
        run_as_script(script, f"--channel=train={data}", "--run-dir", str(tmp_path / "run"))
    assert caught.value.code == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_main_reports_the_users_own_line_in_the_failure_file(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import smkit\n"
        "class Mine(smkit.Trainer):\n"
        "    def build_model(self):\n"
        "        return {'a': 1}['b']\n"
        "    def build_optimizer(self, model): ...\n"
        "    def training_step(self, batch): ...\n"
        "    def build_dataset(self, channel): return [1, 2, 3]\n"
        "Mine.main()\n"
    )
    with pytest.raises(SystemExit) as caught:
        run_as_script(script, f"--channel=train={data}", "--run-dir", str(tmp_path / "run"))
    assert caught.value.code == 1
    failure = (tmp_path / "run/output/failure").read_text()
    assert failure.startswith("KeyError: 'b'\n")
    assert f"{script}:4 in build_model: return {{'a': 1}}['b']" in failure
