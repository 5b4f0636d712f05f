"""A row of the history comes back as it went, small, and a damaged one is told by its time."""

import json

import pytest

from fleetd.codecs.history import HistoryRow, PoolRow, QueueRow, dump_row, load_row
from fleetd.errors import ProtocolError

ROW = HistoryRow(
    1000.5,
    10.25,
    {"resize": QueueRow(7, 3, 12, 10, 8, 1, {53: 8, 57: 1}), "mail": QueueRow(blind=True)},
    {"rack": PoolRow(2, 1, 0, 1, 0, 30.75, 0.00025625), "pods": PoolRow(1)},
)


def test_a_row_comes_back_as_it_went():
    assert load_row(1000.5, dump_row(ROW)) == ROW


def test_what_is_zero_is_not_written():
    """A month of ten-second rows is kept: 300,000 of them."""
    quiet = HistoryRow(0.0, 10.0, {"resize": QueueRow(), "mail": QueueRow(running=1)}, {"rack": PoolRow()})
    assert dump_row(quiet) == '{"s":10.0,"q":{"mail":{"r":1}}}'
    assert len(dump_row(ROW)) < 200


def test_a_newer_row_reads_as_far_as_it_is_understood():
    raw = json.loads(dump_row(ROW))
    raw["later"] = 1
    raw["q"]["resize"]["later"] = 2
    assert load_row(1000.5, json.dumps(raw)) == ROW


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"s":"ten"}',
        '{"s":NaN}',
        '{"s":1e999}',
        '{"s":true}',
        '{"s":10,"q":3}',
        '{"s":10,"q":{"a":{"w":"many"}}}',
        '{"s":10,"q":{"a":{"e":{"x":1}}}}',
        '{"s":10,"q":{"a":{"e":{"9999":1}}}}',
        '{"s":10,"p":{"a":[1]}}',
    ],
)
def test_a_damaged_row_is_one_line_that_names_it(body):
    with pytest.raises(ProtocolError, match=r"^history: the row of 1000 cannot be read: ") as raised:
        load_row(1000.0, body)
    assert "\n" not in str(raised.value)


def test_no_count_is_ever_below_zero():
    row = load_row(0.0, '{"s":-1,"q":{"a":{"w":-5,"e":{"3":-2}}},"p":{"b":{"m":-1.5}}}')
    assert (row.length_s, row.queues["a"], row.pools["b"]) == (0.0, QueueRow(), PoolRow())
