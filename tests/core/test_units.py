"""Units: what an owner may write, what it means, and that reading and writing are each other's inverse."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.core import units

READERS = [units.seconds, units.money_per_h, units.per_minute, units.share]


@pytest.mark.parametrize(
    ("written", "expected_s"),
    [
        (90, 90.0),
        (0.5, 0.5),
        ("90", 90.0),
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (" 1d2h3m4s ", 93784.0),
        (0, 0.0),
    ],
)
def test_a_duration_is_read_as_seconds(written, expected_s):
    assert units.seconds(written) == expected_s


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("5 minutes", "expected a duration such as 30s, 5m, 2h or 1h30m, got '5 minutes'"),
        ("5M", "expected a duration such as 30s, 5m, 2h or 1h30m, got '5M'"),
        ("30m1h", "expected a duration such as 30s, 5m, 2h or 1h30m, got '30m1h'"),
        ("", "expected a duration such as 30s, 5m, 2h or 1h30m, got ''"),
        ("1:30", "expected a duration such as 30s, 5m, 2h or 1h30m, got '1:30'"),
        ("٣s", "expected a duration such as 30s, 5m, 2h or 1h30m, got '٣s'"),
        (True, "expected a duration such as 30s, 5m, 2h or 1h30m, got true"),
        (None, "expected a duration such as 30s, 5m, 2h or 1h30m, got nothing"),
        ([], "expected a duration such as 30s, 5m, 2h or 1h30m, got a list"),
        (-1, "must not be negative, got -1"),
        ("4000d", "'4000d' is longer than ten years"),
        (float("inf"), "a number is too large"),
    ],
)
def test_what_is_no_duration_is_refused_in_a_sentence(written, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        units.seconds(written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("0.12/h", 0.12), ("0.002/min", 0.12), ("0.0001 / s", 0.36), (0.4, 0.4), ("1", 1.0), (0, 0.0)],
)
def test_a_price_is_read_per_hour(written, expected):
    assert units.money_per_h(written) == pytest.approx(expected)


@pytest.mark.parametrize(("written", "expected"), [("20/min", 20.0), ("1/s", 60.0), ("600/h", 10.0), (20, 20.0)])
def test_a_rate_is_read_per_minute(written, expected):
    assert units.per_minute(written) == pytest.approx(expected)


@pytest.mark.parametrize(("written", "expected"), [("95%", 0.95), (0.95, 0.95), ("0.5", 0.5), (1, 1.0), ("100 %", 1.0)])
def test_a_share_is_read_as_a_fraction(written, expected):
    assert units.share(written) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("read", "written", "sentence"),
    [
        (units.share, 95, "a share is at most 1, got 95; for percent write 95%"),
        (units.share, 0, "a share is above 0% and at most 100%, got 0"),
        (units.share, "120%", "a share is above 0% and at most 100%, got '120%'"),
        (units.share, "%", "expected a share such as 95% or 0.95, got '%'"),
        (units.money_per_h, "0.12/day", "expected a price such as 0.12/h or 0.002/min, got '0.12/day'"),
        (units.money_per_h, "-1/h", "must not be negative, got '-1/h'"),
        (units.money_per_h, "nan", "expected a price such as 0.12/h or 0.002/min, got 'nan'"),
        (units.money_per_h, float("nan"), "expected a price such as 0.12/h or 0.002/min, got nan"),
        (units.per_minute, "fast", "expected a rate such as 20/min, got 'fast'"),
        (units.per_minute, 10**400, "a number is too large"),
    ],
)
def test_other_units_refuse_in_a_sentence(read, written, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        read(written)


whole_s = st.integers(0, int(units.MAX_S)).map(float)
part_s = st.floats(0.001, 1e6).map(lambda value: round(value, 3))


@given(st.one_of(whole_s, part_s))
def test_a_written_duration_reads_back(value_s):
    assert units.seconds(units.show_seconds(value_s)) == value_s


@given(st.floats(0, 1e6).map(lambda value: round(value, 6)))
def test_a_written_price_and_rate_read_back(value):
    assert units.money_per_h(units.show_money_per_h(value)) == value
    assert units.per_minute(units.show_per_minute(value)) == value


@given(st.floats(0.0001, 1).map(lambda value: round(value, 6)))
def test_a_written_share_reads_back(value):
    assert units.share(units.show_share(value)) == value


def test_durations_are_written_as_people_write_them():
    assert [units.show_seconds(value_s) for value_s in (0, 30, 90, 5400, 86400, 0.25)] == [
        "0s",
        "30s",
        "1m30s",
        "1h30m",
        "1d",
        "0.25s",
    ]
    assert units.show_share(0.95) == "95%"
    assert units.show_money_per_h(0.12) == "0.12/h"


@given(st.sampled_from(READERS), st.one_of(st.text(max_size=80), st.integers(), st.floats(), st.none(), st.booleans()))
def test_anything_is_read_or_refused_in_one_short_line(read, written):
    try:
        value = read(written)
    except ValueError as error:
        assert len(str(error)) < 140  # noqa: PT017 - both outcomes are fine, each has its own promise
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert 0 <= value < float("inf")


@given(st.from_regex(units.DURATION_PATTERN, fullmatch=True))
def test_whatever_the_pattern_admits_is_a_duration_or_too_long(written):
    try:
        assert units.seconds(written) >= 0
    except ValueError as error:
        assert str(error).endswith(("is longer than ten years", "is too large"))  # noqa: PT017
