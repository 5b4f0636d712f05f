"""When a seat may be taken: by what was seen, and when by one's own clock; never by a time in the record."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fleetd.core.election import KEEP_S, LASTS_S, Seen, Term, claim, given_back, is_free, see

HELD = Term("a", LASTS_S, 7, "f00", "2026-01-01T00:00:00Z", "100")


def test_a_seat_that_nobody_ever_held_is_free_and_begins_with_epoch_one():
    assert is_free(None, 0.0)
    assert claim(None, "b") == Term("b", epoch=1)


def test_a_held_one_is_free_once_it_was_seen_unchanged_for_as_long_as_it_lasts():
    seen = see(None, HELD, 1000.0)
    assert not is_free(seen, 1000.0)
    seen = see(seen, HELD, 1014.9)
    assert not is_free(seen, 1014.9)
    assert is_free(seen, 1015.0)


def test_a_renewal_begins_the_time_anew_whatever_it_says_of_its_own():
    seen = see(None, HELD, 1000.0)
    seen = see(seen, replace(HELD, renewed="1999-01-01T00:00:00Z", version="101"), 1014.0)
    assert not is_free(seen, 1015.0)
    assert is_free(seen, 1029.0)


def test_a_label_that_somebody_puts_on_the_record_is_no_renewal():
    seen = see(None, HELD, 1000.0)
    seen = see(seen, replace(HELD, version="105"), 1010.0)
    assert seen == Seen(replace(HELD, version="105"), 1000.0)
    assert is_free(seen, 1015.0)


def test_a_record_that_was_given_back_is_free_at_once_and_its_epoch_goes_on():
    seen = see(None, given_back(HELD), 1000.0)
    assert is_free(seen, 1000.0)
    assert claim(seen, "b") == replace(HELD, holder="b", epoch=8)


def test_a_record_that_is_deleted_is_held_until_it_would_have_expired():
    """Its holder finds out only at its next renewal."""
    seen = see(see(None, HELD, 1000.0), None, 1001.0)
    assert not is_free(seen, 1014.0)
    assert is_free(seen, 1015.0)
    assert claim(seen, "b") == replace(HELD, holder="b", epoch=8, version="")
    assert see(None, None, 1000.0) is None


@given(
    sent=st.floats(0, 100),
    on_the_way=st.floats(0, 100),
    looked=st.floats(0, 100),
    pace=st.floats(KEEP_S / LASTS_S, 10.0),
)
def test_no_standby_begins_before_the_holder_has_stopped(sent, on_the_way, looked, pace):
    """`pace`: how fast the holder's clock goes, by the standby's. A record is seen after it was sent."""
    seen = see(None, HELD, sent + on_the_way + looked)
    assert seen is not None
    holder_stops = sent + KEEP_S / pace
    standby_begins = seen.at + LASTS_S
    assert not is_free(seen, standby_begins - 0.001)
    assert standby_begins >= holder_stops - 1e-9
