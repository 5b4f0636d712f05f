"""Whole runs: the live decision and plain peers over simulated pools, with the figures they must come to."""

import random
from math import exp
from typing import Any, ClassVar

import pytest

from fleetd.core import decide as deciding
from fleetd.core.model import Drain, Objective, Observation
from fleetd.errors import UsageError
from fleetd.sim import run
from fleetd.sim.run import Setup, simulate, simulate_peer
from fleetd.sim.scaler import View
from fleetd.sim.trace import History, Trace
from tests.sim.fleets import plan_of, poisson, policy, pool, queue, static, trace


def busy_hour(seed: int, rate: float = 0.5, mean_s: float = 20.0) -> dict[str, Trace]:
    print("seed", seed)
    return {"resize": poisson(random.Random(seed), rate, mean_s, int(3600 * rate))}


# ── figures


def test_a_constant_fleet_costs_its_nodes_times_the_run():
    """Two at the start and one more that is there from its order on; the run ends with the last job."""
    result = simulate_peer(
        policy(pool(min_nodes=2)), {"resize": trace((0, 50), (10, 50), (20, 990))}, Setup(), static(3)
    )
    end_s = 50 + 990  # the third job takes the first slot that is free
    assert result.cost_worker_s == 3 * end_s
    assert result.cost_money == pytest.approx(3 * end_s / 3600)
    assert (result.launches, result.stops, result.jobs, result.lost) == (1, 0, 3, 0)
    assert (result.wait_p50_s, result.wait_p95_s, result.late_share) == (0.0, 30.0, 0.0)


def test_waits_on_a_constant_fleet_are_what_erlang_says():
    """M/M/k through the whole simulation: the share that waits longer than t is C·exp(-(k - a)·t/m)."""
    seed, slots, mean_s, load, objective_s = 3, 10, 20.0, 7.5, 5.0
    print("seed", seed)
    waits_share = 0.30661  # C(10, 7.5)
    jobs = {"resize": poisson(random.Random(seed), load / mean_s, mean_s, 300_000)}
    fixed = policy(pool(min_nodes=slots, max_nodes=slots), queues=(queue(objective=Objective(objective_s)),))
    result = simulate_peer(fixed, jobs, Setup(judged_from_s=600.0), static(slots, pace_s=600.0))
    expected = waits_share * exp(-(slots - load) * objective_s / mean_s)
    assert result.late_share == pytest.approx(expected, rel=0.04)
    assert result.wait_p50_s == 0.0
    assert 0.95 < result.jobs / 300_000 < 1.0


def test_only_jobs_after_the_warm_up_are_judged_but_all_are_paid():
    jobs = {"resize": trace((0, 100), (1, 10), (500, 10))}
    alone = policy(pool(max_nodes=1))
    whole = simulate_peer(alone, jobs, Setup(), static(1))
    later = simulate_peer(alone, jobs, Setup(judged_from_s=500.0), static(1))
    assert (whole.jobs, later.jobs) == (3, 1)
    assert whole.late_share == pytest.approx(1 / 3)
    assert later.late_share == 0.0
    assert whole.cost_worker_s == later.cost_worker_s == 510.0


def test_every_queue_is_judged_by_its_own_objective():
    queues = (queue("fast", objective=Objective(5.0)), queue("slow", objective=Objective(60.0), priority="low"))
    jobs = {"fast": trace((0, 10), (0, 10)), "slow": trace((0, 10), (50, 1))}
    result = simulate_peer(policy(pool(max_nodes=1), queues=queues), jobs, Setup(), static(1))
    assert {name: (q.jobs, q.late_share, q.wait_p95_s) for name, q in result.queues.items()} == {
        "fast": (2, 0.5, 10.0),
        "slow": (2, 0.0, 20.0),
    }
    assert result.late_share == 0.25


