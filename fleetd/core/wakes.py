"""Machines that an operator wants up by name: `fleetd wake rack3/node07`. They are launched first and stay.

A machine is a node's name, or its beginning up to a point: `rack3/node07` lives as `rack3/node07.12`, its twelfth life.
"""

from collections.abc import Iterable

from fleetd.core.capacity import Pen
from fleetd.core.growth import affordable, give_back, launch
from fleetd.core.memory import Node, PoolMemory
from fleetd.core.model import NodeId, Order, Phase, PoolPolicy


def lives_on(node: NodeId, pool: str, machine: str) -> bool:
    """Whether a node is a life of this machine."""
    return node == f"{pool}/{machine}" or node.startswith(f"{pool}/{machine}.")


def wanted_by_name(memory: PoolMemory, node: Node) -> bool:
    """Whether an operator wants the machine of this node up."""
    return any(wake.machine and lives_on(node.id, node.pool, wake.machine) for wake in memory.wakes)


def honour_names(pen: Pen) -> None:
    """Bring up the machines that are wanted by name: give back the draining, order the others."""
    for name, pool in pen.policy.pools.items():
        machines = {wake.machine for wake in pen.draft.pools[name].wakes if wake.machine}
        missing = [machine for machine in sorted(machines) if not _there(pen, name, machine)]
        if not missing:
            continue
        allowed = affordable(pen, name, pool, len(missing))
        if allowed:
            reason = f"an operator wants {', '.join(missing[:allowed])} up"
            launch(pen, pool, _app(pen, pool), allowed, reason, named=tuple(missing[:allowed]))


def _there(pen: Pen, pool: str, machine: str) -> bool:
    """Whether a machine lives, is ordered, or could be given back; one that is on its way off is waited for."""
    if any(machine in order.named for order in _orders(pen, pool)):
        return True
    lives = [node for node in pen.draft.nodes.values() if lives_on(node.id, pool, machine)]
    for node in lives:
        if node.phase is Phase.DRAINING and not node.pinned:
            give_back(pen, node, f"an operator wants {machine} up")
    return bool(lives)


def _orders(pen: Pen, pool: str) -> Iterable[Order]:
    return (pending.order for pending in pen.draft.orders.values() if pending.order.pool == pool)


def _app(pen: Pen, pool: PoolPolicy) -> str:
    """Return the app of the pool that has the most waiting."""
    waiting = dict.fromkeys(pool.apps, 0)
    for name, queue in pen.policy.queues.items():
        if queue.app in waiting:
            waiting[queue.app] += pen.draft.queues[name].waiting
    return max(pool.apps, key=lambda app: waiting[app])
