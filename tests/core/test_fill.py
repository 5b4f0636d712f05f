"""Which pool gives, and which is let go: hand-made ticks over two pools, and whole rushes in the toy world.

`cheap` boots slowly; `fast` is up within seconds and costs more. What bad numbers could do is at the end.
"""

from dataclasses import replace
from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.codecs.lease import load_lease
from fleetd.core.decide import decide
from fleetd.core.flow import Flow
from fleetd.core.memory import Memory, Node, PoolMemory, QueueMemory
from fleetd.core.model import (
    Blind,
    Drain,
    Launch,
    LeaseView,
    Observation,
    Offer,
    Phase,
    Plan,
    Policy,
    Reading,
    Sighting,
    Stop,
    Undrain,
    Work,
    World,
)
from fleetd.errors import ProtocolError
from tests.core.world import Toy, policy, pool

NOW = 10_000.0
CHEAP, FAST = "cheap", "fast"


def two_pools(*, cheap: int = 100, fast: int = 100, service_s: float = 36_000.0) -> Policy:
    """A node of `cheap` costs a quarter. Jobs may wait 30 s and take ten hours, unless told: each needs a slot."""
    pools = (pool(CHEAP, max_nodes=cheap, price_per_h=0.25), pool(FAST, max_nodes=fast, price_per_h=1.0))
    return timed(policy(*pools), service_s)


def timed(fleet: Policy, service_s: float) -> Policy:
    return replace(fleet, queues={"resize": replace(fleet.queues["resize"], service_s=service_s)})


def node(name: str, phase: Phase = Phase.READY, *, age_s: float = 1000.0, busy: int = 1, idle_s: float = 0.0) -> Node:
    idle_at = None if busy else NOW - idle_s
    launched = NOW - age_s
    return Node(name, name.partition("/")[0], "photos", phase, launched, launched, 1, "", busy, idle_at, "", NOW - 1.0)


def remembered(*nodes: Node, waiting: int = 0, per_s: float = 0.0, **pools: PoolMemory) -> Memory:
    """A fleet whose cheap pool boots for 100 s and whose fast one for 5 s; so many wait since now, so many arrive."""
    came, three_hours_s = round(10_800.0 * per_s), 10_801.0
    marks = ((NOW - three_hours_s, 0), (NOW - 1.0, came))
    flow = Flow(1.0, came, marks, ((NOW - 1.0, waiting),) if waiting else ())
    running = sum(one.busy for one in nodes)
    queue = QueueMemory(waiting, running, NOW - 1.0, NOW - 1.0, flow=flow, told=True)
    known = {CHEAP: PoolMemory(boots_s=(100.0,) * 10), FAST: PoolMemory(boots_s=(5.0,) * 10)} | pools
    return Memory(epoch=1, now=NOW - 1.0, nodes={one.id: one for one in nodes}, pools=known, queues={"resize": queue})


def looked(
    memory: Memory,
    *,
    waiting: int = 0,
    worlds: dict[str, World | Blind] | None = None,
    running_s: tuple[float, ...] = (),
) -> Observation:
    """What is seen of it: all nodes that are ready speak, those that run something for 5 s each unless told."""
    ready = [one for one in memory.nodes.values() if one.phase in (Phase.READY, Phase.DRAINING)]
    ages = running_s or (5.0,) * sum(one.busy for one in ready)
    leases = {
        one.id: LeaseView(
            one.id, one.pool, "photos", "draining" if one.phase is Phase.DRAINING else "working", 1, one.busy,
            0.0 if one.idle_at is None else NOW - one.idle_at, 0.0,
        )
        for one in ready
    }  # fmt: skip
    seen: dict[str, World | Blind] = {
        name: World(tuple(Sighting(one.id, "up", "photos") for one in memory.nodes.values() if one.pool == name))
        for name in (CHEAP, FAST)
    }
    return Observation(
        now=NOW,
        month="2026-11",
        readings={"resize": Reading("resize", waiting, len(ages))},
        worlds=seen | (worlds or {}),
        leases=leases,
        work={"resize": Work(running_s=ages)},
    )


