"""TrainingContext: what a script knows about its run, read once from argv, the environment and the job's files.

The only room that reads `sys.argv` and `os.environ`. It knows no torch, so that a launch script can use it too.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from typing_extensions import TypeVar

from smkit import report
from smkit.annotations import is_secret
from smkit.arguments import Option, help_text, options_of, parse, require_texts, without_echo
from smkit.errors import ConfigurationError, DataError
from smkit.facts import Channel, Platform, PlatformFacts, Texts
from smkit.hyperparameters import Hyperparameters, freeze
from smkit.secret_references import look_up
from smkit.settings import resolve, with_secrets
from smkit.sources import (
    JobValues,
    Layer,
    Options,
    argument_layer,
    code_layer,
    config_layer,
    job_layer,
    read_job_values,
)

if TYPE_CHECKING:
    # These rooms need torch, which a launch script that reads a context does not have.
    from smkit.data.batches import Loader
    from smkit.data.draws import Transform
    from smkit.data.loader import OnError, Workers
    from smkit.distributed import Ranks

HP = TypeVar("HP", bound=Hyperparameters, default=Hyperparameters)
H = TypeVar("H", bound=Hyperparameters)

CONTEXT_OPTIONS = (
    Option(
        "channel",
        list[str],
        "data of a channel, in place of the job's; once for each channel",
        metavar="NAME=PATH",
    ),
    Option("config", list[str], "hyperparameters from a JSON, TOML or YAML file; a later file wins", metavar="FILE"),
    Option("run_dir", Path, "where this run keeps everything; a stopped run goes on from there", metavar="DIR"),
    Option("model_dir", Path, "where the finished model goes", metavar="DIR"),
    Option("output_data_dir", Path, "where other results go", metavar="DIR"),
    Option("checkpoint_dir", Path, "where checkpoints go", metavar="DIR"),
)


class TrainingContext(PlatformFacts, Generic[HP]):
    """All that a script knows about its run: its settings, channels, folders and its place among the processes.

    Built by `TrainingContext.load`, and frozen.
    """

    hp: HP
    origins: Mapping[str, str] = {}
    """where each hyperparameter came from: 'command line', 'hyperparameters.json', 'config file ...', 'default', ..."""
    channels: tuple[Channel, ...] = ()
    checkpoint_dir: Path
    job_name: str | None = None
    is_sagemaker: bool = False
    """whether this process runs in a SageMaker job, or in a local one through the same runtime"""
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    def model_post_init(self, context: object, /) -> None:  # noqa: ARG002 - pydantic's signature
        """Freeze the origins too."""
        self.__dict__["origins"] = freeze(dict(self.origins))

    @classmethod
    def load(
        cls,
        settings: type[H],
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
    ) -> TrainingContext[H]:
        """Read this run's context.

        Hyperparameters come from, later wins: the class's defaults, `--config` files, the job's hyperparameters
        (hyperparameters.json, else `SM_HPS`), the command line, `overrides`. Off SageMaker the folders are made
        in `--run-dir`, by default `runs/<script>-<time>`. A secret (`pydantic.SecretStr`) that is a reference,
        'secretsmanager:NAME', 'secretsmanager:NAME#KEY' or 'ssm:NAME', is read from AWS.

        Args:
            settings: The script's subclass of `Hyperparameters`.
            argv: Arguments without the program's name. None is this process's own command line: a mistake in it then
                ends the process with status 2, as argparse does, its text on stderr and in the job's failure file.
            env: Environment variables; None is this process's own.
            overrides: Values set in code, by field name.

        Raises:
            ConfigurationError: `argv` was given, and something in it, in `env` or in the job's files is wrong. It
                reports every problem at once.
            SystemExit: `--help` was asked for, or see `argv`.
        """
        require_texts(argv, env, "TrainingContext.load")
        program = Path(sys.argv[0]).name or "script"
        platform = Platform(dict(os.environ if env is None else env), program)
        words = sys.argv[1:] if argv is None else argv
        try:
            _refuse_import_by_a_worker(program)
            values, hp, origins = _read(platform, settings, words, overrides or {})
            if not platform.is_sagemaker:
                _make_folders(values["model_dir"], values["output_data_dir"])
        except ConfigurationError as error:
            if argv is not None:
                raise
            output_dir = platform.tree.output_dir if platform.is_sagemaker else None
            rank = platform.variables.get("RANK")
            sys.exit(report.end(error, program=f"{program}, rank {rank}" if rank else program, output_dir=output_dir))
        return TrainingContext[settings](hp=hp, origins=origins, **values)  # type: ignore[valid-type]

    def channel(self, name: str) -> Channel:
        """Return the channel of this name.

        Raises:
            DataError: There is no such channel, its folder is missing, or it is empty.
        """
        fix = (
            f"launch with inputs={{'{name}': ...}}"
            if self.is_sagemaker
            else f"give --channel {name}=PATH on the command line"
        )
        found = next((channel for channel in self.channels if channel.name == name), None)
        if found is None:
            names = [channel.name for channel in self.channels]
            there = f"there are: {', '.join(names)}" if names else "this run has no channels"
            near = difflib.get_close_matches(name, names, 1, 0.6)
            hint = f"; is it '{near[0]}'?" if near else ""
            raise DataError(f"there is no channel '{name}'; {there}{hint}", where="the channels of this run", fix=fix)
        if found.input_mode == "Pipe":
            return found
        try:
            found.path.stat()
            is_empty = found.path.is_dir() and not any(found.path.iterdir())
        except (OSError, ValueError) as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            raise DataError(f"{found.path} {reason}", where=f"channel '{name}'", fix=fix) from error
        if is_empty:
            raise DataError(f"{found.path} is empty", where=f"channel '{name}'", fix=f"put data there, or {fix}")
        return found

    def has_channel(self, name: str) -> bool:
        """Whether the run was given a channel of this name."""
        return any(channel.name == name for channel in self.channels)

    def join(self, timeout_seconds: float = 600.0) -> AbstractContextManager[Ranks]:
        """Return a context in which this process and the others of the run talk to each other; alone, it is nothing.

        For a loop of one's own; `Trainer` does it itself. torch.distributed is initialized within the block, unless it
        was before, so that models can be wrapped.

            with context.join() as ranks:
                loader = context.dataloader("train")
                model = DistributedDataParallel(model) if ranks.world_size > 1 else model
                store = CheckpointStore(context.checkpoint_dir, ranks=ranks)

        Args:
            timeout_seconds: How long to wait for another process before it is given up.

        Raises:
            ConfigurationError: This is one of several processes, and it cannot find the others.
            SmkitError: Another process has failed meanwhile; it says which, and with what.
        """
        from smkit.distributed import Ranks

        return Ranks.joined(
            self.rank,
            self.world_size,
            self.local_rank,
            host=self.current_host,
            timeout_seconds=timeout_seconds,
        )

    def dataloader(
        self,
        channel: str,
        *,
        build_dataset: Callable[[Channel], Any] | None = None,
        dataset: Any = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        gradient_accumulation_steps: int | None = None,
        workers: Workers = "auto",
        num_workers: int | None = None,
        transform: Transform | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        on_error: OnError = "raise",
        skip_budget: int = 0,
    ) -> Loader:
        """Return the loader of a channel's batches for this process; see `smkit.open_dataset` and `smkit.make_loader`.

        Every rank takes its share of each batch. Of a channel of which each host has a part (ShardedByS3Key), the ranks
        of a host share that part, and torch.distributed must be initialized, for the hosts tell each other how much.

        Args:
            channel: Its name.
            build_dataset: Makes the data set of the channel; by default `smkit.open_dataset`.
            dataset: A data set in its place.
            batch_size: Samples of one optimizer step, over all ranks and micro-batches; by default the hyperparameter.
            shuffle: Whether each epoch has an order of its own.
            gradient_accumulation_steps: Micro-batches of a step; by default the hyperparameter.
            workers: Who reads: "auto", "none", "thread" or "process".
            num_workers: Processes, if `workers` is "process".
            transform: Makes a batch of a batch and of random numbers that belong to its samples.
            collate_fn: Makes a batch of what the data set returns.
            on_error: "skip" replaces a sample that cannot be read.
            skip_budget: How many may be.

        Raises:
            ConfigurationError: An argument is out of range, or processes that must talk to each other cannot.
            DataError: There is no such channel, or it does not hold what it should.
        """
        from smkit.data.channels import Place, channel_loader
        from smkit.data.layouts import open_dataset

        found = next((known for known in self.channels if known.name == channel), None)
        return channel_loader(
            (lambda: (build_dataset or open_dataset)(self.channel(channel))) if dataset is None else lambda: dataset,
            Place(self.current_host, self.rank, self.world_size, self.local_rank, self.local_world_size),
            is_sharded=found is not None and found.s3_distribution == "ShardedByS3Key",
            where=f"channel '{channel}'",
            batch_size=self.hp.batch_size if batch_size is None else batch_size,
            seed=self.hp.seed,
            shuffle=shuffle,
            gradient_accumulation_steps=(
                self.hp.gradient_accumulation_steps
                if gradient_accumulation_steps is None
                else gradient_accumulation_steps
            ),
            workers=workers,
            num_workers=num_workers,
            transform=transform,
            collate_fn=collate_fn,
            pin_memory=True,
            on_error=on_error,
            skip_budget=skip_budget,
        )

    def settings_document(self) -> dict[str, Any]:
        """Return the resolved settings as JSON values, secrets left out: `--config` reads the saved document back."""
        values = self.hp.model_dump(mode="json", by_alias=False, round_trip=True)
        origins = dict(self.origins)
        for name, option in options_of(type(self.hp)).items():
            if name in origins and is_secret(option.annotation):
                _forget(values, name)
                del origins[name]
        return {"hyperparameters": values, "origins": origins, "job_name": self.job_name}

    def save_settings(self, directory: Path) -> Path:
        """Write `settings_document` to `settings.json` in `directory` and return the file."""
        file = directory / "settings.json"
        # On a full disk the one before stays; and what has the name may be a pipe, which would be waited for.
        part = directory / "settings.json.part"
        part.unlink(missing_ok=True)
        try:
            part.write_text(json.dumps(self.settings_document(), indent=2) + "\n", encoding="utf-8")
            part.replace(file)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return file

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle finds no class `TrainingContext[Settings]` by name.
        return (_rebuild, (type(self.hp), dict(self.__dict__)))


def _rebuild(settings: type[H], values: dict[str, Any]) -> TrainingContext[H]:
    return TrainingContext[settings](**values)  # type: ignore[valid-type]


def _forget(values: dict[str, Any], name: str) -> None:
    """Remove the value of a dotted name from nested dicts."""
    parent, _, rest = name.partition(".")
    if not rest:
        values.pop(parent, None)
    elif isinstance(values.get(parent), dict):
        _forget(values[parent], rest)


def _refuse_import_by_a_worker(program: str) -> None:
    """Refuse to begin a run while multiprocessing imports the script, to find in it what a worker process needs."""
    process = sys.modules.get("multiprocessing.process")
    # multiprocessing knows it by this attribute itself, and refuses only later, when the worker starts workers.
    if process is not None and getattr(process.current_process(), "_inheriting", False):
        raise ConfigurationError(
            "a worker process imports this script, and the script begins to train when it is imported",
            where=program,
            fix='begin it below `if __name__ == "__main__":` at the end of the script',
        )


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the folder {folder} cannot be made: {getattr(error, 'strerror', None) or error}",
                where="the folders of this run",
                fix="choose others with --run-dir, --model-dir or --output-data-dir",
            ) from error


def _read(
    platform: Platform, settings: type[H], argv: Sequence[str], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], H, Mapping[str, str]]:
    """Return the context's own values, the settings and their origins; every problem of every source in one error."""
    problems = platform.problems
    try:
        job = read_job_values(platform.tree.hyperparameters_file, platform.variables, problems)
        words = without_echo(argv, job.values, job.echo)
        options = options_of(settings)
        given = parse(words, [*options.values(), *CONTEXT_OPTIONS])
        if given.asks_for_help:
            _print_help(settings, platform.program)
        problems += [f"command line: {problem}" for problem in given.problems]
        resolved = resolve(settings, options, _layers(options, given.texts, job, overrides, problems))
        values = platform.read(given.texts)
        if not problems:
            resolved = with_secrets(resolved, lambda text: look_up(text, platform.variables))
    except RecursionError as error:
        raise ConfigurationError(
            "a value is nested too deeply",
            where=platform.program,
            fix="send a flatter value, or put it into a file in a channel",
        ) from error
    if problems or resolved.settings is None:
        raise ConfigurationError.of(
            [*problems, *resolved.problems],
            subject="the settings",
            where=platform.program,
            fix=f"correct what is named above; `python {platform.program} --help` lists every option",
        )
    return values, resolved.settings, resolved.origins


def _print_help(settings: type[Hyperparameters], program: str) -> NoReturn:
    width = shutil.get_terminal_size((100, 24)).columns
    sys.stdout.write(help_text(settings, CONTEXT_OPTIONS, program, width))
    sys.exit(0)


def _layers(
    options: Options, texts: Texts, job: JobValues, overrides: Mapping[str, Any], problems: list[str]
) -> list[Layer]:
    """Return all sources, lowest first. A job can name its config files by a hyperparameter `config`."""
    values = dict(job.values)
    named = values.pop("config", None) or []
    files = [*(named if isinstance(named, list) else [named]), *texts.get("config", [])]
    return [
        *(config_layer(Path(str(file)), options, problems) for file in files),
        job_layer(JobValues(job.label, values, job.texts), options, problems),
        argument_layer(texts, options, problems),
        code_layer(overrides, options, problems),
    ]
