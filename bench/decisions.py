"""How fast decisions and simulations are; writes its blocks into docs/benchmarks-policy.md.

python -m bench decisions [--jobs 1000000] [--no-page]

A day of a million jobs is simulated with the live policy, beside SimPy's bare engine on the same number of events; and
`decide` is timed over fleets that grow, in a steady state: jobs of 20 s, one tick a second.
"""

import argparse
import math
import random
import statistics
import sys
import time
from array import array
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

from bench.page import machine, renew
from bench.policy import PAGE, POLICY, POOLS, TOP
from fleetd.config import load_text
from fleetd.control.uncollected import uncollected
from fleetd.core.decide import decide
from fleetd.core.memory import Memory, PoolMemory
from fleetd.core.model import (
    AppPolicy,
    LeaseView,
    Objective,
    Observation,
    Policy,
    PoolPolicy,
    QueuePolicy,
    Reading,
    Sighting,
    SourcePolicy,
    Work,
    World,
)
from fleetd.sim.run import Setup, simulate
from fleetd.sim.trace import Trace

DAY_S: Final = 86400.0
MEAN_S: Final = 2.0
TICK_S: Final = 5.0
SIZES: Final = ((100, 1_000), (250, 2_500), (500, 5_000), (1_000, 10_000), (2_000, 20_000))
PLOT: Final = PAGE.parent / "decide.svg"


# ── a day of many jobs


def day(jobs: int, seed: int) -> Trace:
    """Return a day of Poisson arrivals with lognormal service."""
    chance = random.Random(seed)
    submitted, service, at = array("d"), array("d"), 0.0
    for _ in range(jobs):
        at += chance.expovariate(jobs / DAY_S)
        submitted.append(at)
        service.append(chance.lognormvariate(math.log(MEAN_S) - 0.5, 1.0))
    return Trace(submitted, service)


def simulated(trace: Trace) -> tuple[float, float]:
    """Return the seconds that the simulation took, and the share of late jobs."""
    pool = POOLS["cloud"].format(fail="", least=1)
    policy = load_text(POLICY.format(pools=pool, stability="thrifty", more=""), "day.yaml", Path())
    begun = time.perf_counter()
    result = simulate(policy, {"jobs": trace}, Setup(tick_s=TICK_S))
    return time.perf_counter() - begun, result.late_share


def simpy_bare(trace: Trace) -> float:
    """Return the seconds that SimPy takes for the same arrivals and ends, with no queue, slots, ticks or policy."""
    import simpy  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    world = simpy.Environment()

    def job(service_s: float) -> Generator[Any, Any, None]:
        yield world.timeout(service_s)

    def source() -> Generator[Any, Any, None]:
        for at, service_s in zip(trace.submitted_s, trace.service_s, strict=True):
            yield world.timeout(at - world.now)
            world.process(job(service_s))

    world.process(source())
    begun = time.perf_counter()
    world.run()
    return time.perf_counter() - begun


# ── decide over growing fleets


def fleet(queues: int, nodes: int) -> Policy:
    """Return a policy of as many apps as queues, over ten pools."""
    apps = {f"a{i}": AppPolicy(f"a{i}", path="/app") for i in range(queues)}
    pools = {
        f"p{i}": PoolPolicy(
            f"p{i}", "fake", None, tuple(f"a{j}" for j in range(i, queues, 10)), 1, 0, 2 * nodes, price_per_h=1.0
        )
        for i in range(10)
    }
    rules = {f"q{i}": QueuePolicy(f"q{i}", f"a{i}", "main", f"q{i}", Objective(30.0)) for i in range(queues)}
    return Policy("big", {"main": SourcePolicy("main", "fake", None)}, apps, rules, pools, stability="thrifty")


