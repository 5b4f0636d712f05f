"""The life table: means and tails from what ended and what still runs, and how fast the past is forgotten.

Samples are drawn from few seeds, so that chance fails no build; the name of a test ends with its seed.
"""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import exp, isclose, log2, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.core.life import (
    BUCKETS,
    EDGES,
    LONGEST_CV2,
    MEMORY_JOBS,
    MIDDLES,
    Curve,
    Life,
    bucket_of,
    draw,
    live,
    lived,
    stays,
    still_running,
)

seeds = pytest.mark.parametrize("seed", range(6))
many = settings(max_examples=60, deadline=None)
PRIOR_S = 21.0


def fed(times_s: list[float], prior_s: float = PRIOR_S, life: Life | None = None, size: int = 20) -> Life:
    """A life to which jobs of these lengths ended, so many a tick."""
    life = life or Life()
    now = life.drawn_at or 0.0
    for at in range(0, len(times_s), size):
        now += 5.0
        life = live(life, Counter(map(bucket_of, times_s[at : at + size])), (), prior_s, now)
    return life


def exponential(seed: int, mean_s: float, count: int) -> list[float]:
    chance = random.Random(seed)
    return [chance.expovariate(1.0 / mean_s) for _ in range(count)]


def mean_of(life: Life, prior_s: float = PRIOR_S, running_s: tuple[float, ...] = ()) -> float:
    return draw(life, running_s, prior_s).mean_s


# ── buckets


@pytest.mark.parametrize(
    ("age_s", "bucket"),
    [(0.0, 0), (0.0009, 0), (0.001, 0), (0.002, 4), (0.0024, 5), (1.0, 39), (1.024, 40), (60.0, 63), (1e15, 126)],
)
def test_four_buckets_to_an_octave_of_milliseconds(age_s, bucket):
    assert bucket_of(age_s) == bucket


@many
@given(st.floats(0.0011, 3e6))
def test_a_length_lies_in_the_bucket_that_workers_report_for_it(age_s):
    """Seen to fail with three buckets to an octave."""
    bucket = bucket_of(age_s)
    assert bucket == int(4 * log2(age_s * 1000))
    assert EDGES[bucket] <= age_s * (1 + 1e-12)
    assert age_s * (1 - 1e-12) <= EDGES[bucket + 1]


@pytest.mark.parametrize(("told", "taken"), [(-40, 0), (10**9, BUCKETS - 2)])
def test_a_bucket_beyond_all_is_taken_as_the_last(told, taken):
    assert live(Life(), {told: 3}, (), PRIOR_S, 1.0).ended == ((taken, 3.0),)


# ── means and tails


@seeds
def test_exponential_times_are_learned_to_within_the_sampling_error(seed):
    """4000 jobs of 12 s: the error of the mean is 0.2 s. Seen to fail with ended jobs at risk for a whole bucket."""
    curve = draw(fed(exponential(seed, 12.0, 4000)), (), PRIOR_S)
    assert abs(curve.mean_s - 12.0) < 4.5 * 12.0 / sqrt(4000)
    assert stays(curve, 0.0, 12.0) == pytest.approx(exp(-1), abs=0.04)
    assert stays(curve, 24.0, 12.0) == pytest.approx(exp(-1), abs=0.12)  # it does not age
    assert 0.8 < curve.cv2 < 1.4


@seeds
def test_a_heavy_tail_is_seen(seed):
    """Pareto(1.5) from 1 s on: 10^-1.5 outlive 10 s, and of those 2^-1.5 outlive 20 s. It has no variance.

    Seen to fail with the ended of the last buckets dropped.
    """
    chance = random.Random(seed)
    times_s = [chance.paretovariate(1.5) for _ in range(4000)]
    curve = draw(fed(times_s), (), PRIOR_S)
    assert stays(curve, 0.0, 10.0) == pytest.approx(10**-1.5, abs=0.015)
    assert stays(curve, 10.0, 10.0) == pytest.approx(2**-1.5, abs=0.25)
    assert 2.2 < curve.mean_s < 3.0 + 1.1 * max(times_s) / 1000  # 3 s, but for the longest few
    assert curve.cv2 == LONGEST_CV2


@seeds
def test_of_jobs_that_grow_older_the_rest_grows_with_their_age(seed):
    """What is left of a Pareto(1.5) job of age u is a matter of u alone: 2^-1.5 see 2u, at 2, 4 and 8 s."""
    chance = random.Random(seed)
    curve = draw(fed([chance.paretovariate(1.5) for _ in range(5000)]), (), PRIOR_S)
    for age_s, error in ((2.0, 0.06), (4.0, 0.1), (8.0, 0.2)):
        assert stays(curve, age_s, age_s) == pytest.approx(2**-1.5, abs=error)


