"""Arrivals, waits and rates of a queue, from counts alone: judged against jobs that are followed one by one.

Samples for rates are drawn from few seeds, so that chance fails no build; the name of a test ends with its seed.
"""

import random
from bisect import bisect_right
from dataclasses import replace
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.core.flow import MARKS, WINDOWS_S, Flow, came_since, follow, oldest_s, rate, settle
from fleetd.core.learn import GRACE_S, learn
from fleetd.core.memory import QueueMemory
from fleetd.core.model import Objective, QueuePolicy, Reading, Work

WAIT_S = 20.0
seeds = pytest.mark.parametrize("seed", range(6))
many = settings(max_examples=80, deadline=None)
TICKS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=120)
RULE = QueuePolicy("resize", "photos", "main", "resize", Objective(WAIT_S))


def poisson(chance: random.Random, mean: float) -> int:
    count, left = 0, chance.random()
    while left > exp(-mean):
        count, left = count + 1, left * chance.random()
    return count


def passed(flow: Flow, now: float, counts: list[int], step_s: float = 1.0) -> tuple[Flow, float]:
    """The flow and the clock after so many came in each step, and went at once."""
    for count in counts:
        flow, _, _ = follow(flow, count, count, wait_s=WAIT_S, since=now, now=now + step_s)
        now += step_s
    return flow, now


def random_counts(seed: int, *rates: tuple[float, int]) -> list[int]:
    """Poisson arrivals: for each (rate, seconds), one count a second."""
    chance = random.Random(seed)
    return [poisson(chance, per_s) for per_s, seconds in rates for _ in range(seconds)]


# ── waits


def one_by_one(ticks: list[tuple[int, int]], wait_s: float) -> tuple[int, float, list[float]]:
    """The same by the plain book: every job has the moment of its coming, and is judged once."""
    queue: list[list[float]] = []  # (came at, 1 where it was judged)
    judged, late = 0, 0.0
    for now, (arrived, started) in enumerate(ticks, start=1):
        middle = now - 0.5
        queue += [[middle, 0.0] for _ in range(arrived)]
        for came, known in queue[:started]:
            if not known:
                judged += 1
                late += min(1.0, max(0.0, 0.5 + (middle - came - wait_s)))
        del queue[:started]
        for job in queue:
            if not job[1] and now - job[0] > wait_s:
                job[1] = 1.0
                judged += 1
                late += 1.0
    return judged, late, [came for came, _ in queue]


@many
@given(TICKS, st.sampled_from([3.0, 7.5, WAIT_S]))
def test_the_late_are_counted_as_if_each_was_followed(ticks, wait_s):
    """Seen to fail with `overdue` not counted down when those leave, and with the newest leaving first."""
    flow, judged, late = settle(Flow(), 0, None, 0.0), 0, 0.0
    for now, (arrived, started) in enumerate(ticks):
        gone = min(started, arrived + sum(count for _, count in flow.waiting))
        flow, more, worse = follow(flow, arrived, gone, wait_s=wait_s, since=float(now), now=now + 1.0)
        judged, late = judged + more, late + worse
    expected, expected_late, left = one_by_one(ticks, wait_s)
    assert judged == expected
    assert late == pytest.approx(expected_late)
    assert [at for at, count in flow.waiting for _ in range(count)] == left
    assert oldest_s(flow, len(ticks)) == (len(ticks) - left[0] if left else 0.0)


@seeds
def test_true_moments_between_the_looks_are_judged_right_to_a_few_percent(seed):
    """Jobs come and start at any moment, looks are 5 s apart, and about half of 4000 wait longer than 20 s."""
    chance, now, free = random.Random(seed), 0.0, 0.0
    jobs: list[tuple[float, float]] = []
    while len(jobs) < 4000:
        now += chance.expovariate(1.0)
        free = max(free, now) + chance.uniform(0.0, 1.96)
        jobs.append((now, free))
    starts = [start for _, start in jobs]
    truly = sum(start - came > WAIT_S for came, start in jobs)
    flow, late, at = settle(Flow(), 0, None, 0.0), 0.0, 0.0
    while at < free:
        arrived = bisect_right(jobs, (at + 5.0,)) - bisect_right(jobs, (at,))
        started = bisect_right(starts, at + 5.0) - bisect_right(starts, at)
        flow, _, worse = follow(flow, arrived, started, wait_s=WAIT_S, since=at, now=at + 5.0)
        late, at = late + worse, at + 5.0
    assert late == pytest.approx(truly, rel=0.08)


