"""The book of leases: what counts, what is refused, and which order a worker hears."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from fleetd.codecs.lease import JobCounts
from fleetd.control.leases import EPOCH_BITS, TTL_S, LeaseBook
from fleetd.core.memory import Node
from fleetd.core.model import Phase, Work
from fleetd.errors import ProtocolError
from tests.control.fleet import counts, lease, policy


class Clock:
    """Time as the test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Nudges:
    """How often the tick was woken."""

    count = 0

    def __call__(self) -> None:
        self.count += 1


def book(epoch: int = 1, clock: Clock | None = None, nudge: Nudges | None = None) -> LeaseBook:
    return LeaseBook(epoch, policy(), clock or Clock(), nudge or Nudges())


def node(name: str, phase: Phase) -> Node:
    return Node(name, "local", "photos", phase, since=0.0, launched_at=0.0, slots=1)


# ── what is refused


def test_a_replay_is_refused_and_changes_nothing() -> None:
    leases = book()
    leases.accept(lease(seq=1, jobs=counts(2)))
    leases.accept(lease(seq=3, busy=1, jobs=counts(5)))
    for seq in (3, 2, 1):
        with pytest.raises(ProtocolError, match=rf"seq {seq} of local/1.1 was here before \(3 is the newest\)"):
            leases.accept(lease(seq=seq, busy=0, jobs=counts(100)))
    assert leases.views()["local/1.1"].busy == 1
    assert leases.take_work()["resize"].started == 5


def test_another_fleet_is_refused() -> None:
    leases = book()
    with pytest.raises(ProtocolError, match="fleet 'other' is not served here, this is 'test'"):
        leases.accept(lease(fleet="other"))
    assert leases.views() == {}


def test_a_new_boot_begins_anew_and_the_old_one_cannot_come_back() -> None:
    leases = book()
    leases.accept(lease(seq=50, boot="a"))
    leases.accept(lease(seq=1, boot="b", busy=1))
    with pytest.raises(ProtocolError, match="has started anew"):
        leases.accept(lease(seq=51, boot="a"))
    assert leases.views()["local/1.1"].busy == 1
    leases.accept(lease(seq=2, boot="b"))


# ── counts


def test_counts_are_handed_over_once_whatever_is_sent_twice() -> None:
    leases = book()
    leases.accept(lease(seq=1, jobs=counts(3, 2, 1, 6.0)))
    with pytest.raises(ProtocolError):
        leases.accept(lease(seq=1, jobs=counts(3, 2, 1, 6.0)))
    leases.accept(lease(seq=2, jobs=counts(3, 2, 1, 6.0)))
    leases.accept(lease(seq=3, jobs=counts(4, 3, 1, 7.5)))
    assert leases.take_work() == {"resize": Work(4, 3, 1, 7.5)}
    assert leases.take_work() == {"resize": Work()}


def test_two_workers_of_one_queue_are_summed_and_what_no_queue_matches_is_left_out() -> None:
    leases = book()
    leases.accept(lease("local/1.1", jobs={"resize_a": JobCounts(1), "resize_b": JobCounts(2), "mail": JobCounts(9)}))
    leases.accept(lease("local/2.1", jobs=counts(4)))
    assert leases.take_work() == {"resize": Work(started=7)}


def test_a_worker_met_in_mid_life_brings_no_old_news() -> None:
    leases = book()
    leases.accept(lease(seq=500, jobs=counts(90, 90, 0, 900.0)))
    assert leases.take_work() == {"resize": Work()}
    leases.accept(lease(seq=501, jobs=counts(92, 91, 0, 905.0)))
    assert leases.take_work() == {"resize": Work(2, 1, 0, 5.0)}


def test_a_new_boot_counts_from_zero() -> None:
    leases = book()
    leases.accept(lease(seq=1, boot="a", jobs=counts(10)))
    leases.accept(lease(seq=1, boot="b", jobs=counts(2)))
    assert leases.take_work()["resize"].started == 12


def test_counts_that_fall_are_no_negative_work() -> None:
    leases = book()
    leases.accept(lease(seq=1, jobs=counts(10, 10)))
    leases.take_work()
    leases.accept(lease(seq=2, jobs=counts(4, 11)))
    assert leases.take_work() == {"resize": Work(0, 1)}


