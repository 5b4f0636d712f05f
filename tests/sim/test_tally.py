"""Percentiles by the nearest rank."""

import random
from math import ceil

import pytest

from fleetd.sim.tally import percentile


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, 0.0), ([7.0], 0.01, 7.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), ([1.0, 2.0, 3.0, 4.0], 0.51, 3.0)],
)
def test_the_nearest_rank_is_a_value_that_was_there(values, share, expected):
    assert percentile(values, share) == expected


def test_of_a_hundred_values_the_95th_is_the_95th_in_spite_of_rounding():
    assert [percentile([float(n) for n in range(1, 101)], share) for share in (0.5, 0.95, 0.99, 1.0)] == [
        50,
        95,
        99,
        100,
    ]


def test_zeros_need_not_be_there_to_count():
    print("seed", 1)
    chance = random.Random(1)
    for _ in range(200):
        zeros, share = chance.randrange(50), chance.random()
        rest = sorted(chance.uniform(1, 2) for _ in range(chance.randrange(50)))
        whole = [0.0] * zeros + rest
        expected = whole[max(ceil(share * len(whole)), 1) - 1] if whole else 0.0
        assert percentile(rest, share, zeros) == expected
