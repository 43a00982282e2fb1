"""Secrets that this process has come to know, and texts without them.

Whoever reads a secret, from an argument, a file or AWS, notes it here; what goes to a log, or to a file that others
read, goes through `redacted`. So an exception that quotes a token, as those of HTTP libraries do, does not publish it.
What the user's own code prints goes its own way. This room does not know where secrets come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

MASK = "**********"
"""As pydantic shows a secret."""
_LEAST_CHARACTERS = 6
"""A shorter secret stands in many words by chance."""
_known: dict[str, None] = {}


def note(secret: Any) -> None:
    """Remember a secret, or those in a list or a mapping; what else is neither text nor bytes is none."""
    if isinstance(secret, bytes):
        secret = secret.decode("utf-8", "replace")
    if isinstance(secret, str):
        if len(secret) >= _LEAST_CHARACTERS:
            # As it stands, and as it is quoted in JSON, in Python and in an address.
            forms = (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe=""))
            _known.update(dict.fromkeys(forms))
    elif isinstance(secret, Mapping):
        note(list(secret.values()))
    elif isinstance(secret, (list, tuple, set, frozenset)):
        for part in secret:
            note(part)


def redacted(text: str) -> str:
    """Return a text with a mask in the place of every secret that has been noted."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text
