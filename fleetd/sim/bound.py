"""What the same jobs would cost somebody who knew them all beforehand: a lower bound no policy can go below.

Promises: the bound is a relaxation. Whatever starts every job within the wait, on nodes that cost their boot and every
second from then on, costs at least this much. Jobs and nodes are a fluid: halves of nodes may boot and halves of jobs
may be worked on, which no real fleet can, so the least that is possible lies somewhat above it.

How: let U(t) be the work done by second t had every job started when it was submitted. Whoever starts all jobs within
w seconds has by then done between U(t - w) and U(t). On a grid of steps, with n_k the mean number of nodes in step k
and W_k the work done by its end,

    U(t_k - w) <= W_k <= U(t_k)     W_k - W_{k-1} <= step · slots · n_k     n_k - n_{k-1} <= boots_k

and the cost to be least is the sum of step · n_k + boot · boots_k: a linear program. Means over steps rise by no more
than what they are means of, and the grid only leaves constraints out, so a coarser one gives a lower bound still.
A minimum billing, failed boots and a pool's least number of nodes would only add to it.

Source: the dynamic right-sizing of data centres (Lin, Wierman, Andrew, Thereska, 2011), with a wait allowed.
"""

from collections.abc import Sequence
from importlib import import_module
from math import inf, isfinite
from typing import Any, Final, NamedTuple

from fleetd.core.model import Seconds
from fleetd.errors import UsageError
from fleetd.sim.trace import Trace

STEPS_AT_MOST: Final = 20_480  # some seconds of the solver's time
STEPS_S: Final = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
HOUR_S: Final = 3600.0
MISSING: Final = "the bound needs scipy: pip install 'fleetd[simulate]'"


class PoolCost(NamedTuple):
    """What the bound knows of a pool: the paid boot, a node's price an hour, at most how many; `up`: at second 0."""

    boot_s: Seconds
    price_per_h: float
    most: int | None = None
    slots: int = 1
    up: int = 0


def bound(
    trace: Trace, wait_s: Seconds, boot_s: Seconds, slots: int = 1, *, up: int = 0, step_s: Seconds | None = None
) -> float:
    """Return the worker-seconds below which nobody starts every job within `wait_s`; each boot pays `boot_s`.

    `up` nodes are there at second 0 and need no boot. A smaller `step_s` gives a higher bound, and takes longer.
    """
    pool = PoolCost(boot_s, HOUR_S, None, slots, up)  # a worker-second is the money
    return bound_pools(trace, wait_s, [pool], step_s=step_s)


def bound_pools(
    trace: Trace,
    wait_s: Seconds,
    pools: Sequence[PoolCost | tuple[Seconds, float, int | None]],
    *,
    step_s: Seconds | None = None,
) -> float:
    """Return the money below which nobody starts every job within `wait_s` with nodes of these pools."""
    costs = [PoolCost(*pool) for pool in pools]
    _check(wait_s, costs, step_s)
    if not len(trace.submitted_s):
        return 0.0
    try:
        numpy, sparse, solve = (import_module(name) for name in ("numpy", "scipy.sparse", "scipy.optimize"))
    except ModuleNotFoundError as problem:
        raise UsageError(MISSING) from problem
    submitted, service = numpy.asarray(trace.submitted_s), numpy.asarray(trace.service_s)
    end_s = float((submitted + service).max()) + wait_s
    step = step_s or _step(end_s)
    ends = numpy.arange(1, int(end_s // step) + 2) * step
    most = _done_by(numpy, submitted, service, ends)
    least = numpy.minimum(_done_by(numpy, submitted, service, ends - wait_s), most)
    program = _program((numpy, sparse), costs, step, numpy.stack([least, most], axis=1))
    answer = solve.linprog(method="highs", **program)
    if answer.status == 2:  # infeasible
        held = sum(pool.slots * (pool.most or 0) for pool in costs)
        raise UsageError(f"no plan starts every job within {wait_s:g} s on {held} slots: allow the pools more nodes")
    if answer.fun is None:
        raise UsageError(f"the bound was not found: {answer.message}")
    return float(answer.fun)


def _check(wait_s: Seconds, pools: Sequence[PoolCost], step_s: Seconds | None) -> None:
    """Refuse numbers that mean nothing before the solver sees them."""
    if not pools:
        raise UsageError("the bound needs a pool")
    numbers = [wait_s, *(number for pool in pools for number in (pool.boot_s, pool.price_per_h, pool.up))]
    if not all(isfinite(number) and number >= 0 for number in numbers):
        raise UsageError("the bound's wait, boots, prices and nodes are finite and not negative")
    if any(pool.slots < 1 or (pool.most is not None and pool.most < 0) for pool in pools):
        raise UsageError("the bound's pools have a slot or more a node, and no fewer than no nodes")
    if step_s is not None and not 0 < step_s < inf:
        raise UsageError(f"the bound's step is above 0 s, got {step_s:g}")


def _step(end_s: Seconds) -> Seconds:
    """Return the finest step that the solver gets through in seconds: the same for all that are about as long."""
    fitting = (step for step in STEPS_S if end_s / step <= STEPS_AT_MOST)
    return next(fitting, end_s / STEPS_AT_MOST)


def _done_by(numpy: Any, submitted: Any, service: Any, times: Any) -> Any:
    """Return the work done by each of the times, had every job started when it was submitted."""
    worked = numpy.zeros(len(times))
    for moments, sign in ((numpy.sort(submitted), 1.0), (numpy.sort(submitted + service), -1.0)):
        before = numpy.searchsorted(moments, times, "right")
        sums = numpy.concatenate([[0.0], numpy.cumsum(moments)])
        worked += sign * (before * times - sums[before])
    return numpy.maximum(worked, 0.0)


def _program(libraries: tuple[Any, Any], pools: Sequence[PoolCost], step: Seconds, work: Any) -> dict[str, Any]:
    """Return the linear program: nodes and boots of every pool, then the work done, each a step after the other."""
    numpy, sparse = libraries
    steps = len(work)
    same = sparse.identity(steps, format="csr")
    rise = same - sparse.eye(steps, k=-1, format="csr")
    enough: list[Any] = []  # one row of blocks: the nodes together can do the work
    booted: list[list[Any]] = []  # a row of blocks for each pool: what is more than before was booted
    cost: list[Any] = []
    right = [numpy.zeros(steps)]
    limits = []
    for place, pool in enumerate(pools):
        enough += [-step * pool.slots * same, None]
        row: list[Any] = [None] * (2 * len(pools) + 1)
        row[2 * place : 2 * place + 2] = [rise, -same]
        booted.append(row)
        price = pool.price_per_h / HOUR_S
        cost += [numpy.full(steps, price * step), numpy.full(steps, price * pool.boot_s)]
        already = numpy.zeros(steps)
        already[0] = pool.up
        right.append(already)
        limits += [(0.0, inf if pool.most is None else pool.most)] * steps + [(0.0, inf)] * steps
    return {
        "c": numpy.concatenate([*cost, numpy.zeros(steps)]),
        "A_ub": sparse.bmat([[*enough, rise], *booted], format="csr"),
        "b_ub": numpy.concatenate(right),
        "bounds": numpy.concatenate([numpy.array(limits), work]),
    }