def test_series_have_a_sample_for_every_step():
    jobs = {"resize": trace((0, 10), (5, 200), (130, 10))}
    setup = Setup(series_step_s=60.0)
    course = simulate_peer(policy(pool(max_nodes=1)), jobs, setup, static(1, pace_s=10.0)).series
    assert course is not None
    assert course.waiting == (0, 0, 0, 1)
    assert course.running == (1, 1, 1, 1)
    assert course.ready == {"cloud": (1, 1, 1, 1)}
    assert course.coming == {"cloud": (0, 0, 0, 0)}
    assert course.wait_p95_s == (5.0, 0.0, 80.0, 0.0)
    assert course.money == pytest.approx((60 / 3600, 0, 60 / 3600, 60 / 3600))


def test_progress_rises_to_the_whole_in_at_most_a_hundred_words():
    said: list[float] = []
    simulate_peer(policy(), busy_hour(1), Setup(), static(15, pace_s=1.0), said.append)
    assert said == sorted(set(said))
    assert 90 < len(said) <= 100
    assert said[-1] == 1.0


# ── fleetd's own policy


@pytest.mark.parametrize("inputs", ["full", "depth"])
def test_the_live_decision_serves_the_jobs_and_lets_the_nodes_go(inputs):
    result = simulate(policy(), busy_hour(2), Setup(inputs=inputs, judged_from_s=600.0))
    assert (result.policy, result.lost) == ("fleetd", 0)
    assert result.late_share < 0.2
    assert result.launches > 5
    assert 36_000 < result.cost_worker_s < 90_000  # ten slots' work for an hour


def test_a_drain_never_cuts_a_job_and_an_empty_node_is_not_paid_until_the_next_tick():
    """Every job is done (a stop of a busy node would raise), and a node goes 0.1 s after its last job."""
    jobs = {"resize": trace(*[(float(n), 300.0) for n in range(20)], (4000.0, 1.0))}
    slow = simulate(policy(pool(options={"boot": (1.0, 1.0)}, billing_minimum_s=0.0)), jobs, Setup(tick_s=60.0))
    quick = simulate(policy(pool(options={"boot": (1.0, 1.0)}, billing_minimum_s=0.0)), jobs, Setup(tick_s=1.0))
    assert slow.lost == quick.lost == 0
    assert slow.stops > 10
    assert slow.cost_worker_s < 1.35 * quick.cost_worker_s


def test_one_seed_gives_one_result_and_another_another():
    first, again = (simulate(policy(), busy_hour(3), Setup(seed=5)) for _ in range(2))
    assert first == again
    assert simulate(policy(), busy_hour(3), Setup(seed=6)) != first


def test_the_order_of_names_in_policy_and_traces_changes_nothing():
    queues = (queue("a"), queue("b", priority="high"), queue("c"))
    pools = (pool("cloud"), pool("pods", options={"boot": (5.0, 30.0)}, min_nodes=0, max_nodes=5, price_per_h=0.5))
    print("seed", 8)
    chance = random.Random(8)
    jobs = {name: poisson(chance, 0.1, 20.0, 300) for name in ("a", "b", "c")}
    backwards = {name: jobs[name] for name in reversed(jobs)}
    here, there = policy(*pools, queues=queues), policy(*pools[::-1], queues=queues[::-1])
    for ours, theirs in (
        (simulate(here, jobs, Setup()), simulate(there, backwards, Setup())),
        (simulate_peer(here, jobs, Setup(), static(9)), simulate_peer(there, backwards, Setup(), static(9))),
    ):
        assert ours == theirs
        assert ours.cost_money == theirs.cost_money


# ── when things fail


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_every_job_is_done_and_none_is_cut(seed):
    """A stop of a node that may be busy raises; so every run that ends is a witness."""
    print("seed", seed)
    chance = random.Random(seed)
    flaky = {"boot_failure": 0.1, "launch_failure": 0.1, "stockout": [(600.0, 900.0)], "seed": seed}
    pools = (
        pool("rack", {"boot": (60.0, 180.0), **flaky}, slots=chance.randrange(1, 5), max_nodes=4, price_per_h=0.25),
        pool("pods", {"boot": (5.0, 30.0)}, slots=2, min_nodes=0, max_nodes=30),
    )
    queues = (queue("a", priority="high"), queue("b"), queue("c", priority="low", objective=Objective(120.0)))
    jobs = {
        name: poisson(chance, chance.uniform(0.02, 0.2), chance.uniform(5.0, 60.0), 200) for name in ("a", "b", "c")
    }
    setup = Setup(seed=seed, tick_s=chance.choice([1.0, 5.0]), inputs=chance.choice(["full", "depth"]))
    result = simulate(policy(*pools, queues=queues), jobs, setup)
    assert (result.jobs, result.lost) == (600, 0)
    assert result.stops > 0


