"""The shared cell and the sums made of it."""

import os
import time
from dataclasses import replace

import pytest

from fleetd.codecs.lease import JobCounts
from fleetd.worker.attempts import Attempts, Totals, describe
from fleetd.worker.cell import INLINE, Cell, State, Want, make_cell


def _begin(cell: Cell, payload: bytes = b"p", row: int = 1) -> float:
    start = time.monotonic()
    cell.begin(row, 0, (b"H:1", b"u"), payload, start, 2.0)
    return start


def test_the_supervisors_mapping_sees_what_the_slot_writes() -> None:
    ours = make_cell(2)
    theirs = Cell(os.dup(ours.fd), 2)
    start = _begin(theirs, b"payload")
    job = ours.running()
    assert job is not None
    assert (job.row, job.link, job.handle, job.unique, job.limit_s, job.start) == (1, 0, b"H:1", b"u", 2.0, start)
    assert ours.payload() == b"payload"
    theirs.answering()
    assert ours.running() is None
    theirs.end(start, start + 0.9, done=True)
    assert ours.state is State.IDLE
    counts = ours.counts(1)
    assert counts.service_s == pytest.approx(0.9)
    assert replace(counts, service_s=0.0) == JobCounts(1, 1, 0, 0.0, {"39": 1})
    assert ours.counts(0) == JobCounts()
    ours.want(7, Want.FENCE)
    assert theirs.order() == (7, Want.FENCE)
    assert not theirs.may_grab()
    theirs.acknowledge(7)
    assert ours.acknowledged == 7
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [0, INLINE, INLINE + 1, 3_000_000])
def test_a_payload_of_any_size_can_be_read_after_the_slots_death(size: int) -> None:
    cell = make_cell(2)
    payload = os.urandom(size)
    start = _begin(cell, payload)
    assert cell.payload() == payload
    cell.answering()
    cell.end(start, start, done=True)
    assert os.fstat(cell.fd).st_size < 64 * 1024, "the memory of a large payload is given back"
    cell.close()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, (0, 0, 0)), (1, (1, 0, 1)), (2, (1, 1, 0)), (3, (1, 1, 0))],
    ids=["before", "busy", "answering", "after"],
)
def test_counts_are_whole_wherever_the_slot_died(steps: int, expected: tuple[int, int, int]) -> None:
    cell = make_cell(2)
    if steps > 0:
        start = _begin(cell)
    if steps > 1:
        cell.answering()
    if steps > 2:
        cell.end(start, start + 0.001, done=True)
    totals = Totals()
    totals.fold(cell, ("a", "b"))
    counts = totals.jobs["b"]
    assert (counts.started, counts.done, counts.failed) == expected
    cell.close()


def test_attempts_forget_the_longest_untouched() -> None:
    attempts = Attempts(most=2)
    keys = [("f", b"u", b"H:%d" % at) for at in range(3)]
    assert attempts.add(keys[0]) == 1
    assert attempts.add(keys[1]) == 1
    assert attempts.add(keys[0]) == 2
    attempts.add(keys[2])
    assert attempts.add(keys[0]) == 3
    assert attempts.add(keys[1]) == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exit code 0"), (-9, "SIGKILL; out of memory?"), (-11, "signal 11 (SIGSEGV)"), (-40, "signal 40")],
)
def test_ends_are_described(code: int, words: str) -> None:
    assert words in describe(code)
