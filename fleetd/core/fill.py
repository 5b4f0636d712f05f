"""From demand to intents: which nodes to launch, un-drain, drain and stop. Held to the rules, in their order.

Precedence: busy safety > budget > max > hold > min. Un-drain comes before launch, the cheapest pool first; the dearest
node goes first, the longest idle before the busy. Only a drained node is stopped, or one that never came up, or one
that an operator forces.
"""

from collections import defaultdict
from dataclasses import replace
from math import ceil, inf
from typing import Final

from fleetd.core import budget, lifecycle
from fleetd.core.capacity import Pen, capacity, counts, floor_of, held, serving
from fleetd.core.demand import Demand
from fleetd.core.learn import boot_estimate
from fleetd.core.lifecycle import Event
from fleetd.core.memory import Node, Pending
from fleetd.core.model import (
    Drain,
    Launch,
    Order,
    Phase,
    PoolPolicy,
    Stop,
    Undrain,
    World,
)

SLACK: Final = 1.05  # boot when need exceeds capacity by this, so that rounding does not boot
KEEP_SLACK: Final = 1.08  # drain when capacity exceeds what is kept by this
STOP_GRACE_S: Final = 30.0
STOP_AGAIN_S: Final = 60.0
BUDGET_AHEAD_S: Final = 60.0  # what serves now must fit the budget for so long, or the dearest drains
SLIVER: Final = 0.05  # a fraction of a slot that is not worth one more


def fill(pen: Pen, demands: dict[str, Demand]) -> None:
    """Write the tick's intents."""
    _force(pen)
    _quarantine(pen)
    _obey(pen)
    _mind_budget(pen)
    for demand in sorted(demands.values(), key=lambda d: (*d.urgency, d.app)):
        if not pen.draft.memory.ending:
            _scale(pen, demand)
    for pool in pen.policy.pools.values():
        if not pen.draft.memory.ending:
            _floor(pen, pool, demands)
    _stop(pen)


# ── what must go


def _force(pen: Pen) -> None:
    for name in pen.draft.forced:
        node = pen.draft.nodes[name]
        if lifecycle.may(node, Event.STOP):
            reason = "an operator's force"
            pen.draft.nodes[name] = replace(pen.draft.move(node, Event.STOP, reason), asked_at=pen.draft.now)
            pen.intents.append(Stop(node.pool, (name,), 0.0, reason))


def _quarantine(pen: Pen) -> None:
    """Fence what was put into quarantine and unfence what was freed."""
    for name in pen.draft.fenced:
        pen.intents.append(Drain(pen.draft.nodes[name].pool, name, None, "quarantined by an operator"))
    for name in pen.draft.freed:
        pen.intents.append(Undrain(pen.draft.nodes[name].pool, name, "freed by an operator"))


def _obey(pen: Pen) -> None:
    """Drain what operators or the end of the fleet send away; what has not come up yet is stopped at the end."""
    for node in pen.nodes():
        if not pen.policy.pools[node.pool].act:
            continue
        if pen.draft.memory.ending:
            reason = "the fleet ends"
        elif node.pinned:
            reason = "an operator drains it"
        elif pen.draft.pools[node.pool].drained_until > pen.draft.now:
            reason = f"an operator drains pool {node.pool}"
        else:
            continue
        if lifecycle.may(node, Event.FENCE):
            _drain(pen, node, reason)


def _mind_budget(pen: Pen) -> None:
    """Drain the dearest while what serves would run over the budget within the next minute."""
    ready = [
        n
        for n in pen.nodes()
        if n.phase in lifecycle.SERVING and pen.price(n.pool) > 0 and pen.policy.pools[n.pool].act
    ]
    growth = sum(pen.price(node.pool) for node in ready) * BUDGET_AHEAD_S / budget.HOUR_S
    for node in sorted(ready, key=lambda n: (-pen.price(n.pool), n.busy, -n.idle_s, n.id)):
        if pen.room.fits(growth):
            return
        growth -= pen.price(node.pool) * BUDGET_AHEAD_S / budget.HOUR_S
        _drain(pen, replace(node, pinned=True), "the budget is used up")
        pen.limits[node.app].append("the budget is used up")


def _drain(pen: Pen, node: Node, reason: str) -> None:
    pen.draft.move(node, Event.FENCE, reason)
    app = pen.policy.apps.get(node.app)
    pen.intents.append(Drain(node.pool, node.id, app.drain_s if app else None, reason))


