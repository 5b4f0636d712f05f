import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.boot.ranges import UnsatisfiableError, chosen


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=10-", (10, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=5-100000", (5, 100)),
        ("Bytes=5-6 ", (5, 7)),
        ("", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=6-5", None),
        ("bytes=0-1,5-6", None),  # several: all of it is a right answer, too
        ("bytes=a-b", None),
        ("bytes=٣-٤", None),
        ("lines=0-5", None),
        ("bytes=99999999999999999999-", None),
    ],
)
def test_a_range_is_what_it_says(header: str, part: tuple[int, int] | None) -> None:
    assert chosen(header, 100) == part


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_a_range_behind_the_end_is_told(header: str, size: int) -> None:
    with pytest.raises(UnsatisfiableError):
        chosen(header, size)


@given(
    st.one_of(st.text(max_size=40), st.from_regex(r"bytes=\d{0,20}-\d{0,20}", fullmatch=True)), st.integers(0, 10**12)
)
def test_whatever_the_header_says_the_part_is_within_the_file(header: str, size: int) -> None:
    try:
        part = chosen(header, size)
    except UnsatisfiableError:
        return
    assert part is None or 0 <= part[0] < part[1] <= size
