"""How the server behaves: the knobs that a test may turn, and the faults that it may plan."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Settings:
    """All knobs; times are in seconds, and faults that are counted are used up call by call."""

    # Log lines can be read so much later than they were written; of the second, fourth... host after a third of it.
    log_delay: float = 0.3
    # From SIGTERM to SIGKILL; 120 s on AWS.
    grace: float = 3.0
    # Every so often, the checkpoint and TensorBoard folders are mirrored to S3.
    sync_interval: float = 0.2
    # How long a job waits for its instances.
    starting: float = 0.0
    # Every answer to a client comes so much later.
    latency: float = 0.0
    # Instance types of which there are none left.
    without_capacity: list[str] = field(default_factory=list)
    # The first log line that matches this interrupts its job, if that is a managed spot job; once.
    interrupt_at: str | None = None
    # Action -> how many of its next calls are refused with ThrottlingException (SlowDown by S3).
    throttled: dict[str, int] = field(default_factory=dict)
    # Access keys whose token has expired.
    expired_keys: list[str] = field(default_factory=list)
    # Action -> how many of its next calls are carried out and then get no answer.
    lost_replies: dict[str, int] = field(default_factory=dict)
    # Action of S3 -> how many of its next calls have one bit flipped on the way: of what is put, or of what is got.
    corrupted: dict[str, int] = field(default_factory=dict)
    # Folders that jobs do not see: packages of the Python environment, the source of one installed as editable.
    hidden: list[str] = field(default_factory=list)
    # What the policies of every role and user deny: IAM's SimulatePrincipalPolicy says so.
    denied: list[str] = field(default_factory=list)
    # Service quotas of the account: name -> value ("ml.p3.2xlarge for training job usage").
    quotas: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def change(self, values: dict[str, Any]) -> None:
        """Set these fields.

        Raises:
            KeyError: There is no such field.
        """
        unknown = values.keys() - {item.name for item in fields(self)}
        if unknown:
            raise KeyError(*unknown)
        with self._lock:
            for name, value in values.items():
                setattr(self, name, value)

    def restore(self) -> None:
        """Set all fields to their defaults."""
        fresh = Settings()
        self.change({item.name: getattr(fresh, item.name) for item in fields(fresh)})

    def use_up(self, fault: str, action: str) -> bool:
        """Return whether this fault is planned for a call of this action, and count the call."""
        with self._lock:
            planned: dict[str, int] = getattr(self, fault)
            left = planned.get(action, 0)
            if left:
                planned[action] = left - 1
            return left > 0

    def use_up_interruption(self, line: str) -> bool:
        """Return whether this log line is the one that interrupts its job."""
        with self._lock:
            hit = self.interrupt_at is not None and re.search(self.interrupt_at, line) is not None
            if hit:
                self.interrupt_at = None
            return hit
