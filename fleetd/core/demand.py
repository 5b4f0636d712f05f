"""What each app needs and what is worth keeping, pool by pool; blindness, schedules and the dials applied.

`need` says how many slots its jobs ask for. Here that is held while a source is blind, raised to a schedule's floor,
and remembered for as long as capacity past need is worth keeping.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from fleetd.core.capacity import Pen, capacity
from fleetd.core.learn import NOTHING, boot_estimate, mean_service
from fleetd.core.memory import QueueMemory, Wanted
from fleetd.core.model import Policy, PoolPolicy, QueuePolicy, Seconds
from fleetd.core.need import TICK_S, Boot, Seen, Term, ahead, bridged, just_in_time

Peaks = tuple[tuple[Seconds, float], ...]  # (when, need), falling
HOLD_AHEAD: Final = 0.7  # paid boots that past need keeps capacity, where it is booted ahead
HOLD_IN_TIME: Final = 0.5  # and where it is booted just in time
HOLD_FLOOR_S: Final[dict[str, Seconds]] = {"calm": 300.0, "thrifty": 5.0, "bounded": 5.0}
MOST_HELD_S: Final = 600.0
CROWDED: Final = 0.3  # of an objective that the waiting may keep all slots busy before no slot is to go
RANKS: Final[dict[Literal["low", "normal", "high"], int]] = {"high": 0, "normal": 1, "low": 2}
MEASURED_AT: Final = 3.0  # ended jobs from which on a mean is called measured


@dataclass(frozen=True, slots=True)
class Demand:
    """What an app needs; `terms` by pool. `floor` slots by schedules; `frozen` forbids scale-in, with the reason."""

    app: str
    rules: Sequence[QueuePolicy] = ()
    terms: Mapping[str, Term] = field(default_factory=dict)
    floor: float = 0.0
    urgency: tuple[int, Seconds] = (3, 0.0)  # priority first, then the tightest objective: small is urgent
    frozen: str = ""
    crowded: bool = False  # those that wait now would wait for a good part of their objective
    why: str = ""  # where it is not what its queues tell

    def need(self, pool: str) -> float:
        """Return the slots to have, seen from a pool's boot time."""
        return self.terms[pool].need if pool in self.terms else self.floor

    def keep(self, pool: str) -> float:
        """Return the slots not to go below by draining nodes of a pool."""
        return self.terms[pool].keep if pool in self.terms else self.floor

    @property
    def most(self) -> float:
        """Return the need as the sentences tell it: that of the pool that asks for most."""
        return max((term.need for term in self.terms.values()), default=self.floor)


def demands(pen: Pen) -> tuple[dict[str, Demand], dict[str, Peaks], dict[str, Wanted]]:
    """Return the demand of every app, and what to remember: the peaks of need, and the slots wanted by margin."""
    boots = {name: boot_of(pen, pool) for name, pool in pen.policy.pools.items()}
    queues: dict[str, list[QueuePolicy]] = {app: [] for app in pen.policy.apps}
    for rule in pen.policy.queues.values():
        queues[rule.app].append(rule)
    result: dict[str, Demand] = {}
    peaks: dict[str, Peaks] = {}
    wanted: dict[str, Wanted] = {}
    for app, rules in queues.items():
        floor = float(pen.observation.floors.get(app, 0))
        terms = _terms(pen, app, rules, boots)
        for name, term in terms.items():
            key = key_of(app, name)
            hold_s = _hold(pen, boots[name], rules, in_time=term.just_in_time)
            need = max(term.need, floor)
            peaks[key] = push(pen.draft.memory.peaks.get(key, ()), pen.draft.now, need, hold_s)
            peak_at, keep = peaks[key][0]
            terms[name] = term.judged(need, keep, peak_at + hold_s - pen.draft.now)
            wanted[key] = term.wanted
        _share_out(pen, rules, max([term.need for term in terms.values()], default=0.0))
        result[app] = Demand(
            app=app,
            rules=rules,
            terms=terms,
            floor=floor,
            urgency=_urgency(rules),
            frozen=_frozen(pen, rules),
            crowded=_crowded(pen, rules, capacity(pen, app)),
        )
    return result, peaks, wanted


def key_of(app: str, pool: str) -> str:
    """Return the name under which memory keeps what is about an app in a pool."""
    return f"{app} in {pool}"


