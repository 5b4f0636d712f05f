"""What is said before a run of a policy that cannot do it."""

from dataclasses import replace

import pytest

from fleetd.core.model import AppPolicy, BudgetPolicy, Objective
from fleetd.sim.run import Setup, simulate, warn
from tests.sim.fleets import policy, pool, queue, trace

TEN_S = {"resize": trace(*[(float(n), 10.0) for n in range(3600)])}  # the work of ten slots, for an hour


def test_a_policy_that_can_do_it_is_not_warned():
    assert warn(policy(), TEN_S) == ()
    assert warn(policy(pool(max_nodes=10)), TEN_S) == ()
    assert warn(policy(), {}) == ()


def test_too_few_slots_are_told_with_what_they_come_to_at_best():
    """Of the work of ten slots eight do four fifths: the wait grows by a quarter of the time."""
    (line,) = warn(policy(pool(max_nodes=8)), TEN_S)
    assert line == (
        "queue resize: with all 8 slots of cloud up all the time 96.4% of its jobs would wait longer than 30 s "
        "(allowed: 5.0%): the busiest ten minutes bring work for 10.0 slots: raise `max`"
    )
    assert simulate(policy(pool(max_nodes=8)), TEN_S, Setup()).notes[0] == line


def test_slots_of_all_pools_count_and_of_a_watched_pool_none():
    two = (pool("rack", max_nodes=4), pool("pods", max_nodes=3, slots=2))
    assert warn(policy(*two), TEN_S) == ()
    (line,) = warn(policy(two[0], replace(two[1], act=False)), TEN_S)
    assert line.startswith("queue resize: with all 4 slots of rack up all the time")


def test_what_the_objective_allows_is_no_reason_to_warn():
    patient = policy(pool(max_nodes=8), queues=(queue(objective=Objective(1200.0)),))
    assert warn(patient, TEN_S) == ()


def test_an_app_that_no_pool_runs_is_told():
    lines = warn(policy(pool(apps=("other",))), TEN_S)
    assert lines == ("app photos: no pool may launch nodes for it: its jobs will not start",)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (BudgetPolicy(hour=10.5), ()),
        (BudgetPolicy(hour=9.0), ("costs 10.00 EUR at the cheapest price, the budget is 9 per hour: jobs will wait",)),
        (
            BudgetPolicy(month=9.0),
            ("costs 10.00 EUR at the cheapest price, the budget is 9 per month: jobs will wait",),
        ),
    ],
)
def test_a_budget_that_does_not_pay_for_the_work_is_told(budget, said):
    bounded = (queue(job_limit_s=60.0),)
    pools = (pool("cloud", price_per_h=2.0), pool("pods", price_per_h=2.0, slots=2))
    lines = warn(policy(*pools, queues=bounded, budget=budget), TEN_S)
    assert len(lines) == len(said)
    assert all(line.endswith(end) for line, end in zip(lines, said, strict=True))


def test_jobs_that_nothing_bounds_are_told_under_a_budget():
    rich = policy(budget=BudgetPolicy(hour=1000.0))
    (line,) = warn(rich, TEN_S)
    assert line.startswith("app photos: there is a budget, and nothing bounds the jobs of resize: no node with a price")
    assert warn(replace(rich, apps={"photos": AppPolicy("photos", drain_s=60.0)}), TEN_S) == ()
    assert warn(replace(rich, pools={"cloud": pool(price_per_h=0.0)}), TEN_S) == ()
