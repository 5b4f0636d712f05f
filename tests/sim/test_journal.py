"""Recorded rows become jobs again: to the count, within their row, as long as the jobs that ended about then."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import floor, log2

import pytest

from fleetd.codecs.history import HistoryRow, PoolRow, QueueRow
from fleetd.core.model import AppPolicy, Objective, Policy, PoolPolicy, QueuePolicy, SourcePolicy
from fleetd.errors import UsageError
from fleetd.sim.journal import recorded

START_S = 1_795_500_000.0
DAY_S = 86400.0
POLICY = Policy(
    fleet="shop",
    sources={"main": SourcePolicy("main", "fake", None)},
    apps={"photos": AppPolicy("photos", path="/app")},
    queues={"resize": QueuePolicy("resize", "photos", "main", "resize_*", Objective(30.0))},
    pools={"local": PoolPolicy("local", "fake", None, ("photos",), slots=1, max_nodes=10)},
)


def row(at_s: float, arrived: int = 0, *, length_s: float = 10.0, **more: object) -> HistoryRow:
    """A row `at_s` after the start."""
    queue = replace(QueueRow(arrived=arrived), **more)  # type: ignore[arg-type]
    return HistoryRow(START_S + at_s, length_s, {"resize": queue})


def rows_of(jobs: Sequence[tuple[float, float]], until_s: float) -> list[HistoryRow]:
    """What would be recorded of jobs (submitted_s, service_s) that all start at once."""
    came = Counter(int(at // 10) for at, _ in jobs)
    ended: dict[int, Counter[int]] = {}
    for at, took in jobs:
        ended.setdefault(int((at + took) // 10), Counter())[floor(4 * log2(took * 1000))] += 1
    return [
        row(10.0 * n, came[n], started=came[n], ended=dict(ended.get(n, {})), done=sum(ended.get(n, {}).values()))
        for n in range(int(until_s // 10))
    ]


def jobs_of(
    rows: Sequence[HistoryRow], *, since_s: float = START_S, seed: int = 0, policy: Policy = POLICY
) -> list[tuple[float, float]]:
    trace = recorded(rows, policy, since_s, seed).traces["resize"]
    return list(zip(trace.submitted_s, trace.service_s, strict=True))


def test_what_is_recorded_comes_back_as_jobs_of_the_same_kind():
    """Fast ones in the morning, slow ones in the afternoon: each hour draws from its own."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    jobs = [(at * 2.0, rng.uniform(0.9, 1.1) * (1.0 if at < 3600 else 30.0)) for at in range(7200)]
    made = jobs_of(rows_of(jobs, 15000.0))
    assert len(made) == len(jobs)
    assert Counter(int(at // 10) for at, _ in made) == Counter(int(at // 10) for at, _ in jobs)
    assert [at for at, _ in made] == sorted(at for at, _ in made)
    early = [took for at, took in made if at < 5000]
    late = [took for at, took in made if at > 9400]
    assert sum(early) / len(early) == pytest.approx(1.0, rel=0.1)
    assert sum(late) / len(late) == pytest.approx(30.0, rel=0.1)
    assert max(early) < 1.4, "no more than a bucket, which is 19 %, is ever guessed"


def test_the_same_seed_gives_the_same_jobs():
    rows = rows_of([(float(at), 2.0) for at in range(500)], 600.0)
    assert jobs_of(rows, seed=3) == jobs_of(rows, seed=3)
    assert jobs_of(rows, seed=3) != jobs_of(rows, seed=4)


def test_few_ended_jobs_nearby_are_helped_out_by_those_of_the_whole_time():
    rows = [row(0.0, ended={40: 100}), *(row(7200.0 + 10 * at, arrived=5) for at in range(10))]
    made = jobs_of(rows)
    assert len(made) == 50
    assert all(2.0**10 <= 1000 * took < 2.0**10.25 for _, took in made)


def test_without_any_ended_job_the_owners_hint_counts():
    policy = replace(POLICY, queues={"resize": replace(POLICY.queues["resize"], service_s=7.0)})
    assert {took for _, took in jobs_of([row(0.0, 5)], policy=policy)} == {7.0}
    with pytest.raises(
        UsageError, match=r"^queue resize: no worker told how long its jobs take: give it `service: 20s`"
    ):
        jobs_of([row(0.0, 5)])


def test_nothing_recorded_is_told_in_a_line():
    for rows in ([], [row(0.0)], [row(-100.0, 5)]):
        with pytest.raises(UsageError, match=r"^fleet shop: no job is recorded in that time; a running controller"):
            jobs_of(rows)


def test_jobs_that_waited_at_the_start_or_came_unseen_are_jobs_too():
    rows = [
        row(0.0, 2, waiting=7, started=1, ended={40: 100}),  # six waited before
        row(10.0, 0, waiting=3, started=4),
        row(1000.0, 1, waiting=9),  # five came between
    ]
    times = [at for at, _ in jobs_of(rows)]
    assert times[:6] == [0.0] * 6
    assert all(0.0 <= at < 10.0 for at in times[6:8])
    assert len([at for at in times if 20.0 <= at < 1000.0]) == 5
    assert len([at for at in times if 1000.0 <= at < 1010.0]) == 1
    assert recorded(rows, POLICY, START_S, 0).unseen_s == 980.0


def test_the_time_before_makes_the_history_that_a_forecast_begins_with():
    rows = [row(-DAY_S + 10.0 * at, arrived=at % 3) for at in range(8640)] + [row(0.0, 1, ended={40: 1})]
    history = recorded(rows, POLICY, START_S, 0).history["resize"]
    assert history.step_s == 300.0
    assert len(history.rows) == 288
    assert (history.rows[0][0], history.rows[-1]) == (-86400.0, (-300.0, 30))
    assert sum(arrivals for _, arrivals in history.rows) == 8640


def test_a_step_that_was_hardly_seen_is_no_history():
    rows = [*(row(-900.0 + 10.0 * at, arrived=1) for at in range(40)), row(0.0, 1, ended={40: 1})]
    history = recorded(rows, POLICY, START_S, 0).history["resize"]
    assert history.rows == ((-900.0, 30),), "of the second step 100 s are seen, of the third none"


def test_what_really_happened_is_told_like_a_simulation():
    rows = [
        HistoryRow(
            START_S,
            10.0,
            {"resize": QueueRow(waiting=10, arrived=10)},
            {"local": PoolRow(coming=2, launched=2, node_s=20.0, money=0.5)},
        ),
        row(10.0, 0, started=0, waiting=10),
        HistoryRow(
            START_S + 20.0,
            10.0,
            {"resize": QueueRow(waiting=2, running=2, started=8, ended={40: 6})},
            {"local": PoolRow(ready=2, node_s=20.0, money=0.5)},
        ),
        HistoryRow(
            START_S + 100.0,
            10.0,
            {"resize": QueueRow(started=2)},
            {"local": PoolRow(stopped=2, node_s=5.0, money=0.125)},
        ),
    ]
    real = recorded(rows, POLICY, START_S, 0).real
    assert (real.policy, real.cost_worker_s, real.cost_money) == ("recorded", 45.0, 1.125)
    assert (real.launches, real.stops, real.reversals_300s, real.jobs, real.lost) == (2, 2, 1, 10, 0)
    assert (real.wait_p50_s, real.wait_p95_s, real.late_share) == (20.0, 100.0, 0.2)
    assert real.queues["resize"].objective_s == 30.0
    assert real.series is not None
    assert real.series.waiting[:3] == (10, 10, 2)
    assert (real.series.coming["local"][0], real.series.ready["local"][2]) == (2, 2)
    assert sum(real.series.money) == 1.125
    assert len(real.series.wait_p95_s) == 11


def test_a_queue_that_the_rows_do_not_know_has_no_jobs():
    policy = replace(POLICY, queues={**POLICY.queues, "mail": replace(POLICY.queues["resize"], name="mail")})
    traces = recorded([row(0.0, 3, ended={40: 1})], policy, START_S, 0).traces
    assert (len(traces["resize"].submitted_s), len(traces["mail"].submitted_s)) == (3, 0)