def boot_of(pen: Pen, pool: PoolPolicy) -> Boot:
    """Return what is known of a pool's boots."""
    memory = pen.draft.pools[pool.name]
    late_s, middle_s = boot_estimate(memory), boot_estimate(memory, 0.5)
    return Boot(late_s, middle_s, max(middle_s, pool.billing_minimum_s), memory.boots_s)


def _terms(pen: Pen, app: str, rules: Sequence[QueuePolicy], boots: Mapping[str, Boot]) -> dict[str, Term]:
    """Return what the app needs, seen from each of its pools; those that boot alike see alike."""
    seen = [one for rule in rules if (one := see(pen, rule)) is not None]
    tightest_s = min([one.rule.objective.wait_s for one in seen], default=0.0)
    pools = [pool.name for pool in pen.pools_of[app]]
    groups = [(boots[name], pen.census.groups[name, app]) for name in pools if (name, app) in pen.census.groups]
    terms: dict[str, Term] = {}
    made: list[tuple[Boot, Term]] = []
    bridge = _bridge(pen, pools, boots, tightest_s)
    bounded = pen.policy.stability == "bounded"
    for name in pools:
        boot = boots[name].or_guess(tightest_s)
        fast = bool(seen) and (bounded or boot.in_time(tightest_s))
        ratio = _per_slot(pen, name) / bridge if bridge else 1.0
        if seen and not fast and ratio < 1.0:
            terms[name] = bridged(seen, boot, pen.draft.now, ratio)
            continue
        term = next((term for other, term in made if other == boot), None) if made else None
        if term is None and fast:
            term = just_in_time(seen, boot, groups, pen.draft.now)
        elif term is None:
            term = ahead(seen, boot, groups, pen.draft.now, pen.draft.memory.wanted.get(key_of(app, name)))
        made.append((boot, term))
        terms[name] = term
    _hold_blind(pen, app, rules, terms)
    return terms


def _bridge(pen: Pen, pools: Sequence[str], boots: Mapping[str, Boot], tightest_s: Seconds) -> float:
    """Return the price of a slot of the cheapest pool that boots just in time and can give more now; 0 without one."""
    if len(pools) < 2:
        return 0.0
    able = [
        _per_slot(pen, name)
        for name in pools
        if boots[name].known_s
        and boots[name].in_time(tightest_s)
        and pen.draft.pools[name].open_until <= pen.draft.now
        and pen.census.held(name) < pen.policy.pools[name].max_nodes
    ]
    return min(able, default=0.0)


def _per_slot(pen: Pen, pool: str) -> float:
    return pen.price(pool) / pen.policy.pools[pool].slots


def see(pen: Pen, rule: QueuePolicy) -> Seen | None:
    """Return the queue with what runs, or None where it counts for nothing."""
    queue = pen.draft.queues[rule.name]
    if queue.why_blind and queue.read_at != pen.draft.now and _given_up(queue, rule, pen.policy, pen.draft.now):
        return None
    ages_s = pen.observation.work.get(rule.name, NOTHING).running_s
    unseen = max(0, queue.running - len(ages_s))
    nothing = not (ages_s or unseen or queue.waiting or queue.rate.per_s > 0.0)
    return None if nothing else Seen(rule, queue, ages_s, unseen)


def _share_out(pen: Pen, rules: Sequence[QueuePolicy], need: float) -> None:
    """Note each queue's part of its app's need, by its jobs; that of a blind queue stays as it was."""
    queues = pen.draft.queues
    jobs = {rule.name: queues[rule.name].waiting + queues[rule.name].running for rule in rules}
    total = sum(jobs.values())
    for name, count in jobs.items():
        queue = queues[name]
        part = need * count / total if total else need / len(jobs)
        if part != queue.need and (not queue.why_blind or queue.read_at == pen.draft.now):
            queues[name] = replace(queue, need=part)


# ── blindness


def _given_up(queue: QueueMemory, policy: QueuePolicy, fleet: Policy, now: Seconds) -> bool:
    rule = fleet.sources[policy.source].on_blind
    return rule.then == "min" and queue.blind_at is not None and now - queue.blind_at > rule.hold_s


