"""Every term of a decision, in words: the figures are those of the decision, and each says where it comes from."""

import re
from dataclasses import replace

import pytest

from fleetd.core.decide import decide
from fleetd.core.explain import deep
from fleetd.core.flow import Flow, Rate
from fleetd.core.forecast import PROVEN, WEEK, Season
from fleetd.core.life import Life
from fleetd.core.memory import Memory, Node, PoolMemory, QueueMemory
from fleetd.core.model import (
    Blind,
    Launch,
    LeaseView,
    Observation,
    Offer,
    Phase,
    Policy,
    PoolPolicy,
    Reading,
    Sighting,
    Work,
    World,
)
from tests.core.world import policy, pool

NOW = 10_000.0
BOOTS = tuple(float(boot_s) for boot_s in range(60, 110))  # p50 85, p95 107, p99 109


def nodes(name: str, *phases: Phase) -> dict[str, Node]:
    found = [Node(f"{name}/{at}", name, "photos", phase, NOW - 50.0, NOW - 50.0, 1) for at, phase in enumerate(phases)]
    return {node.id: replace(node, heard_at=NOW, busy=1) for node in found}


def memory(rate: Rate = Rate(0.5, 0.05, 600.0), **changes: PoolMemory) -> Memory:
    """Three nodes of `cloud` ready, one booting, one draining; 200 jobs of 20 s are known, four of them late."""
    marks = tuple((NOW - 1201.0 + 4.0 * at, 2 * at) for at in range(301))
    flow = Flow(NOW - 1201.0, 600, marks, ((NOW - 4.0, 2),))
    life = Life(ended=((57, 200.0),), jobs=200.0)
    queue = QueueMemory(2, 3, NOW - 1.0, NOW - 1.0, flow=flow, life=life, rate=rate, judged=200.0, late=4.0, told=True)
    pools = {"cloud": PoolMemory(boots_s=BOOTS), **changes}
    there = nodes("cloud", *[Phase.READY] * 3, Phase.BOOTING, Phase.DRAINING)
    return Memory(epoch=1, now=NOW - 1.0, nodes=there, queues={"resize": queue}, pools=pools)


