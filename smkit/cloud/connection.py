"""A connection for those who ask for hours: it reads credentials again, and tells outages from refusals.

This room knows no job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from smkit.cloud.aws import Clients
from smkit.cloud.aws_errors import aws_errors, is_expired, is_passing, is_without_credentials, is_wrong_clock
from smkit.errors import ConfigurationError, JobError, SmkitError
from smkit.watching import OutOfReach

_Answer = TypeVar("_Answer")

_RENEWAL_SECONDS = 15 * 60.0
"""How long to wait for a person to sign in again."""


class Connection:
    """Clients that are exchanged for fresh ones when their credentials have run out."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self._has_worked = False

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
        except (JobError, ConfigurationError) as error:
            if is_passing(error):
                raise OutOfReach(error.what, where=error.where, fix=error.fix) from error
            if not self._have_run_out(error):
                raise
        try:
            # They may have been renewed by somebody else: `aws sso login` in another terminal.
            with aws_errors(doing, kind=JobError, profile_name=self.clients.profile_name):
                self.clients = self.clients.reconnect()
            return self._ask(doing, call)
        except (JobError, ConfigurationError) as error:
            if not is_passing(error) and not self._have_run_out(error):
                raise
            raise OutOfReach(
                error.what,
                where=error.where,
                fix=error.fix,
                patience_seconds=None if is_passing(error) else _RENEWAL_SECONDS,
                is_said_at_once=True,
            ) from error

    def _ask(self, doing: str, call: Callable[[Clients], _Answer]) -> _Answer:
        with aws_errors(doing, kind=JobError, profile_name=self.clients.profile_name):
            answer = call(self.clients)
        self._has_worked = True
        return answer

    def _have_run_out(self, error: SmkitError) -> bool:
        """Whether the credentials have, or cannot be found any more although they once were.

        A clock that is wrong, or was while this machine slept, is put right in the same way: by waiting for somebody.
        """
        has_gone = is_without_credentials(error) or is_wrong_clock(error)
        return is_expired(error) or (self._has_worked and has_gone)
