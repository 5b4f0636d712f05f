"""What instances cost: the spot market's newest prices, and the AWS Price List for on-demand."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fleetd.providers.ec2.api import Api

_PRODUCT: Final = "Linux/UNIX"
_LIST_PAGE: Final = 100


async def spot_prices(api: Api, types: Sequence[str], zones: Collection[str]) -> list[tuple[str, str, float]]:
    """Return the newest spot price of each type in each zone. One call for all of them, and more for more pages."""
    found = await api.pages(
        "describe_spot_price_history",
        "SpotPriceHistory",
        InstanceTypes=list(dict.fromkeys(types)),
        ProductDescriptions=[_PRODUCT],
        StartTime=datetime.now(UTC),  # from now on: the price in force, one a type and zone
    )
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    for one in found:
        place = one["InstanceType"], one["AvailabilityZone"]
        if place[1] in zones and (place not in newest or one["Timestamp"] > newest[place][0]):
            newest[place] = one["Timestamp"], float(one["SpotPrice"])
    return [(kind, zone, price) for (kind, zone), (_, price) in newest.items()]


async def list_prices(api: Api, region: str, types: Sequence[str]) -> dict[str, float]:
    """Return the on-demand price of each type, of Linux on shared machines, in dollars."""
    found = {}
    for kind in types:
        terms = {
            "instanceType": kind,
            "regionCode": region,
            "operatingSystem": "Linux",
            "tenancy": "Shared",
            "preInstalledSw": "NA",
            "capacitystatus": "Used",
        }
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in terms.items()]
        answer = await api.call(
            "get_products", service="pricing", ServiceCode="AmazonEC2", Filters=filters, MaxResults=_LIST_PAGE
        )
        prices = [price for text in answer["PriceList"] for price in _hourly(json.loads(text))]
        if prices:
            found[kind] = max(prices)
    return found


def _hourly(product: Mapping[str, Any]) -> list[float]:
    """Return what the hour costs in an entry of the list."""
    dimensions = [
        dimension
        for term in product.get("terms", {}).get("OnDemand", {}).values()
        for dimension in term.get("priceDimensions", {}).values()
    ]
    return [float(one["pricePerUnit"]["USD"]) for one in dimensions if one.get("unit") == "Hrs"]