def test_work_that_is_given_back_comes_with_the_next() -> None:
    leases = book()
    leases.accept(lease(seq=1, jobs=counts(3, 2, 0, 5.0)))
    leases.give_back(leases.take_work())
    leases.accept(lease(seq=2, jobs=counts(4, 2, 0, 5.0)))
    assert leases.take_work() == {"resize": Work(4, 2, 0, 5.0)}


def test_ages_of_running_jobs_grow_until_the_lease_is_over() -> None:
    clock = Clock()
    leases = book(clock=clock)
    leases.accept(lease(jobs={"resize_a": JobCounts(2, running_s=[1.0, 4.0])}))
    clock.now += 3.0
    assert leases.take_work()["resize"].running_s == (4.0, 7.0)
    clock.now += TTL_S
    assert leases.take_work() == {}


# ── drained


def test_drained_counts_only_once_the_newest_order_was_heard() -> None:
    leases = book()
    leases.accept(lease(seq=1, state="drained", order=0))
    assert leases.views()["local/1.1"].state == "draining", "of the order before"
    leases.order("local/1.1", "drain")
    newest = leases.entries["local/1.1"].order.number
    leases.accept(lease(seq=2, state="drained", order=newest - 1))
    assert leases.views()["local/1.1"].state == "draining"
    leases.accept(lease(seq=3, state="drained", order=newest))
    assert leases.views()["local/1.1"].state == "drained"
    leases.order("local/1.1", "work")
    assert leases.views()["local/1.1"].state == "draining", "a later order makes the claim old"


# ── orders


def test_numbers_of_a_later_epoch_are_above_all_of_an_earlier_one() -> None:
    early, late = book(epoch=3), book(epoch=4)
    for _ in range(100):
        early.order("local/1.1", "drain")
    late.adopt({"local/1.1": node("local/1.1", Phase.READY)})
    assert early.entries["local/1.1"].order.number == (3 << EPOCH_BITS) + 100
    assert late.entries["local/1.1"].order.number > early.entries["local/1.1"].order.number
    assert late.entries["local/1.1"].order.epoch == 4


async def test_a_worker_that_heard_later_orders_than_we_remember_is_outnumbered() -> None:
    leases = book(epoch=1)
    leases.order("local/1.1", "drain", 5.0)
    heard = 9 << EPOCH_BITS
    leases.accept(lease(order=heard, state="drained"))
    assert leases.views()["local/1.1"].state == "draining"
    order = await leases.wait("local/1.1", heard, 1.0)
    assert order
    assert (order.number, order.state, order.deadline_s) == (heard + 1, "drain", 5.0)


async def test_a_worker_of_a_pool_that_is_not_in_the_policy_is_told_to_end() -> None:
    leases = book()
    leases.accept(lease("gone/1.1"))
    order = await leases.wait("gone/1.1", 0, 1.0)
    assert order
    assert order.state == "stop"
    leases.accept(lease("gone/1.1", 2, order=order.number))
    assert leases.entries["gone/1.1"].order == order, "once"


def test_adopting_says_anew_what_each_node_should_do() -> None:
    leases = book(epoch=2)
    leases.adopt({str(phase): node(str(phase), phase) for phase in Phase})
    said = {name: (entry.order.state, entry.order.deadline_s) for name, entry in leases.entries.items()}
    work, drain = ("work", None), ("drain", 60.0)
    assert said == {str(phase): work for phase in Phase} | {
        "draining": drain,
        "stopping": drain,
        "quarantined": ("drain", None),
    }


async def test_a_long_poll_wakes_at_once() -> None:
    leases = book()
    leases.order("local/1.1", "work")
    number = leases.entries["local/1.1"].order.number
    polls = [asyncio.create_task(leases.wait("local/1.1", number, 20.0)) for _ in range(2)]
    await asyncio.sleep(0.01)
    started = time.monotonic()
    leases.order("local/1.1", "drain", 7.0)
    for order in await asyncio.gather(*polls):
        assert order
        assert (order.number, order.state, order.deadline_s) == (number + 1, "drain", 7.0)
    assert time.monotonic() - started < 0.5


