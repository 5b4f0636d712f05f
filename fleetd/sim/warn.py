"""What can be said before a run: where a policy cannot meet its objectives within its limits, on these traces.

Promises: what is said of late jobs is certain, because it is what all of the pools, up all the time, could do at best.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final

from fleetd.core.model import Policy, Seconds
from fleetd.sim.engine import Station
from fleetd.sim.stream import streams
from fleetd.sim.trace import Trace

WINDOW_S: Final = 600.0
HOUR_S: Final = 3600.0
MONTH_S: Final = 31 * 24 * HOUR_S
FOR_EVER_S: Final = 1e15
CALM: Final = 2.0  # with so many times the slots of the busiest ten minutes there is no need to try


def warn(policy: Policy, traces: Mapping[str, Trace]) -> tuple[str, ...]:
    """Return a line for everything that keeps jobs waiting whatever is decided."""
    lines: list[str] = []
    for app in sorted(policy.apps):
        jobs = {name: traces[name] for name in sorted(traces) if policy.queues[name].app == app}
        if not any(trace.submitted_s for trace in jobs.values()):
            continue
        pools = sorted(name for name, pool in policy.pools.items() if app in pool.apps and pool.act)
        if not sum(policy.pools[name].max_nodes for name in pools):
            lines.append(f"app {app}: no pool may launch nodes for it: its jobs will not start")
            continue
        lines += _crowded(policy, app, jobs, pools)
        lines += _dear(policy, app, jobs, pools)
    return tuple(lines)


def _crowded(policy: Policy, app: str, traces: Mapping[str, Trace], pools: Sequence[str]) -> Iterable[str]:
    """Tell of the queues that are late even with every node up all the time."""
    slots = sum(policy.pools[name].max_nodes * policy.pools[name].slots for name in pools)
    load = _most(traces.values(), WINDOW_S) / WINDOW_S
    if slots >= CALM * load:
        return
    station = Station(streams(policy, app, traces))
    station.add(0, slots)
    station.run(FOR_EVER_S)
    for name, waits in ((found.queue, found.started) for found in station.waits() if found.started):
        objective = policy.queues[name].objective
        late = sum(wait > objective.wait_s for wait in waits) / len(waits)
        if late > 1.0 - objective.share:
            allowed, seconds = 1.0 - objective.share, objective.wait_s
            yield (
                f"queue {name}: with all {slots} slots of {' and '.join(pools)} up all the time {late:.1%} of its "
                f"jobs would wait longer than {seconds:g} s (allowed: {allowed:.1%}): the busiest ten minutes bring "
                f"work for {load:.1f} slots: raise `max`"
            )


def _dear(policy: Policy, app: str, traces: Mapping[str, Trace], pools: Sequence[str]) -> Iterable[str]:
    """Tell of a budget that does not pay for the work at the cheapest price there is."""
    prices = [policy.pools[name].price_per_h / policy.pools[name].slots for name in pools]
    unbounded = sorted(name for name in traces if policy.queues[name].job_limit_s is None)
    budget = policy.budget
    if not min(prices) or (budget.hour is None and budget.month is None):
        return
    if unbounded and policy.apps[app].drain_s is None:
        yield (
            f"app {app}: there is a budget, and nothing bounds the jobs of {', '.join(unbounded)}: no node with a "
            "price will be launched: give the queue a `job_limit` or the app a drain `deadline`"
        )
    for limit, window_s, name in ((budget.hour, HOUR_S, "hour"), (budget.month, MONTH_S, "month")):
        cost = _most(traces.values(), window_s) / HOUR_S * min(prices)
        if limit is not None and cost > limit:
            yield (
                f"app {app}: the work of its busiest {name} costs {cost:.2f} {policy.currency} at the cheapest price, "
                f"the budget is {limit:g} per {name}: jobs will wait"
            )


def _most(traces: Iterable[Trace], window_s: Seconds) -> Seconds:
    """Return the most service time that was submitted within a window, to within half a window's place."""
    sums: dict[int, float] = {}
    half_s = window_s / 2.0
    for trace in traces:
        if not trace.submitted_s:
            continue
        worked, first = list(accumulate(trace.service_s, initial=0.0)), 0
        while first < len(trace.submitted_s):
            step = int(trace.submitted_s[first] // half_s)
            after = bisect_left(trace.submitted_s, (step + 1) * half_s, first + 1)
            sums[step] = sums.get(step, 0.0) + worked[after] - worked[first]
            first = after
    return max((total + sums.get(step + 1, 0.0) for step, total in sums.items()), default=0.0)
