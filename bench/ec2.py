"""EC2 instances as capacity, on moto's server: bad weather, interruptions, money, stockouts, and what a tick costs.

python -m bench ec2 [--only churn|interruptions|budget|stockout|calls] [--launches 200] [--interruptions 100] [--seed N]

The workers run as processes of this machine (tests/ec2/hypervisor.py), each with a metadata service of its own; what
moto lacks is added by tests/ec2/proxy. Counted is past fleetd: instances in moto, jobs in their own ledger.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from botocore.config import Config

from bench.page import PAGE, machine, renew
from fleetd.core.model import AppPolicy, Order, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import ProviderError
from fleetd.providers.ec2 import api as apis
from fleetd.providers.ec2 import pool as pools
from fleetd.providers.ec2.fleet import Fleet
from fleetd.providers.ec2.options import Ec2Options
from tests.ec2 import campaigns
from tests.ec2 import cloud as clouds
from tests.ec2 import proxy as proxies
from tests.ec2.cloud import REGION, TYPES, Cloud
from tests.ec2.fleets import ec2_fleet

FILE = PAGE.with_name("benchmarks-ec2.md")
TOP = """\
# Benchmarks: EC2

Written by `python -m bench ec2` itself, against moto's server over HTTP: nothing here was measured on AWS. What moto
lacks - capacity, throttling, lost and late answers, ClientTokens - is *emulated* by a proxy before it
(tests/ec2/proxy). Workers and jobs are real processes of the same two cores, so the times are upper bounds.
"""
SIZES = (10, 100, 1000)
TICKS = 24  # moto takes seconds for a thousand


def main(argv: list[str]) -> int:
    """Run what is asked for, and renew its part of the page."""
    parts: dict[str, tuple[str, Callable[[Cloud, argparse.Namespace, Path], tuple[str, bool]]]] = {
        "calls": ("Calls per tick", calls),
        "stockout": ("A stockout", stockout),
        "budget": ("A budget", budget),
        "churn-fleet": ("Launches and drains in bad weather, mode `fleet`", partial(churn, "fleet")),
        "churn-asg": ("Launches and drains in bad weather, mode `asg`", partial(churn, "asg")),
        "interruptions": ("Spot interruptions", interruptions),
    }
    parser = argparse.ArgumentParser(prog="bench ec2", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=tuple(parts))
    parser.add_argument("--launches", type=int, default=200)
    parser.add_argument("--interruptions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20261125)
    given = parser.parse_args(argv)
    os.environ.update(clouds.ENVIRON)
    good = True
    with clouds.start() as cloud:
        about = machine(["fleetd", "boto3", "moto"])
        for name, (title, part) in parts.items():
            if given.only in (None, name):
                with tempfile.TemporaryDirectory(prefix="fleetd-ec2-") as folder:
                    cloud.reset()
                    text, fine = part(cloud, given, Path(folder))
                renew(f"ec2-{name}", f"{about}\n\n{text}", title, FILE, TOP)
                print(text, flush=True)
                good = good and fine
    return 0 if good else 1


def churn(mode: str, cloud: Cloud, given: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """Launches and drains while calls fail and the controller is killed."""
    campaigns.LIMIT_S = 3600.0
    with ec2_fleet(folder / mode, cloud, mode, 6) as fleet:
        found = campaigns.churn(fleet, given.launches, given.seed)
    faults = ", ".join(f"{count} {what}" for what, count in sorted(found.injected.items()))
    counts = f"{found.launched} | {found.drained} | {found.kills} | {found.jobs} | {found.leaked} | {found.doubled}"
    row = f"| {counts} | {found.busy_ended} | {found.lost} | {found.seconds:.0f} s | {faults} |"
    head = (
        "| launches | drains | controllers killed | jobs | leaked | launched twice | busy ended | jobs lost "
        "| took | *emulated* faults |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    )
    text = f"""\
Bursts of short jobs on at most 6 instances; an operator drains ready ones at random; the controller is killed with
SIGKILL at random moments, about every 12 s. 5 % of all calls fail: throttled, an internal error, no answer, or an
answer that is lost once the call was carried out. A fifth of the describes is some seconds old, and for 1.5 s nothing
knows of an instance that was just started.

{head}
{row}

"Leaked": instances that are left once all jobs are done. "Launched twice": instances of an order beyond its count.
"Busy ended": jobs that began and were cut off."""
    return text, found.good


def interruptions(cloud: Cloud, given: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """Busy spot instances taken back."""
    campaigns.LIMIT_S = 3600.0
    with ec2_fleet(folder / "fleet", cloud, "fleet", 12, pool={"min": 6}) as fleet:
        found = campaigns.interruptions(fleet, given.interruptions, given.seed)
    text = f"""\
{found.interrupted} ready instances of a pool that is to hold 6 are told by their own IMDS, one or two at a time, that
they will be terminated in 12 to 20 s (AWS gives two minutes), and are, unless they have ended by then. Jobs take 0.2 to
4 s; a worker hands back what it cannot finish 10 s before the end.

