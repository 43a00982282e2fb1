"""What a user writes of a training: how its parts are built, and what a step is.

This room knows no loop; `trainer` calls what is written here, in its order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from typing_extensions import TypeVar

from smkit import preflight
from smkit.data.draws import Transform
from smkit.data.layouts import open_dataset
from smkit.data.loader import Workers
from smkit.device import Placement
from smkit.export import write_weights
from smkit.records import OWN_METRICS, Records

if TYPE_CHECKING:
    # At run time these come with the user's own script; the loop alone does not pay for importing pydantic.
    from smkit.context import TrainingContext
    from smkit.facts import Channel
    from smkit.hyperparameters import Hyperparameters

HP = TypeVar("HP", bound="Hyperparameters", default="Hyperparameters")


class Script(ABC, Generic[HP]):
    """What the user's class says of a training; see `Trainer`, which trains it."""

    train_channel = "train"
    validation_channel = "validation"
    workers: Workers = "auto"
    """Who reads data: see `smkit.make_loader`."""
    num_workers: int | None = None
    """Processes, if `workers` is "process"."""
    skip_budget = 0
    """How many training samples of a process may be unreadable, and be replaced by others; by default none."""
    channels_last = False
    """Whether the weights of convolutions lie in memory as a GPU's tensor cores want them: channels last."""
    cudnn_benchmark: bool | None = None
    """Whether cuDNN tries its algorithms and takes the fastest, which two runs may find different; None: as it is."""
    flops_per_sample: float | None = None
    """Floating-point operations of a sample, forward and backward; from them follows `train/mfu_percent`."""
    find_unused_parameters = False
    """Whether parameters may have no gradient in a step of several processes (DDP), which costs a search each step."""
    timeout_seconds = 600.0
    """How long a process waits for another one in a step before it gives up the run."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    placement: Placement
    _records: Records

    def __init__(self, context: TrainingContext[HP]) -> None:
        self.context = context
        self.hp: HP = context.hp
        self.step = 0
        self.total_steps = 0

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the model; random generators are seeded already."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of `model`, which is on its device."""

    @abstractmethod
    def training_step(self, batch: Any) -> Tensor:
        """Return the mean loss of `batch` over its samples, a tensor of one element."""

    def activation_checkpointing(self, model: nn.Module) -> Iterable[nn.Module]:  # noqa: ARG002
        """Return modules whose activations are computed again in the backward pass, to save memory; none by default."""
        return ()

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
        """Return what the run remembers besides model, optimizer and schedule: plain values and tensors.

        Of several processes, what rank 0 returns is saved.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up, on resume, what `state_dict` has returned."""

    def log(self, name: str, value: Tensor | float) -> None:
        """Note a mean over the batch within a training step; that over all samples appears in the next record.

        A tensor stays on its device until then. It weighs as many samples as its batch has, on all ranks.
        """
        if name in OWN_METRICS or not self.model.training:
            raise preflight.not_to_be_logged(name, is_validating=not self.model.training)
        self._records.note(name, value)