CONSTANT = "of jobs that all end in the last bucket exp(-2) live on, with the prior's mean"


@pytest.mark.parametrize("prior_s", [0.2, PRIOR_S, 150.0])
def test_jobs_that_all_take_the_same_take_that(prior_s):
    """2000 jobs of 5 s; a bucket is 19 % wide, so the mean is good to 10 %."""
    assert mean_of(fed([5.0] * 2000, prior_s), prior_s) == pytest.approx(5.0, rel=0.15)


@seeds
def test_jobs_of_nearly_the_same_length_forget_a_wrong_prior(seed):
    chance = random.Random(seed)
    times_s = [chance.uniform(4.0, 6.0) for _ in range(2000)]
    assert mean_of(fed(times_s, 150.0), 150.0) == pytest.approx(5.0, rel=0.15)


# ── the prior, and running jobs


def test_nothing_known_is_the_prior():
    curve = draw(Life(), (), PRIOR_S)
    assert curve.mean_s == pytest.approx(PRIOR_S)
    assert stays(curve, 0.0, PRIOR_S) == pytest.approx(0.25)  # Lomax of shape 2: (1 + u/mean)^-2
    assert stays(curve, 79.0, 100.0) == pytest.approx(0.25)  # what is left is about the age once more
    assert lived(curve, 1e9) == pytest.approx(PRIOR_S)


def test_running_jobs_alone_tell_that_jobs_are_long():
    """Fifty jobs run for an hour, none has ended, and 1 s was expected.

    Seen to fail with running jobs that are not at risk.
    """
    curve = draw(Life(), [3600.0] * 50, 1.0)
    assert curve.mean_s > 3600.0
    assert stays(curve, 0.0, 3000.0) > 0.6
    assert 0.1 < stays(curve, 3600.0, 3600.0) < 0.5  # beyond, the prior: about the age once more


def test_running_jobs_correct_the_ended_ones():
    """Of two kinds the short have ended: 100 of 1 s. The long, fifty of them, have run for 500 s."""
    short = Life(ended=((39, 100.0),), jobs=100.0)
    assert mean_of(short) < 10.0
    both = draw(short, [500.0] * 50, PRIOR_S)
    assert both.mean_s > 150.0
    assert stays(both, 0.0, 400.0) == pytest.approx(1 / 3, abs=0.08)


@seeds
@pytest.mark.parametrize("factor", [1 / 30, 30.0])
def test_a_prior_that_is_wrong_by_thirty_is_forgotten(seed, factor):
    """Jobs of 10 s. Seen to fail with a prior of a hundred jobs at risk."""
    life = fed(exponential(seed, 10.0, 300), 10.0 * factor, size=5)
    assert mean_of(life, 10.0 * factor) == pytest.approx(10.0, rel=0.35)
    life = fed(exponential(seed + 1, 10.0, 1500), 10.0 * factor, life, size=5)
    assert mean_of(life, 10.0 * factor) == pytest.approx(10.0, rel=0.15)


@seeds
def test_a_change_of_the_service_time_is_followed(seed):
    """10,000 jobs of 10 s, then 1000 of 40 s, then 2000 of 10 s. Seen to fail with HURRY at 1."""
    life = fed(exponential(seed, 10.0, 10_000))
    assert mean_of(life) == pytest.approx(10.0, rel=0.08)
    life = fed(exponential(seed + 1, 40.0, 1000), life=life)
    assert mean_of(life) == pytest.approx(40.0, rel=0.25)
    life = fed(exponential(seed + 2, 10.0, 2000), life=life)
    assert mean_of(life) == pytest.approx(10.0, rel=0.25)


def test_what_does_not_change_is_not_forgotten_in_a_hurry():
    """Chance contradicts now and then, and then some is forgotten; of twelve memories the middle one is kept.

    Seen to fail with the latest contradicting at half a standard error.
    """
    lives = sorted(fed(exponential(seed, 10.0, 8000), size=50).jobs for seed in range(12))
    assert lives[6] > 0.4 * MEMORY_JOBS


@seeds
def test_running_jobs_are_not_counted_twice_once_memory_is_full(seed):
    """Ten jobs a second of 50 s each: 500 run at any time. Counting them, too, makes all 10 % longer.

    Seen to fail with the share of the running in `draw` at 1.
    """
    ended = Counter(map(bucket_of, exponential(seed, 50.0, int(MEMORY_JOBS))))
    life = Life(ended=tuple((bucket, float(count)) for bucket, count in sorted(ended.items())), jobs=MEMORY_JOBS)
    ages = tuple(exponential(seed + 1, 50.0, 500))  # what has no memory is as old as it will still get
    assert mean_of(life, running_s=ages) == pytest.approx(50.0, rel=0.065)


