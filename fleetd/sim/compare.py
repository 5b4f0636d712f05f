"""Runs our policy, the peers and the bound on one trace, and puts them on one scale.

Promises: ours comes first, the others in the order asked for, all on the same jobs and the same luck; every result says
what it costs over the bound where the bound was asked for.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from math import ceil
from typing import Final

from fleetd.core.model import Policy, PoolPolicy, Seconds
from fleetd.errors import UsageError
from fleetd.providers.simulated import SimulatedOptions
from fleetd.sim.bound import HOUR_S, PoolCost, bound_pools
from fleetd.sim.peers.static import static
from fleetd.sim.result import Result
from fleetd.sim.run import Setup, simulate, simulate_peer
from fleetd.sim.scaler import Scaler
from fleetd.sim.trace import Trace
from fleetd.sim.verdict import BOUND, meets

Say = Callable[[str, float], None]  # which policy runs, and how much of it is done
STATIC: Final = "static"


def allowed_late(policy: Policy) -> dict[str, float]:
    """Return the share of late jobs that each queue's objective allows."""
    return {name: 1.0 - queue.objective.share for name, queue in policy.queues.items()}


def peers() -> Mapping[str, type[Scaler]]:
    """Return the peers by name; they are loaded when one is asked for."""
    found: Mapping[str, type[Scaler]] = import_module("fleetd.sim.peers").PEERS
    return found


def compare(
    policy: Policy, traces: Mapping[str, Trace], setup: Setup, against: Sequence[str], say: Say | None = None
) -> list[Result]:
    """Return our result and those of `against`: names of peers, `static` and `optimal`. Raises UsageError."""
    known = peers() if set(against) - {STATIC, BOUND} else {}
    for name in against:
        if name not in {*known, STATIC, BOUND}:
            there = ", ".join([*(one for one in known if one != STATIC), STATIC, BOUND])
            raise UsageError(f"--against: no policy {name!r}; there are {there}")
    heard = say or (lambda _name, _share: None)
    # First of all, so that a missing library is told before minutes of simulation.
    bound = least(policy, traces, setup) if BOUND in against else None
    results = [simulate(policy, traces, setup, partial(heard, "fleetd"))]
    for name in against:
        if name == STATIC:
            results.append(smallest(policy, traces, setup, heard))
        elif name == BOUND and bound:
            results.append(_optimal(policy, traces, *bound))
        else:
            results.append(simulate_peer(policy, traces, setup, known[name], partial(heard, name)))
    return [_over(one, policy, *bound) for one in results] if bound else results


# ── the smallest constant


def smallest(policy: Policy, traces: Mapping[str, Trace], setup: Setup, say: Say) -> Result:
    """Return the run of the smallest constant number of nodes that meets the objective, found by bisection."""
    most = sum(pool.max_nodes for pool in policy.pools.values())
    allowed, tried = allowed_late(policy), dict[int, Result]()

    def good(nodes: int) -> bool:
        if nodes not in tried:
            say(STATIC, 1.0 - 0.7 ** (len(tried) + 1))
            tried[nodes] = simulate_peer(_held(policy, nodes), traces, setup, static(nodes))
        return meets(tried[nodes], allowed)

    low, high = 0, min(most, max(1, ceil(_mean_load(policy, traces))))
    while not good(high) and high < most:
        low, high = high, min(most, 2 * high)
    while high - low > 1 and good(high):
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    say(STATIC, 1.0)
    each = " for each app" if len(policy.apps) > 1 else ""
    note = f"{high} nodes at all times{each}" + ("" if good(high) else ", the most that the pools allow, are too few")
    return replace(tried[high], notes=(*tried[high].notes, note))


def _held(policy: Policy, nodes: int) -> Policy:
    """Return the policy with so many nodes up from the start, in the cheapest pools; with several apps, as it was."""
    if len(policy.apps) > 1:
        return policy
    pools, left = {}, nodes
    for pool in sorted(policy.pools.values(), key=lambda one: (one.price_per_h / one.slots, one.name)):
        held = min(left, pool.max_nodes)
        left -= held
        pools[pool.name] = replace(pool, min_nodes=held, max_nodes=held)
    return replace(policy, pools=pools)


