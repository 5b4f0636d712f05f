"""The plan under the pen, and the counting of what is there: capacity, what is owed, what counts against a limit."""

from collections import defaultdict
from dataclasses import dataclass, field

from fleetd.core import budget, lifecycle
from fleetd.core.budget import Room
from fleetd.core.memory import Node
from fleetd.core.model import Intent, Observation, Policy, PoolPolicy
from fleetd.core.track import Draft


@dataclass(slots=True)
class Pen:
    """The plan under the pen, and what limits it."""

    draft: Draft
    observation: Observation
    policy: Policy
    room: Room
    launches_left: float
    stops_left: float
    intents: list[Intent] = field(default_factory=list)
    limits: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by app or pool
    done: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def still(self, pool: str) -> str:
        """Return why the pool is not to be scaled now, or nothing."""
        held_s = self.draft.pools[pool].held_until - self.draft.now
        if not self.policy.pools[pool].act:
            return f"{pool} is only watched (act: true lets it act)"
        if self.draft.memory.paused:
            return "the fleet is paused by an operator"
        return f"{pool} is held by an operator for {held_s:.0f} s" if held_s > 0 else ""

    def price(self, pool: str) -> float:
        """Return the price of a node of the pool an hour."""
        return budget.price(self.policy.pools[pool], self.observation)

    def nodes(self, *, pool: str | None = None, app: str | None = None) -> list[Node]:
        """Return the nodes of a pool or app whose pool is still in the policy."""
        return [
            node
            for node in self.draft.nodes.values()
            if node.pool in self.policy.pools and pool in (None, node.pool) and app in (None, node.app)
        ]


def coming(pen: Pen, *, pool: str | None = None, app: str | None = None) -> dict[str, int]:
    """Return, by pool, the nodes that orders still owe and that have no name yet."""
    owed: dict[str, int] = defaultdict(int)
    for key, pending in pen.draft.orders.items():
        order = pending.order
        if pool in (None, order.pool) and app in (None, order.app):
            known = sum(1 for node in pen.draft.nodes.values() if node.key == key)
            owed[order.pool] += max(0, order.count - known)
    return owed


def counts(pen: Pen, node: Node) -> bool:
    """Whether a node is capacity, now or soon: booting counts, draining and lost do not."""
    pool = pen.draft.pools[node.pool]
    alive = node.phase in lifecycle.SERVING or node.phase in lifecycle.COMING
    return alive and not node.pinned and pool.drained_until <= pen.draft.now


def capacity(pen: Pen, app: str) -> int:
    """Return the slots of an app that are there or coming."""
    owed = coming(pen, app=app)
    return sum(node.slots for node in pen.nodes(app=app) if counts(pen, node)) + sum(
        count * pen.policy.pools[pool].slots for pool, count in owed.items() if pool in pen.policy.pools
    )


def held(pen: Pen, pool: str) -> int:
    """Return the nodes that count against the pool's max: all that are not gone, the lost and the owed included."""
    return len(pen.nodes(pool=pool)) + coming(pen, pool=pool)[pool]


def floor_of(pen: Pen, pool: PoolPolicy) -> int:
    """Return the nodes a pool is to hold whatever the queues say: its min, or an operator's wake, within its max."""
    memory = pen.draft.pools[pool.name]
    if memory.drained_until > pen.draft.now:
        return 0
    return min(pool.max_nodes, max(pool.min_nodes, *(wake.count for wake in memory.wakes), 0))


def serving(pen: Pen, pool: str) -> int:
    """Return the nodes of a pool that are capacity now or soon."""
    return sum(1 for node in pen.nodes(pool=pool) if counts(pen, node)) + coming(pen, pool=pool)[pool]
