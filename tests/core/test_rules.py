"""The rules of the design that the core can break, each as a property over random worlds.

Each was seen to fail with its rule broken in the code; the docstring says how. A failing example prints its seed.
"""

from dataclasses import replace

import pytest
from hypothesis import Phase as HPhase
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleetd.core.decide import decide, resume
from fleetd.core.memory import Memory, Node
from fleetd.core.model import (
    Blind,
    BudgetPolicy,
    Drain,
    DrainAllCommand,
    DrainCommand,
    HoldCommand,
    Launch,
    LimitsPolicy,
    Observation,
    PauseCommand,
    Phase,
    Plan,
    QuarantineCommand,
    Stop,
    Undrain,
    WakeCommand,
)
from tests.core.world import Box, Toy, blind_policy, policy, pool, spent

SEEDS = st.integers(0, 2**32)
ARRIVALS = st.lists(st.integers(0, 12), min_size=20, max_size=50)
# No shrinking: a failing world is named by its seed, and a broken rule must show within seconds.
fast = settings(max_examples=15, deadline=None, phases=(HPhase.explicit, HPhase.reuse, HPhase.generate))


def run(toy: Toy, arrivals: list[int], quiet_s: int = 0) -> list[Plan]:
    plans = [toy.step(n) for n in arrivals]
    plans += [toy.step() for _ in range(quiet_s)]
    return plans


def settle(toy: Toy) -> None:
    """Let the world run until every job is done, and then for as long as scale-in may take."""
    for _ in range(5000):
        if not toy.waiting and not any(box.jobs for box in toy.boxes.values()):
            break
        toy.step()
    run(toy, [0] * 600)


@fast
@given(SEEDS, ARRIVALS, st.integers(0, 40), st.integers(30, 90))
def test_blind_source_never_scales_in_and_never_to_max(seed, arrivals, quiet_s, blind_s):
    """Rule 1. Seen to fail with a Blind reading folded in as zero waiting."""
    toy = Toy(policy(), seed)
    run(toy, arrivals, quiet_s)
    need = toy.memory.queues["resize"].need
    toy.blind_until = toy.now + blind_s + 1
    before = sum(1 for box in toy.boxes.values() if not box.fenced)
    for _ in range(blind_s):
        plan = toy.step()
        assert not [i for i in plan.intents if isinstance(i, Drain)]
        assert toy.memory.queues["resize"].need == need
    slots = sum(1 for box in toy.boxes.values() if not box.fenced)
    assert before <= slots <= max(before, int(need) + 1)


def test_idle_nodes_stay_while_blind_and_go_once_it_sees_again():
    """Rule 1. The rush is over and scale-in is due when the source goes blind.

    Seen to fail with `_frozen` returning nothing.
    """
    toy = Toy(policy(), 1, service_s=(2.0, 3.0), boot_s=(1.0, 2.0))
    run(toy, [9] * 3)
    while toy.waiting or any(box.jobs for box in toy.boxes.values()):
        toy.step()
    count = len(toy.boxes)
    toy.blind_until = toy.now + 101
    plans = run(toy, [0] * 100)
    assert not [i for plan in plans for i in plan.intents if isinstance(i, Drain)]
    assert len(toy.boxes) == count > 1
    assert "not scaling in: resize is blind (connection refused)" in plans[-1].sentences["app photos"]
    run(toy, [0] * 60)
    assert not toy.boxes


def test_blind_source_falls_back_as_declared_after_its_grace():
    """Rule 1, the fallback. Seen to fail with `_given_up` always False."""
    toy = Toy(policy(sources=blind_policy(30.0, "min")), 1)
    run(toy, [5] * 20)
    toy.blind_until = toy.now + 1000
    held = [toy.step() for _ in range(30)]
    assert not [i for plan in held for i in plan.intents if isinstance(i, Drain)]
    run(toy, [0] * 120)
    assert not [box for box in toy.boxes.values() if not box.fenced]


