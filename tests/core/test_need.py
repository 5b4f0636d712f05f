"""The slots that a queue's jobs need, worked out by hand.

The curve is the prior's alone: of jobs of 20 s on average 20/(20+u) squared outlive u, and 20·u/(20+u) is lived.
"""

from dataclasses import replace

import pytest

from fleetd.core.capacity import Group
from fleetd.core.flow import Rate, settle
from fleetd.core.forecast import Season
from fleetd.core.life import Curve, Life, draw
from fleetd.core.memory import QueueMemory, Wanted
from fleetd.core.model import Objective, QueuePolicy
from fleetd.core.need import Boot, Seen, ahead, bridged, just_in_time, lacking

NOW = 1000.0
RULE = QueuePolicy("resize", "photos", "main", "resize", Objective(30.0))
SLOW = Boot(60.0, 50.0, 60.0, (60.0,))
FAST = Boot(10.0, 8.0, 8.0, (8.0, 8.0, 10.0))


def curve(mean_s: float) -> Curve:
    return Curve(mean_s, (0.0,), (0.0,), mean_s, 1.0)


def seen(
    waiting: int = 0,
    *,
    waited_s: float = 0.0,
    ages_s: tuple[float, ...] = (),
    unseen: int = 0,
    rate: Rate | None = None,
    mean_s: float = 20.0,
) -> Seen:
    """A queue where so many have waited so long; the rest is at rest."""
    memory = QueueMemory(
        waiting=waiting,
        running=len(ages_s) + unseen,
        flow=replace(QueueMemory().flow, waiting=((NOW - waited_s, waiting),) if waiting else ()),
        life=Life(curve=curve(mean_s)),
        rate=rate or Rate(),
    )
    return Seen(RULE, memory, ages_s, unseen)


def up(slots: int) -> tuple[Boot, Group]:
    return FAST, Group(slots=slots, up=slots, nodes=slots)


def coming(slots: int, ordered_at: float, boot: Boot = FAST) -> tuple[Boot, Group]:
    return boot, Group(slots=slots, nodes=slots, coming=[(ordered_at, slots)])


# ── ahead of time


def test_the_load_is_what_still_runs_then_and_what_will_have_come():
    """20 s ahead: of ten that begin now a quarter is left, 2/s bring 2·20·20/40 = 20. Seen to fail with either out.

    Chance: 20 by Poisson and ten coins of a quarter; an arrival rate off by 0.1/s is off by one slot.
    """
    one = seen(ages_s=(0.0,) * 10, rate=Rate(2.0, 0.1, 60.0))
    load, risk = one.load(20.0, NOW)
    assert load.mean == pytest.approx(22.5, rel=1e-3)
    assert load.variance == pytest.approx(20.0 + 10 * 0.25 * 0.75, rel=1e-3)
    assert load.error == pytest.approx(1.0)
    assert (risk.rate, risk.wait_s, risk.mean_s, risk.price_s) == (2.0, 30.0, 20.0, 500.0)


def test_a_running_job_of_unknown_age_is_met_at_any_moment_of_its_service():
    """Half of the whole service is lived within 20 s: half of them are left."""
    load, _ = seen(unseen=8).load(20.0, NOW)
    assert load.mean == pytest.approx(4.0)
    assert load.variance == pytest.approx(2.0)


def test_nothing_asks_for_nothing():
    assert ahead((), SLOW, (), NOW, None).need == 0.0
    assert ahead((seen(),), SLOW, (), NOW, None).need == 0.0


def test_need_is_load_and_margin():
    term = ahead((seen(rate=Rate(2.0, 0.0, 60.0)),), SLOW, (), NOW, None)
    assert term.load.mean == pytest.approx(30.0)  # 2·20·60/80
    assert 30 < term.need == term.wanted.slots < 50
    assert term.waiting == 0.0
    assert not term.just_in_time


def test_queues_of_an_app_share_a_margin():
    """The chance of two is not added but its square is."""
    one = seen(rate=Rate(2.0, 0.4, 60.0))
    both = ahead((one, one), SLOW, (), NOW, None)
    single = ahead((one,), SLOW, (), NOW, None)
    assert (both.load.mean, both.load.variance) == (2 * single.load.mean, 2 * single.load.variance)
    assert both.load.error == pytest.approx(single.load.error * 2**0.5)
    assert both.need < 2 * single.need