async def test_an_order_that_was_given_before_the_poll_is_told_at_once_the_newest_alone() -> None:
    leases = book()
    leases.order("local/1.1", "drain")
    leases.order("local/1.1", "work")
    order = await leases.wait("local/1.1", 0, 20.0)
    assert order
    assert order.state == "work"


async def test_a_long_poll_without_news_ends_with_none_in_time() -> None:
    leases = book()
    leases.order("local/1.1", "work")
    started = time.monotonic()
    assert await leases.wait("local/1.1", leases.entries["local/1.1"].order.number, 0.05) is None
    assert 0.04 < time.monotonic() - started < 1.0


async def test_orders_of_another_node_do_not_end_a_poll() -> None:
    leases = book()
    poll = asyncio.create_task(leases.wait("local/1.1", 1 << EPOCH_BITS, 0.1))
    await asyncio.sleep(0.01)
    leases.order("local/2.1", "drain")
    assert await poll is None


async def test_letting_go_ends_every_poll() -> None:
    leases = book()
    polls = [asyncio.create_task(leases.wait(f"local/{at}.1", 1 << EPOCH_BITS, 20.0)) for at in range(3)]
    await asyncio.sleep(0.01)
    leases.let_go()
    async with asyncio.timeout(1.0):
        assert await asyncio.gather(*polls) == [None] * 3


async def test_a_cancelled_poll_leaves_the_next_one_whole() -> None:
    leases = book()
    poll = asyncio.create_task(leases.wait("local/1.1", 1 << EPOCH_BITS, 20.0))
    await asyncio.sleep(0.01)
    poll.cancel()
    await asyncio.gather(poll, return_exceptions=True)
    leases.order("local/1.1", "drain")
    assert await leases.wait("local/1.1", 1 << EPOCH_BITS, 1.0) is not None


# ── the tick


def test_what_changes_a_decision_wakes_the_tick_and_nothing_else() -> None:
    nudge = Nudges()
    leases = book(nudge=nudge)
    seen: list[int] = []
    stages: tuple[dict[str, Any], ...] = (
        {},
        {},
        {"busy": 1},
        {"busy": 1},
        {"busy": 0},
        {"state": "drained"},
        {"state": "drained"},
    )
    for changes in stages:
        leases.accept(lease(seq=len(seen) + 1, **changes))
        seen.append(nudge.count)
    assert seen == [1, 1, 2, 2, 3, 4, 4]


def test_views_tell_the_age() -> None:
    clock = Clock()
    leases = book(clock=clock)
    leases.accept(replace(lease(), slots=4, busy=3, idle_s=2.0, digest="d"))
    clock.now += 4.0
    view = leases.views()["local/1.1"]
    assert (view.age_s, view.slots, view.busy, view.idle_s, view.digest) == (4.0, 4, 3, 2.0, "d")


def test_the_unknown_and_unheard_are_forgotten_the_known_are_not() -> None:
    clock = Clock()
    leases = book(clock=clock)
    leases.accept(lease("local/1.1"))
    leases.accept(lease("local/2.1"))
    known = {"local/1.1": node("local/1.1", Phase.LOST)}
    leases.forget(known)
    assert set(leases.entries) == {"local/1.1", "local/2.1"}
    clock.now += 10 * TTL_S + 1
    leases.forget(known)
    assert set(leases.entries) == {"local/1.1"}


# ── machines that go by themselves


def test_a_machine_that_goes_by_itself_is_said_and_wakes_the_tick_once() -> None:
    nudges: list[int] = []
    leases = LeaseBook(1, policy(), lambda: 0.0, lambda: nudges.append(1))
    leases.accept(lease(seq=1))
    assert leases.views()["local/1.1"].leaving == ""
    before = len(nudges)
    leases.accept(lease(seq=2, leaving="spot interruption", leaving_s=118.4))
    leases.accept(lease(seq=3, leaving="spot interruption", leaving_s=116.4))
    assert len(nudges) == before + 1
    assert leases.views()["local/1.1"].leaving == "spot interruption, 116 s left"
    leases.accept(lease(seq=4, leaving="rebalance recommendation"))
    assert leases.views()["local/1.1"].leaving == "rebalance recommendation"
