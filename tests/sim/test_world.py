"""The simulated fleet: boots, bills, chance, and that nothing busy is stopped."""

from typing import Any

import pytest

from fleetd.core.model import Launched, LaunchFailed
from fleetd.errors import UsageError
from fleetd.sim.trace import Trace
from fleetd.sim.world import Fleet, Setup
from tests.sim.fleets import policy, pool, trace

HOUR = trace((0, 1), (3600, 1))


def fleet(*pools: Any, jobs: Trace = HOUR, **setup: Any) -> Fleet:
    return Fleet(policy(*pools), {"resize": jobs}, Setup(**setup))


def boots_s(made: Fleet, count: int, look_s: float = 0.5) -> list[float]:
    """When each of `count` nodes launched now came up, to within `look_s`."""
    outcome = made.launch("cloud", "photos", count)
    assert isinstance(outcome, Launched)
    since, came = made.now, dict.fromkeys(outcome.nodes, 0.0)
    while not all(came.values()):
        made.advance(made.now + look_s)
        came |= {name: made.now - since for name, at in came.items() if not at and made.boxes[name].up}
    return list(came.values())


# ── boots


def test_at_second_zero_the_least_is_up_and_takes_jobs():
    made = fleet(pool(min_nodes=3), jobs=trace((0, 5), (0, 5), (0, 5), (0, 5)))
    made.advance(0.0)
    station = made.stations["photos"]
    assert (station.running, station.waiting) == (3, 1)
    assert made.grounds["cloud"].launches == 0


def test_boots_take_between_the_least_and_the_most_and_the_setup_overrides():
    took = boots_s(fleet(), 200)
    assert 60.0 <= min(took) < 65.0
    assert 115.0 < max(took) <= 120.5
    took = boots_s(fleet(boots={"cloud": (5.0, 30.0)}), 200)
    assert 5.0 <= min(took) < 7.0
    assert 28.0 < max(took) <= 30.5


def test_a_node_takes_jobs_the_moment_it_is_up_whenever_that_is_looked_at():
    made = fleet(pool(min_nodes=0, options={"boot": (50.0, 50.0)}), jobs=trace((0, 10), (20, 10)))
    made.advance(10.0)
    made.launch("cloud", "photos", 1)
    made.advance(1000.0)
    (waits,) = made.stations["photos"].waits()
    assert list(waits.started) == [60.0, 50.0]


def test_a_boot_that_fails_comes_up_and_never_speaks_until_it_is_stopped():
    made = fleet(pool(min_nodes=0, options={"boot_failure": 1.0}), jobs=trace((0, 10)))
    made.launch("cloud", "photos", 1)
    made.advance(500.0)
    (box,) = made.boxes.values()
    assert (box.up, box.speaks) == (True, False)
    assert made.stations["photos"].waiting == 1
    made.stop(box.name)
    made.advance(600.0)
    assert (made.grounds["cloud"].failed, made.grounds["cloud"].billed_s(made.now)) == (1, 500.0)


def test_the_share_of_failed_boots_is_the_pools_own():
    made = fleet(pool(options={"boot_failure": 0.2}))
    made.launch("cloud", "photos", 2000)
    made.advance(200.0)
    assert 320 < made.grounds["cloud"].failed < 480


def test_a_pool_that_never_comes_up_has_nothing_at_the_start_either():
    made = fleet(pool(min_nodes=2), pool("pods"), never_up=frozenset({"cloud"}))
    assert [box.pool for box in made.boxes.values()] == ["pods"]
    made.launch("cloud", "photos", 3)
    made.advance(1000.0)
    assert (made.grounds["cloud"].came_up, made.grounds["cloud"].failed) == (0, 3)


def test_a_boot_that_is_stopped_never_comes_up():
    made = fleet(pool(min_nodes=0))
    outcome = made.launch("cloud", "photos", 1)
    assert isinstance(outcome, Launched)
    made.advance(5.0)
    made.stop(outcome.nodes[0])
    made.advance(1000.0)
    assert (made.grounds["cloud"].came_up, made.stations["photos"].running) == (0, 0)


# ── launches that bring nothing


def test_in_a_stockout_there_are_none_and_the_offer_says_so():
    made = fleet(pool(options={"stockout": [(100.0, 200.0)]}))
    got = []
    for moment in (99.0, 100.0, 199.0, 200.0):
        made.advance(moment)
        got.append((made.grounds["cloud"].offer(moment).headroom, made.launch("cloud", "photos", 1, f"k{moment}")))
    assert [headroom for headroom, _ in got] == [None, 0, 0, None]
    failed = LaunchFailed("k100.0", "exhausted", "none are to be had now, as simulated")
    assert got[1][1] == failed
    assert isinstance(got[2][1], LaunchFailed)
    assert (made.grounds["cloud"].launches, made.grounds["cloud"].refused) == (2, 2)


def test_some_launches_fail_whole():
    made = fleet(pool(options={"launch_failure": 0.3}))
    outcomes = [made.launch("cloud", "photos", 2) for _ in range(500)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, LaunchFailed)]
    assert 110 < len(failed) < 190
    assert {outcome.kind for outcome in failed} == {"error"}
    assert made.grounds["cloud"].launches == 2 * (500 - len(failed))


# ── chance


