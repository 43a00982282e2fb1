"""What an hour of an instance costs, asked of AWS's pricing API each time: a table would be wrong next month."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from smkit.cloud.connection import Connection
from smkit.errors import SmkitError
from smkit.job_cost import Price
from smkit.watching import OutOfReach

_logger = logging.getLogger(__name__)


def ask_prices(connection: Connection, instance_types: Iterable[str]) -> Mapping[str, Price]:
    """Return the price of each instance type on demand, without those that AWS does not tell.

    It takes the permission pricing:GetProducts, which few need for anything else, so that a refusal is no error.
    """
    prices = {}
    for kind in instance_types:
        filters = {"instanceName": kind, "regionCode": connection.clients.region, "component": "Training"}
        try:
            answer = connection.ask(
                f"price of {kind}",
                lambda clients: clients.client("pricing").get_products(
                    ServiceCode="AmazonSageMaker",
                    Filters=[
                        {"Type": "TERM_MATCH", "Field": name, "Value": value}
                        for name, value in filters.items()  # noqa: B023 - called at once
                    ],
                ),
            )
        except OutOfReach as error:
            # Who waits for a price waits for every one of them.
            _logger.info("no prices: %s", error.what)
            break
        except SmkitError as error:
            _logger.info("no price of %s: %s", kind, error.what)
            continue
        if price := read_price(answer.get("PriceList", ())):
            prices[kind] = price
    return prices


def read_price(products: Iterable[Any]) -> Price | None:
    """Return the price per hour that products of the pricing API agree on; None if they do not, or are none.

    Args:
        products: Elements of PriceList: JSON texts.
    """
    found: set[Price] = set()
    for product in products:
        try:
            content = json.loads(product) if isinstance(product, str) else product
            day = str(content.get("publicationDate") or datetime.datetime.now(datetime.timezone.utc).isoformat())[:10]
            found.update(Price(dollars, f"pricing API, {day}") for dollars in _hourly(content))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            _logger.info("a product of the pricing API cannot be read: %r", error)
    return found.pop() if len({price.dollars_per_hour for price in found}) == 1 else None


def _hourly(content: Mapping[str, Any]) -> Iterator[float]:
    for offer in content["terms"]["OnDemand"].values():
        for dimension in offer["priceDimensions"].values():
            dollars = float(dimension.get("pricePerUnit", {}).get("USD", 0))
            if dollars > 0 and str(dimension.get("unit", "")).lower() in ("hrs", "hours", "hour"):
                yield dollars