def ordered(plan: Plan) -> dict[str, int]:
    """How many nodes are ordered, by pool."""
    found: dict[str, int] = {}
    for intent in plan.intents:
        if isinstance(intent, Launch):
            found[intent.order.pool] = found.get(intent.order.pool, 0) + intent.order.count
    return found


def drained(plan: Plan) -> list[str]:
    return [intent.node for intent in plan.intents if isinstance(intent, Drain)]


# ── growing


@pytest.mark.parametrize(("first", "other"), [(CHEAP, FAST), (FAST, CHEAP)])
def test_the_cheapest_pool_gives_first_and_up_to_its_max(first, other):
    """Of pools that boot alike. Thirty wait for hours each: ten are there of the cheap one, the rest is dear.

    Seen to fail with the pools in the order of their names, and without the bound of max.
    """
    fleet = policy(pool(first, max_nodes=10, price_per_h=0.25), pool(other, max_nodes=100, price_per_h=1.0))
    memory = remembered(waiting=30, cheap=PoolMemory(boots_s=(5.0,) * 10))
    plan, _ = decide(looked(memory, waiting=30), timed(fleet, 36_000.0), memory)
    assert ordered(plan) == {first: 10, other: 20}


def test_the_price_is_that_of_a_slot():
    """A node of four slots for 1.0 is cheaper than one of one slot for 0.3."""
    fleet = timed(
        policy(pool(CHEAP, max_nodes=50, price_per_h=0.3), pool(FAST, max_nodes=50, price_per_h=1.0, slots=4)), 36_000.0
    )
    memory = remembered(waiting=8, cheap=PoolMemory(boots_s=(5.0,) * 10))
    plan, _ = decide(looked(memory, waiting=8), fleet, memory)
    assert ordered(plan) == {FAST: 2}


@pytest.mark.parametrize(("headroom", "cheap"), [(None, 30), (12, 12), (0, 0)])
def test_what_the_cheap_pool_cannot_give_the_dear_one_does(headroom, cheap):
    """Seen to fail with headroom taken as unknown."""
    memory = remembered(waiting=30, cheap=PoolMemory(boots_s=(5.0,) * 10))
    world = World(offer=Offer(headroom=headroom))
    plan, _ = decide(looked(memory, waiting=30, worlds={CHEAP: world}), two_pools(), memory)
    assert ordered(plan).get(CHEAP, 0) == cheap
    assert ordered(plan).get(FAST, 0) == 30 - cheap


@pytest.mark.parametrize("why", ["breaker", "blind", "drained", "held"])
def test_a_pool_that_may_not_launch_is_made_up_for(why):
    """Seen to fail with each bound taken out of `_affordable`."""
    cheap = {
        "breaker": PoolMemory(boots_s=(5.0,) * 10, failures=3, open_until=NOW + 60.0, why_open="boots fail"),
        "drained": PoolMemory(boots_s=(5.0,) * 10, drained_until=NOW + 60.0),
        "held": PoolMemory(boots_s=(5.0,) * 10, held_until=NOW + 60.0),
        "blind": PoolMemory(boots_s=(5.0,) * 10),
    }[why]
    memory = remembered(waiting=30, cheap=cheap)
    worlds: dict[str, World | Blind] = {CHEAP: Blind("time-out")} if why == "blind" else {}
    plan, _ = decide(looked(memory, waiting=30, worlds=worlds), two_pools(), memory)
    assert ordered(plan) == {FAST: 30}
    assert "limited" in plan.sentences["app photos"]


def test_after_a_breaker_one_node_tries_and_the_dear_pool_gives_the_rest():
    tried = PoolMemory(boots_s=(5.0,) * 10, failures=3, open_until=NOW - 1.0, why_open="boots fail")
    memory = remembered(waiting=30, cheap=tried)
    plan, _ = decide(looked(memory, waiting=30), two_pools(), memory)
    assert ordered(plan) == {CHEAP: 1, FAST: 29}


