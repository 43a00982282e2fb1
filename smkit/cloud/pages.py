"""Lists of AWS that come in pages, read to their end, which a service that has gone wrong may never give.

This room knows no service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from smkit.errors import ConfigurationError, SmkitError


def pages(
    call: Callable[..., Mapping[str, Any]],
    doing: str,
    *,
    given: str = "NextToken",
    told: str = "NextToken",
    kind: type[SmkitError] = ConfigurationError,
) -> Iterator[Mapping[str, Any]]:
    """Yield the pages of a list.

    Args:
        call: Returns one page; takes the token of the one before, from the second on.
        doing: What is listed, for messages.
        given: The token's name in a request.
        told: The token's name in a page.
        kind: The class to raise.

    Raises:
        SmkitError: A token came for the second time, so that the list would have no end.
    """
    seen: set[str] = set()
    token: dict[str, str] = {}
    while True:
        page = call(**token)
        yield page
        following = page.get(told)
        if not following:
            return
        if following in seen:
            raise kind(
                "AWS gives the same page again and again",
                where=doing,
                fix="repeat in a minute; if it stays so, ask who runs the proxy or the endpoint (AWS_ENDPOINT_URL)",
            )
        seen.add(following)
        token = {given: following}
