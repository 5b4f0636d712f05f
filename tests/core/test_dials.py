"""The dials `stability` and `safe`: what each promises, over random worlds and in whole simulated runs."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import Phase as HPhase
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.core.demand import HOLD_FLOOR_S
from fleetd.core.learn import boot_estimate
from fleetd.core.margin import FIRST_PRICE_S, learn_price
from fleetd.core.model import BudgetPolicy, Command, Drain, Launch, Observation, Plan, WakeCommand
from fleetd.sim.result import Result
from fleetd.sim.run import Setup, simulate
from fleetd.sim.trace import Trace
from tests.core.world import Toy, policy, pool
from tests.sim import fleets

pytestmark = pytest.mark.slow

TICK_S = 1.0
ARRIVALS = st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, 6]), min_size=20, max_size=60)
POOLS = st.sampled_from([{}, {"slots": 4}, {"billing_minimum_s": 60.0}, {"slots": 2, "price_per_h": 1.0}])
BOOTS = st.sampled_from([(1.0, 20.0), (20.0, 60.0), (60.0, 90.0)])
fast = settings(max_examples=25, deadline=None, phases=(HPhase.explicit, HPhase.reuse, HPhase.generate))


def paid_s(toy: Toy, name: str) -> float:
    """What a boot of the pool costs, in seconds of a node."""
    boot_s = boot_estimate(toy.memory.pools[name], 0.5)
    return max(boot_s, toy.policy.pools[name].billing_minimum_s, HOLD_FLOOR_S["bounded"])


@dataclass(slots=True)
class Idling:
    """How many seconds each node in service has been idle in a row, by the world's own books."""

    toy: Toy
    for_s: dict[str, float]

    def step(self, arrivals: int = 0, commands: tuple[Command, ...] = ()) -> Plan:
        plan = self.toy.step(arrivals, commands)
        serving = {box.name: box for box in self.toy.boxes.values() if box.ready_at <= self.toy.now and not box.fenced}
        self.for_s = {
            name: 0.0 if box.jobs else self.for_s.get(name, -TICK_S) + TICK_S for name, box in serving.items()
        }
        return plan


def bursts(arrivals: list[int]) -> Iterator[int]:
    """Jobs in short rushes with gaps between them: seconds of arrivals, then of silence, thrice."""
    for gap_s in (15, 45, 120):
        yield from arrivals
        yield from [0] * gap_s


# ── bounded


@fast
@given(st.integers(0, 2**32), ARRIVALS, POOLS, BOOTS, st.booleans())
def test_bounded_pays_no_stretch_of_idleness_for_longer_than_a_boot(seed, arrivals, sizes, boot_s, wild):
    """Seen to fail with the idle rule taken out, and with its limit doubled."""
    toy = Toy(policy(pool(**sizes), pool("burst", price_per_h=2.0), stability="bounded"), seed, boot_s=boot_s)
    idling = Idling(toy.wild() if wild else toy, {})
    for count in bursts(arrivals):
        idling.step(count)
        for name, idle_s in idling.for_s.items():
            limit_s = paid_s(toy, name.partition("/")[0])
            assert idle_s <= limit_s + 2 * TICK_S, f"seed {seed}: {name} idle for {idle_s} s, {limit_s} s are paid"


def booted_for_none(seed: int) -> int:
    """Launches while no job waited, in ten minutes of a job every ten seconds and boots slower than the objective."""
    chance, launches = random.Random(seed), 0
    toy = Toy(policy(pool(max_nodes=50), stability="bounded"), seed, boot_s=(40.0, 60.0))
    for _ in range(600):
        plan = toy.step(int(chance.random() < 0.1))
        launches += sum(isinstance(intent, Launch) for intent in plan.intents) if not toy.waiting else 0
    return launches


@fast
@given(st.integers(0, 2**32))
def test_bounded_boots_for_jobs_that_wait_and_for_nothing_else(seed):
    """No forecast and no margin."""
    assert booted_for_none(seed) == 0, f"seed {seed}"


def one_job(toy: Toy) -> None:
    """Run one job, until it has ended."""
    toy.step(1)
    while not any(box.jobs for box in toy.boxes.values()):
        toy.step()
    while any(box.jobs for box in toy.boxes.values()):
        toy.step()


@pytest.mark.parametrize(("stability", "least_s", "most_s"), [("bounded", 40, 43), ("thrifty", 20, 30)])
def test_a_boot_of_forty_seconds_is_worth_forty_seconds_of_waiting(stability, least_s, most_s):
    """`thrifty` lets go sooner: boots of 40 s are slower than 30 s of objective, and it holds 0.7 of them."""
    toy = Toy(policy(stability=stability), 5, boot_s=(40.0, 40.0), service_s=(5.0, 5.0))
    one_job(toy)
    (box,) = toy.boxes.values()
    ended = toy.now
    while not box.fenced:
        toy.step()
    assert least_s <= toy.now - ended <= most_s


def test_a_node_that_is_needed_again_has_not_been_idle_for_long():
    """It is un-drained for a job that another takes. Seen to be drained again at once with its old idle time."""
    toy = Toy(policy(stability="bounded"), 5, boot_s=(40.0, 40.0), service_s=(5.0, 5.0))
    one_job(toy)
    (box,) = toy.boxes.values()
    while not box.fenced:
        toy.step()
    toy.step(1)
    assert not box.fenced
    toy.waiting = 0
    for _ in range(38):
        toy.step()
    assert not box.fenced
    for _ in range(4):
        toy.step()
    assert box.fenced