def test_blind_world_launches_nothing_and_moves_no_node():
    """Rule 1 for providers. Seen to fail with the bound for a blind world taken out of `_affordable`."""
    toy = Toy(policy(pool(max_nodes=500)), 3)
    run(toy, [3] * 30)
    toy.waiting += 300
    seen = replace(toy.observe(), now=toy.now + 1, worlds={"local": Blind("time-out")}, outcomes=())
    plan, after = decide(seen, toy.policy, toy.memory)
    assert after.queues["resize"].need > len(toy.boxes) * 1.5
    assert not [i for i in plan.intents if isinstance(i, Launch)]
    assert set(after.nodes) == set(toy.memory.nodes)
    assert "pool local: cannot be seen, holding: time-out" in plan.events
    assert (after.pools["local"].blind_at, after.pools["local"].why_blind) == (toy.now + 1, "time-out")


@fast
@given(SEEDS, ARRIVALS)
def test_booting_counts_as_capacity_so_that_a_burst_is_ordered_once(seed, arrivals):
    """Rule 2. Seen to fail with COMING taken out of `counts`."""
    toy = Toy(policy(pool(max_nodes=500)), seed, boot_s=(50.0, 60.0))
    for n in arrivals:
        plan = toy.step(n)
        ordered = sum(i.order.count for i in plan.intents if isinstance(i, Launch))
        need = toy.memory.queues["resize"].need
        assert ordered == 0 or len(toy.boxes) <= need + 1


def test_undrain_comes_before_launch():
    """Rule 2. Two drain, one of them by an operator; three slots are wanted: one is un-drained, two are launched.

    Seen to fail without `_undrain`, and with pinned nodes un-drained.
    """
    toy = Toy(policy(), 1)
    toy.waiting = 3
    for at, pinned in ((1, False), (2, True)):
        name = f"local/{at}"
        node = Node(name, "local", "photos", Phase.DRAINING, 900.0, 900.0, 1, heard_at=1000.0, pinned=pinned)
        toy.boxes[name] = Box(name, "local", "", 1, 0.0, 0.0, fenced=True, jobs=[9999.0])
        toy.memory = replace(toy.memory, nodes={**toy.memory.nodes, name: node})
    toy.policy = replace(toy.policy, queues={"resize": replace(toy.policy.queues["resize"], service_s=600.0)})
    plan = toy.step()
    assert toy.memory.queues["resize"].need == 3.0  # those that wait: who runs already drains with its slot
    assert [i.node for i in plan.intents if isinstance(i, Undrain)] == ["local/1"]
    assert [i.order.count for i in plan.intents if isinstance(i, Launch)] == [2]


@fast
@given(SEEDS, ARRIVALS, st.booleans())
def test_nothing_busy_is_ever_stopped(seed, arrivals, wild):
    """Rule 3. Seen to fail with `_stop` taking every DRAINING node, whatever its lease says."""
    toy = Toy(policy(pool(), pool("other", price_per_h=0.1)), seed)
    if wild:
        toy.wild()
    run(toy, arrivals)
    settle(toy)
    assert toy.cut_busy == []


def test_only_force_stops_a_busy_node():
    """Rule 3. The operator's force is the one exception; a plain drain waits. Seen to fail with `force` ignored."""
    toy = Toy(policy(), 1, service_s=(500.0, 500.0), boot_s=(1.0, 1.0))
    run(toy, [1, 0, 0, 0, 0, 0])
    (name,) = toy.boxes
    assert toy.boxes[name].jobs
    gentle = [toy.step(commands=(DrainCommand("local", name),)), toy.step(), toy.step()]
    assert not [i for plan in gentle for i in plan.intents if isinstance(i, Stop)]
    plan = toy.step(commands=(DrainCommand("local", name, force=True),))
    assert [i.nodes for i in plan.intents if isinstance(i, Stop)] == [(name,)]


