"""How a pool grows: fences lifted, nodes ordered, and what stands against it, in words."""

from dataclasses import replace
from math import inf
from typing import Final

from fleetd.core import budget, lifecycle
from fleetd.core.capacity import Pen, held, owe
from fleetd.core.demand import Demand, because
from fleetd.core.lifecycle import Event
from fleetd.core.memory import Node, Pending
from fleetd.core.model import Launch, Offer, Order, Phase, PoolPolicy, Undrain, World

BUDGET_AHEAD_S: Final = 60.0  # what serves now must fit the budget for so long, or the dearest drains


def undrain(pen: Pen, demand: Demand, pool: PoolPolicy, missing: int) -> int:
    """Lift fences of unpinned nodes, the busiest first (the least idle have the warmest caches); return the slots."""
    group = pen.census.groups.get((pool.name, demand.app))
    if group is None or not group.draining:
        return 0
    gained, reason = 0, f"needed again: {because(pen, demand)}"
    for node in sorted(group.draining, key=lambda n: (pen.idle_s(n), n.id)):
        if gained >= missing or not give_back(pen, node, reason):
            break
        pen.done[demand.app].append(f"un-draining {node.id}")
        gained += node.slots
    return gained


def give_back(pen: Pen, node: Node, reason: str) -> bool:
    """Lift the fence of a draining node, unless the budget or an operator is against it; return whether it was."""
    draft, group = pen.draft, pen.census.groups[node.pool, node.app]
    ready = replace(node, phase=Phase.READY)
    extra = budget.cost_of(draft, pen.observation, pen.policy, ready) - budget.cost_of(
        draft, pen.observation, pen.policy, node
    )
    extra += pen.price(node.pool) * BUDGET_AHEAD_S / budget.HOUR_S
    drained = draft.pools[node.pool].drained_until > draft.now or pen.still(node.pool)
    if drained or not pen.room.fits(extra):
        return False
    draft.move(node, Event.UNFENCE, reason)
    group.draining.remove(node)
    group.slots, group.up, group.nodes = group.slots + node.slots, group.up + node.slots, group.nodes + 1
    pen.census.serving[node.pool] += 1
    pen.intents.append(Undrain(node.pool, node.id, reason))
    pen.room = pen.room.take(extra)
    return True


def affordable(pen: Pen, who: str, pool: PoolPolicy, wanted: int) -> int:
    """Return how many of the wanted nodes the pool may launch; note in words what limits it."""
    memory, world = pen.draft.pools[pool.name], pen.observation.worlds.get(pool.name)
    offer = world.offer if isinstance(world, World) else Offer()
    cost = budget.cost_of_new(pen.draft, pen.observation, pen.policy, pool)
    lefts = [left for left in (pen.room.hour, pen.room.month) if left is not None]
    affordable = min((left / cost for left in lefts), default=inf) if cost > 0 else inf
    probing = memory.failures > 0 and memory.why_open != "" and memory.open_until > 0.0
    phases = pen.census.phases[pool.name]
    busy_probing = probing and any(phases[phase] for phase in lifecycle.COMING)
    still = pen.still(pool.name)
    open_s = memory.open_until - pen.draft.now
    short = f" ({offer.why})" if offer.why else ""
    bounds = {
        "{still}": 0 if still else inf,
        "max of {pool.name} ({pool.max_nodes})": pool.max_nodes - held(pen, pool.name),
        "{pool.name} has no more to give{short}": inf if offer.headroom is None else offer.headroom,
        "breaker of {pool.name} open for {open_s:.0f} s: {memory.why_open}": 0 if open_s > 0.0 else inf,
        "{pool.name} is tried with one node after failures": 0 if busy_probing else 1 if probing else inf,
        "{pool.name} is drained by an operator": 0 if memory.drained_until > pen.draft.now else inf,
        "{pool.name} cannot be seen": inf if isinstance(world, World) else 0,
        "the budget": affordable,
        "launches per minute": pen.launches_left,
    }
    least = min(bounds.values())
    allowed = int(max(0.0, min(float(wanted), least)))
    if allowed < wanted:
        words = next(words for words, bound in bounds.items() if bound == least)
        why = words.format(still=still, pool=pool, memory=memory, open_s=open_s, short=short)
        would = f"; would launch {wanted} in {pool.name}" if why == still and still else ""
        pen.limits[who].append(f"limited: {why}{would}" if why == still else f"limited by {why}")
    return allowed


def launch(pen: Pen, pool: PoolPolicy, app: str, nodes: int, reason: str, *, named: tuple[str, ...] = ()) -> None:
    """Order nodes of a pool for an app, those first that are named."""
    draft = pen.draft
    key = f"{draft.memory.epoch}-{draft.memory.next_order}"
    order = Order(key, pool.name, app, nodes, held(pen, pool.name) + nodes, draft.memory.epoch, named)
    draft.memory = replace(draft.memory, next_order=draft.memory.next_order + 1)
    cost = budget.cost_of_new(draft, pen.observation, pen.policy, pool)
    draft.orders[key] = Pending(order, draft.now)
    owe(pen.census, pool, app, nodes, draft.now)
    draft.events.append(f"order {key}: launch {nodes} in {pool.name} for {app}: {reason}")
    pen.room = pen.room.take(nodes * cost)
    pen.launches_left -= nodes
    pen.intents.append(Launch(order, reason))
    pen.done[app].append(f"launching {nodes} in {pool.name}")