def test_what_was_wanted_holds_for_a_moment_while_the_load_is_about_the_same():
    one = seen(rate=Rate(2.0, 0.0, 60.0))
    before = Wanted(77, 30.0, NOW - 2.0)
    assert ahead((one,), SLOW, (), NOW, before).need == 77.0
    assert ahead((one,), SLOW, (), NOW + 10.0, before).need < 60.0  # for a moment only
    assert ahead((one,), SLOW, (), NOW, replace(before, load=32.0)).need < 60.0
    assert ahead((one,), SLOW, (), NOW, Wanted()).need < 60.0


@pytest.mark.parametrize(
    ("slots", "per_s", "left"),
    [(0, 0.0, 100.0), (10, 0.0, 85.0), (10, 0.3, 94.0), (10, 2.0, 100.0), (200, 0.0, 0.0)],
)
def test_those_that_will_still_wait_are_worked_off_within_most_of_the_objective(slots, per_s, left):
    """Ten slots take half a job a second; half of that is counted on: 15 of 100 are gone in 60 s.

    A slot takes (20 + 21)/20 of what is left by the end of 0.7 · 30 s, and a quarter is to be done at once.
    """
    term = ahead((seen(100, rate=Rate(per_s, 0.0, 60.0)),), SLOW, (up(slots),), NOW, None)
    assert term.waiting == pytest.approx(0.25 * left * 20.0 / 41.0)


def test_somebody_has_to_run_however_short_the_jobs():
    """Scale from zero. Seen to fail without `somebody`."""
    assert ahead((seen(1, mean_s=0.01),), SLOW, (), NOW, None).need == 1.0


def test_jobs_much_longer_than_a_boot_need_a_slot_each():
    """Seen to fail with WAITING_SHARE for all."""
    term = ahead((seen(40, mean_s=36_000.0),), SLOW, (), NOW, None)
    assert 39.5 < term.need <= 40.0


# ── the forecast rate


@pytest.mark.parametrize(
    ("slope", "window_s", "ahead_s", "per_s"),
    [
        (0.0, 60.0, 60.0, 2.0),
        (0.01, 60.0, 0.0, 2.3),  # the middle of the window is 30 s ago
        (0.01, 60.0, 60.0, 2.9),
        (-0.01, 60.0, 60.0, 1.7),  # a fall is brought up to now, and not drawn on
        (0.1, 60.0, 60.0, 4.0),  # never more than twice,
        (-0.1, 60.0, 60.0, 1.0),  # never less than half
    ],
)
def test_a_trend_is_drawn_on(slope, window_s, ahead_s, per_s):
    assert seen(rate=Rate(2.0, 0.1, window_s, slope)).per_s(ahead_s, NOW) == pytest.approx(per_s)


def test_a_season_without_proof_changes_no_rate():
    one = seen(rate=Rate(2.0, 0.1, 60.0))
    one.memory = replace(one.memory, season=Season(steps=(1.0, 100.0) * 336))
    assert one.per_s(900.0, NOW) == 2.0


# ── just in time


def test_those_that_run_need_their_slots_and_idle_ones_are_for_those_that_wait():
    assert just_in_time((seen(ages_s=(5.0,) * 7),), FAST, (up(7),), NOW).need == 7.0
    assert just_in_time((seen(ages_s=(5.0,) * 3),), FAST, (up(7),), NOW).need == 3.0
    assert just_in_time((seen(2, ages_s=(5.0,) * 3),), FAST, (up(7),), NOW).need == 5.0
    assert just_in_time((seen(),), FAST, (up(7),), NOW).need == 0.0
    assert just_in_time((), FAST, (), NOW).need == 0.0


@pytest.mark.parametrize(
    ("queued", "slots"),
    [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0), (5, 1.0), (6, 2.0), (30, 13.0)],
)
def test_whole_slots_are_ordered_at_once(queued, slots):
    """All have 30 s. The slot that is up starts 30/20 - 1/2 = 1 of them, a new one 1 + 22/20 = 2.1.

    What is less than a whole one may wait. Seen to fail with the fraction rounded up.
    """
    one = seen(queued)
    assert lacking(one, FAST, (up(1),), NOW) == slots
    term = just_in_time((one,), FAST, (up(1),), NOW)
    assert term.need == (1.0 + slots if slots else 1.0)
    assert term.just_in_time