def decisions(queues: int, nodes: int, ticks: int = 60) -> float:
    """Return the median seconds of a decision in a steady state: each second a twentieth of the jobs end."""
    chance, policy = random.Random(1), fleet(queues, nodes)
    boots = {name: PoolMemory(boots_s=tuple(chance.uniform(60, 120) for _ in range(20))) for name in policy.pools}
    memory, took = Memory(epoch=1, pools=boots), []
    names = [(f"p{i % queues % 10}/{i}", f"p{i % queues % 10}", i % queues) for i in range(nodes)]
    began: list[float | None] = [1000.0 - chance.expovariate(0.05) if chance.random() < 0.8 else None for _ in names]
    worlds = {
        pool: World(tuple(Sighting(name, "up", f"a{app}") for name, where, app in names if where == pool))
        for pool in policy.pools
    }
    for tick in range(ticks):
        now = 1000.0 + tick
        started, ended, ages = ([0] * queues for _ in range(2)), [0] * queues, [list[float]() for _ in range(queues)]
        starts, ends = started
        for at, (_, _, app) in enumerate(names):
            if chance.random() < 0.05:
                ends[app] += began[at] is not None
                began[at] = now if began[at] is None or chance.random() < 0.75 else None
                starts[app] += began[at] is not None
            if (since := began[at]) is not None:
                ages[app].append(now - since)
        ended = ends
        leases = {
            name: LeaseView(name, pool, f"a{app}", "working", 1, int(began[at] is not None), 0.0, 0.5)
            for at, (name, pool, app) in enumerate(names)
        }
        work = {
            f"q{i}": Work(starts[i], ended[i], 0, 20.0 * ended[i], tuple(ages[i]), {57: ended[i]} if ended[i] else {})
            for i in range(queues)
        }
        readings = {f"q{i}": Reading(f"q{i}", 0, len(ages[i])) for i in range(queues)}
        seen = Observation(now=now, readings=readings, worlds=worlds, leases=leases, work=work)
        begun = time.perf_counter()
        with uncollected():  # as the controller does
            _, memory = decide(seen, policy, memory)
        took.append(time.perf_counter() - begun)
    return statistics.median(took[ticks // 2 :])


def plot(points: list[tuple[int, float]]) -> None:
    """Draw milliseconds over nodes."""
    most_x, most_y = points[-1][0], max(ms for _, ms in points)
    spots = [(60 + 500 * nodes / most_x, 260 - 220 * ms / most_y, nodes, ms) for nodes, ms in points]
    marks = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4"/><text x="{x - 8:.0f}" y="{y - 10:.0f}" text-anchor="end">'
        f'{ms:.0f} ms</text><text x="{x:.0f}" y="280" text-anchor="middle">{nodes:,}</text>'
        for x, y, nodes, ms in spots
    )
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y, _, _ in spots)
    PLOT.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 310" font-family="sans-serif" font-size="12">'
        '<rect width="600" height="310" fill="white"/><path d="M60 30V260H570" fill="none" stroke="#888"/>'
        f'<polyline points="60,260 {line}" fill="none" stroke="#3366cc" stroke-width="2"/><g fill="#234">{marks}</g>'
        '<text x="315" y="302" text-anchor="middle">nodes (a tenth as many queues)</text>'
        '<text x="60" y="20">one decision, median</text></svg>\n',
        "utf-8",
    )


def main(argv: list[str]) -> int:
    """Measure, print, and renew the page."""
    parser = argparse.ArgumentParser(prog="bench decisions", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only, leave docs/ alone")
    given = parser.parse_args(argv)
    trace = day(given.jobs, given.seed)
    ours, bare = [], []
    for _ in range(3):  # in turn, so that both meet the same machine
        ours.append(simulated(trace))
        bare.append(simpy_bare(trace))
    best, other = min(took for took, _ in ours), min(bare)
    each = ", ".join(f"{took:.2f}" for took, _ in ours)
    rest = ", ".join(f"{took:.2f}" for took in bare)
    day_s = f"a day of {given.jobs:,} jobs of {MEAN_S:g} s, {TICK_S:g} s ticks, policy included: {best:.2f} s ({each})"
    lines = [
        f"{day_s}; late {100 * ours[0][1]:.1f} %",
        f"SimPy, the same arrivals and ends, nothing else: {other:.2f} s ({rest}), {other / best:.1f} times as long",
    ]
    print("\n".join(lines), flush=True)
    points = []
    for queues, nodes in SIZES:
        points.append((nodes, 1e3 * decisions(queues, nodes)))
        print(f"decide, {queues} queues, {nodes} nodes: {points[-1][1]:.1f} ms", flush=True)
    if given.page:
        plot(points)
        rows = "\n".join(
            f"| {nodes // 10:,} | {nodes:,} | {ms:.1f} ms | {1e3 * ms / nodes:.1f} µs |" for nodes, ms in points
        )
        text = "\n".join(f"- {line}" for line in lines)
        head = "| queues | nodes | one decision, median | a node |\n|---|---|---|---|\n"
        body = f"{machine(['simpy'])}\n\n`python -m bench decisions`\n\n{text}\n\n{head}{rows}\n\n![decide](decide.svg)"
        renew("speed", body, "Speed", PAGE, TOP)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