@dataclass(slots=True)
class Scheduled(Toy):
    """A world whose schedule wants two slots."""

    def observe(self, commands: tuple[Command, ...] = ()) -> Observation:
        return replace(Toy.observe(self, commands), floors={"photos": 2})


@pytest.mark.parametrize(
    ("world", "sizes", "woken"),
    [(Toy, {"min_nodes": 2}, 0), (Toy, {}, 2), (Scheduled, {}, 0)],
    ids=["min", "wake", "schedule"],
)
def test_bounded_holds_what_the_owner_wants_held(world: type[Toy], sizes: dict[str, Any], woken: int) -> None:
    """Seen to fail with each of the three floors left out of the idle rule."""
    toy = world(policy(pool(**sizes), stability="bounded"), 7, boot_s=(5.0, 5.0), service_s=(5.0, 5.0))
    toy.step(12, commands=(WakeCommand("local", woken, 3600.0),) if woken else ())
    for _ in range(200):
        toy.step()
    assert [box.fenced for box in toy.boxes.values()] == [False, False]


def test_bounded_uses_up_a_paid_minimum_and_holds_while_blind():
    toy = Toy(policy(pool(billing_minimum_s=200.0), stability="bounded"), 11, boot_s=(2.0, 2.0), service_s=(5.0, 5.0))
    one_job(toy)
    (box,) = toy.boxes.values()
    toy.blind_until = toy.now + 400.0
    for _ in range(398):
        toy.step()
    assert not box.fenced
    while not box.fenced:
        toy.step()
    assert toy.now <= toy.blind_until + 2.0


def test_a_node_that_the_budget_sends_away_is_not_sent_away_twice():
    """What is over and what is too dear may be one node in one tick. Seen to raise KeyError."""
    toy = Toy(policy(pool(price_per_h=1.0)), 3, boot_s=(5.0, 5.0), service_s=(5.0, 5.0))
    toy.step(12)
    while toy.waiting or any(box.jobs for box in toy.boxes.values()):
        toy.step()
    serving = sorted(box.name for box in toy.boxes.values() if not box.fenced)
    toy.now += 600.0
    toy.policy = replace(toy.policy, budget=BudgetPolicy(hour=0.001))
    drained = [intent.node for intent in toy.step().intents if isinstance(intent, Drain)]
    assert len(serving) > 1
    assert sorted(drained) == serving


# ── safe


def test_a_safe_price_never_falls_below_the_first_and_aims_at_a_tenth():
    price = partial(learn_price, allowed=0.05, share=0.02, known=10_000.0)
    assert price(FIRST_PRICE_S, 100, 0.0) < FIRST_PRICE_S
    assert price(FIRST_PRICE_S, 100, 0.0, safe=True) == FIRST_PRICE_S
    assert price(3.0, 0, 0.0, safe=True) == FIRST_PRICE_S, "a dial that is turned acts at once"
    assert price(1000.0, 100, 2.0) < 1000.0, "2 % late are fewer than the 5 % allowed"
    assert price(1000.0, 100, 2.0, safe=True) > 1000.0, "and more than 0.5 %"
    assert price(1000.0, 1000, 1.0, safe=True) < 1000.0


# ── whole runs


def run(jobs: Trace, seed: int, **dials: Any) -> Result:
    """On a pool that boots in one to two minutes, jobs that are to start within 30 s; the first hour is not judged."""
    setup = Setup(seed=seed, judged_from_s=3600.0)
    return simulate(fleets.policy(fleets.pool(), **dials), {"resize": jobs}, setup)


def rushes(seed: int) -> Trace:
    """Two hours of rushes and lulls, 400 s each."""
    chance, at, jobs = random.Random(seed), 0.0, []
    while at < 7200.0:
        at += chance.expovariate(1.2 if int(at // 400.0) % 2 else 0.3)
        jobs.append((at, chance.expovariate(1 / 20.0)))
    return fleets.trace(*jobs)


def test_safe_has_fewer_late_jobs_and_costs_more():
    """A job of a minute every ten seconds, for eight hours: late by chance alone."""
    seed = 1
    jobs = fleets.poisson(random.Random(seed), 0.1, 60.0, 2880)
    plain, safe = run(jobs, seed), run(jobs, seed, safe=True)
    assert safe.late_share < 0.4 * plain.late_share < 0.4 * 0.05
    assert plain.cost_worker_s < safe.cost_worker_s < 1.25 * plain.cost_worker_s


def test_calm_turns_less_often_than_thrifty():
    thrifty, calm = (run(rushes(4), 4, stability=word) for word in ("thrifty", "calm"))
    assert calm.reversals_300s < 0.7 * thrifty.reversals_300s
    assert calm.launches < thrifty.launches


def test_bounded_is_the_cheapest_and_lets_jobs_wait_for_boots():
    """Boots of one to two minutes against 30 s of objective: whoever boots for those that wait is late."""
    thrifty, bounded = (run(rushes(4), 4, stability=word) for word in ("thrifty", "bounded"))
    assert bounded.cost_worker_s < 0.8 * thrifty.cost_worker_s
    assert bounded.late_share > 2.0 * thrifty.late_share