def test_jobs_that_nothing_ever_starts_are_lost_and_late():
    setup = Setup(never_up=frozenset({"cloud"}))
    for result in (
        simulate(policy(pool(max_nodes=3)), {"resize": trace((0, 10), (5, 10))}, setup),
        simulate_peer(policy(pool(max_nodes=3)), {"resize": trace((0, 10), (5, 10))}, setup, static(2)),
    ):
        assert (result.jobs, result.lost, result.late_share) == (2, 2, 1.0)
        assert result.wait_p50_s > 3600.0
        assert "2 jobs never started" in result.notes
        assert any(note.startswith("pool cloud: none of its ") for note in result.notes)


def test_failed_boots_are_stopped_and_replaced():
    flaky = policy(pool(options={"boot_failure": 0.3}))
    for result in (
        simulate(flaky, busy_hour(4), Setup()),
        simulate_peer(flaky, busy_hour(4), Setup(), static(14)),
    ):
        assert result.lost == 0
        assert any("did not come up" in note for note in result.notes)
        assert result.stops > 0


def test_a_stockout_ends_and_the_launches_come_after_all():
    """Ours sees that there are none to be had; a peer asks again and again."""
    out = policy(pool(options={"stockout": [(0.0, 900.0)]}))
    ours, theirs = simulate(out, busy_hour(5), Setup()), simulate_peer(out, busy_hour(5), Setup(), static(14))
    for result in (ours, theirs):
        assert result.lost == 0
        assert result.launches > 5
        assert result.wait_p95_s > 300.0
    assert "pool cloud: 15 launches brought nothing" in theirs.notes


def test_while_the_source_is_blind_nothing_is_scaled_in_and_work_goes_on(monkeypatch):
    """Seen by what reaches `decide`: no reading in the window, yet work in it, and no drain among the plans."""
    told: list[Observation] = []
    drained: list[float] = []

    def listening(observation: Observation, *rest: Any) -> Any:
        plan, memory = deciding.decide(observation, *rest)
        told.append(observation)
        drained.extend(observation.now for intent in plan.intents if isinstance(intent, Drain))
        return plan, memory

    monkeypatch.setattr(run, "decide", listening)
    jobs = {"resize": trace(*[(n * 2.0, 20.0) for n in range(300)], (4000.0, 1.0))}
    result = simulate(policy(), jobs, Setup(start_wall_s=0.0, blind=((300.0, 1500.0),)))
    within = [look for look in told if 300.0 <= look.now < 1500.0]
    assert {str(look.readings["resize"]) for look in within} == {"Blind(reason='simulated outage')"}
    assert sum(look.work["resize"].done for look in within) > 100
    assert [at for at in drained if 300.0 <= at < 1500.0] == []
    assert [at for at in drained if at > 1500.0] != []
    assert result.lost == 0


def test_while_the_source_is_blind_a_peer_holds():
    jobs = {"resize": trace((0, 1), (2000, 1))}
    result = simulate_peer(policy(), jobs, Setup(blind=((50.0, 150.0),)), plan_of((0, 1), (50, 4), (100, 1)))
    assert (result.launches, result.stops) == (0, 0)


# ── peers


def test_a_peer_gets_idle_nodes_stopped_at_once_and_busy_ones_when_they_are_done():
    jobs = {"resize": trace((0, 500), (0, 100), (2000, 1))}
    four = policy(pool(min_nodes=1, max_nodes=4, options={"boot": (10.0, 10.0)}))
    result = simulate_peer(four, jobs, Setup(), plan_of((0, 4), (50, 1)))
    # Of the two that are busy the younger goes, once its job is done: it began when the node was up.
    assert (result.lost, result.stops) == (0, 3)
    assert result.cost_worker_s == 2001 + 60 + 60 + 110