@pytest.mark.parametrize(("most", "replaced"), [(4, 0), (10, 1)])
def test_lost_node_is_no_capacity_yet_counts_against_max(most, replaced):
    """Rule 4. Four jobs run on four nodes and one falls silent: it is replaced where max allows, and comes back.

    Seen to fail with LOST added to SERVING, and with `held` leaving lost nodes out.
    """
    toy = Toy(policy(pool(max_nodes=most)), 1, service_s=(3000.0, 3001.0), boot_s=(1.0, 1.0))
    run(toy, [4, *[0] * 40])
    ready = [n for n in toy.memory.nodes.values() if n.phase is Phase.READY]
    assert len(ready) == 4
    lost = toy.boxes[ready[0].id]
    lost.silent_until = toy.now + 30
    run(toy, [0] * 20)
    assert toy.memory.nodes[lost.name].phase is Phase.LOST
    assert len(toy.boxes) == 4 + replaced
    run(toy, [0] * 20)
    assert toy.memory.nodes[lost.name].phase is not Phase.LOST


def test_an_outage_of_the_controller_makes_no_node_lost():
    """Rule 4. Seen to fail with `resume` leaving `heard_at` as it was."""
    toy = Toy(policy(), 5)
    run(toy, [3] * 30)
    ready = {n.id for n in toy.memory.nodes.values() if n.phase is Phase.READY}
    assert ready
    later = toy.now + 3600.0
    memory = resume(toy.memory, later)
    seen = replace(toy.observe(), now=later, leases={}, readings={"resize": Blind("not read yet")})
    plan, after = decide(seen, toy.policy, memory)
    assert {n.id for n in after.nodes.values() if n.phase is Phase.READY} == ready
    assert plan.intents == ()


@fast
@given(SEEDS, ARRIVALS, st.floats(0.05, 1.0))
def test_no_rolling_hour_costs_more_than_the_budget(seed, arrivals, hour):
    """Rule 5. Seen to fail with the budget's bound taken out of `_affordable`, and without `_mind_budget`."""
    dear = pool("dear", price_per_h=1.0, billing_minimum_s=60.0)
    toy = Toy(policy(dear, budget=BudgetPolicy(hour=hour)), seed, service_s=(1.0, 59.0), boot_s=(1.0, 25.0))
    for _ in range(4):
        run(toy, arrivals * 2, quiet_s=20)
    assert spent(toy) <= hour
    assert toy.cut_busy == []


def test_unbounded_jobs_are_refused_on_budgeted_pools():
    """Rule 5. What has no job limit could cost anything. Seen to fail with a missing limit taken as zero seconds."""
    fleet = policy(pool(price_per_h=0.01), budget=BudgetPolicy(hour=1000.0))
    fleet = replace(fleet, queues={"resize": replace(fleet.queues["resize"], job_limit_s=None)})
    toy = Toy(fleet, 1)
    plan = toy.step(5)
    assert plan.intents == ()
    assert "limited by the budget" in plan.sentences["app photos"]


@fast
@given(SEEDS, ARRIVALS, st.integers(1, 6), st.integers(0, 3))
def test_max_is_never_passed_and_min_is_held(seed, arrivals, most, least):
    """Precedence max > min. Seen to fail with `held` counting ready nodes only."""
    least = min(least, most)
    toy = Toy(policy(pool(min_nodes=least, max_nodes=most)), seed)
    for n in arrivals:
        toy.step(n)
        assert len(toy.boxes) <= most
    run(toy, [0] * 150)
    assert sum(1 for b in toy.boxes.values() if not b.fenced) >= least


@fast
@example(seed=1, arrivals=[5] * 20, crash_at=1)
@given(SEEDS, ARRIVALS, st.integers(0, 89))
def test_a_restart_neither_doubles_nor_leaks_a_node(seed, arrivals, crash_at):
    """Rule 6. The controller dies after acting and before it learns the outcome: the order is known, its answer lost.

    Seen to fail with `_take_world` not clearing an order whose nodes are all there (it counted as unanswered), and
    with strays not adopted (they leaked).
    """
    toy = Toy(policy(pool(max_nodes=60)), seed, boot_s=(30.0, 40.0))
    for at, n in enumerate(arrivals):
        if at == crash_at % len(arrivals):
            toy.outcomes = []
            toy.memory = resume(toy.memory, toy.now)
        toy.step(n)
        assert len(toy.boxes) <= max(60, toy.memory.queues["resize"].need + 1)
    plans = run(toy, [0] * 45)
    assert set(toy.boxes) <= set(toy.memory.nodes)
    assert not [event for plan in plans for event in plan.events if "was not answered" in event]
    settle(toy)
    assert not [box for box in toy.boxes.values() if not box.fenced], "leaked"


