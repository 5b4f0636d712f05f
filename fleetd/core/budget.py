"""Money: what was spent, what is committed, and whether one more node fits. A hard limit on committed cost.

The commitment of a node is what it could still cost if it were told to go now: the rest of its boot, its longest job,
its drain, and the rest of its minimum billing. Spending plus commitments never exceeds the budget by a decision of
ours: no launch that could, and when time itself brings the sum there, nodes are drained, the dearest first.
"""

from collections import Counter
from dataclasses import dataclass
from math import floor, inf
from typing import Final

from fleetd.core.learn import boot_deadline
from fleetd.core.memory import Node, PoolMemory, Spend
from fleetd.core.model import Observation, Phase, Policy, PoolPolicy, Seconds, World
from fleetd.core.track import Draft

HOUR_S: Final = 3600.0
DRAIN_S: Final = 30.0  # from the end of the last job to the end of the bill: lease, stop, the provider's own pace


@dataclass(frozen=True, slots=True)
class Room:
    """Money left this hour and this month after all commitments; None: no limit."""

    hour: float | None
    month: float | None

    def fits(self, cost: float) -> bool:
        """Whether a further commitment of this cost is within both budgets."""
        return all(left is None or cost <= left for left in (self.hour, self.month))

    def take(self, cost: float) -> "Room":
        """Return the room after committing this cost."""
        return Room(*(None if left is None else left - cost for left in (self.hour, self.month)))


def price(pool: PoolPolicy, observation: Observation) -> float:
    """Return a node's price an hour: what the provider offers now, never below the policy's word."""
    world = observation.worlds.get(pool.name)
    offered = world.offer.price_per_h if isinstance(world, World) else None
    return max(pool.price_per_h, offered or 0.0)


def accrue(draft: Draft, observation: Observation, policy: Policy) -> Spend:
    """Return the spending after the time since the last tick; a lost node costs like any other.

    One that is gone within its paid minimum is billed for the rest of that, too.
    """
    spend = draft.memory.spend
    if spend.at is None:
        return Spend(at=draft.now, month=observation.month)
    elapsed_h = max(0.0, draft.now - spend.at) / HOUR_S
    held = Counter([node.pool for node in draft.nodes.values()])
    rate = sum(nodes * price(policy.pools[pool], observation) for pool, nodes in held.items() if pool in policy.pools)
    cost, minute = rate * elapsed_h, floor(draft.now / 60.0)
    for node in draft.gone:
        if pool := policy.pools.get(node.pool):
            rest_s = pool.billing_minimum_s - (draft.now - node.launched_at)
            cost += _money(price(pool, observation), max(0.0, rest_s))
    kept = spend.minutes
    if kept and kept[-1][0] == minute:
        kept = (*kept[:-1], (minute, kept[-1][1] + cost))
    elif cost:
        kept = (*(past for past in kept if past[0] >= minute - 60), (minute, cost))
    same = spend.month == observation.month
    return Spend(draft.now, kept, observation.month, (spend.month_total if same else 0.0) + cost)


def commitment(pool: PoolPolicy, memory: PoolMemory, policy: Policy, node: Node | None, now: Seconds) -> Seconds:
    """Return the seconds a node (None: a new one) could still be billed for if it were told to go now."""
    if policy.budget.hour is None and policy.budget.month is None:
        return 0.0
    jobs_s = max((_job_limit(policy, app) for app in pool.apps), default=0.0) + DRAIN_S
    if node is None:
        return max(boot_deadline(memory) + jobs_s, pool.billing_minimum_s)
    in_phase_s = now - node.since
    match node.phase:
        case Phase.REQUESTED | Phase.BOOTING:
            left_s = max(0.0, boot_deadline(memory) - in_phase_s) + jobs_s
        case Phase.DRAINING:  # told to go already: what it may still cost melts away
            left_s = max(DRAIN_S, jobs_s - in_phase_s)
        case Phase.STOPPING:
            left_s = DRAIN_S
        case _:
            left_s = jobs_s
    return max(left_s, pool.billing_minimum_s - (now - node.launched_at))


def room(draft: Draft, observation: Observation, policy: Policy, spend: Spend) -> Room:
    """Return what is left after everything spent and committed; negative where time has brought it over."""
    if policy.budget.hour is None and policy.budget.month is None:
        return Room(None, None)
    committed = 0.0
    for node in draft.nodes.values():
        committed += cost_of(draft, observation, policy, node) if node.pool in policy.pools else 0.0
    for pending in draft.orders.values():
        pool = policy.pools.get(pending.order.pool)
        if pool:
            committed += pending.order.count * cost_of_new(draft, observation, policy, pool)
    hour, month = policy.budget.hour, policy.budget.month
    return Room(
        None if hour is None else hour - sum(money for _, money in spend.minutes) - committed,
        None if month is None else month - spend.month_total - committed,
    )


def cost_of(draft: Draft, observation: Observation, policy: Policy, node: Node) -> float:
    """Return the money that a node is committed to."""
    pool = policy.pools[node.pool]
    return _money(price(pool, observation), commitment(pool, draft.pools[node.pool], policy, node, draft.now))


def cost_of_new(draft: Draft, observation: Observation, policy: Policy, pool: PoolPolicy) -> float:
    """Return the money that one more node of the pool would be committed to."""
    return _money(price(pool, observation), commitment(pool, draft.pools[pool.name], policy, None, draft.now))


def _money(price_per_h: float, seconds: Seconds) -> float:
    return price_per_h * seconds / HOUR_S if price_per_h else 0.0  # what is free is free for ever, too


def warned(spend: Spend, policy: Policy) -> str:
    """Return the warning for a budget that is nearly used, or nothing."""
    spent = (
        ("hour", sum(money for _, money in spend.minutes), policy.budget.hour),
        ("month", spend.month_total, policy.budget.month),
    )
    near = [
        f"{money:.2f} of {limit:g} {policy.currency} this {name}"
        for name, money, limit in spent
        if limit and money >= policy.budget.warn * limit
    ]
    return "; ".join(near)


def _job_limit(policy: Policy, app: str) -> Seconds:
    """Return how long a job may run once its node is told to go; for ever where nothing bounds it: then none fits."""
    limits = [queue.job_limit_s for queue in policy.queues.values() if queue.app == app]
    longest = max((inf if limit is None else limit for limit in limits), default=0.0)
    drain_s = policy.apps[app].drain_s if app in policy.apps else None
    return longest if drain_s is None else min(longest, drain_s)