def test_a_draining_node_comes_back_before_one_is_launched():
    jobs = {"resize": trace((0, 500), (0, 500), (600, 1))}
    three = policy(pool(min_nodes=1, max_nodes=3, options={"boot": (10.0, 10.0)}))
    result = simulate_peer(three, jobs, Setup(), plan_of((0, 2), (100, 1), (200, 3)))
    assert (result.launches, result.stops) == (2, 0)


def test_the_cheapest_pool_is_filled_first_and_the_rest_goes_to_the_next():
    rack = pool("rack", price_per_h=0.25, min_nodes=0, max_nodes=3)
    pods = pool("pods", price_per_h=1.0, min_nodes=0, max_nodes=9)
    jobs = {"resize": trace((0, 1000), (999, 1))}
    result = simulate_peer(policy(pods, rack), jobs, Setup(series_step_s=50.0), plan_of((0, 5), (400, 2)))
    assert result.series is not None
    assert {name: counts[1] for name, counts in result.series.coming.items()} == {"pods": 2, "rack": 3}
    assert {name: counts[9] for name, counts in result.series.ready.items()} == {"pods": 0, "rack": 2}


class Asked:
    """A peer that keeps what it was shown."""

    name: ClassVar[str] = "asked"
    every_s: ClassVar[float] = 100.0
    recent_first: ClassVar[bool] = False
    views: ClassVar[list[View]] = []

    def wanted(self, view: View) -> int:
        self.views.append(view)
        return 4


def test_a_peer_is_shown_what_the_document_of_its_view_says():
    Asked.views.clear()
    fixed = policy(pool(min_nodes=2, max_nodes=5, slots=2, options={"boot": (150.0, 150.0)}))
    jobs = {"resize": trace((10, 90), (20, 400), (20, 400), (20, 400), (30, 400), (250, 5))}
    simulate_peer(fixed, jobs, Setup(), Asked)
    mean_s = (90 + 400 * 4 + 5) / 6
    assert Asked.views[1] == View(
        now=100.0,
        waiting=0,
        running=4,
        arrived=5,
        ready=2,
        booting=2,
        idle_s=(),
        busy_slot_s=90.0 + 3 * 80.0,
        slots=2,
        least=2,
        most=5,
        mean_service_s=mean_s,
        objective_s=30.0,
    )
    assert Asked.views[2].ready == 4
    assert Asked.views[2].idle_s == (50.0, 50.0)
    assert Asked.views[2].arrived == 0
    assert Asked.views[3].arrived == 1


# ── what is asked for wrongly


@pytest.mark.parametrize(
    ("setup", "traces", "said"),
    [
        (Setup(), {"mail": trace((0, 1))}, "trace of queue mail: is not in the policy, which has resize"),
        (Setup(boots={"pods": (1, 2)}), {}, "boot of pool pods: is not in the policy, which has cloud"),
        (Setup(never_up=frozenset({"pods"})), {}, "never up: pool pods: is not in the policy, which has cloud"),
        (
            Setup(history={"mail": History(60.0, ())}),
            {},
            "history of queue mail: is not in the policy, which has resize",
        ),
        (Setup(tick_s=0.0), {}, "tick 0: is to be more than zero seconds"),
        (Setup(tick_s=float("nan")), {}, "tick nan: is to be more than zero seconds"),
    ],
)
def test_a_setup_that_does_not_fit_the_policy_is_one_line(setup, traces, said):
    for go in (lambda: simulate(policy(), traces, setup), lambda: simulate_peer(policy(), traces, setup, static(1))):
        with pytest.raises(UsageError) as caught:
            go()
        assert str(caught.value) == said


def test_no_jobs_at_all_cost_nothing():
    result = simulate(policy(), {}, Setup())
    assert (result.jobs, result.cost_worker_s, result.late_share) == (0, 60.0, 0.0)  # the minimum of the one there is