| interrupted | still there at their end | jobs lost | jobs cut off and run again elsewhere | leaked |
|--:|--:|--:|--:|--:|
| {found.interrupted} | {found.taken_back} | {found.lost} | {found.rerun} | {found.leaked} |"""
    if found.ordered_s:
        ordered = sorted(found.ordered_s)
        text += (
            f"\n\nFrom a worker's seeing its notice to the order for the replacement: median {median(ordered):.2f} s, "
            f"the longest {ordered[-1]:.2f} s, of {len(ordered)}; for the others none was needed. The target: 2 s."
        )
    return text, not (found.lost or found.leaked or found.errors)


def budget(cloud: Cloud, given: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """Far more work than a budget pays for."""
    del given
    hour, price, seconds = 0.12, 0.40, 60.0
    pool = {"price": f"{price}/h", "billing": {"minimum": "60s"}}
    with ec2_fleet(folder / "fleet", cloud, "fleet", 8, pool=pool, budget={"hour": hour}) as fleet:
        worst, most, launched = campaigns.committed(fleet, price, hour, seconds)
    text = f"""\
400 jobs of 1 s wait; an instance costs {price:.2f} an hour at most, the budget is {hour:.2f} an hour. For
{seconds:.0f} s it is counted, five times a second, what EC2 bills (a minute at least for each instance), and what those
that run could still cost if they were told to go: a job limit and a drain, 90 s.

| budget | the most billed and committed | the most instances | started | `max` |
|--:|--:|--:|--:|--:|
| {hour:.3f} | {worst:.3f} | {most} | {launched} | 8 |"""
    return text, worst <= hour


def stockout(cloud: Cloud, given: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """EC2 has nothing, and the next pool takes over."""
    del given
    with ec2_fleet(folder / "fleet", cloud, "fleet", 3, pool={"price": "0.40/h"}) as fleet:
        took_s, _ = campaigns.fall_over(fleet)
        asked = fleet.proxy.counts["CreateFleet"]
    text = f"""\
Neither spot nor on-demand has capacity for any of two types in two zones (*emulated*). From the submit of a burst until
the next pool was ordered from: **{took_s:.1f} s**, with {asked} calls of CreateFleet. The target is 30 s;
cluster-autoscaler's default waits 15 minutes for a node that does not come."""
    return text, took_s < 30.0


# ── calls


def calls(cloud: Cloud, given: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """What 60 ticks ask of AWS, while all is calm and while something comes or goes."""
    del given
    apis._USUAL = apis._USUAL.merge(Config(read_timeout=120.0))  # type: ignore[misc]  # noqa: SLF001 - moto is slow with a thousand
    pools.PAGES_S = pools.LOOK_S = 120.0  # type: ignore[misc]
    rows, good = [], True
    for size in SIZES:
        cloud.reset()
        proxy = proxies.start(cloud.port)
        proxy.zones = dict(cloud.subnets)
        try:
            calm, moving, launch = asyncio.run(_ticks(cloud, proxy, folder / str(size), size))
        finally:
            proxy.close()
        good = good and moving <= TICKS
        rows.append(f"| {size} | {calm / TICKS:.2f} | {moving / TICKS:.2f} | {launch} |")
    text = f"""\
Requests that leave for AWS, the SDK's own repetitions included, in {TICKS} ticks of one second each (the clock is the
benchmark's). One page of DescribeInstances holds a thousand.

| instances | a tick, all calm | a tick, something comes or goes | one launch |
|--:|--:|--:|--:|
{chr(10).join(rows)}

Spot prices are read every five minutes, and counted here."""
    return text, good


async def _ticks(cloud: Cloud, proxy: proxies.Proxy, folder: Path, size: int) -> tuple[int, int, int]:
    now = [0.0]
    subnets = list(cloud.subnets)[:2]
    options = Ec2Options(
        mode="fleet",
        region=REGION,
        endpoint=proxy.url,
        launch_template="worker",
        types=TYPES,
        subnets=tuple(subnets),
        spot=1.0,
    )
    launch = WorkerLaunch("f", "bench", "", str(folder), {"naps": AppPolicy("naps")}, {}, {}, lambda _: "")
    pool = PoolPolicy("burst", "ec2", options, ("naps",), 1, max_nodes=2 * size, price_per_h=0.4)
    provider = Fleet(pool, options, launch, clock=lambda: now[0])
    await provider.open(lambda: None)
    try:
        for part in range(0, size, 50):
            await provider.launch(Order(f"1-{part}", "burst", "naps", min(50, size - part), size, 1))
        await _settled(provider, now)
        calm = await _count(provider, proxy, now)
        before = sum(proxy.counts.values())
        await provider.launch(Order("2-1", "burst", "naps", 1, size + 1, 1))
        one = sum(proxy.counts.values()) - before
        provider.view.going["i-0"] = now[0] + 1e9  # something goes, for as long as this lasts
        moving = await _count(provider, proxy, now)
    finally:
        await provider.close()
    return calm, moving, one


async def _settled(provider: Fleet, now: list[float]) -> None:
    """Tick until the list has been read and nothing moves."""
    for _ in range(100):
        now[0] += 1.0
        await _tick(provider)
        if not provider.view.moving and provider._seen_at == now[0]:  # noqa: SLF001
            return
    raise AssertionError("it does not become calm")


async def _count(provider: Fleet, proxy: proxies.Proxy, now: list[float]) -> int:
    before = sum(proxy.counts.values())
    for _ in range(TICKS):
        now[0] += 1.0
        await _tick(provider)
    return sum(proxy.counts.values()) - before


async def _tick(provider: Fleet) -> None:
    """List as the loop does; moto is slower than a tick with many instances, so it is waited for."""
    with contextlib.suppress(ProviderError):  # not yet read for the first time
        await provider.list()
    while not provider._looking.over:  # noqa: SLF001
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
