"""GetProducts of the Price List (AWS Billing and Cost Management API Reference; "Using the AWS Price List Query API"):
a list of products, each a text of JSON. moto has none.
"""

import json
from typing import TYPE_CHECKING

from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Answer with the on-demand price that was set for the type."""
    wanted = {one["Field"]: one["Value"] for one in json.loads(call.body)["Filters"]}
    price = proxy.listed.get(wanted["instanceType"])
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": f"{price or 0:f}"}}
    product = {"product": {}, "terms": {"OnDemand": {"x": {"priceDimensions": {"y": dimension}}}}}
    found = [json.dumps(product)] if price is not None else []
    body = json.dumps({"FormatVersion": "aws_v1", "PriceList": found})
    return Reply(200, body.encode(), {"Content-Type": "application/x-amz-json-1.1"})
