"""Rules of `.gitignore` that pathspec reads otherwise than git."""

import pytest

from smkit.source.ignore_rules import last_match, read_rules

pytest.importorskip("pathspec")


@pytest.mark.parametrize(
    ("pattern", "path", "is_named"),
    [
        ("[[:alpha:]].key", "a.key", True),
        ("[[:digit:]][![:digit:]]", "1a", True),
        ("[[:digit:]]", "a", False),
        ("[[:space:]]x", " x", True),
        ("?", "\u00e9", False),
        ("??", "\u00e9", True),
        ("[!a]", "\u00e9", False),
        ("*.\u00e9", "a.\u00e9", True),
        ("b/\u00e9", "b/\u00e9", True),
        ("[ab]\t", "a", False),
        ("[ab]\t", "a\t", True),
        ("[\t", "[", False),
    ],
)
def test_a_rule_means_what_it_means_to_git(pattern: str, path: str, is_named: bool) -> None:
    found = last_match(read_rules(pattern, origin=".gitignore"), path, is_folder=False)
    assert (found is not None) is is_named
