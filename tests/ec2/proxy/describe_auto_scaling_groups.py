"""DescribeAutoScalingGroups (Amazon EC2 Auto Scaling API Reference): the desired capacity is what was asked for, also
while there are fewer instances; and, as of any describe, the answer may be one of some moments ago.
"""

import re
from typing import TYPE_CHECKING

from tests.ec2.proxy.describe_instances import stale
from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy

_DESIRED = re.compile(rb"(<DesiredCapacity>)\d+(</DesiredCapacity>)")


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Answer as moto does, but for the number that it could not give."""
    reply = proxy.forward(call)
    wanted = proxy.asked.get(call.params.get("AutoScalingGroupNames.member.1", ""))
    if wanted is not None:
        body = _DESIRED.sub(rb"\g<1>%d\g<2>" % wanted, reply.body)
        reply = Reply(reply.status, body, reply.headers)
    return stale(proxy, call, reply)
