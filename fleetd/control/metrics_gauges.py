"""What is so now, as samples: read off the policy, the memory that the last tick left, and the workers' leases.

Pure: facts in, samples out. Promises: every label is a name of the policy, a word of ours, a node that its provider
knows or a release that its rollout knows; what is not known yet has no sample.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fleetd import __version__
from fleetd.control import metrics_names as names
from fleetd.control.metrics_count import DIGITS, Labels, label_of
from fleetd.control.metrics_names import OTHER, Family
from fleetd.core.budget import price
from fleetd.core.flow import oldest_s
from fleetd.core.learn import boot_estimate, mean_service
from fleetd.core.lifecycle import COMING
from fleetd.core.memory import Memory, Node, Pending, PoolMemory, QueueMemory, Rollout
from fleetd.core.model import NodeId, Observation, Phase, Policy, Seconds

PHASES: Final = tuple(phase for phase in Phase if phase is not Phase.GONE)
WANTED: Final = frozenset({Phase.READY, Phase.LOST, *COMING})
STATES: Final = ("starting", "working", "draining", "drained")
Sample = tuple[Family, Labels, float]


@dataclass(frozen=True, slots=True)
class Worker:
    """What a page tells of a worker: how long ago it spoke, and the jobs that it ended since it started."""

    age_s: Seconds
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the gauges are read off.

    `epoch_s`: from the controller's clock, which never steps, to seconds since 1970. `leads`: this controller acts.
    `states`: how many workers, by pool and state.
    """

    policy: Policy
    memory: Memory
    observation: Observation
    now: Seconds
    epoch_s: Seconds
    started_at: Seconds
    leads: bool
    dead: int
    workers: Mapping[NodeId, Worker]
    states: Mapping[tuple[str, str], int]
    most_nodes: int


def samples(facts: Facts) -> Iterator[Sample]:
    """Yield every sample."""
    nodes: dict[str, list[Node]] = defaultdict(list)
    for node in facts.memory.nodes.values():
        nodes[node.pool].append(node)
    yield from _fleet(facts)
    for name in facts.policy.queues:
        yield from _queue(facts, name)
    for name in facts.policy.pools:
        yield from _pool(facts, name, nodes[name])
        yield from _money(facts, name, len(nodes[name]))
        yield from _workers(facts, name, nodes[name])
    yield from _wanted_slots(facts)
    yield from _nodes(facts)
    yield from _releases(facts)


def _fleet(facts: Facts) -> Iterator[Sample]:
    policy, memory = facts.policy, facts.memory
    yield names.INFO, (__version__, policy.currency), 1.0
    yield names.STARTED, (), facts.epoch_s + facts.started_at
    yield names.EPOCH, (), memory.epoch
    yield names.LEADER, (), facts.leads
    yield names.PAUSED, (), memory.paused
    yield names.DEAD, (), facts.dead
    yield names.TICK_AT, (), facts.epoch_s + memory.now
    yield names.COST_HOUR, (), sum(money for _, money in memory.spend.minutes)
    yield names.COST_MONTH, (), memory.spend.month_total
    for window, limit in (("hour", policy.budget.hour), ("month", policy.budget.month)):
        if limit is not None:
            yield names.BUDGET, (window,), limit


def _queue(facts: Facts, name: str) -> Iterator[Sample]:
    rule, queue, of = facts.policy.queues[name], facts.memory.queues.get(name, QueueMemory()), (name,)
    yield names.QUEUE_INFO, (name, rule.app, rule.source, rule.priority), 1.0
    yield names.QUEUE_OBJECTIVE, of, rule.objective.wait_s
    yield names.QUEUE_SHARE, of, rule.objective.share
    yield names.QUEUE_BLIND, of, queue.blind_at is not None or queue.read_at is None
    yield names.QUEUE_SERVICE, of, mean_service(queue, rule)
    yield names.QUEUE_LATE, of, queue.late / max(1.0, queue.judged)
    if queue.read_at is not None:
        yield names.QUEUE_WAITING, of, queue.waiting
        yield names.QUEUE_RUNNING, of, queue.running
        yield names.QUEUE_OLDEST, of, oldest_s(queue.flow, facts.now) if queue.waiting else 0.0
        yield names.QUEUE_RATE, of, queue.rate.per_s
        yield names.QUEUE_NEED, of, queue.need