def test_one_seed_is_one_luck_node_by_node_and_another_is_another():
    """However many are launched at once, and however often launches fail in between."""
    at_once = boots_s(fleet(seed=4), 6)
    made = fleet(pool(options={"launch_failure": 0.5}), seed=4)
    one_by_one: list[float] = []
    while len(one_by_one) < 6:
        before = made.grounds["cloud"].launches
        outcome = made.launch("cloud", "photos", 1)
        if isinstance(outcome, Launched):
            assert made.grounds["cloud"].launches == before + 1
            since = made.now
            while not made.boxes[outcome.nodes[0]].up:
                made.advance(made.now + 0.5)
            one_by_one.append(made.now - since)
    assert one_by_one == pytest.approx(at_once, abs=0.51)
    assert boots_s(fleet(seed=5), 6) != at_once
    assert boots_s(fleet(pool(options={"seed": 1}), seed=4), 6) != at_once


# ── drains


def test_a_fenced_node_ends_its_job_and_then_is_told_to_be_empty():
    made = fleet(jobs=trace((0, 30), (1, 10)))
    made.advance(10.0)
    (box,) = made.boxes.values()
    made.fence(box.name)
    assert made.empties_at() == 30.0
    made.advance(29.0)
    assert made.take_empty() == []
    made.advance(31.0)
    assert made.take_empty() == [box]
    assert made.take_empty() == []
    made.stop(box.name)
    assert made.stations["photos"].waiting == 1
    assert made.boxes == {}


def test_an_idle_node_is_empty_at_once():
    made = fleet(jobs=trace((100, 1)))
    made.advance(10.0)
    (box,) = made.boxes.values()
    made.fence(box.name)
    assert made.empties_at() == 10.0


def test_stopping_what_may_be_busy_is_a_bug_of_the_policy():
    made = fleet(jobs=trace((0, 30)))
    made.advance(10.0)
    (box,) = made.boxes.values()
    with pytest.raises(AssertionError, match=r"cloud/1 was stopped and may be busy"):
        made.stop(box.name)


def test_undraining_gives_the_node_back_and_takes_the_nudge_away():
    made = fleet(jobs=trace((0, 30), (1, 10)))
    made.advance(10.0)
    (box,) = made.boxes.values()
    made.fence(box.name)
    made.advance(20.0)
    made.unfence(box.name)
    assert made.empties_at() == float("inf")
    made.advance(100.0)
    (waits,) = made.stations["photos"].waits()
    assert list(waits.started) == [0.0, 29.0]


def test_a_node_fenced_a_second_time_is_empty_when_its_present_job_ends():
    made = fleet(jobs=trace((0, 30), (1, 10)))
    (name,) = made.boxes
    made.advance(10.0)
    made.fence(name)
    made.unfence(name)
    made.advance(25.0)
    made.fence(name)
    made.unfence(name)
    made.advance(35.0)
    made.fence(name)
    assert made.empties_at() == 40.0


def test_a_node_with_slots_is_empty_when_the_last_of_them_is():
    made = fleet(pool(slots=3), jobs=trace((0, 30), (1, 70), (2, 40), (3, 5)))
    made.advance(10.0)
    (box,) = made.boxes.values()
    made.fence(box.name)
    assert made.empties_at() == 71.0


# ── books


def test_a_node_is_billed_from_the_order_to_the_stop_and_for_its_minimum():
    made = fleet(pool(min_nodes=0, billing_minimum_s=300.0, price_per_h=6.0))
    outcome = made.launch("cloud", "photos", 2)
    assert isinstance(outcome, Launched)
    ground = made.grounds["cloud"]
    made.advance(10.0)
    made.stop(outcome.nodes[0])
    assert (ground.closed_s, ground.billed_s(10.0)) == (300.0, 600.0)
    made.advance(1000.0)
    made.fence(outcome.nodes[1])
    made.stop(outcome.nodes[1])
    assert ground.billed_s(5000.0) == 1300.0


def test_the_dearer_of_the_policys_and_the_offers_price_is_paid():
    assert fleet(pool(price_per_h=1.0, options={"price": "3/h"})).grounds["cloud"].price_per_h == 3.0
    assert fleet(pool(price_per_h=1.0, options={"price": "0.5/h"})).grounds["cloud"].price_per_h == 1.0


def test_a_change_of_direction_within_300_s_is_a_reversal():
    ground = fleet().grounds["cloud"]
    for at, direction in ((0, 1), (10, 1), (200, -1), (500, -1), (790, 1), (1091, -1), (1392, -1)):
        ground.moves(float(at), 1 if direction > 0 else -1)
    assert ground.reversals == 2


# ── what must be known


def test_a_pool_of_which_no_boot_is_known_is_told_how_to_say_it():
    real = pool("rack", kind="process", options=None)
    with pytest.raises(
        UsageError, match=r"^pool rack: how long a node boots is not known: say --boot rack=60s\.\.120s$"
    ):
        fleet(real)
    assert fleet(real, boots={"rack": (60.0, 120.0)}).grounds["rack"].boot == (60.0, 120.0)


@pytest.mark.parametrize("boot", [(120.0, 60.0), (-1.0, 5.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_boot_that_cannot_be_is_one_line(boot):
    with pytest.raises(UsageError, match=r"^pool cloud: boot .*: is to be the least and the most$"):
        fleet(boots={"cloud": boot})