def _mean_load(policy: Policy, traces: Mapping[str, Trace]) -> float:
    """Return the nodes that the work alone would keep busy."""
    work_s = sum(sum(trace.service_s) for trace in traces.values())
    last_s = max((trace.submitted_s[-1] for trace in traces.values() if trace.submitted_s), default=0.0)
    slots = max((pool.slots for pool in policy.pools.values()), default=1)
    return work_s / max(last_s, 1.0) / slots


# ── the bound


def least(policy: Policy, traces: Mapping[str, Trace], setup: Setup) -> tuple[float, float]:
    """Return the worker-seconds and the money below which nobody starts every job in time, each by itself.

    Apps do not share nodes; queues of one app are given the longest objective among them, which only lowers the bound.
    """
    worker_s = money = 0.0
    for app in policy.apps:
        queues = {name: queue for name, queue in policy.queues.items() if queue.app == app and name in traces}
        pools = [pool for pool in policy.pools.values() if app in pool.apps]
        if not queues or not pools:
            continue
        trace = _merged([traces[name] for name in queues])
        wait_s = max(queue.objective.wait_s for queue in queues.values())
        seconds = _bound(trace, wait_s, [_cost(pool, setup, HOUR_S) for pool in pools])
        worker_s += seconds
        if len(pools) == 1:
            money += seconds * pools[0].price_per_h / HOUR_S
        elif any(pool.price_per_h for pool in pools):
            money += _bound(trace, wait_s, [_cost(pool, setup, pool.price_per_h) for pool in pools])
    return worker_s, money


def _bound(trace: Trace, wait_s: Seconds, pools: Sequence[PoolCost]) -> float:
    try:
        return bound_pools(trace, wait_s, pools)
    except (
        UsageError
    ):  # the pools are too small to start every job in time: without their limits it bounds all the same
        return bound_pools(trace, wait_s, [pool._replace(most=None) for pool in pools])


def _cost(pool: PoolPolicy, setup: Setup, price_per_h: float) -> PoolCost:
    return PoolCost(mean_boot_s(pool, setup), price_per_h, pool.max_nodes, pool.slots, pool.min_nodes)


def mean_boot_s(pool: PoolPolicy, setup: Setup) -> Seconds:
    """Return how long a node of the pool boots on average in the simulation."""
    boot = setup.boots.get(pool.name)
    if boot is None and isinstance(pool.options, SimulatedOptions):
        boot = pool.options.boot
    return sum(boot) / 2.0 if boot else 0.0


def _merged(traces: Sequence[Trace]) -> Trace:
    if len(traces) == 1:
        return traces[0]
    jobs = sorted(pair for trace in traces for pair in zip(trace.submitted_s, trace.service_s, strict=True))
    return Trace(array("d", [at for at, _ in jobs]), array("d", [took for _, took in jobs]))


def _over(result: Result, policy: Policy, worker_s: float, money: float) -> Result:
    """Return the result with its cost over the bound: in money where pools of several prices make that another."""
    if result.policy == BOUND:
        return result
    ratio = result.cost_worker_s / worker_s if worker_s else None
    if len(policy.pools) > 1 and money:
        ratio = result.cost_money / money
    return replace(result, bound_worker_s=worker_s, cost_over_bound=ratio)


def _optimal(policy: Policy, traces: Mapping[str, Trace], worker_s: float, money: float) -> Result:
    jobs = sum(len(trace.submitted_s) for trace in traces.values() if trace.submitted_s)
    several = len(policy.pools) > 1 and money
    notes = ("the least money and the least worker-seconds are those of two different plans",) if several else ()
    return Result(BOUND, worker_s, money, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, jobs, 0, worker_s, 1.0, notes=notes)