def test_strays_are_adopted_and_drained_when_not_needed():
    """Rule 6. Memory is lost whole; the nodes are still found. Seen to fail with `_adopt` not called."""
    toy = Toy(policy(), 8)
    run(toy, [5] * 30)
    toy.memory = Memory(epoch=9)
    toy.step()
    assert set(toy.memory.nodes) == set(toy.boxes)
    settle(toy)
    assert not [box for box in toy.boxes.values() if not box.fenced]


def test_a_wedged_pool_does_not_stall_another():
    """Rule 7. Orders to `cheap` are never answered; `dear` takes over once the order's deadline is past.

    Seen to fail with an unanswered order that opens no breaker.
    """
    toy = Toy(policy(pool("cheap"), pool("dear", price_per_h=1.0)), 4, wedged=frozenset({"cheap"}))
    run(toy, [2] * 33)
    assert toy.memory.pools["cheap"].open_until > toy.now
    assert {box.pool for box in toy.boxes.values()} == {"dear"}


@fast
@given(SEEDS, ARRIVALS)
def test_same_input_same_plan_and_every_intent_has_a_reason(seed, arrivals):
    """Rule 9. Seen to fail with a set iterated into the plan, and with a Launch of an empty reason."""
    toy = Toy(policy(pool(), pool("other", price_per_h=0.1)), seed).wild()
    run(toy, arrivals)
    seen = toy.observe()
    seen = replace(seen, now=seen.now + 1)
    first = decide(seen, toy.policy, toy.memory)
    assert first == decide(seen, toy.policy, toy.memory)
    assert all(intent.reason for intent in first[0].intents)
    assert first[0].sentences["app photos"].startswith("needs ")


@pytest.mark.parametrize("wall", [float("-1e9"), 0.0])
def test_a_clock_that_steps_back_moves_nothing_back(wall):
    """What the policy engine is told never runs backwards. Seen to fail with `max` taken out of `begin`."""
    toy = Toy(policy(), 2)
    run(toy, [3] * 10)
    _, after = decide(replace(toy.observe(), now=wall), toy.policy, toy.memory)
    assert after.now == toy.memory.now


def test_a_held_pool_is_left_as_it_is_and_moves_again_by_itself():
    """`hold`. Seen to fail with `Pen.still` not asked in `_affordable`, and not in `_shrink`."""
    toy = Toy(policy(), 12, service_s=(2.0, 3.0), boot_s=(1.0, 2.0))
    run(toy, [4] * 5)
    toy.step(commands=(HoldCommand("local", 60.0),))
    count = len(toy.boxes)
    plans = run(toy, [40] * 20 + [0] * 38)
    assert len(toy.boxes) == count
    assert "limited: local is held by an operator for" in plans[5].sentences["app photos"]
    assert not [i for plan in plans for i in plan.intents]
    settle(toy)
    assert not toy.boxes


def test_a_paused_fleet_begins_nothing_and_obeys_its_operator():
    """`pause`. Seen to fail with `paused` left out of `Pen.still`."""
    toy = Toy(policy(), 13, service_s=(30.0, 40.0), boot_s=(1.0, 2.0))
    run(toy, [2] * 2)
    toy.step(commands=(PauseCommand(paused=True),))
    count = len(toy.boxes)
    plans = run(toy, [9] * 20)
    assert len(toy.boxes) == count < 10
    assert not [i for plan in plans for i in plan.intents]
    name = next(iter(toy.boxes))
    plan = toy.step(commands=(DrainCommand("local", name),))
    assert [i.node for i in plan.intents if isinstance(i, Drain)] == [name]
    toy.step(commands=(PauseCommand(paused=False),))
    assert len(toy.boxes) > count


