"""The plan under the pen, and the counting of what is there: capacity, what is owed, what counts against a limit."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from fleetd.core import budget, lifecycle
from fleetd.core.budget import Room
from fleetd.core.memory import Node
from fleetd.core.model import Intent, Observation, Phase, Policy, PoolPolicy, Seconds
from fleetd.core.track import Draft


@dataclass(slots=True)
class Group:
    """The nodes of one app in one pool that are capacity, now or soon: booting counts, draining and lost do not."""

    slots: int = 0  # all of them, those that orders still owe included
    up: int = 0  # slots of nodes that are ready
    nodes: int = 0
    ready: list[Node] = field(default_factory=list)
    coming: list[tuple[Seconds, int]] = field(default_factory=list)  # (ordered at, slots)
    draining: list[Node] = field(default_factory=list)  # none of the above: they may be given back

    def up_by(self, until: Seconds, boot_s: Seconds) -> int:
        """Return the slots that are up at a moment, where a boot takes `boot_s`."""
        return self.up + sum([slots for at, slots in self.coming if at + boot_s <= until])


def _zeros() -> dict[Any, int]:
    """Return a count of nothing: as a `Counter`, which takes longer to make than a small fleet to count."""
    return defaultdict(int)


@dataclass(slots=True)
class Census:
    """Everything counted once a tick; what the tick itself decides is added as it is decided."""

    groups: dict[tuple[str, str], Group] = field(default_factory=lambda: defaultdict(Group))  # by pool and app
    phases: dict[str, dict[Phase, int]] = field(default_factory=lambda: defaultdict(_zeros))  # nodes by pool
    owed: dict[str, int] = field(default_factory=_zeros)  # nodes by pool that orders owe and that have no name yet
    serving: dict[str, int] = field(default_factory=_zeros)  # nodes by pool that are capacity now or soon
    odd: list[Node] = field(default_factory=list)  # all that are neither ready nor coming

    def held(self, pool: str) -> int:
        """Return the nodes that count against the pool's max: all that are not gone, the lost and the owed included."""
        return sum(self.phases[pool].values()) + self.owed[pool]


def count(draft: Draft, policy: Policy) -> Census:
    """Count the nodes whose pool is still in the policy: the ready, which are most, by whole groups at once."""
    census = Census()
    pools, closed = policy.pools, {name for name, memory in draft.pools.items() if memory.drained_until > draft.now}
    up = Phase.READY
    ready: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in draft.nodes.values():
        if node.phase is up:
            ready[node.pool, node.app].append(node)
        elif node.pool in pools:
            _count_other(census, node, closed)
    for (pool, app), there in ready.items():
        if pool in pools:
            census.phases[pool][up] += len(there)
            serving = [node for node in there if not node.pinned] if pool not in closed else []
            if serving:
                group, slots = census.groups[pool, app], sum([node.slots for node in serving])
                group.ready, group.up, group.nodes = serving, slots, group.nodes + len(serving)
                group.slots += slots
    for (pool, _), group in census.groups.items():
        census.serving[pool] += group.nodes
    _count_owed(census, draft, policy)
    return census


def _count_other(census: Census, node: Node, closed: AbstractSet[str]) -> None:
    """Count a node that is not ready."""
    census.phases[node.pool][node.phase] += 1
    coming = node.phase in lifecycle.COMING
    if not coming:
        census.odd.append(node)
    if coming and not node.pinned and node.pool not in closed:
        group = census.groups[node.pool, node.app]
        group.slots += node.slots
        group.nodes += 1
        group.coming.append((node.launched_at, node.slots))
    elif node.phase is Phase.DRAINING and not node.pinned:
        census.groups[node.pool, node.app].draining.append(node)


def _count_owed(census: Census, draft: Draft, policy: Policy) -> None:
    if not draft.orders:
        return
    known = Counter(node.key for node in draft.nodes.values())
    for key, pending in draft.orders.items():
        order = pending.order
        owed = max(0, order.count - known[key])
        if owed and order.pool in policy.pools:
            owe(census, policy.pools[order.pool], order.app, owed, pending.at)


def owe(census: Census, pool: PoolPolicy, app: str, nodes: int, at: Seconds) -> None:
    """Count nodes that an order is to bring."""
    group = census.groups[pool.name, app]
    group.slots += nodes * pool.slots
    group.nodes += nodes
    group.coming.append((at, nodes * pool.slots))
    census.owed[pool.name] += nodes
    census.serving[pool.name] += nodes


@dataclass(slots=True)
class Pen:
    """The plan under the pen, and what limits it."""

    draft: Draft
    observation: Observation
    policy: Policy
    room: Room
    launches_left: float
    stops_left: float
    census: Census = field(default_factory=Census)
    pools_of: dict[str, list[PoolPolicy]] = field(default_factory=lambda: defaultdict(list))  # by app
    intents: list[Intent] = field(default_factory=list)
    limits: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by app or pool
    done: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for pool in self.policy.pools.values():
            for app in pool.apps:
                self.pools_of[app].append(pool)

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

    def nodes(self) -> Iterator[Node]:
        """Yield the nodes whose pool is still in the policy, as they are at the moment."""
        pools = self.policy.pools
        return (node for node in list(self.draft.nodes.values()) if node.pool in pools)

    def idle_s(self, node: Node) -> Seconds:
        """Return how long a node has run nothing."""
        return self.draft.now - node.idle_at if node.idle_at is not None else 0.0


def capacity(pen: Pen, app: str) -> int:
    """Return the slots of an app that are there or coming."""
    groups = pen.census.groups
    return sum([groups[pool.name, app].slots for pool in pen.pools_of[app] if (pool.name, app) in groups])


def held(pen: Pen, pool: str) -> int:
    """Return the nodes that count against the pool's max."""
    return pen.census.held(pool)


def floor_of(pen: Pen, pool: PoolPolicy) -> int:
    """Return the nodes a pool is to hold whatever the queues say: its min, or an operator's wake, within its max."""
    memory = pen.draft.pools[pool.name]
    if memory.drained_until > pen.draft.now:
        return 0
    return min(pool.max_nodes, max(pool.min_nodes, *(wake.count for wake in memory.wakes), 0))
