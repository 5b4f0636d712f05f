"""DescribeInstances: "Eventual consistency in the Amazon EC2 API" (Amazon EC2 Developer Guide).

Added to moto: an answer may be one of some moments ago; and an instance may be missing for a while after its start.
"""

import re
import time
from collections import deque
from typing import TYPE_CHECKING

from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy

KEPT = 6
MOST_S = 6.0
_INSTANCE = re.compile(rb"<instanceId>(i-[0-9a-f]+)</instanceId>")
_RESERVATION = re.compile(
    rb"<item>\s*<reservationId>.*?</item>\s*(?=<item>\s*<reservationId>|</reservationSet>)", re.DOTALL
)


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Answer as moto does, or did."""
    return stale(proxy, call, _hidden(proxy, proxy.forward(call)))


def stale(proxy: "Proxy", call: Call, reply: Reply) -> Reply:
    """Return the answer to the same question of up to some seconds ago, at times."""
    if not proxy.stale_share or reply.status != 200:
        return reply
    now = time.time()
    with proxy.lock:
        past = proxy.past.setdefault(call.body, deque(maxlen=KEPT))
        old = [one for at, one in past if now - at < MOST_S]
        past.append((now, reply))
        if old and proxy.chance.random() < proxy.stale_share:
            proxy.injected["stale"] += 1
            return proxy.chance.choice(old)
    return reply


def _hidden(proxy: "Proxy", reply: Reply) -> Reply:
    """Take out the reservations of instances that are too young to be known. moto's have one instance each."""
    since = time.time() - proxy.hide_s
    young = {name.encode() for name, at in proxy.born.items() if at > since} if proxy.hide_s else set()
    if not young:
        return reply
    kept = _RESERVATION.sub(lambda one: b"" if set(_INSTANCE.findall(one[0])) & young else one[0], reply.body)
    if kept != reply.body:
        proxy.injected["hidden"] += 1
    return Reply(reply.status, kept, reply.headers)
