"""DescribeInstanceRefreshes (Amazon EC2 Auto Scaling API Reference); moto does not know it."""

from typing import TYPE_CHECKING

from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Answer with the refreshes that were set."""
    name = call.params["AutoScalingGroupName"]
    items = "".join(
        f"<member><InstanceRefreshId>{at}</InstanceRefreshId><AutoScalingGroupName>{name}</AutoScalingGroupName>"
        f"<Status>{status}</Status></member>"
        for at, status in enumerate(proxy.refreshes)
    )
    body = (
        '<DescribeInstanceRefreshesResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/">'
        f"<DescribeInstanceRefreshesResult><InstanceRefreshes>{items}</InstanceRefreshes>"
        "</DescribeInstanceRefreshesResult>"
        "<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></DescribeInstanceRefreshesResponse>"
    )
    return Reply(200, body.encode())