def test_the_fast_pool_bridges_until_the_cheap_one_is_up():
    """Forty wait, each for a slot of its own: both pools are asked for, since the cheap nodes come after the 30 s.

    Where they will be up in time the fast pool is asked for nothing. Seen to fail with nothing that is coming counted.
    """
    memory = remembered(waiting=40)
    plan, _ = decide(looked(memory, waiting=40), two_pools(), memory)
    assert ordered(plan)[FAST] == 40
    coming = [node(f"cheap/{at}", Phase.BOOTING, age_s=98.0, busy=0) for at in range(40)]
    memory = remembered(*coming, waiting=40)
    plan, _ = decide(looked(memory, waiting=40), two_pools(), memory)
    assert FAST not in ordered(plan)


def test_what_boots_too_slowly_is_bridged_once():
    """Forty wait and forty cheap nodes will come in 80 s: forty fast ones are needed, not 79."""
    coming = [node(f"cheap/{at}", Phase.BOOTING, age_s=20.0, busy=0) for at in range(40)]
    memory = remembered(*coming, waiting=40)
    plan, _ = decide(looked(memory, waiting=40), two_pools(), memory)
    assert 39 <= ordered(plan)[FAST] <= 40


def test_undrain_comes_before_launch_in_each_pool():
    """Three cheap nodes drain: they are taken back, and four are ordered for the five others.

    The last of them may still find a slot that becomes free: what is less than a whole one is put off.

    Seen to fail without `_undrain`.
    """
    nodes = [node(f"cheap/{at}", Phase.DRAINING, busy=0, age_s=500.0) for at in range(3)]
    memory = remembered(*nodes, waiting=8, cheap=PoolMemory(boots_s=(5.0,) * 10))
    plan, _ = decide(looked(memory, waiting=8), two_pools(), memory)
    assert sorted(i.node for i in plan.intents if isinstance(i, Undrain)) == ["cheap/0", "cheap/1", "cheap/2"]
    assert ordered(plan) == {CHEAP: 4}
    assert [type(i) for i in plan.intents].index(Undrain) < [type(i) for i in plan.intents].index(Launch)


# ── shrinking


def both(count: int, *, busy: int = 0, age_s: float = 1000.0) -> list[Node]:
    """So many nodes of each pool, the later the longer idle; the first `busy` of each run a job."""
    return [
        node(f"{name}/{at}", age_s=age_s, busy=int(at < busy), idle_s=500.0 + at)
        for name in (CHEAP, FAST)
        for at in range(count)
    ]


def test_the_dear_pool_drains_first_and_its_longest_idle_node_before_the_others():
    """Nine are there and five run. Seen to fail with the pools taken cheapest first, and with the idlest last."""
    nodes = [node(f"cheap/{at}") for at in range(5)]
    nodes += [node(f"fast/{at}", busy=0, idle_s=500.0 + at) for at in range(4)]
    memory = remembered(*nodes)
    plan, _ = decide(looked(memory), two_pools(), memory)
    assert drained(plan) == ["fast/3", "fast/2", "fast/1", "fast/0"]
    assert ordered(plan) == {}


def test_idle_cheap_nodes_go_once_no_dear_one_is_left():
    memory = remembered(*both(4))
    plan, _ = decide(looked(memory), two_pools(), memory)
    assert [name.split("/")[0] for name in drained(plan)] == [FAST] * 4 + [CHEAP] * 4


@pytest.mark.parametrize(("age_s", "goes"), [(599.0, False), (601.0, True)])
def test_never_inside_a_paid_minimum(age_s, goes):
    """The dear nodes are paid for ten minutes; the cheap ones may go. Seen to fail with `_may_go` always true."""
    fleet = two_pools()
    fleet = replace(fleet, pools={**fleet.pools, FAST: replace(fleet.pools[FAST], billing_minimum_s=600.0)})
    memory = remembered(*both(3, age_s=age_s))
    plan, _ = decide(looked(memory), fleet, memory)
    assert (FAST in {name.split("/")[0] for name in drained(plan)}) is goes
    assert {name.split("/")[0] for name in drained(plan)} >= {CHEAP}


