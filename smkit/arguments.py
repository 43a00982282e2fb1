"""The command line: options made from a settings class, argv sorted into texts by option, and `--help`.

Made for what SageMaker's two runtimes put on a command line, which argparse cannot read: `--lr -1e-05`, `--flag True`,
`-x 1`. This room sorts words; what a text means is `wire`'s business, and whether it is right pydantic's.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from smkit.annotations import choices, is_mapping, is_secret, is_sequence, kind_of, members, nested_model
from smkit.contract import is_platform_hyperparameter
from smkit.errors import ConfigurationError, did_you_mean, shown
from smkit.hyperparameters import Hyperparameters, spellings


@dataclass(frozen=True)
class Option:
    """One option: a field of the settings (`model.hidden` for a field of a nested model), or one of the context's."""

    name: str
    annotation: Any
    description: str = ""
    spellings: tuple[str, ...] = ()
    field: FieldInfo | None = None
    metavar: str = ""

    @property
    def flag(self) -> str:
        """The option as it is written: `--batch-size`; `--lambda` for a field `lambda_` with that alias."""
        name = next((spelling for spelling in self.spellings if not spelling.endswith("_")), self.name)
        return "--" + name.replace("_", "-")

    @property
    def is_bool(self) -> bool:
        """Whether `--name` alone and `--no-name` are allowed."""
        return [member for member in members(self.annotation) if member is not type(None)] == [bool]

    @property
    def takes_many(self) -> bool:
        """Whether several words, and several uses, make one value."""
        return any(is_sequence(member) for member in members(self.annotation))

    @property
    def repeats(self) -> bool:
        """Whether a second use adds to the first instead of replacing it."""
        return self.takes_many or any(is_mapping(member) for member in members(self.annotation))