def test_a_quarantined_node_is_fenced_alive_no_capacity_and_counts_against_max():
    """`quarantine`. Seen to fail with QUARANTINED added to SERVING, and with `_stop` taking quarantined nodes."""
    toy = Toy(policy(pool(max_nodes=2)), 14, service_s=(3000.0, 3000.0), boot_s=(1.0, 1.0))
    run(toy, [2] * 2 + [0] * 6)
    name = next(iter(toy.boxes))
    toy.step(commands=(QuarantineCommand("local", name),))
    toy.boxes[name].jobs = []
    run(toy, [3] * 30)
    assert toy.memory.nodes[name].phase is Phase.QUARANTINED
    assert (toy.boxes[name].fenced, len(toy.boxes)) == (True, 2)
    assert toy.memory.nodes[name].pinned is False
    toy.step(commands=(QuarantineCommand("local", name, free=True),))
    assert (toy.memory.nodes[name].phase, toy.boxes[name].fenced) == (Phase.READY, False)
    toy.step(commands=(QuarantineCommand("local", name),))
    toy.boxes[name].jobs = []
    run(toy, [0] * 2)
    toy.step(commands=(DrainCommand("local", name),))
    run(toy, [0] * 8)
    assert name not in toy.boxes


def test_a_word_from_before_the_fence_stops_nothing():
    """Rule 3. A node is freed from quarantine and is over at once; its lease still says drained, of the old fence.

    Seen to fail with `_stop` not asking when the node was fenced.
    """
    toy = Toy(policy(), 16, boot_s=(1.0, 1.0))
    toy.step(commands=(WakeCommand("local", 1, 5.0),))
    run(toy, [0] * 4)
    (name,) = toy.boxes
    toy.step(commands=(QuarantineCommand("local", name),))
    run(toy, [0] * 20)
    plan = toy.step(commands=(QuarantineCommand("local", name, free=True),))
    assert [type(i).__name__ for i in plan.intents] == ["Undrain", "Drain"]
    assert [type(i).__name__ for i in toy.step().intents] == ["Stop"]


def test_a_pool_that_is_only_watched_does_nothing_and_says_what_it_would():
    """`act: false`. Seen to fail with `act` left out of `Pen.still`, and out of `_obey`."""
    toy = Toy(policy(pool(act=False, min_nodes=2)), 15)
    plans = run(toy, [3] * 20)
    assert not toy.boxes
    assert "limited: local is only watched (act: true lets it act); would launch" in plans[-1].sentences["app photos"]
    toy.boxes["local/7"] = Box("local/7", "local", "", 1, 0.0, 0.0)
    plans = run(toy, [0] * 200)
    plan = toy.step(commands=(DrainAllCommand(),))
    assert not [i for p in (*plans, plan) for i in p.intents]


def test_ramp_limits_hold():
    """Launches per minute. Seen to fail with `launches_left` not counted down."""
    pools = (pool(max_nodes=3), pool("other", max_nodes=100, price_per_h=1.0))
    toy = Toy(policy(*pools, limits=LimitsPolicy(launches_per_min=5)), 6, service_s=(50, 60))
    run(toy, [20] * 60)
    assert len(toy.boxes) == 5


def test_wake_holds_nodes_up_and_ends_by_itself():
    """An operator's wake. Seen to fail with `floor_of` ignoring wakes."""
    toy = Toy(policy(), 7)
    toy.step(commands=(WakeCommand("local", 2, 60.0),))
    run(toy, [0] * 40)
    assert sum(1 for b in toy.boxes.values() if not b.fenced) == 2
    run(toy, [0] * 120)
    assert not toy.boxes


