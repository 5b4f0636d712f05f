"""From demand to intents: which nodes to launch, un-drain, drain and stop. Held to the rules, in their order.

Precedence: busy safety > budget > max > hold > min. Un-drain comes before launch, the cheapest pool first; the dearest
node goes first, the longest idle before the busy. Only a drained node is stopped, or one that never came up, or one
that an operator forces.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import ceil, inf
from typing import Final

from fleetd.core import budget, lifecycle
from fleetd.core.capacity import Pen, capacity, count, floor_of
from fleetd.core.demand import HOLD_FLOOR_S, Demand, Peaks, because, boot_of, demands
from fleetd.core.growth import BUDGET_AHEAD_S, affordable, launch, undrain
from fleetd.core.learn import boot_estimate
from fleetd.core.lifecycle import Event
from fleetd.core.memory import Node, Wanted
from fleetd.core.model import (
    Drain,
    Phase,
    PoolPolicy,
    Stop,
    Undrain,
    World,
)
from fleetd.core.wakes import honour_names, wanted_by_name

SLACK: Final = 1.03  # boot when need exceeds capacity by this, so that rounding does not boot
KEEP_SLACK: Final = 1.04  # drain when capacity exceeds what is kept by this
STOP_GRACE_S: Final = 30.0
STOP_AGAIN_S: Final = 60.0
SLIVER: Final = 0.05  # a fraction of a slot that is not worth one more


def fill(pen: Pen) -> tuple[dict[str, Demand], dict[str, Peaks], dict[str, Wanted]]:
    """Write the tick's intents; return the demands that they answer, and what to remember of them."""
    _force(pen)
    _quarantine(pen)
    _obey(pen)
    pen.census = count(pen.draft, pen.policy)
    asked, peaks, wanted = demands(pen)
    _mind_budget(pen)
    if not pen.draft.memory.ending:
        honour_names(pen)
        for demand in sorted(asked.values(), key=lambda d: (*d.urgency, d.app)):
            _scale(pen, demand)
        for pool in pen.policy.pools.values():
            _floor(pen, pool, asked)
    _stop(pen)
    return asked, peaks, wanted


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
    """Drain what goes by itself, and what operators or the end of the fleet send away.

    What has not come up yet is stopped at the end.
    """
    draft = pen.draft
    everybody = draft.memory.ending or any(memory.drained_until > draft.now for memory in draft.pools.values())
    for name in draft.leaving:
        draft.nodes[name] = replace(draft.nodes[name], pinned=True)
    for node in [node for node in draft.nodes.values() if everybody or node.pinned]:
        if node.pool not in pen.policy.pools or not pen.policy.pools[node.pool].act:
            continue
        if pen.draft.memory.ending:
            reason = "the fleet ends"
        elif node.id in draft.leaving:
            reason = f"its machine goes: {draft.leaving[node.id]}"
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
    if pen.room.hour is None and pen.room.month is None:
        return
    ready = [
        n
        for n in pen.nodes()
        if n.phase in lifecycle.SERVING and pen.price(n.pool) > 0 and pen.policy.pools[n.pool].act
    ]
    growth = sum(pen.price(node.pool) for node in ready) * BUDGET_AHEAD_S / budget.HOUR_S
    for node in sorted(ready, key=lambda n: (-pen.price(n.pool), n.busy, -pen.idle_s(n), n.id)):
        if pen.room.fits(growth):
            return
        growth -= pen.price(node.pool) * BUDGET_AHEAD_S / budget.HOUR_S
        _leave(pen, replace(node, pinned=True), "the budget is used up")
        pen.limits[node.app].append("the budget is used up")


def _drain(pen: Pen, node: Node, reason: str) -> None:
    pen.draft.move(node, Event.FENCE, reason)
    app = pen.policy.apps.get(node.app)
    pen.intents.append(Drain(node.pool, node.id, app.drain_s if app else None, reason))


def _leave(pen: Pen, node: Node, reason: str) -> None:
    """Drain a node that was counted as capacity."""
    group = pen.census.groups[node.pool, node.app]
    group.slots -= node.slots
    group.nodes -= 1
    group.up -= node.slots
    pen.census.serving[node.pool] -= 1
    _drain(pen, node, reason)


