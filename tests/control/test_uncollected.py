"""The collector rests during a decision, and only then."""

import gc

import pytest

from fleetd.control.uncollected import uncollected
from fleetd.core.decide import decide
from fleetd.core.memory import Memory
from fleetd.core.model import Observation, Reading
from tests.core.world import policy


def test_the_collector_rests_while_many_values_are_made_and_is_back_afterwards():
    """Seen to fail with the collector left on."""
    seen: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        seen.append(phase)

    gc.callbacks.append(note)
    try:
        with uncollected():
            kept = [[number] for number in range(100_000)]
            assert not seen
    finally:
        gc.callbacks.remove(note)
    assert gc.isenabled()
    assert len(kept) == 100_000


def test_it_is_back_after_an_error_too():
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_who_has_it_off_keeps_it_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_decision_leaves_nothing_to_collect():
    """That is what makes the rest safe. Seen to fail with a plan's sentences that refer to their plan."""
    memory, rules = Memory(epoch=1), policy()
    gc.collect()
    gc.disable()
    try:
        for tick in range(50):
            seen = Observation(now=1000.0 + tick, readings={"resize": Reading("resize", tick, 0)})
            plan, memory = decide(seen, rules, memory)
            assert plan.sentences["app photos"]
        del plan, seen
        assert gc.collect() == 0
    finally:
        gc.enable()