def test_a_job_is_late_as_soon_as_it_has_waited_too_long_and_once_only():
    flow, judged, late = follow(settle(Flow(), 0, None, 0.0), 3, 0, wait_s=10.0, since=0.0, now=2.0)
    assert (flow.waiting, judged, late) == (((1.0, 3),), 0, 0.0)
    flow, judged, late = follow(flow, 0, 1, wait_s=10.0, since=2.0, now=4.0)
    assert (judged, late) == (1, 0.0)
    flow, judged, late = follow(flow, 0, 0, wait_s=10.0, since=10.0, now=12.0)
    assert (judged, late, flow.overdue) == (2, 2.0, 2)
    flow, judged, late = follow(flow, 0, 2, wait_s=10.0, since=20.0, now=22.0)
    assert (judged, late, flow.overdue, flow.waiting) == (0, 0.0, 0, ())


@pytest.mark.parametrize(("started_at", "share"), [(9.0, 0.0), (11.0, 0.5), (12.0, 1.0)])
def test_one_that_starts_about_then_is_late_in_part(started_at, share):
    """It came at 1 s; the objective of 10 s ends in the middle of the look that ends at 12 s."""
    flow = replace(settle(Flow(), 1, None, 1.0))
    _, judged, late = follow(flow, 0, 1, wait_s=10.0, since=started_at - 1.0, now=started_at + 1.0)
    assert judged == 1
    assert late == pytest.approx(share)


def test_who_waits_at_the_first_look_has_waited_as_long_as_the_oldest():
    assert settle(Flow(), 7, 90.0, 100.0).waiting == ((10.0, 7),)
    assert settle(Flow(), 7, None, 100.0).waiting == ((100.0, 7),)
    assert settle(Flow(), 0, None, 100.0).waiting == ()


def test_jobs_that_vanish_unstarted_are_taken_from_the_oldest():
    """Four came, and then two fewer wait though none started: they were cancelled."""
    flow, _, _ = follow(settle(Flow(), 0, None, 0.0), 4, 0, wait_s=WAIT_S, since=0.0, now=1.0)
    flow, judged, late = follow(flow, -2, 0, wait_s=WAIT_S, since=1.0, now=2.0)
    assert (flow.waiting, flow.came, judged, late) == (((0.5, 2),), 2, 2, 0.0)


# ── arrivals


def looked(queue: QueueMemory, now: float, waiting: int | None, *, running: int = 0, started: int = 0) -> QueueMemory:
    """The queue after a look; `waiting` None: it could not be read."""
    reading = None if waiting is None else Reading("resize", waiting, running)
    why = "connection refused" if waiting is None else ""
    at = None if waiting is not None else now
    return learn(queue, RULE, reading, Work(started=started), now, blind_at=at, why_blind=why)


def test_arrivals_are_the_starts_and_the_growth_of_the_waiting():
    """Seen to fail with the growth left out."""
    queue = looked(QueueMemory(), 0.0, 5)
    assert queue.flow.came == 0  # those that waited before anybody looked
    queue = looked(queue, 1.0, 8, started=4)
    assert queue.flow.came == 7
    queue = looked(queue, 2.0, 2, started=6)
    assert queue.flow.came == 7


def test_where_workers_tell_nothing_starts_are_taken_from_those_that_run():
    """Ten run at any time, for 5 s each by the owner's word: two a second end and are replaced. Depth alone tells.

    Seen to fail with the ended left out of `_estimated_starts`.
    """
    queue, rule = QueueMemory(), replace(RULE, service_s=5.0)
    for now in range(600):
        reading = Reading("resize", 0, 10)
        queue = learn(queue, rule, reading, None, float(now), blind_at=None, why_blind="")
    assert not queue.told
    assert queue.rate.per_s == pytest.approx(2.0, rel=0.03)


