"""What a job has cost: the seconds that are billed, and the price if somebody has told it.

There is no price in here: prices come with their origin, or not at all.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smkit.watching import has_ended


@dataclass(frozen=True)
class Price:
    """What an hour of one instance costs.

    Args:
        dollars_per_hour: US dollars, on demand.
        origin: Who says so, and when.
    """

    dollars_per_hour: float
    origin: str


@dataclass(frozen=True)
class Cost:
    """What a job has cost so far, or in all.

    Args:
        training_seconds: From the start of the training to its end.
        billable_seconds: What is billed of them, for each instance.
        instances: The type and number of the instances, once for each group.
        prices: The price of each type that there is one of.
        is_final: Whether the job has ended.
    """

    training_seconds: int
    billable_seconds: int
    instances: Sequence[tuple[str, int]]
    prices: Mapping[str, Price]
    is_final: bool

    @property
    def instance_type(self) -> str:
        return "+".join(dict.fromkeys(kind for kind, _ in self.instances))

    @property
    def instance_count(self) -> int:
        return sum(count for _, count in self.instances)

    @property
    def spot_saving_percent(self) -> float:
        """How much less is billed than was trained; 0 unless the job used spot instances."""
        if not self.is_final or self.training_seconds <= 0:
            return 0.0
        return max(0.0, round(100 * (1 - self.billable_seconds / self.training_seconds), 1))

    @property
    def price_per_hour(self) -> Price | None:
        """The price of one hour of an instance; None if unknown, or if the instances are of several types."""
        return self.prices.get(self.instance_type)

    @property
    def dollars(self) -> float | None:
        """What all instances cost together, before tax and discounts; None where a price is unknown."""
        if not all(kind in self.prices for kind, _ in self.instances):
            return None
        hours = self.billable_seconds / 3600
        return sum(hours * count * self.prices[kind].dollars_per_hour for kind, count in self.instances)

    def __str__(self) -> str:
        machines = " + ".join(f"{count} x {kind}" for kind, count in self.instances)
        text = f"{self.billable_seconds:,} billable s of {self.training_seconds:,} s on {machines}"
        if self.spot_saving_percent:
            text += f", spot saves {self.spot_saving_percent:g} %"
        if self.dollars is None:
            text += ": price unknown"
        else:
            rates = ", ".join(
                f"${price.dollars_per_hour:g}/h for {kind} by the {price.origin}" for kind, price in self.prices.items()
            )
            text += f": ${self.dollars:,.2f} ({rates})"
        return text if self.is_final else f"{text}, so far"


def instances(description: Mapping[str, Any]) -> Sequence[tuple[str, int]]:
    """Return the type and number of a job's instances, once for each group."""
    resources = description.get("ResourceConfig", {})
    if groups := resources.get("InstanceGroups"):
        return [(group["InstanceType"], group["InstanceCount"]) for group in groups]
    kind = resources.get("SelectedInstanceType") or resources.get("InstanceType") or "unknown"
    return [(kind, resources.get("SelectedInstanceCount") or resources.get("InstanceCount") or 1)]


def cost(description: Mapping[str, Any], prices: Mapping[str, Price]) -> Cost:
    """Return the cost of a job from its description; seconds of a running job are those since its start."""
    seconds = description.get("TrainingTimeInSeconds")
    if seconds is None:
        started = description.get("TrainingStartTime")
        ended = description.get("TrainingEndTime") or datetime.datetime.now(datetime.timezone.utc)
        seconds = max(0, round((ended - started).total_seconds())) if started else 0
    return Cost(
        training_seconds=seconds,
        billable_seconds=description.get("BillableTimeInSeconds", seconds),
        instances=instances(description),
        prices=prices,
        is_final=has_ended(description),
    )