def _stop(pen: Pen) -> None:
    """Stop what is proven empty: drained by its worker's own fresh word, failed before it came up, or asked in vain."""
    batches: dict[tuple[str, str], list[str]] = defaultdict(list)
    now, ttl_s = pen.draft.now, pen.observation.lease_ttl_s
    for node in pen.nodes():
        if not pen.policy.pools[node.pool].act:
            continue
        lease = pen.observation.leases.get(node.id)
        drained = lease is not None and lease.state == "drained" and lease.age_s <= ttl_s
        # Fenced in this very tick, its word is of before: it may have been let work in between.
        if node.phase is Phase.DRAINING and drained and node.since < now:
            batches[node.pool, "drained"].append(node.id)
        elif node.phase is Phase.FAILED:
            batches[node.pool, "it never came up"].append(node.id)
        elif pen.draft.memory.ending and node.phase in lifecycle.COMING:
            batches[node.pool, "the fleet ends before it came up"].append(node.id)
        elif node.phase is Phase.STOPPING and now - (node.asked_at or 0.0) > STOP_AGAIN_S:
            batches[node.pool, "stopped before, yet still there"].append(node.id)
    for (pool, reason), names in batches.items():
        for name in names:
            node = pen.draft.nodes[name]
            if node.phase is not Phase.STOPPING:
                node = pen.draft.move(node, Event.STOP, reason)
            pen.draft.nodes[name] = replace(node, asked_at=now)
        pen.intents.append(Stop(pool, tuple(names), STOP_GRACE_S, reason))


# ── scaling


def _scale(pen: Pen, demand: Demand) -> None:
    have = capacity(pen, demand.app)
    if demand.need > have * SLACK + SLIVER:
        _grow(pen, demand, ceil(demand.need - SLIVER) - have)
    elif have > max(ceil(demand.keep - SLIVER), demand.keep * KEEP_SLACK):
        surplus = have - ceil(demand.keep - SLIVER)
        if demand.frozen:
            pen.limits[demand.app].append(f"not scaling in: {demand.frozen}")
        else:
            _shrink(pen, demand, surplus)


def _grow(pen: Pen, demand: Demand, missing: int) -> None:
    pools = [pool for pool in pen.policy.pools.values() if demand.app in pool.apps]
    pools.sort(key=lambda p: (pen.price(p.name) / p.slots, boot_estimate(pen.draft.pools[p.name]), p.name))
    for pool in pools:
        missing -= _undrain(pen, demand, pool, missing)
    for pool in pools:
        if missing <= 0:
            return
        count = _affordable(pen, demand.app, pool, ceil(missing / pool.slots))
        if count:
            _launch(pen, pool, demand.app, count, demand.why)
            missing -= count * pool.slots
    if missing > 0:
        pen.limits[demand.app].append(f"{missing} slots short")


def _undrain(pen: Pen, demand: Demand, pool: PoolPolicy, missing: int) -> int:
    """Lift fences of unpinned nodes, the busiest first (the least idle have the warmest caches); return the slots."""
    gained = 0
    waiting = [n for n in pen.nodes(pool=pool.name, app=demand.app) if n.phase is Phase.DRAINING and not n.pinned]
    for node in sorted(waiting, key=lambda n: (n.idle_s, n.id)):
        ready = replace(node, phase=Phase.READY)
        extra = budget.cost_of(pen.draft, pen.observation, pen.policy, ready) - budget.cost_of(
            pen.draft, pen.observation, pen.policy, node
        )
        extra += pen.price(pool.name) * BUDGET_AHEAD_S / budget.HOUR_S
        drained = pen.draft.pools[pool.name].drained_until > pen.draft.now or pen.still(pool.name)
        if gained >= missing or drained or not pen.room.fits(extra):
            break
        reason = f"needed again: {demand.why}"
        pen.draft.move(node, Event.UNFENCE, reason)
        pen.intents.append(Undrain(node.pool, node.id, reason))
        pen.room = pen.room.take(extra)
        pen.done[demand.app].append(f"un-draining {node.id}")
        gained += node.slots
    return gained


