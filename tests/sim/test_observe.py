"""What fleetd is shown of a simulated fleet, and what it is not."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from fleetd.core.learn import leads
from fleetd.core.memory import Memory, PoolMemory
from fleetd.core.model import (
    LeaseView,
    Observation,
    Offer,
    Policy,
    Reading,
    SchedulePolicy,
    Sighting,
    Work,
    World,
)
from fleetd.sim.observe import Lookout, start_wall_s
from fleetd.sim.trace import Trace
from fleetd.sim.world import Fleet, Setup
from tests.sim.fleets import policy, pool, queue, trace


class Watched:
    """A fleet, and one who looks at it."""

    def __init__(self, jobs: Trace, over: Policy | None = None, **setup: Any) -> None:
        self.policy = over or policy()
        how = Setup(**{"start_wall_s": 0.0, **setup})
        self.fleet = Fleet(self.policy, {"resize": jobs}, how)
        self.lookout = Lookout(self.fleet, self.policy, how)

    def at(self, moment: float) -> Observation:
        self.fleet.advance(moment)
        return self.lookout.look(Memory(), ())


def lease(node: str = "cloud/1", state: Any = "working", busy: int = 0, idle_s: float = 0.0) -> LeaseView:
    return LeaseView(node, "cloud", "photos", state, 1, busy, idle_s, 0.0)


def test_readings_leases_and_work_tell_what_is():
    watched = Watched(trace((0, 30), (10, 30), (20, 30)))
    look = watched.at(25.0)
    assert look.readings == {"resize": Reading("resize", 2, 1)}
    assert look.leases == {"cloud/1": lease(busy=1)}
    assert look.work == {"resize": Work(1, 0, 0, 0.0, (25.0,), {})}
    assert look.worlds == {"cloud": World((Sighting("cloud/1", "up", "photos"),), Offer(None, 1.0))}
    look = watched.at(100.0)
    assert look.readings == {"resize": Reading("resize", 0, 0)}
    assert look.leases == {"cloud/1": lease(idle_s=10.0)}
    assert look.work == {"resize": Work(2, 3, 0, 90.0, (), {59: 3})}


def test_depth_tells_how_many_wait_and_run_and_nothing_of_starts_ends_and_idleness():
    watched = Watched(trace((0, 30), (10, 30), (20, 30)), inputs="depth")
    for moment, reading in ((25.0, Reading("resize", 2, 1)), (100.0, Reading("resize", 0, 0))):
        look = watched.at(moment)
        assert look.readings == {"resize": reading}
        assert look.work == {}
        assert look.leases == {"cloud/1": lease(busy=1)}
    watched.fleet.fence("cloud/1")
    assert watched.at(101.0).leases == {"cloud/1": lease(state="drained")}


def test_a_fenced_worker_says_draining_and_then_drained_and_back_again():
    watched = Watched(trace((0, 30)))
    watched.at(10.0)
    watched.fleet.fence("cloud/1")
    assert watched.at(10.1).leases == {"cloud/1": lease(state="draining", busy=1)}
    assert watched.at(29.9).leases == {"cloud/1": lease(state="draining", busy=1)}
    assert watched.at(30.0).leases == {"cloud/1": lease(state="drained")}
    watched.fleet.unfence("cloud/1")
    assert watched.at(31.0).leases == {"cloud/1": lease(idle_s=1.0)}


def test_a_boot_is_sighted_from_its_order_on_and_leases_once_it_is_up():
    watched = Watched(trace((0, 1)), policy(pool(min_nodes=0, options={"boot": (60.0, 60.0)})))
    assert watched.at(10.0).worlds["cloud"] == World((), Offer(None, 1.0))
    watched.fleet.launch("cloud", "photos", 1, "1-1")
    for moment, state, leases in ((10.0, "booting", 0), (69.0, "booting", 0), (70.0, "up", 1)):
        look = watched.at(moment)
        sighting = Sighting("cloud/1", state, "photos", "1-1")  # type: ignore[arg-type]
        assert look.worlds["cloud"].sightings == (sighting,)  # type: ignore[union-attr]
        assert len(look.leases) == leases


def test_a_failed_boot_is_up_and_leases_never():
    watched = Watched(trace((0, 1)), policy(pool(min_nodes=0, options={"boot_failure": 1.0})))
    watched.fleet.launch("cloud", "photos", 1)
    look = watched.at(200.0)
    assert look.worlds == {"cloud": World((Sighting("cloud/1", "up", "photos"),), Offer(None, 1.0))}
    assert look.leases == {}


def test_lists_are_fresh_while_they_may_tell_something_new():
    """Long enough for three looks in a row to miss a node, at the least two seconds apart; then no longer."""
    watched = Watched(trace((0, 1)), tick_s=5.0)
    watched.at(100.0)
    watched.fleet.fence("cloud/1")
    watched.fleet.stop("cloud/1")
    worlds = [watched.at(moment).worlds["cloud"] for moment in (100.0, 105.0, 110.0, 115.0, 120.0, 150.0)]
    assert worlds == [World((), Offer(None, 1.0), fresh) for fresh in (True, True, True, True, True, False)]


def test_in_a_stockout_the_offer_has_no_headroom():
    watched = Watched(trace((0, 1)), policy(pool(options={"stockout": [(50.0, 60.0)]})))
    offers = [watched.at(moment).worlds["cloud"].offer for moment in (49.0, 50.0, 60.0)]  # type: ignore[union-attr]
    assert [offer.headroom for offer in offers] == [None, 0, None]


def test_idle_time_of_a_node_with_slots_counts_from_its_last_job():
    watched = Watched(trace((0, 10), (1, 30)), policy(pool(slots=2)))
    assert watched.at(20.0).leases["cloud/1"].busy == 1
    assert watched.at(40.0).leases["cloud/1"] == LeaseView("cloud/1", "cloud", "photos", "working", 2, 0, 9.0, 0.0)


def test_queues_without_jobs_are_read_as_empty():
    watched = Watched(trace((0, 10)), policy(queues=(queue(), queue("mail", priority="low"))))
    assert watched.at(5.0).readings == {"resize": Reading("resize", 0, 1), "mail": Reading("mail", 0, 0)}


def test_second_zero_is_a_monday_midnight_in_the_policys_zone():
    zone = "America/New_York"
    at = datetime.fromtimestamp(start_wall_s(policy(timezone=zone), Setup()), ZoneInfo(zone))
    assert (at.weekday(), at.hour, at.minute) == (0, 0, 0)
    assert start_wall_s(policy(), Setup(start_wall_s=77.0)) == 77.0


def test_the_month_turns_at_midnight_in_the_policys_zone():
    new_year = datetime(2026, 1, 1, tzinfo=ZoneInfo("Asia/Kathmandu")).timestamp()
    watched = Watched(trace((0, 1)), policy(timezone="Asia/Kathmandu"), start_wall_s=new_year - 1000.0)
    assert [watched.at(moment).month for moment in (0.0, 999.0, 1000.0)] == ["2025-12", "2025-12", "2026-01"]


def test_a_schedule_asks_for_its_slots_from_a_boot_before_it_starts_until_it_is_over():
    noon = SchedulePolicy("noon", "0 12 * * *", 3600.0, {"photos": 7})
    watched = Watched(trace((0, 1)), policy(schedules={"noon": noon}, timezone="UTC"))
    memory = Memory(pools={"cloud": PoolMemory(boots_s=(100.0,) * 20)})
    lead_s = leads(watched.policy, memory)["photos"]
    assert lead_s >= 100.0
    moments = (43200.0 - lead_s - 1, 43200.0 - lead_s, 46799.0, 46800.0)
    floors = []
    for moment in moments:
        watched.fleet.advance(moment)
        floors.append(dict(watched.lookout.look(memory, ()).floors))
    assert floors == [{}, {"photos": 7}, {"photos": 7}, {}]
