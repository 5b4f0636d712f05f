"""SetDesiredCapacity: "SetDesiredCapacity" (Amazon EC2 Auto Scaling API Reference) and "Troubleshoot Amazon EC2 Auto
Scaling: instance launch failures" (User Guide): outside of MinSize and MaxSize it is refused; what there is no capacity
for is tried again and again, and only the scaling activities say so. moto takes any number, and has it at once.
"""

import re
import uuid
from typing import TYPE_CHECKING

from tests.ec2.proxy import faults
from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy

FAILED = (
    "Could not launch On-Demand Instances. InsufficientInstanceCapacity - We currently do not have sufficient capacity "
    "in the Availability Zone you requested. Launching EC2 instance failed."
)


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Hold the bounds, and give what there is."""
    name, wanted = call.params["AutoScalingGroupName"], int(call.params["DesiredCapacity"])
    least, most = bounds(proxy, call, name)
    if not least <= wanted <= most:
        word = f"above max value {most}" if wanted > most else f"below min value {least}"
        told = f"New SetDesiredCapacity value {wanted} is {word} for the AutoScalingGroup."
        return faults.error("autoscaling", "ValidationError", told)
    with proxy.lock:
        proxy.asked.pop(name, None)
        if proxy.group_capacity is not None and wanted > proxy.group_capacity:
            proxy.asked[name] = wanted
            failed = {"id": str(uuid.uuid4()), "status": "Failed", "message": FAILED}
            proxy.activities.insert(0, failed)
            return proxy.forward(call.with_params({**call.params, "DesiredCapacity": str(proxy.group_capacity)}))
    return proxy.forward(call)


def bounds(proxy: "Proxy", call: Call, name: str) -> tuple[int, int]:
    """The group's MinSize and MaxSize."""
    fields = {"Action": "DescribeAutoScalingGroups", "Version": call.params["Version"]}
    reply = proxy.forward(call.with_params({**fields, "AutoScalingGroupNames.member.1": name}))
    found = [re.search(rf"<{field}>(\d+)</{field}>".encode(), reply.body) for field in ("MinSize", "MaxSize")]
    least, most = (int(one[1]) if one else 0 for one in found)
    return least, most
