"""The same command lines for what the field reads them with: argparse, HfArgumentParser, pydantic-settings as it comes.

Each is set up as its own documentation does it. A refusal is any end with an error; nobody asks it for a failure file.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torture.contract.examples import Kind
from torture.contract.settings_sources import peer_command_line


def _argparse(argv: Sequence[str]) -> Mapping[str, Any]:
    """SageMaker's own examples: `type=bool`, and `parse_known_args` for the words of the runtime."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--flag", type=bool, default=False)
    parser.add_argument("--text", type=str, default="t")
    parser.add_argument("--maybe", type=int, default=None)
    parser.add_argument("--kind", choices=["sgd", "adam", "1"], default="sgd")
    return vars(parser.parse_known_args(list(argv))[0])


@dataclass
class _Arguments:
    lr: float = 0.1
    count: int = 3
    flag: bool = False
    text: str = "t"
    maybe: int | None = None
    kind: str = field(default="sgd", metadata={"choices": ["sgd", "adam", "1"]})


def _huggingface(argv: Sequence[str]) -> Mapping[str, Any]:
    from transformers import HfArgumentParser

    parser: Any = HfArgumentParser(_Arguments)  # type: ignore[arg-type]
    return vars(parser.parse_args_into_dataclasses(list(argv))[0])


@functools.cache
def _settings() -> Any:
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class Settings(BaseSettings):
        model_config = SettingsConfigDict(cli_parse_args=False)

        lr: float = 0.1
        count: int = 3
        flag: bool = False
        text: str = "t"
        maybe: int | None = None
        kind: Literal["sgd", "adam", "1"] = "sgd"

    return Settings


def _pydantic_settings(argv: Sequence[str]) -> Mapping[str, Any]:
    from pydantic_settings import SettingsError

    try:
        found: dict[str, Any] = _settings()(_cli_parse_args=list(argv)).model_dump()
    except SettingsError as error:
        raise ValueError(str(error)) from error
    return found


READERS: Mapping[str, Callable[[Sequence[str]], Mapping[str, Any]]] = {
    "argparse": _argparse,
    "HfArgumentParser": _huggingface,
    "pydantic-settings": _pydantic_settings,
}


def kinds() -> dict[str, Kind]:
    """Return the examples of each peer by its name."""
    return {name: functools.partial(peer_command_line, read) for name, read in READERS.items()}
