"""The peers: each does what its document says, value by value, and all of them get real work done."""

import importlib
import random
from typing import Any

import pytest

from fleetd.sim.peers import PEERS
from fleetd.sim.peers.asg import TargetTracking
from fleetd.sim.peers.celery import Autoscale
from fleetd.sim.peers.dask import Adaptive
from fleetd.sim.peers.delayedoff import DelayedOff
from fleetd.sim.peers.keda import Keda
from fleetd.sim.peers.static import static
from fleetd.sim.peers.step import StepScaling
from fleetd.sim.run import Setup, simulate_peer
from fleetd.sim.scaler import Scaler, View
from tests.sim.fleets import poisson, policy, pool


def view(now: float = 0.0, **seen: Any) -> View:
    """What a peer sees: ten nodes of one slot, jobs of 20 s that may wait 30 s, unless told otherwise."""
    base: dict[str, Any] = {
        "waiting": 0,
        "running": 0,
        "arrived": 0,
        "ready": 10,
        "booting": 0,
        "idle_s": (),
        "busy_slot_s": 0.0,
        "slots": 1,
        "least": 1,
        "most": 1000,
        "mean_service_s": 20.0,
        "objective_s": 30.0,
    }
    return View(now=now, **(base | seen))


def course(peer: Scaler, count: int, **seen: Any) -> list[int]:
    """What a peer wants when it sees the same so many times, at its own pace."""
    return [peer.wanted(view(number * peer.every_s, **seen)) for number in range(count)]


# ── KEDA


@pytest.mark.parametrize(
    ("jobs", "wish"),
    [
        (21, 20),  # within the tolerance of a tenth
        (23, 23),
        (40, 40),
        (90, 40),  # twice as many in 15 s
    ],
)
def test_keda_follows_the_jobs_outside_its_tolerance_at_its_pace(jobs, wish):
    assert Keda().wanted(view(ready=20, running=20, waiting=jobs - 20)) == wish


def test_keda_may_add_four_pods_where_twice_is_less():
    assert Keda().wanted(view(ready=1, running=1, waiting=50)) == 5


def test_keda_counts_booting_pods_as_there():
    assert Keda().wanted(view(ready=6, booting=4, running=6, waiting=4)) == 10


def test_keda_keeps_the_highest_wish_of_five_minutes():
    peer = Keda()
    assert peer.wanted(view(0.0, running=10)) == 10
    assert peer.wanted(view(15.0, running=8)) == 10
    later = [peer.wanted(view(now, running=3)) for now in (150.0, 300.0, 315.0, 330.0)]
    assert later == [10, 10, 8, 3]


def test_keda_goes_to_zero_after_its_cooldown_and_wakes_at_a_poll():
    peer = Keda()
    assert peer.wanted(view(0.0, ready=1, running=1, least=0)) == 1
    assert peer.wanted(view(285.0, ready=1, least=0)) == 1
    assert peer.wanted(view(300.0, ready=1, least=0)) == 0
    assert peer.wanted(view(315.0, ready=0, waiting=5, least=0)) == 0  # between two polls
    assert peer.wanted(view(330.0, ready=0, waiting=5, least=0)) == 1


def test_keda_never_leaves_its_least():
    assert Keda().wanted(view(4000.0, ready=1)) == 1


# ── target tracking


def test_target_tracking_grows_on_the_third_data_point_in_proportion():
    """The acceptable backlog is 30 s / 20 s = 1.5 jobs an instance; 30 jobs on ten are twice that."""
    assert course(TargetTracking(), 3, running=10, waiting=30) == [10, 10, 20]


def test_target_tracking_grows_fourfold_at_most():
    assert course(TargetTracking(), 3, running=10, waiting=1000)[-1] == 40


def test_target_tracking_forgets_an_alarm_that_one_data_point_ends():
    peer = TargetTracking()
    seen = [peer.wanted(view(60.0 * number, waiting=waiting)) for number, waiting in enumerate((30, 30, 10, 30, 30))]
    assert seen == [10] * 5


def test_target_tracking_takes_a_tenth_after_a_quiet_quarter_of_an_hour():
    wishes = course(TargetTracking(), 16, ready=40)
    assert wishes[:14] == [40] * 14
    assert wishes[14:] == [36, 36]  # each look from then on, of what it sees


def test_target_tracking_always_takes_one_at_least():
    assert course(TargetTracking(), 15, ready=3)[-1] == 2


def test_target_tracking_starts_from_nothing_for_a_single_job():
    assert course(TargetTracking(), 3, ready=0, waiting=1, least=0) == [0, 0, 1]


# ── step scaling


@pytest.mark.parametrize(
    ("waiting", "wish"),
    [
        (18, 40),  # 0.3 of the acceptable backlog of 1.5 jobs an instance
        (19, 42),
        (61, 52),
        (181, 60),
    ],
)
def test_step_scaling_takes_a_larger_step_for_a_longer_backlog(waiting, wish):
    assert StepScaling().wanted(view(ready=40, running=40, waiting=waiting)) == wish


def test_step_scaling_gives_one_back_after_five_quiet_minutes():
    assert course(StepScaling(), 6, running=7) == [10, 10, 10, 10, 9, 9]
    assert course(StepScaling(), 6, running=8) == [10] * 6


