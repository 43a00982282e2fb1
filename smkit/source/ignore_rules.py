"""Ignore rules with git's meaning: which paths the lines of `.gitignore` and `.smkitignore` leave out.

A rule is tried on each path by itself, top down, as git does: what lies in a folder that is left out is never asked
about. git's index is not read, so a file that is tracked although a rule names it is left out all the same; neither
are the rules of the user's own git configuration, which another machine does not have.
This room knows patterns and paths as texts, and nothing of what else makes a file travel or not.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smkit.errors import ConfigurationError

_FOLDER_ABOVE = "ps_d"
"""pathspec's name for the slash behind a folder that a pattern names."""


@dataclass(frozen=True)
class Rule:
    """One line of a file of rules, ready to be tried.

    Args:
        line: The line as it is written.
        origin: The file that it stands in, in words.
        base: The folder that it is relative to: empty, or ending in a slash.
        takes_back: Whether it begins with `!`.
        literal_path: The whole path that it names, if it names one without wildcards.
    """

    line: str
    origin: str
    base: str
    takes_back: bool
    literal_path: str | None
    _for_folders: bool
    _levels: int | None
    _pattern: re.Pattern[str]

    def __str__(self) -> str:
        return f"'{self.line.strip()}' in {self.origin}"

    def matches(self, path: str, *, is_folder: bool) -> bool:
        """Say whether the rule names `path` itself; that it names a folder above is another question."""
        if (self._for_folders and not is_folder) or not path.startswith(self.base):
            return False
        path = _as_bytes(path.rpartition("/")[2] if self._levels == 0 else path[len(self.base) :])
        if self._levels and self._levels != path.count("/") + 1:
            return False
        # pathspec's expressions end with a folder's slash or with the path; that is where they match what is below.
        is_exact = _FOLDER_ABOVE in self._pattern.groupindex
        return (self._pattern.fullmatch(path) if is_exact else self._pattern.search(path)) is not None


def read_rules(text: str, *, origin: str, base: str = "") -> tuple[Rule, ...]:
    """Return the rules of a file's text in their order; lines that are comments or name nothing are none."""
    lines = text.removeprefix("\ufeff").split("\n")
    return tuple(rule for line in lines if (rule := _read_rule(line.removesuffix("\r"), origin, base)))


def last_match(rules: Sequence[Rule], path: str, *, is_folder: bool) -> Rule | None:
    """Return the rule that decides about `path`: the last one that names it."""
    return next((rule for rule in reversed(rules) if rule.matches(path, is_folder=is_folder)), None)


def names_any(patterns: Iterable[str], path: str) -> bool:
    """Say whether one of the patterns names `path` or a folder above it."""
    rules = [rule for pattern in patterns if (rule := _read_rule(pattern.removeprefix("./"), "", ""))]
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts))]
    return any(
        rule.matches(path, is_folder=False) or any(rule.matches(folder, is_folder=True) for folder in above)
        for rule in rules
    )


def git_rules_above(root: Path) -> tuple[str, tuple[Rule, ...]]:
    """Return what git applies to `root` from outside of it: its path in the repository, and the rules.

    The path is empty or ends in a slash. Without a repository there are no such rules.
    """
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)
    if top is None:
        return "", ()
    below = root.relative_to(top).parts
    rules = [*read_file(_git_folder(top / ".git") / "info/exclude", origin=".git/info/exclude")]
    for depth in range(len(below)):
        base = "".join(f"{part}/" for part in below[:depth])
        rules += read_file(top / base / ".gitignore", origin=str(top / base / ".gitignore"), base=base)
    return "".join(f"{part}/" for part in below), tuple(rules)


def read_file(path: Path, *, origin: str, base: str = "") -> tuple[Rule, ...]:
    """Return the rules of a file, and none if there is no such file; as for git, a link is no file of rules."""
    if path.is_symlink() or not path.is_file():
        return ()
    return read_rules(path.read_bytes().decode(errors="surrogateescape"), origin=origin, base=base)


def _git_folder(git: Path) -> Path:
    """Return where a repository keeps what its work trees share; in a work tree of its own `.git` is a file."""
    with_link = git.read_text(encoding="utf-8", errors="replace") if git.is_file() else ""
    if not with_link.startswith("gitdir:"):
        return git
    folder = git.parent / with_link.removeprefix("gitdir:").strip()
    common = folder / "commondir"
    return folder / common.read_text(encoding="utf-8").strip() if common.is_file() else folder


def _read_rule(line: str, origin: str, base: str) -> Rule | None:
    if line.startswith("#"):
        return None
    body = _without_trailing_spaces(line)
    takes_back = body.startswith("!")
    body = body.removeprefix("!")
    for_folders = body.endswith("/")
    body = body.removesuffix("/")
    if not body:
        return None
    is_anchored = "/" in body
    # Without a slash of its own a pattern is tried on names, and so cannot match by a folder above.
    pattern = _compile(f"/{body.removeprefix('/')}" if is_anchored else body)
    parts = body.removeprefix("/").split("/")
    is_deep = is_anchored and "**" in parts
    if pattern is None:
        return None
    return Rule(
        line=line,
        origin=origin,
        base=base,
        takes_back=takes_back,
        literal_path=base + "/".join(parts) if is_anchored and not re.search(r"[*?\[\\]", body) else None,
        _for_folders=for_folders,
        _levels=None if is_deep else len(parts) if is_anchored else 0,
        _pattern=pattern,
    )


def _without_trailing_spaces(line: str) -> str:
    stripped = line.rstrip(" ")
    escapes = len(stripped) - len(stripped.rstrip("\\"))
    return stripped + " " if escapes % 2 and stripped != line else stripped


def _as_bytes(text: str) -> str:
    """Return a character for each byte of a text in UTF-8: to git `?` and `[!a]` stand for one byte."""
    return text if text.isascii() else text.encode(errors="surrogateescape").decode("latin-1")


_CLASS = re.compile(r"\[:([a-z]+):\]")
_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "lower": "a-z",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
    "space": " \t-\r",
    "blank": " \t",
    "punct": "!-.:-@\\[-`{-~",
}
"""What `[[:alpha:]]` stands for, as ranges; pathspec leaves it to Python, which reads it otherwise."""


@functools.lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern[str] | None:
    """Return the regular expression of a pattern, or None for one that git, too, takes for matching nothing."""
    try:
        from pathspec import GitIgnoreSpec
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "launching reads ignore rules with pathspec, which is not installed here",
            where="this Python environment",
            fix="pip install 'smkit[launch]', or 'smkit[local]' for jobs on this machine only",
        ) from error
    pattern = _CLASS.sub(lambda found: _CLASSES.get(found[1], found[0]), _as_bytes(pattern))
    # pathspec takes a tab at the end for nothing, and git for a tab.
    if pattern[-1].isspace() and pattern[-1] != " ":
        if pattern.rfind("[") > pattern.rfind("]"):
            return None
        pattern = re.sub(r"(?<!\\)[\t\v\f\r]+$", lambda found: "".join(f"[{blank}]" for blank in found[0]), pattern)
    if pattern.startswith(("#", "!", " ", "\t")):
        pattern = "\\" + pattern
    with warnings.catch_warnings():
        # Python warns of `[[:alpha:]]`, which it does not read as git does.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            (compiled,) = GitIgnoreSpec.from_lines([pattern]).patterns
        except (ValueError, re.error):
            return None
    return getattr(compiled, "regex", None)