def test_a_full_memory_ignores_running_jobs_and_an_empty_one_counts_them_whole():
    full = Life(ended=((50, MEMORY_JOBS),), jobs=MEMORY_JOBS)
    assert draw(full, [3.0] * 100, PRIOR_S).hazard == draw(full, (), PRIOR_S).hazard
    half = replace(full, ended=((50, 0.5 * MEMORY_JOBS),), jobs=0.5 * MEMORY_JOBS)
    assert draw(half, [3.0] * 100, PRIOR_S).hazard != draw(half, (), PRIOR_S).hazard


# ── the curve


ENDED = st.dictionaries(st.integers(0, 90), st.floats(0.1, 3000.0), max_size=12)
AGES = st.lists(st.floats(0.0, 1e5), max_size=12)


def some_curve(ended: dict[int, float], ages: list[float], prior_s: float) -> Curve:
    return draw(Life(ended=tuple(sorted(ended.items())), jobs=sum(ended.values())), ages, prior_s)


@many
@given(ENDED, AGES, st.floats(0.01, 1e4))
def test_lived_is_the_integral_of_the_survival(ended, ages, prior_s):
    """Over every bucket by Simpson's rule, and over the tail as a whole. Seen to fail with `lived` without its rest."""
    curve = some_curve(ended, ages, prior_s)
    for low, high in pairwise(EDGES[: len(curve.hazard) + 4]):
        ends = [stays(curve, 0.0, low + (high - low) * at / 64.0) for at in range(65)]
        area = (high - low) * (ends[0] + ends[64] + 4.0 * sum(ends[1::2]) + 2.0 * sum(ends[2:64:2])) / 192.0
        assert isclose(lived(curve, high) - lived(curve, low), area, rel_tol=1e-3, abs_tol=1e-9 * high)
    assert lived(curve, 1e13) == pytest.approx(curve.mean_s, rel=1e-3)


@many
@given(ENDED, AGES, st.floats(0.01, 1e4), st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_survival_falls_and_what_is_lived_rises(ended, ages, prior_s, one_s, other_s):
    curve, (less_s, more_s) = some_curve(ended, ages, prior_s), sorted((one_s, other_s))
    slack = 1e-9 * (1 + more_s)
    assert 0.0 <= stays(curve, 0.0, more_s) <= stays(curve, 0.0, less_s) <= 1.0
    assert lived(curve, less_s) <= lived(curve, more_s) + slack
    assert lived(curve, more_s) <= min(more_s, curve.mean_s) + slack
    assert stays(curve, less_s, more_s) * stays(curve, 0.0, less_s) == pytest.approx(
        stays(curve, 0.0, less_s + more_s), rel=1e-6, abs=1e-300
    )
    assert 0.0 <= curve.cv2 <= LONGEST_CV2


@many
@given(AGES, st.floats(0.0, 1e4))
def test_of_the_running_so_many_will_still_run(ages, for_s):
    """A sum of coins, each with the chance of the middle of its bucket."""
    curve = some_curve({40: 100.0, 60: 20.0}, [], PRIOR_S)
    chances = [stays(curve, MIDDLES[bucket_of(age_s)], for_s) for age_s in ages]
    mean, variance = still_running(curve, ages, for_s)
    assert mean == pytest.approx(sum(chances))
    assert variance == pytest.approx(sum(chance * (1 - chance) for chance in chances))


# ── when it is drawn


def test_a_curve_is_drawn_when_it_is_stale_and_not_at_every_tick():
    """Seen to fail with no least age of a curve, and with no share of new jobs that makes one stale."""
    life = live(Life(), {40: 100}, (), PRIOR_S, 0.0)
    drawn = life.curve
    life = live(life, {40: 50}, (), PRIOR_S, 4.0)
    assert life.curve is drawn
    life = live(life, {}, (), PRIOR_S, 5.0)  # by now a third of all is new
    assert (life.drawn_at, life.new) == (5.0, 0.0)
    drawn = life.curve
    assert live(life, {40: 1}, (), PRIOR_S, 50.0).curve is drawn  # one more tells little
    assert live(life, {}, (), PRIOR_S, 65.0).drawn_at == 65.0  # after a minute those that run are older
    assert live(life, {}, (), 2 * PRIOR_S, 6.0).drawn_at == 6.0  # the owner's hint was changed
