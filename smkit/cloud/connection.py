"""A connection for those who ask for hours: it reads credentials again, and tells outages from refusals.

This room knows no job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from smkit.cloud.aws import Clients
from smkit.cloud.aws_errors import aws_errors, is_expired, is_passing
from smkit.errors import ConfigurationError, JobError, SmkitError
from smkit.watching import OutOfReach

_Answer = TypeVar("_Answer")

_RENEWAL_SECONDS = 15 * 60.0
"""How long to wait for a person to sign in again."""


class Connection:
    """Clients that are exchanged for fresh ones when their credentials have run out."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients

    def ask(self, doing: str, call: Callable[[Clients], _Answer]) -> _Answer:
        """Return what `call` returns.

        Args:
            doing: What the call is about, for messages.
            call: Makes one call of AWS; it is made again with fresh credentials.

        Raises:
            OutOfReach: AWS is busy or cannot be reached, or the credentials have expired and are not renewed yet.
            JobError: AWS refuses the call.
        """
        try:
            return self._ask(doing, call)
        except SmkitError as error:
            if not is_expired(error):
                raise
        # A profile's credentials may have been renewed by somebody else: `aws sso login` in another terminal.
        self.clients = self.clients.reconnect()
        return self._ask(doing, call)

    def _ask(self, doing: str, call: Callable[[Clients], _Answer]) -> _Answer:
        try:
            with aws_errors(doing, kind=JobError, profile_name=self.clients.profile_name):
                return call(self.clients)
        except (JobError, ConfigurationError) as error:
            if not is_expired(error) and not is_passing(error):
                raise
            raise OutOfReach(
                error.what,
                where=error.where,
                fix=error.fix,
                patience_seconds=_RENEWAL_SECONDS if is_expired(error) else None,
                is_said_at_once=is_expired(error),
            ) from error