def seen(fleet: Policy, known: Memory, **changes: object) -> Observation:
    leases = {
        name: LeaseView(
            name, node.pool, "photos", "draining" if node.phase is Phase.DRAINING else "working", 1, 1, 0.0, 0.0
        )
        for name, node in known.nodes.items()
        if node.phase in (Phase.READY, Phase.DRAINING)
    }
    worlds = {
        name: World(tuple(Sighting(node.id, "up", "photos") for node in known.nodes.values() if node.pool == name))
        for name in fleet.pools
    }
    base = Observation(
        now=NOW,
        readings={"resize": Reading("resize", 2, 3)},
        worlds=worlds,
        leases=leases,
        work={"resize": Work(running_s=(5.0, 10.0, 15.0))},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def about(lines: tuple[str, ...], what: str) -> str:
    """What is said about one thing, its lines joined."""
    return " | ".join(text for name, _, text in (line.partition(": ") for line in lines) if name == what)


def one(**changes: object) -> PoolPolicy:
    return pool("cloud", price_per_h=1.0, billing_minimum_s=60.0, **changes)


def test_a_queue_tells_of_jobs_arrivals_service_and_lateness():
    fleet, known = policy(one()), memory()
    text = about(deep(seen(fleet, known), fleet, known), "queue resize of photos")
    after = decide(seen(fleet, known), fleet, known)[1].queues["resize"]
    assert after.life.curve is not None
    assert text.startswith("2 waiting, 3 running (measured)")
    assert f"a job takes {after.life.curve.mean_s:.3g} s (measured from 200 jobs)" in text
    assert "2.00% late of 200 jobs" in text
    assert "allowed 5.00% after 30 s (given)" in text
    assert f"a late job is worth {after.price_s:.0f} slot-seconds (estimated)" in text
    assert "season unknown" in text


def test_a_slow_pool_tells_load_forecast_margin_need_and_what_is_there():
    fleet, known = policy(one()), memory()
    text = about(deep(seen(fleet, known, floors={"photos": 4}), fleet, known), "app photos in cloud")
    assert "boots in 85/107/109 s, p50/p95/p99 (measured from 50); ahead: slower than jobs may wait, 30 s" in text
    found = re.search(
        r"load in 107 s: ([\d.]+) slots ± [\d.]+ \(estimated\).*margin \+([\d.]+) .*, ([\d.]+) for those", text
    )
    assert found is not None, text
    load, margin, waiting = (float(part) for part in found.groups())
    need = re.search(r"schedule floor 4 \(given\): need ([\d.]+) \(estimated\)", text)
    assert need is not None, text
    assert float(need[1]) == pytest.approx(max(4.0, load + margin + waiting), abs=0.06), "shown to three digits"
    assert f"keeps {need[1]} for 59.5 s (estimated)" in text, "0.7 boots of 85 s, which half of them take"
    there = re.search(r"4 slots ready, (\d+) coming, 0 leaving \(measured\), of which (\d+) are ordered now", text)
    assert there is not None, "the draining one is taken back, and what is ordered now comes beside the one that boots"
    assert int(there[1]) == int(there[2]) + 1


def test_the_need_and_the_launch_are_those_of_the_decision():
    fleet, known = policy(one(max_nodes=30)), memory()
    plan, after = decide(seen(fleet, known), fleet, known)
    lines = deep(seen(fleet, known), fleet, known)
    need = re.search(r"need ([\d.]+) ", about(lines, "app photos in cloud"))
    assert need is not None
    assert float(need[1]) == pytest.approx(after.peaks["photos in cloud"][-1][1], rel=0.01)
    (launch,) = [intent for intent in plan.intents if isinstance(intent, Launch)]
    assert f"does: {' '.join(plan.sentences['app photos'].split('. ')[1:])}".rstrip() in about(lines, "app photos")
    assert f"of which {launch.order.count} are ordered now" in about(lines, "app photos in cloud")


def test_a_fast_pool_is_booted_just_in_time_and_comes_after_the_cheaper_one():
    fleet = policy(pool("rack", price_per_h=0.25, slots=2), one())
    known = memory(rack=PoolMemory(boots_s=(5.0,) * 20))
    lines = deep(seen(fleet, known), fleet, known)
    assert "boots in 5/5/5 s, p50/p95/p99 (measured from 20); just in time: faster than jobs may wait, 30 s" in about(
        lines, "app photos in rack"
    )
    assert "load 3 slots now (measured), " in about(lines, "app photos in rack")
    assert "fills rack at 0.125/h a slot, then cloud at 1/h a slot (given)" in about(lines, "app photos")


def test_a_cheap_slow_pool_is_bridged_by_a_dearer_fast_one():
    fleet = policy(one(), pool("pods", price_per_h=4.0))
    known = memory(pods=PoolMemory(boots_s=(5.0,) * 20))
    text = about(deep(seen(fleet, known), fleet, known), "app photos in cloud")
    assert "bridged: slower than jobs may wait, 30 s, and a dearer pool makes up for what it lacks" in text


def test_bounded_says_so_and_what_leaves_is_counted():
    fleet, known = policy(one(), stability="bounded"), memory()
    known = replace(known, nodes={**known.nodes, "cloud/4": replace(known.nodes["cloud/4"], pinned=True)})
    text = about(deep(seen(fleet, known), fleet, known), "app photos in cloud")
    assert "just in time: the policy is bounded" in text
    assert "3 slots ready, " in text
    assert ", 1 leaving (measured)" in text


@pytest.mark.parametrize(
    ("rate", "season", "words"),
    [
        (Rate(0.5, 0.05, 600.0), Season(), "as now"),
        (Rate(0.5, 0.05, 600.0, 0.001), Season(), "trend"),
        (
            Rate(0.5, 0.05, 600.0),
            Season((100.0,) * WEEK, 11, 0, 100.0, season_error=5.0, persistence_error=9.0, judged=PROVEN),
            "season",
        ),
    ],
)
def test_the_forecast_names_what_it_rests_on(rate, season, words):
    """The rate of a blind queue stays as it was, so the trend does."""
    fleet, known = policy(one()), memory(rate)
    known = replace(known, queues={"resize": replace(known.queues["resize"], season=season)})
    lines = deep(seen(fleet, known, readings={"resize": Blind("refused")}), fleet, known)
    found = re.search(
        r"arrivals of resize in 107 s: ([\d.]+)/s \(estimated: ([\d.]+) times the measured, (.+?)\)",
        about(lines, "app photos in cloud"),
    )
    assert found is not None
    assert found[3] == words
    assert float(found[1]) == pytest.approx(0.5 * float(found[2]), rel=0.01)
    assert ("its error 5 against 9 without it" in about(lines, "queue resize of photos")) is (words == "season")
    assert "trend +0.06/s a minute" in about(lines, "queue resize of photos") or words != "trend"


def test_what_nobody_knows_is_unknown():
    fleet = policy(one())
    lines = deep(Observation(now=NOW, readings={"resize": Blind("refused")}), fleet, Memory(epoch=1))
    jobs = about(lines, "queue resize of photos")
    assert jobs.startswith("waiting and running unknown: refused | arrivals unknown; season unknown | ")
    assert "a job takes 21 s (estimated: no job has ended yet), coefficient of variation unknown" in jobs
    assert "share of late jobs unknown, allowed 5.00% after 30 s (given); a late job is worth 500 slot-seconds" in jobs
    assert about(lines, "app photos in cloud").startswith("boot time unknown; ahead: slower than")
    assert "not scaling in: resize is blind (refused)" in about(lines, "app photos")
    assert "what more it could give unknown" in about(lines, "pool cloud")


def test_what_limits_is_told():
    fleet, known = policy(one(max_nodes=5, min_nodes=1)), memory()
    known = replace(
        known, pools={"cloud": PoolMemory(boots_s=BOOTS, failures=3, open_until=NOW + 40.0, why_open="no luck")}
    )
    look = seen(fleet, known, readings={"resize": Reading("resize", 90, 3)})
    sightings = tuple(Sighting(name, "up", "photos") for name in known.nodes)
    look = replace(look, worlds={"cloud": World(sightings, Offer(7, 1.5))})
    lines = deep(look, fleet, known)
    assert "limited by max of cloud (5)" in about(lines, "app photos")
    text = about(lines, "pool cloud")
    assert "5 nodes (measured), between 1 and 5 (given); 7 more to be had (given)" in text
    assert "1.5/h a node, billed for at least 60 s (given); 3 failures in a row (measured)" in text
    assert "limits: breaker open for 40 s: no luck" in text


def test_it_changes_nothing():
    fleet, known = policy(one()), memory()
    look = seen(fleet, known)
    before = decide(look, fleet, known)
    assert deep(look, fleet, known) == deep(look, fleet, known)
    assert decide(look, fleet, known) == before