def test_a_minimum_of_nodes_stays():
    fleet = two_pools()
    fleet = replace(fleet, pools={**fleet.pools, FAST: replace(fleet.pools[FAST], min_nodes=2)})
    memory = remembered(*both(3))
    plan, _ = decide(looked(memory), fleet, memory)
    assert [name for name in drained(plan) if name.startswith(FAST)] == ["fast/2"]


def test_where_nodes_can_only_go_in_an_order_the_first_of_it_is_fenced_busy_or_not():
    """Four, two run; two are over. The last ones can only go first, and they run. Without an order the idle ones go."""
    nodes = [node(f"fast/{at}", busy=int(at > 1), idle_s=500.0) for at in range(4)]
    memory = remembered(*nodes)
    plan, _ = decide(looked(memory), two_pools(), memory)
    assert sorted(drained(plan)) == ["fast/0", "fast/1"]
    names = tuple(one.id for one in nodes)
    ordinal = World(tuple(Sighting(name, "up", "photos") for name in names), goes_first=names[::-1])
    plan, _ = decide(looked(memory, worlds={FAST: ordinal}), two_pools(), memory)
    assert drained(plan) == ["fast/3", "fast/2"]


# ── whole rushes


class Rush(Toy):
    """A toy world whose cheap nodes boot for a minute and whose fast ones for a few seconds."""

    def _launch(self, order):
        self.boot_s = (55.0, 60.0) if order.pool == CHEAP else (2.0, 4.0)
        super()._launch(order)


def count_of(toy: Toy, name: str) -> int:
    return sum(1 for box in toy.boxes.values() if box.pool == name and not box.fenced)


def rush(seed: int) -> Rush:
    """Boots are known and nothing runs."""
    pools = {CHEAP: PoolMemory(boots_s=(57.0,) * 10), FAST: PoolMemory(boots_s=(3.0,) * 10)}
    return Rush(two_pools(service_s=10.0), seed, memory=Memory(epoch=1, pools=pools), service_s=(9.0, 11.0))


@pytest.mark.parametrize("seed", range(3))
def test_in_a_rush_the_fast_pool_bridges_and_drains_first(seed):
    """2/s of 10 s each for a quarter of an hour: twenty slots. Seen to fail with both pools at the same price."""
    toy, gone = rush(seed), False
    for second in range(900):
        toy.step(2)
        if second == 50:
            assert count_of(toy, FAST) >= 5  # it bridges
    assert count_of(toy, CHEAP) >= 15
    assert count_of(toy, FAST) <= 8  # what comes on top of the steady load is dear
    assert toy.waiting < 20
    for _ in range(900):
        plan = toy.step()
        gone = gone or any(i.pool == CHEAP for i in plan.intents if isinstance(i, Drain))
        assert not gone or count_of(toy, FAST) == 0
    assert not toy.boxes
    assert toy.cut_busy == []
    assert toy.memory.queues["resize"].late < 0.05 * toy.memory.queues["resize"].judged


@pytest.mark.parametrize("seed", range(3))
def test_no_tick_drains_and_undrains_in_one_pool(seed):
    """While the cheap nodes boot, the fast ones are drained and given back in every tick."""
    toy = rush(seed)
    for _ in range(200):
        plan = toy.step(2)
        back = {intent.pool for intent in plan.intents if isinstance(intent, Undrain)}
        assert not back & {intent.pool for intent in plan.intents if isinstance(intent, Drain)}


# ── numbers that cannot be


def test_what_is_no_number_is_refused_at_the_door():
    """A lease is where ages and sums come in. Seen to fail with `_number` asking for a type alone."""
    lease = (
        '{"protocol":1,"fleet":"f","pool":"p","node":"p/1","boot":"b","seq":1,"app":"a","state":"working","slots":1,'
        '"busy":0,"jobs":{"resize":{"service_s":%s,"running_s":[%s]}}}'
    )
    load_lease((lease % ("1.5", "2.5")).encode())
    for bad in ("NaN", "Infinity", "-Infinity", "-1", "1e400", "1e15"):
        for body in (lease % (bad, "1"), lease % ("1", bad)):
            with pytest.raises(ProtocolError):
                load_lease(body.encode())


