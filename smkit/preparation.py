"""What a launch needs wherever the job runs: the source's files, the channels, the encoded hyperparameters.

All of it is read from this machine and checked; nothing is made and nothing is sent. This room knows neither this
machine's toolkit nor SageMaker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smkit import script_settings
from smkit.errors import ConfigurationError
from smkit.inputs import GivenInput, read_inputs
from smkit.launch_arguments import LaunchArguments, absolute, common_problems, environment_warnings, new_name
from smkit.source.provenance import Provenance, describe
from smkit.source.survey import Source, survey


@dataclass(frozen=True)
class Preparation:
    """What was read of the arguments of a launch, and everything that is wrong with it."""

    name: str
    source: Source
    inputs: Sequence[GivenInput]
    hyperparameters: Mapping[str, str]
    check: str
    origin: Provenance | None
    problems: Sequence[str]
    warnings: Sequence[str]

    @property
    def origin_text(self) -> str:
        """The commit that the source is of."""
        if self.origin is None:
            return "in no git repository"
        return f"git {self.origin.commit[:10]}{', with changes' if self.origin.is_dirty else ''}"


def prepare(arguments: LaunchArguments) -> Preparation:
    """Read and check all that does not depend on where the job runs."""
    inputs, input_problems = read_inputs(arguments.inputs)
    hyperparameters, problems_of_hyperparameters = _encode(arguments)
    source = survey(
        arguments.source_folder,
        entry=arguments.entry,
        own_folders=[
            absolute(arguments.output_dir),
            *(absolute(folder) for folder in [arguments.checkpoint_dir] if folder is not None),
            *(path for given in inputs for path in given.local_paths),
        ],
        allow_secrets=arguments.allow_secrets,
    )
    check = ""
    warnings = [*source.warnings, *environment_warnings(arguments.environment)]
    if not (source.problems or problems_of_hyperparameters or arguments.hyperparameters is None):
        checked = script_settings.check(source.root, arguments.entry, arguments.hyperparameters)
        problems_of_hyperparameters = list(checked.problems)
        check = checked.note or "checked by the script's settings class"
    return Preparation(
        name=arguments.name or new_name(arguments.entry),
        source=source,
        inputs=inputs,
        hyperparameters=hyperparameters,
        check=check,
        origin=describe(source.root, source.left_out),
        problems=[
            *common_problems(arguments),
            *source.problems,
            *input_problems,
            *problems_of_hyperparameters,
        ],
        warnings=warnings,
    )


def _encode(arguments: LaunchArguments) -> tuple[dict[str, str], list[str]]:
    if not arguments.hyperparameters:
        return {}, []
    from smkit.wire import encode

    try:
        return encode(arguments.hyperparameters), []
    except ConfigurationError as error:
        return {}, [f"hyperparameter {problem}" for problem in error.problems] or [error.what]