def _stop(pen: Pen) -> None:
    """Stop what is proven empty: drained by its worker's own fresh word, failed before it came up, or asked in vain."""
    batches: dict[tuple[str, str], list[str]] = defaultdict(list)
    now, ttl_s = pen.draft.now, pen.observation.lease_ttl_s
    for node in pen.nodes() if pen.draft.memory.ending else [pen.draft.nodes[node.id] for node in pen.census.odd]:
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
    """Grow or shrink an app. Each pool is asked for what the need will be when its own nodes would be up.

    The cheapest pool comes first and may cover the whole need; a dearer one that boots faster only bridges what the
    cheaper ones, booting already, will not cover in time.
    """
    pools = fill_order(pen, demand.app)
    have = _counts(pen, demand, pools)
    if any(demand.need(pool.name) > slots * SLACK + SLIVER for pool, slots in have):
        _grow(pen, demand, pools)
        have = _counts(pen, demand, pools)
    if pen.policy.stability == "bounded" and not demand.frozen:
        _end_idle(pen, demand, pools)
        have = _counts(pen, demand, pools)
    if any(slots > ceil(demand.keep(pool.name) - SLIVER) for pool, slots in have):
        if demand.frozen:
            pen.limits[demand.app].append(f"not scaling in: {demand.frozen}")
        elif not demand.crowded:
            _shrink(pen, demand, pools)


def fill_order(pen: Pen, app: str) -> list[PoolPolicy]:
    """Return the pools of an app, that with the cheapest slot first, the faster first of two that cost the same."""
    pools = pen.pools_of[app]
    if len(pools) < 2:
        return pools
    return sorted(pools, key=lambda p: (pen.price(p.name) / p.slots, boot_estimate(pen.draft.pools[p.name]), p.name))


def _counts(pen: Pen, demand: Demand, pools: Sequence[PoolPolicy]) -> list[tuple[PoolPolicy, int]]:
    """Return each pool with the slots of it and the cheaper ones."""
    return [(pool, _counted(pen, demand, pools[: at + 1])) for at, pool in enumerate(pools)]


def _counted(pen: Pen, demand: Demand, pools: Sequence[PoolPolicy]) -> int:
    """Return the slots of these pools that there will be when a node of the last that is ordered now is up."""
    total, until = 0, pen.draft.now + demand.terms[pools[-1].name].boot_s
    for pool in pools:
        group = pen.census.groups.get((pool.name, demand.app))
        if group is None:
            continue
        if pool is pools[-1] or not group.coming:
            total += group.slots
        else:
            boot_s = boot_estimate(pen.draft.pools[pool.name], 0.5) or demand.terms[pool.name].boot_s
            total += group.up_by(until, boot_s)
    return total


def _grow(pen: Pen, demand: Demand, pools: Sequence[PoolPolicy]) -> None:
    """Let each pool, the cheapest first, cover what it and the cheaper ones lack."""
    short = 0
    for at, pool in enumerate(pools):
        need = demand.need(pool.name)
        have = _counted(pen, demand, pools[: at + 1])
        short = max(0, ceil(need - SLIVER) - have)
        if short <= 0 or need <= have * SLACK + SLIVER:
            continue
        missing = short - undrain(pen, demand, pool, short)
        nodes = affordable(pen, demand.app, pool, ceil(missing / pool.slots)) if missing > 0 else 0
        if nodes:
            launch(pen, pool, demand.app, nodes, because(pen, demand))
        short = max(0, missing - nodes * pool.slots)
    if short > 0:
        pen.limits[demand.app].append(f"{short} slots short")


def _shrink(pen: Pen, demand: Demand, pools: Sequence[PoolPolicy]) -> None:
    """Drain what is over: the dearest pool first, its longest idle first; never inside a paid minimum."""
    for at in range(len(pools) - 1, -1, -1):
        pool = pools[at]
        group = pen.census.groups.get((pool.name, demand.app))
        keep = demand.keep(pool.name)
        have = _counted(pen, demand, pools[: at + 1])
        surplus = have - ceil(keep - SLIVER)
        if group is None or have <= max(ceil(keep - SLIVER), keep * KEEP_SLACK):
            continue
        for node in _by_turn(pen, pool, group.ready):
            if surplus < node.slots or pen.census.serving[pool.name] <= floor_of(pen, pool):
                break
            if still := pen.still(pool.name):
                pen.limits[demand.app].append(f"not scaling in: {still}; would drain {node.id}")
                break
            if not _may_go(pen, pool, node):
                continue
            if not _send_away(pen, node, f"{demand.app} keeps {keep:.1f} slots, this one is over"):
                return
            surplus -= node.slots


