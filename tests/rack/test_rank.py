"""Which machines are woken, in which order, and how many."""

import pytest

from fleetd.providers.rack.book import Record
from fleetd.providers.rack.inventory import Machine
from fleetd.providers.rack.rank import Candidate, Room, pick, ranked, told

NOW = 1000.0


def one(name, *, watts=100.0, warm=False, stranger=False, **record):
    return Candidate(Machine(name, f"mac {name}", watts=watts), Record(f"mac {name}", **record), warm, stranger)


def names(candidates):
    return [candidate.machine.name for candidate in candidates]


SLOW = one("slow", watts=50, boots_s=(90.0, 80.0, 95.0), wakes=1)
FAST = one("fast", watts=200, boots_s=(20.0, 500.0, 25.0), wakes=9)
NEW = one("new", watts=120)


@pytest.mark.parametrize(
    ("rank", "order"),
    [
        ("fastest", ["fast", "slow", "new"]),
        ("cheapest", ["slow", "new", "fast"]),
        ("least used", ["new", "slow", "fast"]),
    ],
)
def test_the_rack_says_what_is_best(rank, order):
    assert names(ranked([SLOW, FAST, NEW], rank, (), NOW)) == order


def test_named_before_warm_before_sound_before_the_rank():
    failed = one("failed", failures=1, boots_s=(1.0,))
    warm = one("warm", warm=True, failures=3)
    given = [failed, SLOW, warm, FAST]
    assert names(ranked(given, "fastest", ("slow",), NOW)) == ["slow", "warm", "fast", "failed"]


def test_one_kept_out_is_not_woken_but_by_name_and_a_stranger_never():
    out = one("out", quarantined_until=NOW + 90, why="rebooted by itself", failures=1)
    strange = one("strange", stranger=True)
    given = [out, strange, FAST]
    assert names(ranked(given, "fastest", (), NOW)) == ["fast"]
    assert names(ranked(given, "fastest", ("out", "strange"), NOW)) == ["out", "fast"]
    assert names(ranked(given, "fastest", (), NOW + 90)) == ["fast", "out"]
    assert told(given, NOW) == "out is kept out for 1m30s: rebooted by itself; strange is on, and not by us"


def test_only_the_first_few_that_cannot_be_had_are_named():
    assert told([one(f"n{at}", stranger=True) for at in range(9)], NOW).endswith("; and 6 more")


def test_what_does_not_fit_into_the_watts_is_passed_over_for_what_does():
    free = [one("a", watts=150), one("b", watts=150), one("c", watts=40)]
    chosen, why = pick(free, 3, Room(watts=200, watts_limit=2000))
    assert (names(chosen), why) == (["a", "c"], "the rack may draw 2000 W")
    assert pick(free, 1, Room(watts=200, watts_limit=2000)) == ([free[0]], "")


def test_one_that_is_on_already_draws_nothing_more_and_is_no_inrush():
    free = [one("w", watts=500, warm=True), one("a")]
    chosen, why = pick(free, 2, Room(watts=0.0, wakes=0, watts_limit=500, wakes_limit=4))
    assert (names(chosen), why) == (["w"], "the rack may draw 500 W")


def test_no_more_than_may_be_switched_on_in_a_minute():
    free = [one(f"n{at}") for at in range(5)]
    assert pick(free, 5, Room(wakes=2, wakes_limit=4))[1] == "4/min may be switched on"
    assert len(pick(free, 5, Room(wakes=2, wakes_limit=4))[0]) == 2
    assert pick(free, 5, Room(wakes=-1, wakes_limit=4))[0] == []
    assert pick(free, 5, Room()) == (free, "")
