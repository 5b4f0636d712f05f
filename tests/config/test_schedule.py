"""Schedules hold floors in the owner's time zone, early enough, across changes of the clock."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from fleetd.config.schedule import Schedules, month
from fleetd.core.model import SchedulePolicy
from tests.control.fleet import policy

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_S = 3600.0


def holds(cron: str, for_h: float, at: datetime, *, timezone: str = "Europe/Berlin", lead_s: float = 0.0) -> bool:
    schedule = SchedulePolicy("rush", cron, for_h * HOUR_S, {"photos": 24})
    wanted = Schedules(policy(schedules={"rush": schedule}, timezone=timezone)).floors(
        at.timestamp(), {"photos": lead_s}
    )
    assert wanted in ({}, {"photos": 24})
    return bool(wanted)


def berlin(*at: int, fold: int = 0) -> datetime:
    return datetime(*at, tzinfo=BERLIN, fold=fold)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("at", "wanted"),
    [
        (berlin(2026, 11, 2, 7, 29, 59), False),
        (berlin(2026, 11, 2, 7, 30, 0), True),
        (berlin(2026, 11, 2, 10, 29, 59), True),
        (berlin(2026, 11, 2, 10, 30, 0), False),
        (berlin(2026, 11, 1, 8, 0), False),  # a Sunday
    ],
)
def test_a_floor_holds_from_its_start_for_its_time(at: datetime, wanted: bool) -> None:  # noqa: FBT001
    assert holds("30 7 * * mon-fri", 3, at) is wanted


def test_the_time_zone_is_the_policys() -> None:
    at = datetime(2026, 11, 2, 6, 45, tzinfo=UTC)
    assert holds("30 7 * * *", 1, at, timezone="Europe/Berlin")
    assert not holds("30 7 * * *", 1, at, timezone="UTC")
    assert holds("15 12 * * *", 1, at, timezone="Asia/Kathmandu")  # +05:45


def test_a_floor_begins_as_much_earlier_as_its_nodes_take_to_boot() -> None:
    assert not holds("30 7 * * *", 1, berlin(2026, 11, 2, 7, 27, 59), lead_s=120.0)
    assert holds("30 7 * * *", 1, berlin(2026, 11, 2, 7, 28, 0), lead_s=120.0)
    assert not holds("30 7 * * *", 1, berlin(2026, 11, 2, 8, 30), lead_s=120.0), "its end stays"


def test_the_morning_stays_the_morning_when_the_clock_changes() -> None:
    for day in (28, 29, 30):  # 29 March 2026: 02:00 becomes 03:00
        assert not holds("30 7 * * *", 3, berlin(2026, 3, day, 7, 29))
        assert holds("30 7 * * *", 3, berlin(2026, 3, day, 7, 31))
    for day in (24, 25, 26):  # 25 October 2026: 03:00 becomes 02:00
        assert not holds("30 7 * * *", 3, berlin(2026, 10, day, 7, 29))
        assert holds("30 7 * * *", 3, berlin(2026, 10, day, 7, 31))


def test_a_floor_over_the_change_of_the_clock_lasts_its_true_hours() -> None:
    start = berlin(2026, 3, 29, 1, 0).timestamp()  # the night has no hour from two to three
    at = datetime.fromtimestamp
    assert holds("0 1 * * *", 3, at(start + 3 * HOUR_S - 1, UTC))
    assert not holds("0 1 * * *", 3, at(start + 3 * HOUR_S, UTC))


def test_a_time_that_the_night_leaves_out_fires_all_the_same_that_day() -> None:
    assert holds("30 2 * * *", 1, berlin(2026, 3, 29, 3, 45))
    assert not holds("30 2 * * *", 1, berlin(2026, 3, 29, 4, 45))


def test_a_time_that_the_night_has_twice_holds_through_both() -> None:
    assert holds("30 2 * * *", 1, berlin(2026, 10, 25, 2, 45))
    assert holds("30 2 * * *", 1, berlin(2026, 10, 25, 2, 45, fold=1))
    assert not holds("30 2 * * *", 1, berlin(2026, 10, 25, 3, 45))


def test_floors_of_several_schedules_are_the_highest_by_app() -> None:
    schedules = {
        "a": SchedulePolicy("a", "0 7 * * *", 4 * HOUR_S, {"photos": 4, "mail": 9}),
        "b": SchedulePolicy("b", "0 8 * * *", HOUR_S, {"photos": 24}),
    }
    known = Schedules(policy(schedules=schedules, timezone="Europe/Berlin"))
    seen = [known.floors(berlin(2026, 11, 2, hour, 30).timestamp(), {}) for hour in (6, 7, 8, 9, 11)]
    assert seen == [{}, {"photos": 4, "mail": 9}, {"photos": 24, "mail": 9}, {"photos": 4, "mail": 9}, {}]


def test_the_month_is_the_policys_time_zones() -> None:
    at = datetime(2026, 10, 31, 23, 30, tzinfo=UTC).timestamp()
    assert month(policy(timezone="Europe/Berlin"), at) == "2026-11"
    assert month(policy(timezone="UTC"), at) == "2026-10"
    assert month(policy(timezone="America/New_York"), at) == "2026-10"


def test_what_is_kept_of_a_firing_is_worked_out_again_once_it_is_over_or_the_clock_steps_back() -> None:
    schedule = SchedulePolicy("rush", "30 7 * * *", HOUR_S, {"photos": 24})
    known = Schedules(policy(schedules={"rush": schedule}, timezone="Europe/Berlin"))
    hours = [(2, 7, 0), (2, 7, 45), (2, 8, 31), (3, 7, 45), (2, 7, 45), (1, 6, 0)]
    seen = [bool(known.floors(berlin(2026, 11, *at).timestamp(), {})) for at in hours]
    assert seen == [False, True, False, True, True, False]
