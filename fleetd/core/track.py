"""Folds an observation into memory: who is there, what was learned, what was spent. Decides nothing.

Promises: a blind world moves no node and a blind reading changes no number; what a worker says of itself beats what
its provider says; a node is gone only after repeated absence from a list with no word from its worker since.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from fleetd.core import lifecycle
from fleetd.core.learn import boot_deadline, learn
from fleetd.core.lifecycle import Event
from fleetd.core.memory import Memory, Node, Pending, PoolMemory, QueueMemory
from fleetd.core.model import (
    Blind,
    Launched,
    LaunchFailed,
    LeaseView,
    NodeId,
    Observation,
    Phase,
    Policy,
    PoolPolicy,
    QueuePolicy,
    Seconds,
    StopFailed,
    Stopped,
    World,
)

ABSENCES: Final = 3  # lists in a row that must lack a node
ABSENT_S: Final = 2.0  # and for at least so long
ORDER_DEADLINE_S: Final = 30.0
HERE: Final = frozenset({"booting", "up"})
IDLE_STEP_S: Final = 1.0  # a node's idle time is corrected when it is off by this
BOOTS_KEPT: Final = 50
BREAKER_AT: Final = 3
BACKOFF_S: Final = (10.0, 300.0)  # first, most
EXHAUSTED_S: Final = 60.0
REFUSED_S: Final = 300.0
UNREAD: Final = Blind("not read yet")


@dataclass(slots=True)
class Draft:
    """Memory under the pen during one tick: mutable inside `decide`, never outside."""

    memory: Memory
    now: Seconds
    nodes: dict[NodeId, Node]
    orders: dict[str, Pending]
    pools: dict[str, PoolMemory]
    queues: dict[str, QueueMemory]
    events: list[str] = field(default_factory=list)
    forced: list[NodeId] = field(default_factory=list)
    leaving: dict[NodeId, str] = field(default_factory=dict)  # why machines go by themselves
    gone: list[Node] = field(default_factory=list)  # no longer there since this tick
    fenced: list[NodeId] = field(default_factory=list)  # put into quarantine, or freed from it, in this tick
    freed: list[NodeId] = field(default_factory=list)

    def move(self, node: Node, event: Event, reason: str = "") -> Node:
        """Move a node by the table, note it, and return it."""
        moved = lifecycle.move(node, event, self.now, reason)
        self.nodes[node.id] = moved
        self.events.append(f"node {node.id}: {node.phase} -> {moved.phase}: {moved.reason}")
        return moved


def begin(observation: Observation, policy: Policy, memory: Memory) -> Draft:
    """Return a draft in which everything observed is folded into memory."""
    now = max(observation.now, memory.now)  # the clock never runs backwards, whatever was handed in
    draft = Draft(
        memory=memory,
        now=now,
        nodes=dict(memory.nodes),
        orders=dict(memory.orders),
        pools={name: memory.pools.get(name, PoolMemory()) for name in policy.pools},
        queues={name: memory.queues.get(name, QueueMemory()) for name in policy.queues},
    )
    _take_outcomes(draft, observation, policy)
    listed: dict[str, set[NodeId]] = {}
    for name, world in observation.worlds.items():
        if name not in policy.pools:
            continue
        _note_sight(draft, name, world)
        if isinstance(world, World) and world.fresh:
            listed[name] = _take_world(draft, policy.pools[name], world)
    _take_absences(draft, listed, observation)
    quiet = _take_leases(draft, observation)
    _expire(draft, observation, policy, quiet)
    for name, queue in policy.queues.items():
        _take_reading(draft, name, queue, observation, safe=policy.safe)
    return draft


# ── outcomes of orders


def _take_outcomes(draft: Draft, observation: Observation, policy: Policy) -> None:
    for outcome in observation.outcomes:
        match outcome:
            case Launched(key, nodes):
                _launched(draft, draft.orders.pop(key, None), nodes, policy)
            case LaunchFailed(key, kind, reason):
                pending = draft.orders.pop(key, None)
                if pending:
                    wait_s = {"exhausted": EXHAUSTED_S, "refused": REFUSED_S}.get(kind)
                    _fail(draft, pending.order.pool, f"{kind}: {reason}", wait_s)
            case Stopped():
                pass  # that it is gone is proven by the provider's list
            case StopFailed(nodes, reason):
                draft.events.append(f"stop of {', '.join(nodes)} failed, will be tried again: {reason}")


def _launched(draft: Draft, pending: Pending | None, nodes: Iterable[NodeId], policy: Policy) -> None:
    if pending is None or pending.order.pool not in policy.pools:
        return  # what was started is sighted and adopted
    order = pending.order
    for name in nodes:
        if name not in draft.nodes:
            draft.nodes[name] = Node(
                id=name,
                pool=order.pool,
                app=order.app,
                phase=Phase.REQUESTED,
                since=draft.now,
                launched_at=pending.at,
                slots=policy.pools[order.pool].slots,
                key=order.key,
            )
            draft.events.append(f"node {name}: requested by order {order.key}")


def _fail(draft: Draft, pool: str, reason: str, wait_s: Seconds | None = None) -> None:
    """Count a failure of the pool; open its breaker at the third in a row, or for `wait_s` at once."""
    memory = draft.pools.get(pool)
    if memory is None:
        return
    failures = memory.failures + 1
    if wait_s is None and failures >= BREAKER_AT:
        wait_s = min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(failures - BREAKER_AT, 10))
    until = memory.open_until if wait_s is None else max(memory.open_until, draft.now + wait_s)
    draft.pools[pool] = replace(memory, failures=failures, open_until=until, why_open=reason)
    opened = f"; breaker open for {wait_s:.0f} s" if wait_s else ""
    draft.events.append(f"pool {pool}: failure {failures} in a row: {reason}{opened}")


# ── sightings and leases


def _note_sight(draft: Draft, name: str, world: World | Blind) -> None:
    """Remember since when a pool cannot be seen; that changes nothing else."""
    memory = draft.pools[name]
    if isinstance(world, Blind):
        if memory.blind_at is None:
            draft.events.append(f"pool {name}: cannot be seen, holding: {world.reason}")
        at = memory.blind_at if memory.blind_at is not None else draft.now
        draft.pools[name] = replace(memory, blind_at=at, why_blind=world.reason)
    elif memory.blind_at is not None:
        draft.events.append(f"pool {name}: seen again")
        draft.pools[name] = replace(memory, blind_at=None, why_blind="")


def _take_world(draft: Draft, pool: PoolPolicy, world: World) -> set[NodeId]:
    """Fold in a pool's list, and return the names of the nodes that are there."""
    nodes, up = draft.nodes, Phase.READY
    for sighting in world.sightings:
        node = nodes.get(sighting.node)
        if node is not None and node.phase is up and not node.missing:
            continue
        if sighting.state not in HERE:
            continue
        if node is None:
            nodes[sighting.node] = _adopt(draft, pool, sighting.node, sighting.app, sighting.key or "")
        elif node.phase is Phase.REQUESTED:
            draft.move(replace(node, missing=0, missing_at=None), Event.SIGHTED)
        elif node.missing:
            nodes[sighting.node] = replace(node, missing=0, missing_at=None)
    return {sighting.node for sighting in world.sightings if sighting.state in HERE}


