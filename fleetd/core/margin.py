"""How much more than the mean: the slots whose cost equals what they save in late jobs.

Each queue has a price for a late job, in slot-seconds. The wanted slots are those where one more would cost more than
the late jobs it saves; so a margin is wide where many jobs come and thin where few do. The price itself is learned, job
by job: late jobs raise it, jobs in time lower it, until the share of late jobs is the one that the objective allows.

Sources: the tail of the waiting time of M/G/k as exp(-2(k-a)t / (m(1+cv²))), with the delay probability of Halfin and
Whitt ("Heavy-traffic limits for queues with many exponential servers", 1981); the price is a multiplier by dual ascent,
as in adaptive conformal inference (Gibbs and Candès, arXiv 2106.00170).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, erf, exp, sqrt
from typing import Final

from fleetd.core.model import Seconds

FIRST_PRICE_S: Final = 500.0
SMALL_ERROR: Final = 0.1  # slots
LEAST_SHARE: Final = 0.15  # of the load's root below the load is where the search begins
MANY: Final = 20.0  # from this variance on a Poisson number is taken as normal
PRICES_S: Final = (0.3, 10000.0)  # the least and the most
PACE: Final = 12.0  # e-fold a memory's worth of jobs at twice the allowed share
LEAST_JOBS: Final = 50.0
MEMORY: Final = 0.7  # of the jobs that are remembered
MOST_JOBS: Final = 8000.0
AIM: Final = 0.93  # of the allowed share
SAFE_SHARE: Final = 0.1  # of what an objective allows, where late jobs are to be rare


@dataclass(frozen=True, slots=True)
class Risk:
    """What one queue asks of the slots of its app when a node that is ordered now will be up.

    `price_s` slot-seconds a late job; `rate` jobs a second; `wait_s` the objective; `mean_s`, `cv2` of its service.
    """

    price_s: Seconds
    rate: float
    wait_s: Seconds
    mean_s: Seconds
    cv2: float


@dataclass(frozen=True, slots=True)
class Load:
    """Slots in use at that moment if there were plenty: mean, variance by chance, deviation by the forecast's error."""

    mean: float
    variance: float
    error: float


def late_share(slots: float, load: float, risk: Risk, horizon_s: Seconds) -> float:
    """Return the share of a queue's jobs that wait longer than the objective, so long after an empty queue.

    All slots busy, the wait is a Brownian motion that is reflected at zero: its drift is -(k-a)/k, its variance
    a·m(1+cv²)/k² a second. It is delayed at all with the probability of Halfin and Whitt.
    """
    if load <= 1e-9:
        return 0.0
    if slots <= 0.0:
        return 1.0
    spare = slots - load
    drift, wait_s = spare / slots, risk.wait_s
    variance = load * risk.mean_s * (1.0 + risk.cv2) / (slots * slots)
    spread = sqrt(2.0 * variance * horizon_s)
    power = -2.0 * drift * wait_s / variance
    share = 0.5 * (1.0 - erf((wait_s + drift * horizon_s) / spread))
    if power < 50.0:
        share += 0.5 * exp(power) * (1.0 - erf((wait_s - drift * horizon_s) / spread))
    if spare <= 0.0:
        return min(1.0, share)
    scaled = spare / sqrt(load)
    density = exp(-0.5 * scaled * scaled) * 0.3989422804
    return share * density / (density + scaled * 0.5 * (1.0 + erf(scaled * 0.7071067811865476)))


def cost(slots: float, load: Load, risks: Sequence[Risk], boot_s: Seconds, horizon_s: Seconds) -> float:
    """Return what so many slots cost a second, late jobs included, in slots."""
    total = slots
    chance = _full(slots, load)
    for risk in risks:
        if load.error < SMALL_ERROR:
            steady = late_share(slots, load.mean, risk, horizon_s)
        else:  # two points that have the forecast's mean and deviation
            low = late_share(slots, max(0.0, load.mean - load.error), risk, horizon_s)
            steady = 0.5 * (low + late_share(slots, load.mean + load.error, risk, horizon_s))
        share = min(steady, chance) if slots > load.mean else steady
        total += (risk.price_s + (boot_s if slots < 1.0 else 0.0)) * risk.rate * share
    return total


def _full(slots: float, load: Load) -> float:
    """Return the chance that a job which comes then finds no free slot: in use is a constant and a Poisson number."""
    least = slots - (load.mean - load.variance)
    if load.variance > MANY:
        return 0.5 * (1.0 - erf((slots - 0.5 - load.mean) / sqrt(2.0 * load.variance)))
    if least <= 0.0:
        return 1.0
    term = below = exp(-load.variance)
    for at in range(1, ceil(least)):
        term *= load.variance / at
        below += term
    return max(0.0, 1.0 - below)


def wanted(load: Load, risks: Sequence[Risk], boot_s: Seconds, horizon_s: Seconds, last: int) -> int:
    """Return the cheapest number of slots; the search begins at `last`, the one of before."""
    lowest = max(0, round(load.mean - LEAST_SHARE * sqrt(load.mean) - 0.5))
    most = int(3.0 * load.mean) + 20
    begins = {min(most, max(lowest, last)), lowest, min(most, ceil(load.mean + 1.5 * sqrt(load.mean)))}
    # The cost may have two valleys: few slots and many late jobs, or enough slots.
    least, best = min((cost(slots, load, risks, boot_s, horizon_s), slots) for slots in begins)
    for step in (1, -1):
        slots, moved = best, False
        while lowest <= slots + step <= most:
            slots += step
            now = cost(slots, load, risks, boot_s, horizon_s)
            if now >= least:
                break
            best, least, moved = slots, now, True
        if moved:
            break
    return best


def learn_price(
    price_s: Seconds, judged: int, late: float, *, allowed: float, share: float, known: float, safe: bool = False
) -> Seconds:
    """Return the price after `judged` more jobs, `late` of them late.

    `share` of the jobs of the last days were late: what is above the allowed share is made up for, what is below spent.
    `known`: jobs of the last days; the more there were, the less each tells. `safe`: late jobs are to be rare, so a
    tenth of the allowed is aimed at, and a quiet time makes no late job cheaper than it is thought to be at first.
    """
    least_s = FIRST_PRICE_S if safe else PRICES_S[0]
    if not judged:
        return max(least_s, price_s)
    allowed *= SAFE_SHARE if safe else 1.0
    aim = min(1.5 * allowed, max(0.5 * allowed, 2.0 * AIM * allowed - share))
    step = PACE * (late - aim * judged) / min(MOST_JOBS, max(LEAST_JOBS, MEMORY * known))
    return min(PRICES_S[1], max(least_s, price_s * exp(min(1.0, max(-1.0, step)))))
