"""The table of moves, and the drawing made from it."""

import pytest

from fleetd.core import lifecycle
from fleetd.core.lifecycle import MOVES, Event, move
from fleetd.core.memory import Node
from fleetd.core.model import Phase
from scripts import moves


def node(phase: Phase) -> Node:
    return Node("local/1.2", "local", "photos", phase, since=1.0, launched_at=1.0, slots=1)


def test_every_living_phase_has_a_way_out_and_a_way_to_stopping():
    """No state is a trap: whatever a node is in, it can be stopped, and it can be found gone."""
    for phase in set(Phase) - {Phase.GONE, Phase.STOPPING}:
        assert (phase, Event.STOP) in MOVES
        assert (phase, Event.VANISHED) in MOVES


def test_a_move_that_is_not_in_the_table_raises():
    with pytest.raises(KeyError):
        move(node(Phase.STOPPING), Event.UNFENCE, 2.0)


def test_a_move_sets_phase_moment_and_reason():
    moved = move(node(Phase.READY), Event.FENCE, 7.0, "the rush is over")
    assert (moved.phase, moved.since, moved.reason) == (Phase.DRAINING, 7.0, "the rush is over")
    assert move(node(Phase.BOOTING), Event.LEASED, 7.0).reason == MOVES[Phase.BOOTING, Event.LEASED][1]


def test_no_phase_is_both_serving_and_coming():
    assert not lifecycle.SERVING & lifecycle.COMING


def test_the_architecture_draws_the_table_as_it_is():
    """`make docs` renews it."""
    text = moves.DOC.read_text()
    assert moves.renewed(text) == text
