"""TerminateInstanceInAutoScalingGroup (Amazon EC2 Auto Scaling API Reference): with the desired capacity lowered, not
below MinSize; an instance that is not in a group is not found. moto goes below any bound, and fails on the latter.
"""

import re
from typing import TYPE_CHECKING

from tests.ec2.proxy import faults
from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy

_GROUP = re.compile(rb"<AutoScalingGroupName>([^<]+)</AutoScalingGroupName>")


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Hold the bound; have moto do the rest."""
    name = call.params["InstanceId"]
    fields = {"Action": "DescribeAutoScalingInstances", "Version": call.params["Version"]}
    found = proxy.forward(call.with_params({**fields, "InstanceIds.member.1": name}))
    group = _GROUP.search(found.body)
    if not group or name.encode() not in found.body:
        told = f"Instance Id not found - No managed instance found for instance ID: {name}"
        return faults.error("autoscaling", "ValidationError", told)
    with proxy.lock:
        told_group = group[1].decode()
        fields = {"Action": "DescribeAutoScalingGroups", "Version": call.params["Version"]}
        groups = proxy.forward(call.with_params({**fields, "AutoScalingGroupNames.member.1": told_group})).body
        numbers = [re.search(rb"<%s>(\d+)</%s>" % (field, field), groups) for field in (b"DesiredCapacity", b"MinSize")]
        desired, least = (int(one[1]) if one else 0 for one in numbers)
        lowered = call.params["ShouldDecrementDesiredCapacity"] == "true"
        if lowered and desired - 1 < least:
            told = f"Currently, desiredSize equals minSize ({least}). Terminating instance without replacement will "
            told += "violate group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false"
            return faults.error("autoscaling", "ValidationError", told)
        reply = proxy.forward(call)
        if lowered and told_group in proxy.asked:
            proxy.asked[told_group] -= 1
        return reply