SIZES = st.sampled_from([0.0, 0.0005, 1.0, 1e3, 9e14])
COUNTS = st.sampled_from([-(10**9), -1, 0, 1, 7, 10**4])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            COUNTS,
            COUNTS,
            st.lists(SIZES, max_size=4),
            SIZES,
            st.dictionaries(st.sampled_from([-9999, -4, 0, 53, 9999]), st.integers(1, 10**6), max_size=2),
            st.sampled_from([-1e6, -3.0, 0.0, 1.0, 5.0, 3600.0]),
        ),
        max_size=8,
    )
)
def test_whatever_can_come_in_leaves_finite_numbers_and_orders_within_max(ticks):
    """Negative counts, ages of millions of years, buckets beyond all, clocks that step both ways.

    Seen to fail with `bucket_of` not bounded, and with readings not clamped at zero.
    """
    memory, now, fleet = Memory(epoch=1), 1000.0, two_pools(cheap=5, fast=5, service_s=20.0)
    for waiting, running, ages, service_s, ended, step_s in [*ticks, (3, 0, [], 5.0, {53: 1}, 5.0)]:
        now += step_s
        work = Work(1, 1, 0, service_s, tuple(ages), ended)
        seen = Observation(
            now=now, readings={"resize": Reading("resize", waiting, running)}, worlds={CHEAP: World(), FAST: World()},
            work={"resize": work},
        )  # fmt: skip
        before = memory.now
        plan, memory = decide(seen, fleet, memory)
        queue = memory.queues["resize"]
        assert memory.now >= before
        assert queue.waiting >= 0
        assert queue.running >= 0
        assert queue.life.curve is not None
        numbers = (
            queue.rate.per_s,
            queue.rate.sd,
            queue.rate.slope,
            queue.need,
            queue.price_s,
            queue.judged,
            queue.late,
        )
        assert all(map(isfinite, (*numbers, queue.life.curve.mean_s, queue.life.curve.cv2, queue.life.jobs)))
        assert min(queue.rate.per_s, queue.need, queue.judged, queue.late) >= 0.0
        assert 0 <= sum(ordered(plan).values()) <= 10
        assert not [intent for intent in plan.intents if isinstance(intent, Stop)]


def test_an_age_beyond_belief_is_forgotten_with_the_next_curve():
    """One tick with a job of 30 million years among jobs of 5 s; a minute later it is as if it had not been."""
    memories = []
    for odd in (False, True):
        memory = Memory(epoch=1)
        for tick in range(200):
            ages = (9e14,) if odd and tick == 100 else (2.0,)
            work = Work(5, 5, 0, 25.0, ages, {49: 5})
            seen = Observation(now=1000.0 + tick, readings={"resize": Reading("resize", 3, 2)}, work={"resize": work})
            _, memory = decide(seen, two_pools(service_s=20.0), memory)
        memories.append(memory.queues["resize"])
    plain, odd_one = memories
    assert plain.life.curve is not None
    assert odd_one.life.curve is not None
    assert odd_one.life.curve.mean_s == pytest.approx(plain.life.curve.mean_s, rel=0.02)
    assert odd_one.need == plain.need


def test_a_reading_below_zero_is_zero():
    memory = remembered(waiting=0)
    _, after = decide(looked(memory, waiting=-5), two_pools(), memory)
    assert (after.queues["resize"].waiting, after.queues["resize"].need) == (0, 0.0)


def test_a_clock_that_stands_still_or_steps_back_judges_nothing():
    memory = remembered(waiting=50)
    for now in (NOW - 1.0, NOW - 500.0, 0.0):
        _, after = decide(replace(looked(memory, waiting=50), now=now), two_pools(), memory)
        queue = after.queues["resize"]
        assert (after.now, queue.judged, queue.late, queue.price_s) == (NOW - 1.0, 0.0, 0.0, 500.0)
