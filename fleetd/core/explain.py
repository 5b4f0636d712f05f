"""Why, in full: every term of one tick's decision, in the order in which it was made. What `explain --deep` shows.

Pure, and told of the very steps that `decide` takes. Each figure says where it comes from: measured (counted, or
learned from what was counted), estimated (worked out from it), given (the policy's or a provider's word), or unknown.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import hypot, sqrt
from typing import Final

from fleetd.core.capacity import Pen, floor_of, held
from fleetd.core.decide import work_out
from fleetd.core.demand import MEASURED_AT, Demand, see
from fleetd.core.fill import fill_order
from fleetd.core.flow import oldest_s
from fleetd.core.forecast import proven
from fleetd.core.learn import boot_estimate, mean_service
from fleetd.core.memory import Memory, QueueMemory
from fleetd.core.model import Blind, Observation, Phase, Policy, PoolPolicy, QueuePolicy, Seconds, World
from fleetd.core.need import Term

LEAVING: Final = frozenset({Phase.DRAINING, Phase.STOPPING})
WHOLE: Final = 100.0  # from here on a figure is shown without a fraction


def deep(observation: Observation, policy: Policy, memory: Memory) -> tuple[str, ...]:
    """Return the terms of the decision on an observation, with the memory of before it: "ABOUT: terms", line by line.

    ABOUT is `queue Q of APP`, `app APP in POOL`, `app APP` or `pool POOL`.
    """
    worked = work_out(observation, policy, memory)
    pen, lines = worked.pen, list[str]()
    leaving = Counter[tuple[str, str]]()
    for node in pen.nodes():
        if node.phase in LEAVING:
            leaving[node.pool, node.app] += node.slots
    for app, demand in sorted(worked.demands.items(), key=lambda item: (*item[1].urgency, item[0])):
        rules = [rule for rule in policy.queues.values() if rule.app == app]
        for rule in rules:
            lines += [f"queue {rule.name} of {app}: {text}" for text in _queue(pen, rule)]
        for pool in fill_order(pen, app):
            texts = _in_pool(pen, demand, pool, rules, leaving[pool.name, app])
            lines += [f"app {app} in {pool.name}: {text}" for text in texts]
        lines += [f"app {app}: {text}" for text in _app(pen, demand)]
    for pool in policy.pools.values():
        lines += [f"pool {pool.name}: {text}" for text in _pool(pen, pool)]
    return tuple(lines)


# ── queues


def _queue(pen: Pen, rule: QueuePolicy) -> Iterator[str]:
    queue, now = pen.draft.queues[rule.name], pen.draft.now
    if queue.read_at is None:
        yield f"waiting and running unknown: {queue.why_blind or 'not read yet'}"
    else:
        ago = f", {now - queue.read_at:.0f} s ago, blind since: {queue.why_blind}" if queue.read_at != now else ""
        oldest = f", the oldest for {_n(oldest_s(queue.flow, now))} s (estimated)" if queue.waiting else ""
        yield f"{queue.waiting} waiting, {queue.running} running (measured{ago}){oldest}"
    yield f"{_arrivals(queue)}; {_season(queue)}"
    yield _service(queue, rule)
    yield _lateness(queue, rule, safe=pen.policy.safe)


def _arrivals(queue: QueueMemory) -> str:
    rate = queue.rate
    if not rate.window_s:
        return "arrivals unknown"
    how = "measured" if queue.told else "estimated from the running"
    trend = f"trend {60.0 * rate.slope:+.3g}/s a minute (measured)" if rate.slope else "no trend (measured)"
    return f"arrivals {_n(rate.per_s)}/s ± {_n(rate.sd)} over {_n(rate.window_s)} s ({how}), {trend}"


def _season(queue: QueueMemory) -> str:
    season = queue.season
    if not season.steps or not season.persistence_error:
        return "season unknown"
    used = "used" if proven(season) else "not used"
    errors = f"its error {_n(season.season_error)} against {_n(season.persistence_error)} without it (measured)"
    return f"season {used}: {errors}"


def _service(queue: QueueMemory, rule: QueuePolicy) -> str:
    jobs, curve = queue.life.jobs, queue.life.curve
    mean = f"a job takes {_n(mean_service(queue, rule))} s"
    if curve is not None and jobs >= MEASURED_AT:
        spread = f"coefficient of variation {_n(sqrt(curve.cv2))} (measured)"
        return f"{mean} (measured from {_n(jobs)} jobs), {spread}"
    known = f"estimated: {'few jobs have' if jobs else 'no job has'} ended yet"
    if rule.service_s is not None:
        known = "given, a hint until it is measured"
    return f"{mean} ({known}), coefficient of variation unknown"


def _lateness(queue: QueueMemory, rule: QueuePolicy, *, safe: bool) -> str:
    goal = rule.objective
    late = "share of late jobs unknown"
    if queue.judged:
        late = f"{queue.late / queue.judged:.2%} late of {_n(queue.judged)} jobs of late (measured)"
    allowed = f"allowed {1.0 - goal.share:.2%} after {_n(goal.wait_s)} s (given{', and safe' if safe else ''})"
    return f"{late}, {allowed}; a late job is worth {_n(queue.price_s)} slot-seconds (estimated)"


# ── an app, seen from a pool


def _in_pool(pen: Pen, demand: Demand, pool: PoolPolicy, rules: Sequence[QueuePolicy], leaving: int) -> Iterator[str]:
    term = demand.terms[pool.name]
    yield f"{_boots(pen, pool, term)}; {_manner(pen, term, rules)}"
    for rule in rules:
        seen = see(pen, rule)
        if seen is not None and seen.memory.rate.per_s and not term.just_in_time:
            per_s, now_s = seen.per_s(term.boot_s, pen.draft.now), seen.memory.rate.per_s
            why = "trend" if seen.memory.rate.slope else "season" if proven(seen.memory.season) else "as now"
            factor = f"estimated: {per_s / now_s:.2f} times the measured, {why}"
            yield f"arrivals of {rule.name} in {_n(term.boot_s)} s: {_n(per_s)}/s ({factor})"
    yield f"{_load(term)}, schedule floor {_n(demand.floor)} (given): need {_n(demand.need(pool.name))} (estimated)"
    yield f"keeps {_n(term.keep)} for {_n(term.keep_s)} s (estimated)"
    group, now = pen.census.groups.get((pool.name, demand.app)), pen.draft.now
    up, coming = (group.up, group.coming) if group else (0, [])
    ordered = sum(slots for at, slots in coming if at == now)
    there = f"{up} slots ready, {sum(slots for _, slots in coming)} coming, {leaving} leaving (measured)"
    yield f"{there}{f', of which {ordered} are ordered now' if ordered else ''}"


def _boots(pen: Pen, pool: PoolPolicy, term: Term) -> str:
    memory = pen.draft.pools[pool.name]
    if not memory.boots_s:
        return f"boot time unknown{f', taken for {_n(term.boot_s)} s' if term.boot_s else ''}"
    times = "/".join(_n(boot_estimate(memory, share)) for share in (0.5, 0.95, 0.99))
    return f"boots in {times} s, p50/p95/p99 (measured from {len(memory.boots_s)})"


def _manner(pen: Pen, term: Term, rules: Sequence[QueuePolicy]) -> str:
    tightest = f"{_n(min([rule.objective.wait_s for rule in rules], default=0.0))} s"
    if term.just_in_time:
        why = "the policy is bounded" if pen.policy.stability == "bounded" else f"faster than jobs may wait, {tightest}"
        return f"just in time: {why}"
    if term.bridged:
        return f"bridged: slower than jobs may wait, {tightest}, and a dearer pool makes up for what it lacks"
    return f"ahead: slower than jobs may wait, {tightest}" if rules else "no queue names it"


def _load(term: Term) -> str:
    load = term.load
    if term.just_in_time:
        return f"load {_n(load.mean)} slots now (measured), {_n(term.waiting)} for jobs that would be late (estimated)"
    spread = f"± {_n(hypot(sqrt(load.variance), load.error))} (estimated), the forecast off by {_n(load.error)}"
    base = term.need if term.bridged else float(term.wanted.slots)
    margin = f"margin {base - load.mean:+.3g} (estimated), {_n(term.waiting)} for those that wait (estimated)"
    return f"load in {_n(term.boot_s)} s: {_n(load.mean)} slots {spread} (estimated), {margin}"


# ── apps and pools


def _app(pen: Pen, demand: Demand) -> Iterator[str]:
    order = [f"{pool.name} at {_n(pen.price(pool.name) / pool.slots)}/h a slot" for pool in fill_order(pen, demand.app)]
    yield f"fills {', then '.join(order)} (given)" if order else "no pool runs it"
    if demand.frozen or demand.crowded:
        yield f"not scaling in: {demand.frozen or 'those that wait would keep every slot busy (estimated)'}"
    yield f"does: {'; '.join(pen.done.get(demand.app, ())) or 'nothing'}"
    yield f"limits: {'; '.join(dict.fromkeys(pen.limits.get(demand.app, ()))) or 'none'}"


def _pool(pen: Pen, pool: PoolPolicy) -> Iterator[str]:
    memory, world = pen.draft.pools[pool.name], pen.observation.worlds.get(pool.name)
    headroom = world.offer.headroom if isinstance(world, World) else None
    more = "what more it could give unknown" if headroom is None else f"{headroom} more to be had (given)"
    bounds = f"between {floor_of(pen, pool)} and {pool.max_nodes} (given)"
    yield f"{held(pen, pool.name)} nodes (measured), {bounds}; {more}"
    paid = f", billed for at least {_n(pool.billing_minimum_s)} s" if pool.billing_minimum_s else ""
    yield f"{_n(pen.price(pool.name))}/h a node{paid} (given); {memory.failures} failures in a row (measured)"
    limits = list(dict.fromkeys(pen.limits.get(pool.name, ())))
    if memory.open_until > pen.draft.now:
        limits.append(f"breaker open for {memory.open_until - pen.draft.now:.0f} s: {memory.why_open}")
    if isinstance(world, Blind):
        limits.append(f"cannot be seen: {world.reason}")
    if still := pen.still(pool.name):
        limits.append(still)
    for app in (pen.policy.apps[name] for name in pool.apps if name in pen.policy.apps):
        if app.busy_by:
            how = "unknown, so they count as busy: drain by signal" if app.busy_by == "by signal" else app.busy_by
            yield f"what workers of {app.name} run: {how}"
    yield f"limits: {'; '.join(limits) or 'none'}"


def _n(value: float | Seconds) -> str:
    return f"{value:.0f}" if abs(value) >= WHOLE else f"{value:.3g}"
