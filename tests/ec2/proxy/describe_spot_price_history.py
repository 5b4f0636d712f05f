"""DescribeSpotPriceHistory (Amazon EC2 API Reference): one price by type and zone; moto knows a single one for all."""

from typing import TYPE_CHECKING

from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Answer with the prices that were set."""
    types = {value for key, value in call.params.items() if key.startswith("InstanceType.")}
    items = "".join(
        f"<item><instanceType>{kind}</instanceType><productDescription>Linux/UNIX</productDescription>"
        f"<spotPrice>{price:f}</spotPrice><timestamp>2026-11-25T00:00:00.000Z</timestamp>"
        f"<availabilityZone>{zone}</availabilityZone></item>"
        for (kind, zone), price in proxy.spot.items()
        if kind in types
    )
    body = (
        '<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId>'
        f"<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken></nextToken></DescribeSpotPriceHistoryResponse>"
    )
    return Reply(200, body.encode())
