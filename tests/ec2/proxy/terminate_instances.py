"""TerminateInstances: "TerminateInstances" and "Eventual consistency in the Amazon EC2 API": InvalidInstanceID.NotFound
soon after a launch; if one of several ids is not known, none is terminated.
"""

import time
from typing import TYPE_CHECKING

from tests.ec2.proxy import faults
from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Answer that a young one is not known, or let moto do it."""
    since = time.time() - proxy.hide_s
    ids = [value for key, value in call.params.items() if key.startswith("InstanceId.")]
    young = [name for name in ids if proxy.born.get(name, 0.0) > since] if proxy.hide_s else []
    if young:
        proxy.injected["not found yet"] += 1
        return faults.error("ec2", "InvalidInstanceID.NotFound", f"The instance ID '{young[0]}' does not exist")
    return proxy.forward(call)