@dataclass
class Arguments:
    """A command line sorted by option: `texts` holds the words given for each, in their order."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    asks_for_help: bool = False


def options_of(settings: type[BaseModel], path: str = "", prefixes: Sequence[str] = ("",)) -> dict[str, Option]:
    """Return the options of a settings class by dotted name; a nested model is one option, and each of its fields."""
    options: dict[str, Option] = {}
    for name, info in settings.model_fields.items():
        names = tuple(prefix + spelling for prefix in prefixes for spelling in spellings(name, info))
        options[path + name] = Option(path + name, info.annotation, info.description or "", names, info)
        inner = nested_model(info.annotation)
        if inner is not None:
            options |= options_of(inner, f"{path}{name}.", [f"{spelling}." for spelling in names])
    return options


class OptionIndex:
    """Finds an option by any of its spellings: `_` and `-` alike, aliases included."""

    def __init__(self, options: Iterable[Option]) -> None:
        self._by_name: dict[str, Option] = {}
        for option in options:
            for spelling in (option.name, *option.spellings):
                self._by_name.setdefault(spelling.replace("-", "_"), option)

    def find(self, name: str) -> Option | None:
        """Return the option of this name, if there is one; no abbreviations."""
        return self._by_name.get(name.replace("-", "_"))

    def unknown(self, name: str) -> str:
        """Return the problem of a name that no option has, with the nearest one that is."""
        secret = next((known for known in self._by_name if self._begins(name, known)), None)
        if secret is not None:
            return f"unknown hyperparameter '{secret}...'; a value follows after a blank or '='"
        return f"unknown hyperparameter {shown(name)}{did_you_mean(name.replace('-', '_'), self._by_name)}"

    @property
    def has_secrets(self) -> bool:
        return any(is_secret(option.annotation) for option in self._by_name.values())

    def _begins(self, name: str, known: str) -> bool:
        """Whether a name begins with that of a secret, whose value may be the rest."""
        return name.replace("-", "_").startswith(known) and is_secret(self._by_name[known].annotation)


_NUMBER = re.compile(r"-(\d|\.\d|inf\b|nan\b)", re.IGNORECASE)


def require_texts(argv: Any, env: Any, where: str) -> None:
    """Refuse arguments and variables that are not what a process has: texts; None is this process's own.

    Raises:
        ConfigurationError: One of them is something else.
    """
    is_list = argv is None or (isinstance(argv, Sequence) and not isinstance(argv, (str, bytes)))
    if not is_list or not all(isinstance(word, str) for word in argv or ()):
        raise ConfigurationError(
            f"argv is {shown(argv)}, and not a list of texts, as a command line is",
            where=where,
            fix="give a list of texts, like ['--epochs', '3'], or pass the values as overrides={'epochs': 3}",
        )
    pairs = env.items() if isinstance(env, Mapping) else ()
    odd = next((f"{name!r}: {shown(text)}" for name, text in pairs if not isinstance(text, str)), None)
    if odd is not None or not (env is None or isinstance(env, Mapping)):
        raise ConfigurationError(
            f"env is {odd or shown(env)}, and not texts by name, as variables are",
            where=where,
            fix="give a dict of texts, like {'SM_NUM_GPUS': '1'}",
        )


def parse(argv: Sequence[str], options: Iterable[Option]) -> Arguments:
    """Sort the words of a command line by option; every problem is noted, none ends the reading."""
    index = OptionIndex(options)
    arguments = Arguments()
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if word in ("-h", "--help"):
            arguments.asks_for_help = True
            continue
        if not _looks_like_option(word):
            # Where there are secrets, a word that belongs to nothing can be one.
            what = f"argument, word {position}" if index.has_secrets else f"argument {shown(word)}"
            arguments.problems.append(f"unexpected {what}; options are written --name VALUE")
            continue
        name, has_value, value = word.lstrip("-").partition("=")
        option = index.find(name) if word.startswith("--") or len(name) == 1 else None
        if option is None and not has_value and (negated := _negated(name, index)):
            arguments.texts[negated.name] = ["false"]
            continue
        words = [value] if has_value else _words_of(argv, position, option, index)
        position += 0 if has_value else len(words)
        if option is None:
            if not is_platform_hyperparameter(name):
                arguments.problems.append(_unknown(word, name, index))
        elif words or option.is_bool:
            given = arguments.texts.setdefault(option.name, [])
            given[:] = [*given, *words] if option.repeats else words or ["true"]
        else:
            arguments.problems.append(f"{option.flag} needs a value; write {option.flag}=VALUE if it begins with '--'")
    return arguments


def _unknown(word: str, name: str, index: OptionIndex) -> str:
    option = index.find(name)
    return index.unknown(name) if option is None else f"unknown option {shown(word)}; write {option.flag}"


def _looks_like_option(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and not _NUMBER.match(word)


def _negated(name: str, index: OptionIndex) -> Option | None:
    option = index.find(name[3:]) if name.startswith(("no-", "no_")) else None
    return option if option is not None and option.is_bool else None


def _words_of(argv: Sequence[str], start: int, option: Option | None, index: OptionIndex) -> list[str]:
    """Return the words after an option that belong to it; an unknown option keeps one, if that is no option itself."""
    words: list[str] = []
    for word in argv[start:]:
        known_letter = len(word) == 2 and word[0] == "-" and index.find(word[1]) is not None
        if _looks_like_option(word) and (
            word.startswith("--") or known_letter or word == "-h" or option is None or option.is_bool or words
        ):
            break
        words.append(word)
        if option is None or not option.takes_many:
            break
    return words


# --- the runtimes' echo -----------------------------------------------------------------------------------------------


def without_echo(argv: Sequence[str], job: Mapping[str, Any], echo: Sequence[str]) -> list[str]:
    """Return `argv` without the pairs in which a runtime only repeats a value of the job, often less exactly.

    What remains was put there by somebody: a real override.

    Args:
        argv: The command line.
        job: The job's values.
        echo: What the toolkit says that it put there (`SM_USER_ARGS`); the v3 driver says nothing, but puts the same
            words for the same values.
    """
    words = echo or [word for name, value in job.items() for word in (f"--{name}", driver_text(value))]
    pairs = list(zip(words[::2], words[1::2], strict=False))
    rest: list[str] = []
    position = 0
    while position < len(argv):
        if tuple(argv[position : position + 2]) in pairs:
            position += 2
        else:
            rest.append(argv[position])
            position += 1
    return rest


def driver_text(value: Any) -> str:
    """Return how the v3 SDK's driver writes a job's value: decoded a second time, then JSON, texts bare."""
    try:
        again = json.loads(value) if isinstance(value, str) else value
        return again if isinstance(again, str) else json.dumps(again)
    except (ValueError, RecursionError):
        return value if isinstance(value, str) else ""


# --- help -------------------------------------------------------------------------------------------------------------

_INDENT = 30


def help_text(settings: type[Hyperparameters], context_options: Iterable[Option], program: str, width: int) -> str:
    """Return what `--help` prints: the user's own settings first, each with type, default and bounds."""
    own: list[str] = []
    common: list[str] = []
    declared = set(settings.model_fields) - set(Hyperparameters.model_fields)
    for parent in settings.__mro__[: settings.__mro__.index(Hyperparameters)]:
        declared |= set(inspect.get_annotations(parent))
    defaults = _default_texts(settings)
    for name, option in options_of(settings).items():
        (own if name.split(".")[0] in declared else common).append(_help_of(option, defaults[name], width))
    about = textwrap.dedent(settings.__doc__ or "").strip() if settings.__doc__ != Hyperparameters.__doc__ else ""
    sections = [
        ("Hyperparameters of this script", own),
        ("Hyperparameters of every run", common),
        ("Places", [_help_of(option, "", width) for option in context_options]),
    ]
    parts = [f"usage: python {program} [--NAME VALUE ...]", *([about] if about else [])]
    parts += ["\n".join([f"{title}:", *lines]) for title, lines in sections if lines]
    parts.append(
        "A list is written --name 1 2 3, a flag --name or --no-name; '_' and '-' are the same in a name.\n"
        "Order of precedence: command line, then the job's hyperparameters, then --config, then the defaults."
    )
    return "\n\n".join(parts) + "\n"