def test_a_node_whose_machine_goes_by_itself_is_fenced_and_replaced_in_the_same_tick():
    """A spot instance's notice. Seen to fail with `leaving` not looked at in `_obey`."""
    toy = Toy(policy(pool(min_nodes=2)), 8, boot_s=(1.0, 2.0))
    run(toy, [0] * 10)
    first, other = sorted(toy.boxes)
    toy.boxes[first].leaving = "spot interruption, 118 s left"
    plan = toy.step()
    (drain,) = [intent for intent in plan.intents if isinstance(intent, Drain)]
    assert (drain.node, drain.reason) == (first, "its machine goes: spot interruption, 118 s left")
    assert [intent.order.count for intent in plan.intents if isinstance(intent, Launch)] == [1]
    plans = run(toy, [0] * 20)
    assert not [i for plan in plans for i in plan.intents if isinstance(i, Launch | Undrain)], "once, and for good"
    assert first not in toy.boxes
    assert len(toy.boxes) == 2
    assert other in toy.boxes


def test_the_fleet_ends_and_launches_nothing_more():
    """`--drain`. Seen to fail with `ending` not looked at in `fill`."""
    toy = Toy(policy(pool(min_nodes=1)), 9)
    run(toy, [6] * 20)
    toy.step(commands=(DrainAllCommand(),))
    plans = run(toy, [6] * 150)
    assert not toy.boxes
    assert not [i for plan in plans for i in plan.intents if isinstance(i, Launch)]
    assert toy.cut_busy == []


def test_the_dearest_goes_first():
    """Scale-in order. Seen to fail with the sort key's sign turned."""
    cheap, dear = pool("cheap", price_per_h=0.1), pool("dear", price_per_h=1.0)
    toy = Toy(policy(cheap, dear), 10, service_s=(5.0, 6.0), boot_s=(1.0, 2.0))
    run(toy, [12] * 30)
    assert {b.pool for b in toy.boxes.values()} == {"cheap", "dear"}
    drained = []
    for _ in range(700):
        drained += [(toy.now, i.pool, i.node) for i in toy.step().intents if isinstance(i, Drain)]
    dears = [at for at, name, _ in drained if name == "dear"]
    cheaps = [at for at, name, _ in drained if name == "cheap"]
    assert dears
    assert cheaps
    assert max(dears) <= min(cheaps)


def test_a_paid_minimum_is_used_up():
    """A node woken for half a minute is kept for the 200 s that are paid. Seen to fail with the minimum ignored."""
    toy = Toy(policy(pool(billing_minimum_s=200.0)), 11, boot_s=(1.0, 2.0))
    toy.step(commands=(WakeCommand("local", 1, 30.0),))
    (box,) = toy.boxes.values()
    run(toy, [0] * 190)
    assert not box.fenced
    run(toy, [0] * 15)
    assert box.fenced


def test_numbers_of_a_first_burst():
    """412 jobs of 1.2 s, objective 30 s, boots unknown: a slot up after 15 s takes 1 + 15/1.2 = 13.5: 30.5, so 31."""
    fleet = policy(pool(max_nodes=100))
    fleet = replace(fleet, queues={"resize": replace(fleet.queues["resize"], service_s=1.2)})
    toy = Toy(fleet, 1)
    toy.waiting = 412
    plan, memory = decide(replace(toy.observe(), now=1.0), fleet, Memory(epoch=1))
    (launch,) = plan.intents
    assert isinstance(launch, Launch)
    assert memory.queues["resize"].need == 31.0
    assert (launch.order.count, launch.order.total, launch.order.key) == (31, 31, "1-1")
    assert plan.sentences["app photos"] == (
        "needs 31.0 slots, has 31 there or coming: "
        "resize: 412 waiting, 0 running, 0.0/s arriving, 1.2 s each (assumed), "
        "to start within 30 s. launching 31 in local"
    )


def test_an_empty_observation_plans_nothing():
    plan, _ = decide(Observation(now=1.0), policy(), Memory())
    assert plan.intents == ()
    assert plan.sentences["pool local"] == "0 of 10 nodes, 0 ready, 0 coming"