def _by_turn(pen: Pen, pool: PoolPolicy, nodes: Sequence[Node]) -> list[Node]:
    """Return nodes in the order in which they are to go: as they can, and else idle before busy."""
    world = pen.observation.worlds.get(pool.name)
    turn = {node: at for at, node in enumerate(world.goes_first)} if isinstance(world, World) else {}
    return sorted(nodes, key=lambda n: (turn.get(n.id, len(turn)), n.busy, -pen.idle_s(n), n.id))


def _end_idle(pen: Pen, demand: Demand, pools: Sequence[PoolPolicy]) -> None:
    """Drain every node that was idle for as long as its boot is paid for, whatever the need says: `bounded`'s promise.

    With foresight, a gap until the next job costs itself or a boot, whichever is less. Without, a short gap costs
    itself here, and a long one the idle time up to the limit and a boot: never more than twice as much (ski rental:
    Karlin, Manasse, Rudolph, Sleator, "Competitive snoopy caching", 1988; for servers DELAYEDOFF: Gandhi and
    Harchol-Balter, "How data center size impacts the effectiveness of dynamic power management", 2011).
    """
    for pool in pools:
        group = pen.census.groups.get((pool.name, demand.app))
        limit_s = max(boot_of(pen, pool).paid_s, HOLD_FLOOR_S["bounded"])
        for node in sorted(group.ready, key=lambda n: (-pen.idle_s(n), n.id)) if group else ():
            idle_s = min(pen.idle_s(node), pen.draft.now - node.since)  # what it did before it drained is over
            if node.busy or idle_s < limit_s or not _may_go(pen, pool, node):
                continue
            spare = _counted(pen, demand, pools) - node.slots >= demand.floor
            if not spare or pen.census.serving[pool.name] <= floor_of(pen, pool):
                break
            if still := pen.still(pool.name):
                pen.limits[demand.app].append(f"not scaling in: {still}; would drain {node.id}")
                break
            if not _send_away(pen, node, f"idle for {idle_s:.0f} s, what its boot is worth is {limit_s:.0f} s"):
                return


def _may_go(pen: Pen, pool: PoolPolicy, node: Node) -> bool:
    """Whether a node is out of its paid minimum, not wanted by name, and not sent away already in this tick."""
    paid = pen.draft.now - node.launched_at < pool.billing_minimum_s
    wanted = wanted_by_name(pen.draft.pools[pool.name], node)
    return not paid and not wanted and pen.draft.nodes[node.id].phase is Phase.READY


def _send_away(pen: Pen, node: Node, reason: str) -> bool:
    """Drain a node that is over, if the ramp limit allows it."""
    if pen.stops_left < 1:
        pen.limits[node.app].append("limited by stops per minute")
        return False
    _leave(pen, pen.draft.nodes[node.id], reason)
    pen.stops_left -= 1
    pen.done[node.app].append(f"draining {node.id}")
    return True


def _floor(pen: Pen, pool: PoolPolicy, wanted: dict[str, Demand]) -> None:
    """Hold a pool at its floor; the nodes go to the app of the pool that lacks most."""
    missing = floor_of(pen, pool) - pen.census.serving[pool.name]
    if missing <= 0:
        return
    app = max(pool.apps, key=lambda a: wanted[a].need(pool.name) - capacity(pen, a) if a in wanted else -inf)
    reason = f"{pool.name} is to hold {floor_of(pen, pool)} nodes"
    spare = Demand(app=app, why=reason)
    missing -= undrain(pen, spare, pool, missing * pool.slots) // pool.slots
    nodes = affordable(pen, pool.name, pool, missing) if missing > 0 else 0
    if nodes:
        launch(pen, pool, app, nodes, reason)
