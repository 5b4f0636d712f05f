"""`decide(observation, policy, memory) -> (plan, memory)`: the one decision, live, dry or under a virtual clock.

Pure: the same input gives the same plan. Every intent carries its reason; every app and pool gets a sentence that says
why it is as it is, and the same sentence reaches log, journal, status and `fleetd explain`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fleetd.core import budget
from fleetd.core.capacity import Pen, capacity, floor_of, held
from fleetd.core.commands import take_commands
from fleetd.core.demand import Demand, Peaks, because
from fleetd.core.fill import fill
from fleetd.core.lifecycle import COMING
from fleetd.core.memory import Memory, Spend, Wanted
from fleetd.core.model import Blind, Launch, Observation, Phase, Plan, Policy, PoolPolicy, Seconds
from fleetd.core.rollout import roll
from fleetd.core.track import begin


@dataclass(frozen=True, slots=True)
class Worked:
    """A tick worked out: the written pen, the demands that it answers, and what is to be remembered beside it."""

    pen: Pen
    demands: dict[str, Demand]
    peaks: dict[str, Peaks]
    wanted: dict[str, Wanted]
    spend: Spend
    launched: tuple[tuple[Seconds, int], ...]
    stopped: tuple[tuple[Seconds, int], ...]


def work_out(observation: Observation, policy: Policy, memory: Memory) -> Worked:
    """Do all of a tick but the telling: `decide` and `explain` both tell of this."""
    draft = begin(observation, policy, memory)
    take_commands(draft, observation, _pools_of(policy) if observation.commands else {})
    spend = budget.accrue(draft, observation, policy)
    launched, stopped = _recent(memory.launched, draft.now), _recent(memory.stopped, draft.now)
    pen = Pen(
        draft=draft,
        observation=observation,
        policy=policy,
        room=budget.room(draft, observation, policy, spend),
        launches_left=_left(policy.limits.launches_per_min, launched),
        stops_left=_left(policy.limits.stops_per_min, stopped),
    )
    stops_before = pen.stops_left
    demands, peaks, wanted = fill(pen)
    launches = sum(intent.order.count for intent in pen.intents if isinstance(intent, Launch))
    drains = round(stops_before - pen.stops_left) if policy.limits.stops_per_min is not None else 0
    launched = (*launched, (draft.now, launches)) if launches else launched
    stopped = (*stopped, (draft.now, drains)) if drains else stopped
    return Worked(pen, demands, peaks, wanted, spend, launched, stopped)


def _pools_of(policy: Policy) -> dict[str, list[str]]:
    return {app: [pool.name for pool in policy.pools.values() if app in pool.apps] for app in policy.apps}


def decide(observation: Observation, policy: Policy, memory: Memory) -> tuple[Plan, Memory]:
    """Return this tick's plan and what to remember. Times are on the controller's steady clock, in seconds."""
    worked = work_out(observation, policy, memory)
    pen, draft = worked.pen, worked.pen.draft
    after = Memory(
        epoch=draft.memory.epoch,
        now=draft.now,
        next_order=draft.memory.next_order,
        ending=draft.memory.ending,
        paused=draft.memory.paused,
        nodes=draft.nodes,
        orders=draft.orders,
        pools=draft.pools,
        queues=draft.queues,
        rollouts=draft.memory.rollouts,
        peaks=worked.peaks,
        wanted=worked.wanted,
        launched=worked.launched,
        stopped=worked.stopped,
        spend=worked.spend,
    )
    rollouts, reloads, events = roll(observation, policy, after)
    if rollouts != after.rollouts:
        after = replace(after, rollouts=rollouts)
    return Plan((*pen.intents, *reloads), Sentences(worked), (*draft.events, *events)), after


class Sentences(Mapping[str, str]):
    """What a tick says of each app and pool, put into words when it is first looked at: mostly nobody does."""

    __slots__ = ("_said", "_worked")

    def __init__(self, worked: Worked) -> None:
        self._worked = worked
        self._said: dict[str, str] = {}

    def __getitem__(self, about: str) -> str:
        return self._words()[about]

    def __iter__(self) -> Iterator[str]:
        return iter(self._words())

    def __len__(self) -> int:
        return len(self._words())

    def __repr__(self) -> str:
        return repr(self._words())

    def _words(self) -> Mapping[str, str]:
        self._said = self._said or _say(self._worked)
        return self._said


def _say(worked: Worked) -> dict[str, str]:
    pen, policy = worked.pen, worked.pen.policy
    sentences = {f"app {name}": _say_app(pen, demand) for name, demand in worked.demands.items()}
    sentences |= {f"pool {name}": _say_pool(pen, pool) for name, pool in policy.pools.items()}
    warning = budget.warned(worked.spend, policy)
    if warning:
        sentences["budget"] = f"spent {warning}"
    return sentences


def resume(memory: Memory, now: Seconds) -> Memory:
    """Return memory as a restarted controller takes it up: a new epoch, and every lease's clock starts anew.

    So that no outage, however long, makes a node lost by itself.
    """
    nodes = {name: replace(n, heard_at=now, missing=0, missing_at=None) for name, n in memory.nodes.items()}
    orders = {key: replace(pending, at=now) for key, pending in memory.orders.items()}
    # What was spent is left as it was: the first tick accrues the outage, through which the nodes ran.
    return replace(memory, epoch=memory.epoch + 1, now=now, nodes=nodes, orders=orders, ending=False)


def _recent(events: tuple[tuple[Seconds, int], ...], now: Seconds) -> tuple[tuple[Seconds, int], ...]:
    return tuple((at, count) for at, count in events if now - at < 60.0)


def _left(limit: float | None, recent: tuple[tuple[Seconds, int], ...]) -> float:
    return float("inf") if limit is None else limit - sum(count for _, count in recent)


def _say_app(pen: Pen, demand: Demand) -> str:
    done = "; ".join(pen.done.get(demand.app, ()))
    limits = "; ".join(dict.fromkeys(pen.limits.get(demand.app, ())))
    have = capacity(pen, demand.app)
    most, keep = demand.most, max((term.keep for term in demand.terms.values()), default=0.0)
    kept = f", keeps {keep:.1f}" if keep > most + 0.05 else ""
    sentence = f"needs {most:.1f} slots{kept}, has {have} there or coming: {because(pen, demand)}"
    return ". ".join(part for part in (sentence, done, limits) if part)


def _say_pool(pen: Pen, pool: PoolPolicy) -> str:
    memory, world = pen.draft.pools[pool.name], pen.observation.worlds.get(pool.name)
    phases = pen.census.phases[pool.name]
    coming = sum(phases[phase] for phase in COMING)
    parts = [f"{held(pen, pool.name)} of {pool.max_nodes} nodes, {phases[Phase.READY]} ready, {coming} coming"]
    parts += [
        f"{phases[p]} {p}"
        for p in (Phase.DRAINING, Phase.STOPPING, Phase.LOST, Phase.FAILED, Phase.QUARANTINED)
        if phases[p]
    ]
    if floor_of(pen, pool):
        parts.append(f"holds at least {floor_of(pen, pool)}")
    if memory.drained_until > pen.draft.now:
        parts.append("drained by an operator")
    if still := pen.still(pool.name):
        parts.append(still)
    if memory.open_until > pen.draft.now:
        parts.append(f"breaker open for {memory.open_until - pen.draft.now:.0f} s ({memory.why_open})")
    if isinstance(world, Blind):
        parts.append(f"cannot be seen, holding: {world.reason}")
    parts += dict.fromkeys(pen.limits.get(pool.name, ()))
    return ", ".join(parts)