def _help_of(option: Option, default: str, width: int) -> str:
    left = f"  {option.flag} {option.metavar or type_text(option.annotation)}"
    text = " ".join(filter(None, [option.description, _bounds(option.field), default]))
    wrapped = textwrap.wrap(text, max(width - _INDENT, 30)) or [""]
    first = [left.ljust(_INDENT) + wrapped.pop(0)] if len(left) < _INDENT - 1 else [left]
    return "\n".join([*first, *(" " * _INDENT + line for line in wrapped)]).rstrip()


def _default_texts(model: type[BaseModel], base: BaseModel | None = None, path: str = "") -> dict[str, str]:
    """Return what help says of each option's default; the fields of a nested model have theirs from its `base`."""
    texts: dict[str, str] = {}
    for name, info in model.model_fields.items():
        value = default_of(info) if base is None else getattr(base, name)
        inner = nested_model(info.annotation)
        if inner is not None:
            texts |= _default_texts(inner, value if isinstance(value, BaseModel) else None, f"{path}{name}.")
        if base is None and info.is_required():
            texts[path + name] = "(required)"
        elif is_secret(info.annotation):
            texts[path + name] = "" if value is None else "(default: hidden)"
        else:
            texts[path + name] = "" if isinstance(value, BaseModel) else f"(default: {_shown(value)})"
    return texts


def default_of(info: FieldInfo) -> Any:
    """Return a field's default; None where it has none, or none without the other fields."""
    if info.is_required() or info.default_factory_takes_validated_data:
        return None
    return info.get_default(call_default_factory=True)


def _shown(value: Any) -> str:
    plain = getattr(value, "value", value)
    if plain is None or isinstance(plain, bool):
        return "none" if plain is None else str(plain).lower()
    return str(plain) or "''"


def type_text(annotation: Any) -> str:
    """Return how a value of this type is asked for: `INT`, `{sgd,adam}`, `FLOAT ...`, `INT|none`."""
    names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "[BOOL]", type(None): "none", Any: "VALUE"}
    names |= {SecretStr: "SECRET", SecretBytes: "SECRET"}
    parts: list[str] = []
    for member in members(annotation):
        options = choices(member)
        if options:
            parts.append("{" + ",".join(str(getattr(option, "value", option)) for option in options) + "}")
        elif is_sequence(member):
            item = next(iter(getattr(member, "__args__", ())), str)
            parts.append(f"{type_text(item)} ...")
        elif is_mapping(member):
            is_model = isinstance(member, type) and issubclass(member, BaseModel)
            parts.append("JSON" if is_model else "KEY=VALUE,...")
        else:
            parts.append(names.get(member) or getattr(kind_of(member), "__name__", str(member)).upper())
    return "|".join(parts)


def _bounds(info: FieldInfo | None) -> str:
    signs = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "multiple_of": "multiple of {}"}
    signs |= {"min_length": "at least {} long", "max_length": "at most {} long", "pattern": "like {}"}
    found = [
        text.format(getattr(bound, name))
        for bound in (info.metadata if info else [])
        for name, text in signs.items()
        if getattr(bound, name, None) is not None
    ]
    return f"[{', '.join(found)}]" if found else ""
