"""DescribeScalingActivities (Amazon EC2 Auto Scaling API Reference): the newest first; moto has none."""

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Answer with what went wrong so far."""
    name = call.params["AutoScalingGroupName"]
    items = "".join(
        f"<member><ActivityId>{one['id']}</ActivityId><AutoScalingGroupName>{name}</AutoScalingGroupName>"
        "<Cause>At some time</Cause><StartTime>2026-11-25T00:00:00Z</StartTime>"
        f"<StatusCode>{one['status']}</StatusCode>"
        f"<StatusMessage>{escape(one['message'])}</StatusMessage></member>"
        for one in proxy.activities
    )
    body = (
        '<DescribeScalingActivitiesResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/">'
        f"<DescribeScalingActivitiesResult><Activities>{items}</Activities></DescribeScalingActivitiesResult>"
        "<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></DescribeScalingActivitiesResponse>"
    )
    return Reply(200, body.encode())