def _hold_blind(pen: Pen, app: str, rules: Sequence[QueuePolicy], terms: dict[str, Term]) -> None:
    """While queues of an app are blind its need does not fall, and it stays as it was where all are."""
    blind = [
        rule
        for rule in rules
        if (queue := pen.draft.queues[rule.name]).why_blind
        and queue.read_at != pen.draft.now
        and not _given_up(queue, rule, pen.policy, pen.draft.now)
    ]
    if not blind:
        return
    for pool, term in terms.items():
        last = pen.draft.memory.peaks.get(key_of(app, pool), ())
        before = last[-1][1] if last else 0.0
        terms[pool] = replace(term, need=before if len(blind) == len(rules) else max(before, term.need))


def _frozen(pen: Pen, rules: Iterable[QueuePolicy]) -> str:
    queues = pen.draft.queues
    blind = [
        f"{rule.name} is blind ({queues[rule.name].why_blind})"
        for rule in rules
        if queues[rule.name].blind_at is not None and not _given_up(queues[rule.name], rule, pen.policy, pen.draft.now)
    ]
    return "; ".join(blind)


# ── how long capacity is kept


def _hold(pen: Pen, boot: Boot, rules: Sequence[QueuePolicy], *, in_time: bool) -> Seconds:
    """Return how long past need keeps capacity: about the paid boot, and not less than the dial `stability` says.

    After as long as its boot an idle slot has cost what booting it again would: the ski-rental bound. Where nodes are
    booted just in time, a boot may come too late, too, and an idle slot is worth the late job that it saves.
    """
    floor_s = HOLD_FLOOR_S[pen.policy.stability]
    if pen.policy.stability == "bounded":
        return max(boot.paid_s, floor_s)
    if not in_time:
        return max(HOLD_AHEAD * boot.paid_s, floor_s)
    queues = pen.draft.queues
    late_s = 0.0
    for rule in rules:
        queue, allowed = queues[rule.name], 1.0 - rule.objective.share
        if queue.late > allowed * queue.judged:  # more are late than may be: an idle slot saves one of them
            late_s = max(late_s, boot.slower(rule.objective.wait_s - TICK_S) * queue.price_s)
    return max(HOLD_IN_TIME * boot.paid_s + min(late_s, MOST_HELD_S), floor_s)


def _crowded(pen: Pen, rules: Sequence[QueuePolicy], slots: int) -> bool:
    """Whether the jobs that wait would keep all slots busy for a good part of an objective: then none is to go."""
    seen = [(rule, queue) for rule in rules if (queue := pen.draft.queues[rule.name]).read_at == pen.draft.now]
    work_s = sum([queue.waiting * mean_service(queue, rule) for rule, queue in seen if queue.waiting])
    return work_s > 0.0 and work_s > CROWDED * slots * min([rule.objective.wait_s for rule in rules])


def push(peaks: Peaks, now: Seconds, need: float, hold_s: Seconds) -> Peaks:
    """Add a need to the falling maxima of the last `hold_s` seconds; the first of them is the maximum."""
    first, end = 0, len(peaks)
    while first < end and now - peaks[first][0] > hold_s:
        first += 1
    while end > first and peaks[end - 1][1] <= need:
        end -= 1
    return (*peaks[first:end], (now, need))


# ── why, in words


def _urgency(queues: Iterable[QueuePolicy]) -> tuple[int, Seconds]:
    return min([(RANKS[q.priority], q.objective.wait_s) for q in queues], default=(3, 0.0))


def because(pen: Pen, demand: Demand) -> str:
    """Return why an app needs what it needs."""
    if demand.why:
        return demand.why
    parts = []
    for rule in demand.rules:
        queue = pen.draft.queues[rule.name]
        if queue.blind_at is not None and queue.why_blind:
            parts.append(f"{rule.name}: blind ({queue.why_blind}), held")
            continue
        known = "measured" if queue.life.jobs >= MEASURED_AT else "assumed"
        parts.append(
            f"{rule.name}: {queue.waiting} waiting, {queue.running} running, {queue.rate.per_s:.1f}/s arriving, "
            f"{mean_service(queue, rule):.3g} s each ({known}), to start within {rule.objective.wait_s:g} s"
        )
    if demand.floor:
        parts.append(f"a schedule wants {demand.floor:.0f} slots")
    return "; ".join(parts) or "no queue names it"