def test_step_scaling_gives_nothing_back_while_what_it_added_warms_up():
    """One job of ten minutes that waits is a backlog, and the rest may be idle all the same."""
    peer = StepScaling()
    peer.wanted(view(0.0, running=2, waiting=1, mean_service_s=600.0))
    wishes = [peer.wanted(view(60.0 * minute, ready=11, running=2)) for minute in range(1, 7)]
    assert wishes == [11, 11, 11, 11, 10, 10]


def test_step_scaling_starts_from_nothing_for_a_single_short_job():
    assert StepScaling().wanted(view(ready=0, waiting=1, mean_service_s=0.1, least=0)) == 1


# ── Dask


def test_dask_wants_a_worker_for_each_task_or_for_five_seconds_of_work():
    assert Adaptive().wanted(view(running=10, waiting=40)) == 50
    assert Adaptive().wanted(view(running=10, waiting=90, mean_service_s=1.0)) == 20


def test_dask_closes_what_was_too_much_three_times_in_a_row():
    assert course(Adaptive(), 3, running=6, idle_s=(9.0,) * 4) == [10, 10, 6]


def test_dask_closes_no_more_than_was_too_much_every_time():
    peer = Adaptive()
    assert [peer.wanted(view(running=10 - idle, idle_s=(9.0,) * idle)) for idle in (4, 1, 3)] == [10, 10, 9]


def test_dask_starts_to_count_anew_when_nothing_is_too_much():
    peer = Adaptive()
    seen = [peer.wanted(view(running=10 - idle, idle_s=(9.0,) * idle)) for idle in (2, 2, 0, 2, 2)]
    assert seen == [10] * 5


def test_dask_closes_no_worker_that_has_a_task():
    assert course(Adaptive(), 3, running=10, mean_service_s=0.1)[-1] == 10


# ── Celery


def test_celery_grows_at_once_and_fourfold_at_most():
    assert Autoscale().wanted(view(running=10, waiting=5)) == 15
    assert Autoscale().wanted(view(running=10, waiting=500)) == 40


def test_celery_shrinks_when_its_last_growth_is_older_than_the_keepalive():
    peer = Autoscale()
    assert peer.wanted(view(100.0, running=10, waiting=5)) == 15
    assert peer.wanted(view(130.0, ready=15, running=2)) == 15
    assert peer.wanted(view(131.0, ready=15, running=2)) == 2


# ── DELAYEDOFF


def test_delayedoff_sets_one_up_for_each_job_that_waits_and_calls_none_off():
    peer = DelayedOff()
    assert peer.wanted(view(0.0, running=10, waiting=4)) == 14
    assert peer.wanted(view(5.0, running=10, booting=4, waiting=1)) == 14
    assert peer.wanted(view(10.0, running=10, booting=4, waiting=6)) == 16


def test_delayedoff_turns_off_what_is_idle_for_as_long_as_a_set_up_takes():
    peer = DelayedOff()
    for number in range(9):  # two servers boot from 0 to between 40 and 45 s
        peer.wanted(view(5.0 * number, running=10, booting=2 if number else 0, waiting=2))
    assert peer.wanted(view(45.0, ready=12, idle_s=(41.0, 12.0))) == 12
    assert peer.wanted(view(50.0, ready=12, idle_s=(46.0, 12.0))) == 11


def test_delayedoff_turns_nothing_off_while_a_job_waits():
    assert DelayedOff().wanted(view(running=9, waiting=1, idle_s=(500.0,))) == 11


def test_delayedoff_gives_the_job_to_the_server_that_was_busy_last():
    assert [name for name, peer in PEERS.items() if peer.recent_first] == ["delayedoff"]


# ── all


def test_a_static_fleet_wants_what_it_was_made_with():
    assert static(7)().wanted(view(waiting=500)) == 7


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_names_its_source(name):
    module = importlib.import_module(PEERS[name].__module__)
    assert "Source: " in (module.__doc__ or "")


@pytest.mark.parametrize("name", sorted(set(PEERS) - {"static"}))
def test_every_peer_does_the_work_from_nothing_and_gives_the_nodes_back(name):
    """A thousand jobs of 20 s at 1/s from a pool that may go to zero, and one more an hour later."""
    jobs = poisson(random.Random(7), 1.0, 20.0, 1000)
    jobs.submitted_s.append(jobs.submitted_s[-1] + 3600.0)
    jobs.service_s.append(20.0)
    result = simulate_peer(policy(pool(min_nodes=0)), {"resize": jobs}, Setup(), PEERS[name])
    assert result.lost == 0
    assert result.stops > 0
    assert sum(jobs.service_s) < result.cost_worker_s < 20 * sum(jobs.service_s)


@pytest.mark.parametrize("name", sorted(set(PEERS) - {"static"}))
def test_nodes_of_four_slots_are_wanted_a_quarter_as_often(name):
    jobs = poisson(random.Random(8), 4.0, 20.0, 8000)
    one, four = (
        simulate_peer(policy(pool(slots=slots)), {"resize": jobs}, Setup(judged_from_s=600.0), PEERS[name])
        for slots in (1, 4)
    )
    assert 0.15 < four.cost_worker_s / one.cost_worker_s < 0.6
    assert four.lost == 0