def _affordable(pen: Pen, who: str, pool: PoolPolicy, wanted: int) -> int:
    """Return how many of the wanted nodes the pool may launch; note in words what limits it."""
    memory, world = pen.draft.pools[pool.name], pen.observation.worlds.get(pool.name)
    headroom = world.offer.headroom if isinstance(world, World) else None
    cost = budget.cost_of_new(pen.draft, pen.observation, pen.policy, pool)
    lefts = [left for left in (pen.room.hour, pen.room.month) if left is not None]
    affordable = min((left / cost for left in lefts), default=inf) if cost > 0 else inf
    probing = memory.failures > 0 and memory.why_open != "" and memory.open_until > 0.0
    busy_probing = probing and any(n.phase in lifecycle.COMING for n in pen.nodes(pool=pool.name))
    still = pen.still(pool.name)
    bounds: list[tuple[float, str]] = [
        (0 if still else inf, still),
        (pool.max_nodes - held(pen, pool.name), f"max of {pool.name} ({pool.max_nodes})"),
        (inf if headroom is None else headroom, f"{pool.name} has no more to give"),
        (0 if memory.open_until > pen.draft.now else inf,
         f"breaker of {pool.name} open for {memory.open_until - pen.draft.now:.0f} s: {memory.why_open}"),
        (0 if busy_probing else 1 if probing else inf, f"{pool.name} is tried with one node after failures"),
        (0 if memory.drained_until > pen.draft.now else inf, f"{pool.name} is drained by an operator"),
        (0 if not isinstance(world, World) else inf, f"{pool.name} cannot be seen"),
        (affordable, "the budget"),
        (pen.launches_left, "launches per minute"),
    ]  # fmt: skip
    least, why = min(bounds, key=lambda bound: bound[0])
    allowed = int(max(0.0, min(float(wanted), least)))
    if allowed < wanted:
        would = f"; would launch {wanted} in {pool.name}" if why == still and still else ""
        pen.limits[who].append(f"limited: {why}{would}" if why == still else f"limited by {why}")
    return allowed


def _launch(pen: Pen, pool: PoolPolicy, app: str, count: int, reason: str) -> None:
    draft = pen.draft
    key = f"{draft.memory.epoch}-{draft.memory.next_order}"
    order = Order(key, pool.name, app, count, held(pen, pool.name) + count, draft.memory.epoch)
    draft.memory = replace(draft.memory, next_order=draft.memory.next_order + 1)
    cost = budget.cost_of_new(draft, pen.observation, pen.policy, pool)
    draft.orders[key] = Pending(order, draft.now)
    draft.events.append(f"order {key}: launch {count} in {pool.name} for {app}: {reason}")
    pen.room = pen.room.take(count * cost)
    pen.launches_left -= count
    pen.intents.append(Launch(order, reason))
    pen.done[app].append(f"launching {count} in {pool.name}")


def _shrink(pen: Pen, demand: Demand, surplus: int) -> None:
    """Drain whole nodes out of the surplus: dearest pool first, longest idle first, never inside a paid minimum."""
    candidates = [node for node in pen.nodes(app=demand.app) if node.phase in lifecycle.SERVING and counts(pen, node)]
    candidates.sort(key=lambda n: (-pen.price(n.pool) / n.slots, n.busy > 0, -n.idle_s, n.busy, n.id))
    for node in candidates:
        pool = pen.policy.pools[node.pool]
        if node.slots > surplus or serving(pen, node.pool) <= floor_of(pen, pool):
            continue
        if still := pen.still(node.pool):
            pen.limits[demand.app].append(f"not scaling in: {still}; would drain {node.id}")
            continue
        if pen.draft.now - node.launched_at < pool.billing_minimum_s:
            continue
        if pen.stops_left < 1:
            pen.limits[demand.app].append("limited by stops per minute")
            return
        _drain(pen, node, f"{demand.app} keeps {demand.keep:.1f} slots, this one is over")
        pen.stops_left -= 1
        pen.done[demand.app].append(f"draining {node.id}")
        surplus -= node.slots


def _floor(pen: Pen, pool: PoolPolicy, demands: dict[str, Demand]) -> None:
    """Hold a pool at its floor; the nodes go to the app of the pool that lacks most."""
    missing = floor_of(pen, pool) - serving(pen, pool.name)
    if missing <= 0:
        return
    app = max(pool.apps, key=lambda a: demands[a].need - capacity(pen, a) if a in demands else -inf)
    reason = f"{pool.name} is to hold {floor_of(pen, pool)} nodes"
    spare = Demand(app=app, need=0.0, keep=0.0, waiting=0, running=0, urgency=(3, 0.0), why=reason)
    missing -= _undrain(pen, spare, pool, missing * pool.slots) // pool.slots
    count = _affordable(pen, pool.name, pool, missing) if missing > 0 else 0
    if count:
        _launch(pen, pool, app, count, reason)