def test_from_their_first_word_on_workers_are_believed():
    queue, rule = QueueMemory(), replace(RULE, service_s=5.0)
    for now in range(10):
        work = Work(started=3) if now == 2 else Work()
        queue = learn(queue, rule, Reading("resize", 0, 10), work, float(now), blind_at=None, why_blind="")
    assert queue.told
    came = queue.flow.came
    queue = learn(queue, rule, Reading("resize", 0, 10), Work(), 100.0, blind_at=None, why_blind="")
    assert queue.flow.came == came


def test_a_fraction_of_a_start_is_owed_and_not_lost():
    """One runs, for 40 s: a start every 40 s, though no look sees a whole one."""
    queue, rule = QueueMemory(), replace(RULE, service_s=40.0)
    for now in range(801):
        queue = learn(queue, rule, Reading("resize", 0, 1), None, float(now), blind_at=None, why_blind="")
    assert queue.flow.came == pytest.approx(20, abs=2)


def test_while_blind_nothing_is_judged_and_what_was_read_stays():
    """The workers' starts count as arrivals, since nobody knows better. Seen to fail with a blind look judged."""
    queue = looked(QueueMemory(), 1.0, 0)
    for now in range(2, int(GRACE_S)):
        queue = looked(queue, float(now), 0, started=1)
    for now in range(int(GRACE_S), int(GRACE_S) + 100):
        queue = looked(queue, float(now), 40, started=1)
    before, begun = queue, int(GRACE_S) + 100
    assert before.late > 10
    for now in range(begun, begun + 200):
        queue = looked(queue, float(now), None, started=2)
    assert (queue.waiting, queue.running, queue.read_at) == (40, 0, before.read_at)
    assert (queue.rate, queue.price_s) == (before.rate, before.price_s)
    assert queue.flow.came == before.flow.came + 2 * 200
    assert sum(count for _, count in queue.flow.waiting) == 40
    assert 0.99 * before.judged < queue.judged < before.judged  # it only fades


def test_what_came_while_blind_is_no_rush():
    """1/s, then 2/s in ten blind minutes while the workers start 1/s: 600 more wait. It was 2/s, not 20/s."""
    queue = looked(QueueMemory(), 0.0, 0)
    for now in range(1, 1200):
        queue = looked(queue, float(now), 0, started=1)
    for now in range(1200, 1800):
        queue = looked(queue, float(now), None, started=1)
    queue = looked(queue, 1800.0, 600, started=1)
    assert 1.0 <= queue.rate.per_s < 4.0


@pytest.mark.parametrize("begun_at", [0, 1000])
def test_what_was_late_before_anybody_looked_is_not_judged(begun_at):
    """What is late after five minutes is. Seen to fail without the grace."""
    queue = looked(QueueMemory(), float(begun_at), 50)
    for now in range(begun_at + 1, begun_at + int(GRACE_S)):
        queue = looked(queue, float(now), 50)
    assert (queue.judged, queue.late) == (0.0, 0.0)
    for now in range(begun_at + int(GRACE_S), begun_at + int(GRACE_S) + 50):
        queue = looked(queue, float(now), 90)
    assert queue.late == pytest.approx(40.0, rel=0.01)


# ── rates


@seeds
def test_a_constant_rate_is_taken_from_a_long_window(seed):
    """0.1/s for four hours, looked at every 10 min: three hours where chance allows it. Its error is a tenth less.

    Seen to fail with windows that may be off by one deviation.
    """
    counts = random_counts(seed, (0.1, 14_400))
    flow, now = passed(settle(Flow(), 0, None, 0.0), 0.0, counts[:10_800])
    windows = []
    for at in range(10_800, 14_400, 600):
        flow, now = passed(flow, now, counts[at : at + 600])
        found = rate(flow, now)
        assert abs(found.per_s - 0.1) < 5.0 * found.sd
        windows.append(found.window_s)
    assert sum(window_s >= WINDOWS_S[-2] for window_s in windows) >= 4


