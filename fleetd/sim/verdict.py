"""What the figures of several policies on one trace amount to: who met the objective, who was cheapest, in a sentence.

Promises: a policy that missed the objective of any queue, or left a job unstarted, never counts as a better one,
however cheap it was. The clairvoyant bound is no policy: it is measured against, not compared with.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from fleetd.sim.result import Result

OURS: Final = "fleetd"
BOUND: Final = "optimal"
_EPSILON: Final = 1e-9  # a share that was counted is not missed by the last bit


def meets(result: Result, allowed: Mapping[str, float]) -> bool:
    """Whether every job was started, and every queue kept to its share of late jobs; `allowed` by queue."""
    if result.lost:
        return False
    if not result.queues:  # one that tells nothing by queue is held to the strictest
        return result.late_share <= min(allowed.values(), default=1.0) + _EPSILON
    return all(queue.late_share <= allowed.get(name, 1.0) + _EPSILON for name, queue in result.queues.items())


def late_allowed(result: Result, allowed: Mapping[str, float]) -> float:
    """Return the share of all jobs that may be late: each queue's own, weighted by its jobs."""
    jobs = sum(queue.jobs for queue in result.queues.values())
    if not jobs:
        return max(allowed.values(), default=0.0)
    return sum(queue.jobs * allowed.get(name, 0.0) for name, queue in result.queues.items()) / jobs


def cost(result: Result, others: Sequence[Result]) -> float:
    """Return what to compare by: money, or worker-seconds where all that was compared is free."""
    return result.cost_money if any(one.cost_money for one in others) else result.cost_worker_s


def ours(results: Sequence[Result]) -> Result:
    """Return the policy that is judged: the one named fleetd, otherwise the first."""
    return next((one for one in results if one.policy == OURS), results[0])


def peers(results: Sequence[Result]) -> list[Result]:
    """Return the policies that ours is compared with."""
    mine = ours(results)
    return [one for one in results if one is not mine and one.policy != BOUND]


def best(results: Sequence[Result], allowed: Mapping[str, float]) -> Result | None:
    """Return the cheapest policy that met the objective, ours among them; None where none did."""
    good = [one for one in results if one.policy != BOUND and meets(one, allowed)]
    return min(good, key=lambda one: cost(one, results), default=None)


def best_peer(results: Sequence[Result], allowed: Mapping[str, float]) -> Result | None:
    """Return the cheapest peer that met the objective; None where none did."""
    good = [one for one in peers(results) if meets(one, allowed)]
    return min(good, key=lambda one: cost(one, results), default=None)


def sentence(results: Sequence[Result], allowed: Mapping[str, float], currency: str = "") -> str:
    """Return what the comparison came to, for people."""
    mine = ours(results)
    late = f"with {percent(mine.late_share)} of jobs late (allowed {percent(late_allowed(mine, allowed))})"
    parts = [f"On this trace {mine.policy} would have cost {_price(mine, currency)}", _against(results, allowed), late]
    end = "." if meets(mine, allowed) else _missed(mine, allowed)
    return ", ".join(part for part in parts if part) + end


def percent(share: float) -> str:
    """Return a share as people write it: 5 %, 3.1 %, 0.04 %."""
    value = 100.0 * share
    digits = 2 if 0 < value < 0.1 else 1
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") + " %" if value else "0 %"


def _price(mine: Result, currency: str) -> str:
    if mine.cost_over_bound is not None:
        return f"{mine.cost_over_bound:.2f} of the optimum"
    if mine.cost_money:
        return f"{mine.cost_money:,.2f} {currency}".rstrip()
    return f"{mine.cost_worker_s / 3600.0:,.1f} worker-hours"


def _against(results: Sequence[Result], allowed: Mapping[str, float]) -> str:
    mine, rivals, peer = ours(results), peers(results), best_peer(results, allowed)
    if peer is None:
        return "where no peer met the objective" if rivals else ""
    theirs = cost(peer, results)
    saved = 1.0 - cost(mine, results) / theirs if theirs else 0.0
    if abs(saved) < 0.005:
        return f"as much as {peer.policy}"
    return f"{abs(saved):.0%} {'less' if saved > 0 else 'more'} than {peer.policy}".replace("%", " %")


def _missed(mine: Result, allowed: Mapping[str, float]) -> str:
    """Say what kept ours from meeting the objective."""
    late = [name for name, queue in mine.queues.items() if queue.late_share > allowed.get(name, 1.0) + _EPSILON]
    reasons = [f"{mine.lost:,} jobs were never started"] if mine.lost else []
    reasons += [f"too many late in {', '.join(late)}"] if late and len(mine.queues) > 1 else []
    return f": it missed the objective{': ' if reasons else ''}{'; '.join(reasons)}."