@pytest.mark.parametrize(("waited_s", "slots"), [(0.0, 0.0), (17.5, 1.0), (18.5, 2.0), (29.0, 2.0), (500.0, 2.0)])
def test_a_fraction_of_a_slot_is_ordered_when_there_is_no_more_time_to_lose(waited_s, slots):
    """Two wait. A boot is over after 10 s and an order may be 2 s late: from 18 s on there is none.

    Seen to fail with `urgent` always False.
    """
    assert lacking(seen(2, waited_s=waited_s), FAST, (up(1),), NOW) == slots


def test_the_first_slot_is_ordered_at_once():
    """There is none that could become free."""
    assert lacking(seen(1), FAST, (), NOW) == 1.0
    assert just_in_time((seen(1),), FAST, (), NOW).need == 1.0
    assert just_in_time((seen(2),), FAST, (), NOW).need == 1.0  # it takes both in time
    assert just_in_time((seen(5),), FAST, (), NOW).need == 3.0


def test_what_is_coming_is_counted_on():
    """Three boot since 3 s: up in 5 s, each starts 1 + 25/20 - 1/2 of them. Seen to fail with `coming` left out."""
    one = seen(7, waited_s=0.0)
    assert lacking(one, FAST, (), NOW) == 4.0
    assert lacking(one, FAST, (coming(3, NOW - 3.0),), NOW) == 0.0
    assert lacking(one, FAST, (coming(3, NOW - 3.0, Boot(90.0, 80.0, 90.0, (80.0,))),), NOW) == 3.0  # too late


def test_slots_of_running_jobs_become_free():
    """Of eight jobs that are about as old as they get on average 1 - (40/70)² end within 30 s: more than five."""
    one = seen(5, ages_s=(20.0,) * 8)
    assert lacking(one, FAST, (up(8),), NOW) == 0.0
    assert just_in_time((one,), FAST, (up(8),), NOW).need == 8.0


def test_jobs_that_are_longer_than_the_objective_need_a_slot_each_in_time_too():
    """Boots are fast, jobs take hours: a new slot starts one of them in time."""
    assert lacking(seen(12, mean_s=36_000.0), FAST, (), NOW) == 12.0


def test_an_unknown_boot_is_hoped_to_be_fast_enough_and_a_known_one_is_not_guessed():
    guess = Boot(0.0, 0.0, 0.0).or_guess(30.0)
    assert (guess.late_s, guess.middle_s) == (15.0, 15.0)
    assert FAST.or_guess(30.0) is FAST
    assert lacking(seen(2), guess, (up(1),), NOW) == 1.0  # and nothing is put off


def test_the_share_of_boots_that_take_longer():
    assert FAST.slower(8.0) == pytest.approx(1 / 3)
    assert FAST.slower(10.0) == 0.0
    assert Boot(0.0, 0.0, 0.0).slower(1.0) == 0.0


# ── bridged


@pytest.mark.parametrize(
    ("ratio", "spreads"), [(0.5, 0.0), (0.25, 0.67449), (0.75, -0.67449), (0.1, 1.28155), (0.0, 3.0902), (1.0, -3.0902)]
)
def test_a_slot_that_a_dearer_one_bridges_pays_for_a_share_of_its_time(ratio, spreads):
    """2/s of 20 s each, 60 s ahead: 30 ± sqrt(30 + 3²). Seen to fail with the quantile of the ratio itself."""
    term = bridged((seen(rate=Rate(2.0, 0.2, 60.0)),), SLOW, NOW, ratio)
    assert term.need == pytest.approx(30.0 + spreads * 39.0**0.5, rel=1e-3)


def test_a_bridged_need_is_not_negative():
    assert bridged((seen(rate=Rate(0.01, 0.01, 60.0)),), SLOW, NOW, 0.99).need == 0.0


# ── what is not known yet


def test_a_queue_of_which_nothing_is_known_takes_most_of_its_objective():
    one = Seen(RULE, QueueMemory(), (), 0)
    assert one.curve == draw(Life(), (), 0.7 * 30.0)


def test_who_waits_at_the_first_look_is_lacked_for_in_the_order_of_age():
    """Ten that have waited for 100 s already: as many slots as take them, at once."""
    one = seen(10)
    one.memory = replace(one.memory, flow=settle(one.memory.flow, 10, 100.0, NOW))
    assert lacking(one, FAST, (up(1),), NOW) == 10.0