@seeds
def test_many_arrivals_tell_enough_in_a_short_window(seed):
    """20/s: 1500 of them take 75 s."""
    found = rate(*passed(settle(Flow(), 0, None, 0.0), 0.0, random_counts(seed, (20.0, 900))))
    assert found.window_s <= 125.0
    assert found.per_s == pytest.approx(20.0, rel=0.12)


@seeds
def test_a_step_is_followed_within_a_minute(seed):
    """2/s for an hour, then 6/s. Seen to fail with `_consistent` always true."""
    flow, now = passed(settle(Flow(), 0, None, 0.0), 0.0, random_counts(seed, (2.0, 3600)))
    before = rate(flow, now)
    assert before.window_s >= 600.0
    assert before.per_s == pytest.approx(2.0, rel=0.12)
    after = rate(*passed(flow, now, random_counts(seed + 100, (6.0, 60))))
    assert after.window_s <= 60.0
    assert after.per_s == pytest.approx(6.0, rel=0.3)


@seeds
def test_the_end_of_a_rush_is_followed_too(seed):
    flow, now = passed(settle(Flow(), 0, None, 0.0), 0.0, random_counts(seed, (6.0, 1800), (0.5, 60)))
    assert rate(flow, now).per_s < 1.6


def test_a_trend_is_found():
    """From 1/s to 11/s within 20 min: 0.5/s more a minute. Seen to fail with the older window taken as the newer."""
    slopes = []
    for seed in range(10):
        ramp = random_counts(seed, *((1.0 + 10.0 * at / 1200, 1) for at in range(1200)))
        slopes.append(rate(*passed(settle(Flow(), 0, None, 0.0), 0.0, ramp)).slope)
    found = [slope for slope in slopes if slope]
    assert len(found) >= 7  # chance can hide it for a while
    assert sum(found) / len(found) == pytest.approx(10.0 / 1200, rel=0.3)


@seeds
def test_chance_is_no_trend(seed):
    """Seen to fail with a slope that is significant from one deviation on."""
    counts, flow, now = random_counts(seed, (2.0, 7200)), settle(Flow(), 0, None, 0.0), 0.0
    slopes = []
    for at in range(0, 7200, 60):
        flow, now = passed(flow, now, counts[at : at + 60])
        slopes.append(rate(flow, now).slope)
    assert sum(slope != 0.0 for slope in slopes) <= 2


def test_nothing_seen_is_no_rate():
    assert rate(Flow(), 5.0).per_s == 0.0
    assert rate(settle(Flow(), 9, None, 5.0), 5.0).per_s == 0.0
    assert came_since(Flow(), 5.0) == (0, 5.0)


# ── how much is kept


def test_a_week_of_ticks_keeps_few_marks():
    """At one tick a second, 2/s: at most 200 marks, and the last six hours can be counted.

    Seen to fail with marks that are never thinned out.
    """
    flow, now, most = settle(Flow(), 0, None, 0.0), 0.0, 0
    for _ in range(7 * 24):
        flow, now = passed(flow, now, [2] * 3600)
        most = max(most, len(flow.marks))
        for window_s, coarse_s in ((60.0, 5.0), (1200.0, 61.0), (10_800.0, 660.0)):
            count, begun = came_since(flow, now - window_s)
            assert count == 2 * (now - begun)
            assert now < 4 * 3600.0 or now - window_s - coarse_s <= begun <= now - window_s
    assert most <= MARKS
    assert flow.waiting == ()


def test_a_backlog_that_nobody_serves_is_kept_in_few_batches():
    """Two hours of 1/s that a pool at its max cannot take: 7200 batches, and each tick looks at all of them."""
    flow, now = settle(Flow(), 0, None, 0.0), 0.0
    for _ in range(7200):
        flow, _, _ = follow(flow, 1, 0, wait_s=WAIT_S, since=now, now=now + 1.0)
        now += 1.0
    assert len(flow.waiting) < 300
