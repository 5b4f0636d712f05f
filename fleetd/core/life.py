"""Service times as a life table: how long jobs of a queue take, and how long those that run now will go on.

Of the jobs that reach an age bucket some end in it: that share gives its hazard. Running jobs count for as long as they
have run, so that a queue of hour-long jobs is known to have long jobs before the first one ends, and so that a heavy
tail is seen at all. Buckets are four to an octave of milliseconds, as workers report them.

Source: the actuarial estimate for censored observations (Cutler and Ederer, "Maximum utilization of the life table
method in analyzing survival", 1958). The prior is Lomax's distribution of shape 2 with the given mean: one job at risk
at every age. It is heavy-tailed on purpose: of a job older than any before, what is left is about its age once more.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import exp, expm1, log, log2, sqrt
from typing import Final

from fleetd.core.model import Seconds

PER_OCTAVE: Final = 4
BUCKETS: Final = 128  # up to 2^32 ms: fifty days
MEMORY_JOBS: Final = 5000.0  # older jobs fade as newer ones come
RECENT_JOBS: Final = 300.0  # and these are compared with them:
CONTRADICTS: Final = 2.0  # this many standard errors apart, the older ones fade HURRY times as fast
HURRY: Final = 30.0
STALE_SHARE: Final = 0.05  # of the weight that may be new before the curve is drawn again
STALE_S: Final = 60.0
FRESH_S: Final = 4.5  # nor is it drawn more often than this
MOST_ENDS: Final = 0.9999
LONGEST_CV2: Final = 4.0  # a squared coefficient of variation above this is taken as this
EDGES: Final[tuple[Seconds, ...]] = tuple(0.0 if at == 0 else 2.0 ** (at / PER_OCTAVE) / 1e3 for at in range(BUCKETS))
WIDTHS: Final[tuple[Seconds, ...]] = tuple(high - low for low, high in pairwise(EDGES))
MIDDLES: Final[tuple[Seconds, ...]] = tuple(0.5 * (low + high) for low, high in pairwise(EDGES))


@dataclass(frozen=True, slots=True)
class Curve:
    """A survival curve over the edges from 0 on, as far as anything was seen. All tuples have one entry an edge.

    `hazard`: cumulative, so that S(u) = exp(-hazard(u)). `lived_s`: the integral of S from 0 to the edge. Beyond the
    last edge the prior's tail goes on: 2/(prior_s + u).
    """

    prior_s: Seconds
    hazard: tuple[float, ...]
    lived_s: tuple[Seconds, ...]
    mean_s: Seconds
    cv2: float  # the squared coefficient of variation, at most LONGEST_CV2


@dataclass(frozen=True, slots=True)
class Life:
    """What was seen of a queue's jobs: `ended` by bucket, in faded weight, and the curve that was drawn from it."""

    ended: tuple[tuple[int, float], ...] = ()
    jobs: float = 0.0  # the sum of the weights
    recent: float = 0.0  # the same of the latest few, and their summed length
    recent_s: Seconds = 0.0
    new: float = 0.0  # ended since the curve was drawn
    drawn_at: Seconds | None = None
    curve: Curve | None = None


def bucket_of(age_s: Seconds) -> int:
    """Return the bucket of a length of service or an age."""
    return min(BUCKETS - 2, int(PER_OCTAVE * log2(age_s * 1e3))) if age_s >= 0.001 else 0


def live(life: Life, ended: Mapping[int, int], running_s: Sequence[Seconds], prior_s: Seconds, now: Seconds) -> Life:
    """Return the life with what ended since, and with a new curve where the old one has become stale."""
    if ended:
        life = _add(life, ended)
    curve = life.curve
    if curve is not None and life.drawn_at is not None and curve.prior_s == prior_s:
        age_s = now - life.drawn_at
        if age_s < FRESH_S or (age_s < STALE_S and life.new <= STALE_SHARE * life.jobs):
            return life
    return Life(life.ended, life.jobs, life.recent, life.recent_s, 0.0, now, draw(life, running_s, prior_s))


def _add(life: Life, ended: Mapping[int, int]) -> Life:
    count = sum(ended.values())
    within = [(min(max(bucket, 0), BUCKETS - 2), number) for bucket, number in ended.items()]
    faded = exp(-count / RECENT_JOBS)
    recent = life.recent * faded + count
    recent_s = life.recent_s * faded + sum([number * MIDDLES[at] for at, number in within])
    keep = exp(-count * (HURRY if _contradicted(life, recent, recent_s) else 1.0) / MEMORY_JOBS)
    weights = {bucket: weight * keep for bucket, weight in life.ended}
    for at, number in within:
        weights[at] = weights.get(at, 0.0) + number
    jobs, new = life.jobs * keep + count, life.new + count
    return Life(tuple(sorted(weights.items())), jobs, recent, recent_s, new, life.drawn_at, life.curve)


def _contradicted(life: Life, recent: float, recent_s: Seconds) -> bool:
    """Whether the latest jobs cannot be of the same kind as all before, as far as their mean tells."""
    if life.curve is None or recent < 0.5 * RECENT_JOBS or not life.jobs:
        return False
    mean_s = sum([weight * MIDDLES[at] for at, weight in life.ended]) / life.jobs
    error_s = mean_s * sqrt(max(0.05, life.curve.cv2) / recent)
    return abs(recent_s / recent - mean_s) > CONTRADICTS * error_s