def _take_absences(draft: Draft, listed: dict[str, set[NodeId]], observation: Observation) -> None:
    """Count the nodes that a fresh list lacks; forget the orders whose nodes are all known."""
    if not listed:
        return
    nodes = draft.nodes
    for node in [node for node in nodes.values() if node.pool in listed and node.id not in listed[node.pool]]:
        world = observation.worlds[node.pool]
        why = world.gone.get(node.id, "") if isinstance(world, World) else ""
        _miss(draft, node, observation.leases.get(node.id), why)
    if draft.orders:
        known = Counter(node.key for node in nodes.values())
        for key, pending in list(draft.orders.items()):
            if pending.order.pool in listed and known[key] >= pending.order.count:
                del draft.orders[key]  # a restart lost the answer, but every node of the order is there


def _adopt(draft: Draft, pool: PoolPolicy, name: NodeId, app: str | None, key: str) -> Node:
    pending = draft.orders.get(key)
    whose = f"by order {key}" if pending else "a stray, adopted"
    draft.events.append(f"node {name}: sighted, {whose}")
    return Node(
        id=name,
        pool=pool.name,
        app=app if app in pool.apps else pool.apps[0],
        phase=Phase.BOOTING,
        since=draft.now,
        launched_at=pending.at if pending else draft.now,
        slots=pool.slots,
        key=key if pending else "",
    )


def _miss(draft: Draft, node: Node, lease: LeaseView | None, why: str) -> None:
    """Count an absence; the node is gone once it is confirmed and its worker has said nothing since."""
    since = node.missing_at if node.missing_at is not None else draft.now
    missing = node.missing + 1
    spoke_since = lease is not None and lease.age_s < draft.now - since
    if missing < ABSENCES or draft.now - since < ABSENT_S or spoke_since:
        draft.nodes[node.id] = replace(node, missing=missing, missing_at=since)
        return
    draft.move(node, Event.VANISHED, why)
    draft.gone.append(draft.nodes.pop(node.id))
    if node.phase in lifecycle.COMING:
        _fail(draft, node.pool, f"{node.id}: {why}" if why else f"{node.id} died while {node.phase}")


