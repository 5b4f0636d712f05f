"""What stands before moto's server and adds what it lacks: a file a call, each naming the AWS page that it follows.

What is proven only by these files is labelled *emulated* in docs/ec2.md: nothing here was checked against AWS.
"""

from tests.ec2.proxy import (
    create_fleet,
    describe_auto_scaling_groups,
    describe_instance_refreshes,
    describe_instances,
    describe_scaling_activities,
    describe_spot_price_history,
    get_products,
    set_desired_capacity,
    terminate_in_group,
    terminate_instances,
)
from tests.ec2.proxy.plumbing import Call, Emulation, Proxy, Reply

CALLS: dict[str, Emulation] = {
    "CreateFleet": create_fleet.answer,
    "DescribeAutoScalingGroups": describe_auto_scaling_groups.answer,
    "DescribeInstanceRefreshes": describe_instance_refreshes.answer,
    "DescribeInstances": describe_instances.answer,
    "DescribeScalingActivities": describe_scaling_activities.answer,
    "DescribeSpotPriceHistory": describe_spot_price_history.answer,
    "GetProducts": get_products.answer,
    "SetDesiredCapacity": set_desired_capacity.answer,
    "TerminateInstanceInAutoScalingGroup": terminate_in_group.answer,
    "TerminateInstances": terminate_instances.answer,
}

__all__ = ["CALLS", "Call", "Proxy", "Reply", "start"]


def start(moto: int) -> Proxy:
    """A proxy before the server on that port, serving."""
    return Proxy(moto, CALLS).start()