def draw(life: Life, running_s: Iterable[Seconds], prior_s: Seconds) -> Curve:
    """Draw the curve from ended and running jobs and the prior.

    A running job counts whole while nothing was forgotten yet. Later the jobs that ran when the memory begins, and are
    counted with their whole length, make up for those that run now; counting both would make every job too long.
    """
    ended, share = dict(life.ended), max(0.0, 1.0 - life.jobs / MEMORY_JOBS)
    running: dict[int, list[Seconds]] = {}
    for age_s in running_s:
        running.setdefault(bucket_of(age_s), []).append(age_s)
    last = max([*ended, *running], default=0)
    reach = life.jobs + share * sum([len(ages) for ages in running.values()])  # jobs that reach the bucket
    total, lived_s, square, alive = 0.0, 0.0, 0.0, 1.0
    hazards, integrals = [0.0], [0.0]
    for at, left in enumerate(_left(prior_s)[: last + 1]):
        width, gone, at_risk = WIDTHS[at], ended.get(at, 0.0), reach + 1.0
        if at in running:
            here, high = running[at], EDGES[at + 1]
            # What those that still run leave of the bucket is not seen yet.
            at_risk = reach - share * sum([high - age_s for age_s in here]) / width + 1.0
            reach -= gone + share * len(here)
        elif gone:
            reach -= gone
        ends = (gone + 1.0 - left) / at_risk
        step = -log(1.0 - min(MOST_ENDS, ends))
        part_s = alive * width * (-expm1(-step) / step if step > 1e-9 else 1.0)
        total += step
        lived_s += part_s
        square += part_s * (EDGES[at] + EDGES[at + 1])  # twice the part at the middle of the bucket
        alive = exp(-total)
        hazards.append(total)
        integrals.append(lived_s)
    end_s = EDGES[last + 1]
    rest_s = alive * (prior_s + end_s)  # the mean of what is left under the prior's tail
    mean_s = lived_s + rest_s
    square += 2.0 * rest_s * end_s  # the prior has no variance: what was not seen counts as just beyond
    cv2 = min(LONGEST_CV2, max(0.0, square / mean_s**2 - 1.0))
    return Curve(prior_s, tuple(hazards), tuple(integrals), mean_s, cv2)


@lru_cache(maxsize=256)
def _left(prior_s: Seconds) -> tuple[float, ...]:
    """Return, by bucket, the share of the jobs that reach it and, by the prior, live on: the same for every curve."""
    return tuple((low + prior_s) ** 2 / (high + prior_s) ** 2 for low, high in pairwise(EDGES))


def _hazard(curve: Curve, age_s: Seconds) -> float:
    """Return the cumulative hazard at an age: straight between the edges, the prior's logarithm beyond them."""
    last = len(curve.hazard) - 1
    if age_s >= EDGES[last]:
        low = curve.prior_s + EDGES[last]
        return curve.hazard[last] + 2.0 * log((low + age_s - EDGES[last]) / low)
    at = bisect_right(EDGES, age_s) - 1
    low, high = EDGES[at], EDGES[at + 1]
    return curve.hazard[at] + (curve.hazard[at + 1] - curve.hazard[at]) * (age_s - low) / (high - low)


def lived(curve: Curve, for_s: Seconds) -> Seconds:
    """Return the integral of the survival from 0 to `for_s`: the slot time that a job arriving now uses until then."""
    last = len(curve.hazard) - 1
    if for_s >= EDGES[last]:
        low = curve.prior_s + EDGES[last]
        share = 1.0 - low / (low + for_s - EDGES[last])
        return curve.lived_s[last] + exp(-curve.hazard[last]) * low * share
    at = bisect_right(EDGES, for_s) - 1
    low, high = EDGES[at], EDGES[at + 1]
    step, passed = curve.hazard[at + 1] - curve.hazard[at], (for_s - low) / (high - low)
    width_s = (high - low) * (-expm1(-step * passed) / step if step > 1e-9 else passed)
    return curve.lived_s[at] + exp(-curve.hazard[at]) * width_s


def stays(curve: Curve, age_s: Seconds, for_s: Seconds) -> float:
    """Return the chance that a job of this age still runs `for_s` seconds from now."""
    return exp(_hazard(curve, age_s) - _hazard(curve, age_s + for_s))


def still_running(curve: Curve, ages_s: Iterable[Seconds], for_s: Seconds) -> tuple[float, float]:
    """Return how many of the running jobs will still run `for_s` seconds from now: the mean and the variance."""
    mean = variance = 0.0
    for age_s, count in _by_bucket(ages_s).items():
        chance = stays(curve, age_s, for_s)
        mean += count * chance
        variance += count * chance * (1.0 - chance)
    return mean, variance


def _by_bucket(ages_s: Iterable[Seconds]) -> dict[Seconds, int]:
    """Gather ages by the middle of their bucket: many jobs of about the same age have about the same chance."""
    middles: dict[Seconds, int] = {}
    for age_s in ages_s:
        at = int(PER_OCTAVE * log2(age_s * 1e3)) if age_s >= 0.001 else 0
        middle = MIDDLES[at if at < BUCKETS - 1 else BUCKETS - 2]
        middles[middle] = middles.get(middle, 0) + 1
    return middles