def _take_leases(draft: Draft, observation: Observation) -> set[NodeId]:
    """Fold in what the workers say of themselves; return the nodes whose word is too old.

    Of most nodes there is no news, and a node is made anew for news.
    """
    nodes, now, ttl_s, up = draft.nodes, draft.now, observation.lease_ttl_s, Phase.READY
    quiet: set[NodeId] = set()
    for name, lease in observation.leases.items():
        node, age_s, busy = nodes.get(name), lease.age_s, lease.busy
        if age_s > ttl_s:
            quiet.add(name)
        if node is None or lease.pool != node.pool or lease.state == "starting":
            continue
        if lease.leaving:
            draft.leaving[name] = lease.leaving
        idle_at = None if busy else now - lease.idle_s - age_s
        heard_at = now - age_s
        ready = node.phase is up
        if (
            ready
            and busy == node.busy
            and lease.digest == node.digest
            and lease.slots >= node.slots
            and (idle_at is None) is (node.idle_at is None)
            and (idle_at is None or abs(idle_at - (node.idle_at or 0.0)) < IDLE_STEP_S)
            and node.heard_at is not None
            and heard_at - node.heard_at < 0.5 * ttl_s
        ):
            continue
        if node.heard_at is not None and heard_at < node.heard_at:
            heard_at = node.heard_at
        node = nodes[name] = _heard(node, lease, heard_at, idle_at)
        if age_s <= ttl_s and not ready:
            _hear(draft, node)
    return quiet


def _heard(node: Node, lease: LeaseView, heard_at: Seconds, idle_at: Seconds | None) -> Node:
    """Return the node with its worker's word. Spelled out: `replace` takes three times as long, and this is hot."""
    return Node(
        node.id,
        node.pool,
        node.app,
        node.phase,
        node.since,
        node.launched_at,
        min(lease.slots, node.slots),  # fewer than it was made for may run, never more
        node.key,
        lease.busy,
        idle_at,
        lease.digest,
        heard_at,
        node.missing_at,
        node.missing,
        node.pinned,
        node.asked_at,
        node.reason,
    )


def _hear(draft: Draft, node: Node) -> None:
    """A node that is not ready has spoken: it is up."""
    if not lifecycle.may(node, Event.LEASED):
        return
    booted = node.phase in lifecycle.COMING and node.key != ""  # of a stray nobody knows when it was started
    draft.move(node, Event.LEASED)
    memory = draft.pools.get(node.pool)
    if booted and memory is not None:
        boots = (*memory.boots_s, max(0.0, draft.now - node.launched_at))[-BOOTS_KEPT:]
        draft.pools[node.pool] = replace(memory, boots_s=boots, failures=0, open_until=0.0, why_open="")


def _expire(draft: Draft, observation: Observation, policy: Policy, quiet: set[NodeId]) -> None:
    """Move what is past its time: silent leases (`quiet` names the old ones), overdue boots, unanswered orders."""
    now, ttl_s, leases, ready = draft.now, observation.lease_ttl_s, observation.leases, Phase.READY
    for node in [n for n in draft.nodes.values() if n.phase is not ready or n.id not in leases or n.id in quiet]:
        if node.phase is ready:
            heard_at = node.heard_at if node.heard_at is not None else node.since
            if node.id in quiet or now - heard_at > ttl_s:
                draft.move(node, Event.SILENT)
        elif node.phase in lifecycle.COMING:
            limit_s = boot_deadline(draft.pools.get(node.pool, PoolMemory()))
            if now - node.since > limit_s:
                draft.move(node, Event.OVERDUE, f"no lease within {limit_s:.0f} s")
                _fail(draft, node.pool, f"{node.id} did not come up within {limit_s:.0f} s")
    for key, pending in list(draft.orders.items()):
        if draft.now - pending.at > ORDER_DEADLINE_S or pending.order.pool not in policy.pools:
            del draft.orders[key]
            why = f"order {key} was not answered within {ORDER_DEADLINE_S:.0f} s"
            _fail(draft, pending.order.pool, why, EXHAUSTED_S)


# ── queues


def _take_reading(draft: Draft, name: str, rule: QueuePolicy, observation: Observation, *, safe: bool) -> None:
    """Fold in a queue's reading; of a blind one only what its workers did is news."""
    queue, reading = draft.queues[name], observation.readings.get(name, UNREAD)
    work = observation.work.get(name)
    if isinstance(reading, Blind):
        if queue.blind_at is None:
            draft.events.append(f"queue {name}: blind, holding: {reading.reason}")
        blind_at = queue.blind_at if queue.blind_at is not None else draft.now
        why = reading.reason
        draft.queues[name] = learn(queue, rule, None, work, draft.now, blind_at=blind_at, why_blind=why, safe=safe)
        return
    partly = "; ".join(reading.partial)
    if partly and queue.blind_at is None:
        draft.events.append(f"queue {name}: partly blind, not scaling in: {partly}")
    if not partly and queue.blind_at is not None:
        draft.events.append(f"queue {name}: sees again")
    seen_at = (queue.blind_at if queue.blind_at is not None else draft.now) if partly else None
    draft.queues[name] = learn(queue, rule, reading, work, draft.now, blind_at=seen_at, why_blind=partly, safe=safe)