def _pool(facts: Facts, name: str, nodes: list[Node]) -> Iterator[Sample]:
    rule, known, of = facts.policy.pools[name], facts.memory.pools.get(name, PoolMemory()), (name,)
    phases = Counter(node.phase for node in nodes)
    yield names.POOL_INFO, (name, rule.kind, str(rule.act).lower()), 1.0
    for phase in PHASES:
        yield names.POOL_NODES, (name, str(phase)), phases[phase]
    yield names.POOL_WANTED, of, sum(phases[phase] for phase in WANTED) + _ordered(facts.memory, name, nodes)
    yield names.POOL_MIN, of, rule.min_nodes
    yield names.POOL_MAX, of, rule.max_nodes
    yield names.POOL_SLOTS, of, sum(node.slots for node in nodes if node.phase is Phase.READY)
    yield names.POOL_BUSY, of, sum(node.busy for node in nodes)
    yield names.POOL_BLIND, of, known.blind_at is not None
    yield names.POOL_FAILURES, of, known.failures
    yield names.POOL_BREAKER, of, known.open_until > facts.now
    if known.boots_s:
        yield names.POOL_BOOT_LEARNED, of, boot_estimate(known)


def _ordered(memory: Memory, pool: str, nodes: list[Node]) -> int:
    """Count the nodes of orders under way that nobody has seen yet."""
    pending: list[Pending] = [one for one in memory.orders.values() if one.order.pool == pool]
    seen = Counter(node.key for node in nodes) if pending else Counter[str]()
    return sum(max(0, one.order.count - seen[one.order.key]) for one in pending)


def _money(facts: Facts, name: str, held: int) -> Iterator[Sample]:
    each = price(facts.policy.pools[name], facts.observation)
    yield names.POOL_PRICE, (name,), each
    yield names.POOL_COST_RATE, (name,), held * each


def _workers(facts: Facts, name: str, nodes: list[Node]) -> Iterator[Sample]:
    for state in STATES:
        yield names.WORKERS, (name, state), facts.states.get((name, state), 0)
    ages = [worker.age_s for node in nodes if node.phase not in COMING and (worker := facts.workers.get(node.id))]
    if ages:
        yield names.LEASE_AGE, (name,), max(ages)


def _wanted_slots(facts: Facts) -> Iterator[Sample]:
    for key, wanted in facts.memory.wanted.items():
        app, _, pool = key.partition(" in ")
        if app in facts.policy.apps and pool in facts.policy.pools:
            yield names.POOL_WANTED_SLOTS, (pool, app), wanted.slots


def _nodes(facts: Facts) -> Iterator[Sample]:
    """Yield the nodes, the longest there first: those stay the same from scrape to scrape."""
    nodes = facts.memory.nodes
    shown = list(nodes.values())
    if len(shown) > facts.most_nodes:
        shown = sorted(shown, key=lambda node: (node.launched_at, node.id))[: facts.most_nodes]
    yield names.NODES_OMITTED, (), len(nodes) - len(shown)
    for node in shown:
        of, worker = (node.pool, node.id), facts.workers.get(node.id)
        release = label_of(node.digest, facts.memory.rollouts.get(node.app))
        yield names.NODE_INFO, (*of, node.app, str(node.phase), release), 1.0
        yield names.NODE_BUSY, of, node.busy
        if worker is not None:
            yield names.NODE_LEASE, of, worker.age_s
            yield names.NODE_JOBS, (*of, "done"), worker.done
            yield names.NODE_JOBS, (*of, "failed"), worker.failed


def _releases(facts: Facts) -> Iterator[Sample]:
    memory = facts.memory
    runs = Counter(
        (node.app, label_of(node.digest, memory.rollouts.get(node.app)))
        for node in memory.nodes.values()
        if node.digest and node.app in facts.policy.apps
    )
    for app, rollout in memory.rollouts.items():
        yield names.RELEASE_SHARE, (app,), rollout.share
        for role, digest in _roles(rollout):
            yield names.RELEASE_INFO, (app, digest[:DIGITS], role), 1.0
            runs.setdefault((app, digest[:DIGITS]), 0)
    for (app, release), count in runs.items():
        yield names.RELEASE_NODES, (app, release or OTHER), count


def _roles(rollout: Rollout) -> Iterator[tuple[str, str]]:
    for role in ("active", "previous", "candidate"):
        if digest := getattr(rollout, role):
            yield role, digest
    for digest in rollout.refused:
        yield "refused", digest
