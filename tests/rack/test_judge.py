"""What follows from what is known of a machine: by values, without a clock."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.providers.rack.book import Record, Wake
from fleetd.providers.rack.judge import (
    Can,
    Case,
    Cut,
    Gone,
    Patience,
    Send,
    Signs,
    backoff_s,
    boot_deadline,
    judge,
)

T = 1_000_000.0
WAKE = Wake("52:54:00:12:34:07", 12, "rack3/node07.12", "1-1", "photos", T, T + 300, sent=1, sent_at=T)
UP = replace(WAKE, used_at=T + 30, up_at=T + 40)
PACKETS, HOME, BMC = Can(tells=False, cuts=False), Can(tells=False, cuts=True), Can(tells=True, cuts=True)


def case(wake=WAKE, now=T + 5, can=PACKETS, **signs):
    return Case(wake, Signs(**signs), can, 300.0, Patience(), now)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (case(), None),
        (case(now=T + 16), Send()),
        (case(now=T + 16, stage="script", seen_at=T + 9), None),
        (case(now=T + 16, answered_at=T + 9), None),
        (case(replace(WAKE, sent=3), now=T + 60), None),
        (case(replace(WAKE, sent=0, sent_at=0.0)), Send()),
        (case(replace(WAKE, sent=0, sent_at=0.0), seen_at=T - 8), None),  # it waits: no packet is needed
        (case(replace(WAKE, sent=0, sent_at=0.0), now=T + 16, seen_at=T - 8), Send()),
        (case(can=BMC, now=T + 16, power="off", power_at=T + 9), Send()),
        (case(can=BMC, now=T + 16, power="off", power_at=T - 9), Send()),
    ],
)
def test_a_machine_that_shows_nothing_is_told_again_and_no_more_than_three_times(given, verdict):
    assert judge(given) == verdict


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (case(replace(WAKE, sent=3)), "did not answer 3 magic packets within 300 s: cable, "),
        (case(answered_at=T + 90), "answers on the network, but did not ask the boot service within 300 s"),
        (case(can=BMC, power="on", power_at=T + 290), "is on, says its switch, but did not ask the boot service"),
        (
            case(stage="initrd", seen_at=T + 50),
            "came as far as 'initrd', 50 s after it was woken; its worker was not let in within 300 s",
        ),
        (
            case(replace(WAKE, used_at=T + 60), stage="enrolled", seen_at=T + 60),
            "came as far as 'enrolled', 60 s after it was woken; its worker did not speak within 300 s",
        ),
    ],
)
def test_an_overdue_boot_is_told_by_how_far_it_came(given, words):
    verdict = judge(replace(given, now=T + 301))
    assert isinstance(verdict, Gone)
    assert words in verdict.reason
    assert verdict.fault
    assert verdict.cut is given.can.cuts


def test_a_machine_that_stays_off_is_given_up_before_its_deadline():
    off = case(replace(WAKE, sent=3, sent_at=T + 40), can=BMC, now=T + 60, power="off", power_at=T + 50)
    assert judge(off) == Gone("is off, though it was switched on 3 times", fault=True)


@pytest.mark.parametrize("began", [{"used_at": T + 30}, {"up_at": T + 30}, {"used_at": T + 30, "up_at": T + 40}])
def test_a_boot_after_the_token_was_taken_is_a_reboot(began):
    wake = replace(WAKE, **began)
    assert judge(case(wake, now=T + 100, booted_at=T + 90, seen_at=T + 90)) == Gone("rebooted by itself", fault=True)
    assert judge(case(wake, now=T + 100, booted_at=T + 20, heard_at=T + 99, answered_at=T + 99)) is None


def test_before_that_it_is_the_same_boot_tried_again():
    assert judge(case(now=T + 60, booted_at=T + 50, seen_at=T + 50)) is None


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        (case(UP, silent_since=T + 180, heard_at=T + 195), False),  # its worker speaks
        (case(UP, silent_since=T + 195, heard_at=T + 150), False),  # knocked at in vain for too short a time
        (case(UP, silent_since=T + 180, heard_at=T + 150), True),
        (case(UP, heard_at=T + 150), False),  # nothing can tell: no proof
        (case(UP, heard_at=T + 150, answered_at=T + 199), False),
        (case(UP, silent_since=T + 10, heard_at=T + 199), False),
        (case(UP, can=BMC, power="off", power_at=T + 190, heard_at=T + 199), True),
        (case(UP, can=BMC, power="off", power_at=T - 1, heard_at=T + 199), False),  # seen before it was switched on
    ],
)
def test_a_worker_is_gone_by_its_switch_or_by_two_silences(given, gone):
    verdict = judge(replace(given, now=T + 200))
    assert isinstance(verdict, Gone) is gone
    assert not isinstance(verdict, Gone) or verdict.fault


STOPPED = replace(UP, stop_at=T + 1000, grace_s=60.0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (case(STOPPED, can=BMC, power="off", power_at=T + 1011), "off, says its switch"),
        (case(STOPPED, silent_since=T + 1003, heard_at=T + 1001), "nothing answers any longer"),
        (case(STOPPED, heard_at=T + 1001), "its worker is silent; nothing else can tell whether it is off"),
    ],
)
def test_off_is_proven_by_the_best_that_there_is(given, reason):
    assert judge(replace(given, now=T + 1015)) == Gone(f"stopped as asked: {reason}")


@pytest.mark.parametrize(
    "given",
    [
        case(STOPPED, can=BMC, power="off", power_at=T + 990),  # seen before it was told to go
        case(STOPPED, can=BMC, silent_since=T + 1003, heard_at=T + 1001),  # its switch can tell: it is asked
        case(STOPPED, silent_since=T + 1003, heard_at=T + 1012),  # its worker speaks
        case(STOPPED, silent_since=T + 1009, heard_at=T + 1001),
        case(STOPPED, heard_at=T + 1001, answered_at=T + 1010),
    ],
)
def test_what_is_not_proven_is_waited_for(given):
    assert judge(replace(given, now=T + 1015)) is None


@pytest.mark.parametrize(
    ("wake", "can", "cut_at"),
    [
        (STOPPED, BMC, T + 1120),  # the way off may take two minutes
        (replace(STOPPED, grace_s=600.0), BMC, T + 1600),
        (replace(STOPPED, grace_s=0.0), BMC, T + 1000),  # by force
        (replace(STOPPED, up_at=None), HOME, T + 1000),  # no worker, nobody who obeys
    ],
)
def test_what_does_not_go_off_is_cut_off(wake, can, cut_at):
    on = case(wake, can=can, power="on" if can.tells else None, power_at=cut_at, answered_at=cut_at)
    assert judge(replace(on, now=cut_at)) is None
    assert judge(replace(on, now=cut_at + 1)) == Cut()


def test_cut_three_times_in_vain_it_is_the_owners_turn():
    on = case(STOPPED, can=BMC, power="on", power_at=T + 1200, cuts=3, cut_at=T + 1160)
    assert judge(replace(on, now=T + 1170)) is None
    assert judge(replace(on, now=T + 1200)) == Gone(
        "did not go off 200 s after it was told to go; its power was cut 3 times: see to it", fault=True
    )


def test_what_can_be_neither_cut_nor_told_off_ends_all_the_same():
    never_up = replace(STOPPED, up_at=None, used_at=None)
    verdict = judge(case(never_up, now=T + 1121))
    assert verdict == Gone(
        "cannot be known to be off 121 s after it was told to go; nothing can cut its power: see to it", fault=True
    )
    assert judge(case(never_up, now=T + 1119)) is None


times = st.floats(T - 100, T + 2000)
maybe = st.none() | times


@given(
    st.builds(Wake, st.just("m"), st.just(1), st.just("p/m.1"), st.just("k"), st.just("a"), st.just(T),
              st.just(T + 300), st.integers(0, 5), times, st.none(), maybe, maybe, maybe, st.floats(0, 900)),
    st.builds(Signs, st.just("script"), times, times, times, times, maybe, st.sampled_from([None, "on", "off"]),
              times, st.integers(0, 4), times),
    st.builds(Can, st.booleans(), st.booleans()),
    times,
)  # fmt: skip
def test_whatever_is_known_a_worker_that_speaks_is_never_called_gone_but_by_its_switch_or_a_boot(wake, signs, can, now):
    verdict = judge(Case(wake, signs, can, 300.0, Patience(), now))
    speaks = now - signs.heard_at <= Patience().quiet_s and wake.up_at is not None and wake.stop_at is None
    if speaks and isinstance(verdict, Gone):
        assert "says its switch" in verdict.reason or verdict.reason == "rebooted by itself"
    if isinstance(verdict, Cut):
        assert can.cuts
        assert wake.stop_at is not None


def test_the_deadline_is_learned_machine_by_machine():
    assert boot_deadline(None, 300.0) == 300.0
    assert boot_deadline(Record("m", boots_s=(30.0, 40.0)), 300.0) == 300.0
    assert boot_deadline(Record("m", boots_s=(30.0, 40.0, 35.0)), 300.0) == 120.0
    assert boot_deadline(Record("m", boots_s=(5.0, 5.0, 5.0)), 300.0) == 60.0
    assert boot_deadline(Record("m", boots_s=(200.0,)), 300.0) == 600.0


def test_the_back_off_grows_to_a_day():
    assert [backoff_s(n) for n in (1, 2, 3, 4, 5, 6, 7, 99)] == [60, 240, 960, 3840, 15360, 61440, 86400, 86400]
