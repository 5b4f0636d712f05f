"""Long runs of a fleet on moto, in bad weather; bench/ec2.py runs them at length, the tests in short.

What is counted is counted past fleetd: instances in moto, orders in the controller's log, jobs in their own ledger.
"""

import contextlib
import json
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.ec2.cloud import TYPES
from tests.ec2.fleets import Ec2Fleet

_ORDER = re.compile(r"burst: (\d+) for naps \(order ([\w-]+)\)")
LIMIT_S = 900.0
PAUSE_S = (0.5, 2.0)


@dataclass
class Verdict:
    """What came of a campaign."""

    launched: int = 0
    drained: int = 0
    kills: int = 0
    leaked: int = 0
    doubled: int = 0
    busy_ended: int = 0
    lost: int = 0
    jobs: int = 0
    seconds: float = 0.0
    injected: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing happened that never may."""
        return not (self.leaked or self.doubled or self.busy_ended or self.lost or self.errors)


def weather(fleet: Ec2Fleet, seed: int) -> None:
    """5 % of the calls fail, a fifth of the describes is old, and what was just started is not known yet."""
    proxy = fleet.proxy
    proxy.chance = random.Random(seed)
    proxy.error_share, proxy.stale_share, proxy.hide_s = 0.05, 0.2, 1.5


def churn(fleet: Ec2Fleet, launches: int, seed: int, kill_every_s: float = 12.0) -> Verdict:
    """Bursts, drains by an operator and SIGKILLs of the controller, until so many instances were started."""
    chance, began, verdict = random.Random(seed), time.monotonic(), Verdict()
    fleet.start()
    weather(fleet, seed)
    kill_at = time.monotonic() + chance.uniform(0.3, 1.5) * kill_every_s
    while started(fleet) < launches:
        assert time.monotonic() - began < LIMIT_S, fleet.tail()
        if len(fleet.submitted) - len(fleet.done()) < 3 * fleet.most:
            fleet.burst(2 * fleet.most, [chance.uniform(0.05, 0.8) for _ in range(2 * fleet.most)])
        for node in ready(fleet):
            if chance.random() < 0.5:
                verdict.drained += drain(fleet, node)
        if time.monotonic() >= kill_at:
            fleet.end(signal.SIGKILL)
            verdict.kills += 1
            time.sleep(chance.uniform(0.0, 1.0))
            fleet.start()
            kill_at = time.monotonic() + chance.uniform(0.3, 1.5) * kill_every_s
        time.sleep(chance.uniform(*PAUSE_S))
    return settle(fleet, verdict, began)


def settle(fleet: Ec2Fleet, verdict: Verdict, began: float) -> Verdict:
    """Let everything end, and count."""
    with contextlib.suppress(AssertionError):  # what is left is counted
        fleet.until("all jobs are done", lambda: set(fleet.submitted) <= fleet.done(), 180)
        fleet.until("no instance is left", lambda: not fleet.alive(), 180)
    orders = {key: int(count) for count, key in _ORDER.findall(fleet.log())}
    by_order = fleet.launched()
    verdict.launched = sum(by_order.values())
    verdict.doubled = sum(max(0, number - orders.get(key, 0)) for key, number in by_order.items() if key)
    verdict.leaked = len(fleet.alive())
    verdict.busy_ended = fleet.killed()
    verdict.jobs = len(fleet.submitted)
    verdict.lost = len(set(fleet.submitted) - fleet.done())
    verdict.injected, verdict.calls = fleet.proxy.injected, fleet.proxy.counts
    verdict.errors = [*fleet.machines.errors, *fleet.proxy.bad]
    verdict.seconds = time.monotonic() - began
    return verdict


def started(fleet: Ec2Fleet) -> int:
    """How many instances there ever were."""
    return len(fleet.cloud.instances())


def ready(fleet: Ec2Fleet) -> list[str]:
    """Nodes that are ready, as the controller says; none where it does not answer."""
    answer = ask(fleet, "GET", "/v1/status")
    return [node["id"] for node in answer.get("nodes", ()) if node["phase"] == "ready"]


def drain(fleet: Ec2Fleet, node: str) -> bool:
    """Have an operator drain a node."""
    return bool(ask(fleet, "POST", "/v1/drain", {"target": node}))


def ask(fleet: Ec2Fleet, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Ask the controller's API; empty where it does not answer."""
    try:
        where = json.loads((fleet.home / "state" / "cloud" / "controller.json").read_text())
        headers = {"Authorization": f"Bearer {where['token']}"}
        answer = httpx.request(method, f"{where['url']}{path}", json=body, headers=headers, timeout=5, trust_env=False)
        return dict(answer.json()) if answer.is_success else {}
    except (OSError, ValueError, httpx.HTTPError):
        return {}


# ── interruptions


@dataclass
class Interruptions:
    """What came of interruptions. `ordered_s`: from the worker's seeing each notice to the order that replaces it."""

    interrupted: int = 0
    taken_back: int = 0
    lost: int = 0
    leaked: int = 0
    rerun: int = 0
    ordered_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def interruptions(fleet: Ec2Fleet, count: int, seed: int, notice_s: float = 20.0) -> Interruptions:
    """Take busy spot instances back at random moments, until so many were; the pool is to hold `fleet.most` // 2."""
    chance, verdict = random.Random(seed), Interruptions()
    fleet.start()
    began = time.monotonic()
    fleet.until("the pool is up", lambda: len(ready(fleet)) >= fleet.most // 2, 60)
    while verdict.interrupted < count:
        assert time.monotonic() - began < LIMIT_S, fleet.tail()
        if len(fleet.submitted) - len(fleet.done()) < fleet.most // 2:
            fleet.burst(fleet.most // 2, [chance.choice((0.2, 1.0, 4.0)) for _ in range(fleet.most // 2)])
        up = [node.rpartition("/")[2] for node in ready(fleet)]
        with fleet.machines.lock:
            machines = fleet.machines.machines
            chosen = [name for name in up if name in machines and machines[name].dies_at is None]
            for name in chance.sample(chosen, min(len(chosen), max(1, fleet.most // 6), count - verdict.interrupted)):
                fleet.machines.interrupt(name, chance.uniform(0.6, 1.0) * notice_s)
                verdict.interrupted += 1
        time.sleep(chance.uniform(1.0, 5.0))
    fleet.until("all have been replaced", lambda: len(ready(fleet)) >= fleet.most // 2, 90)
    verdict.ordered_s = [took_s for took_s in fleet.replaced_s() if took_s is not None]
    fleet.until("all jobs are done", lambda: set(fleet.submitted) <= fleet.done(), 180)
    ask(fleet, "POST", "/v1/end", {})
    whole = settle(fleet, Verdict(), began)
    verdict.lost, verdict.leaked, verdict.errors = whole.lost, whole.leaked, whole.errors
    verdict.taken_back = fleet.machines.counts["taken back"]
    verdict.rerun = whole.busy_ended
    return verdict


# ── money, and the next pool


MINIMUM_S = 60.0  # what EC2 bills at least
TO_GO_S = 90.0  # the longest job and a drain


def committed(fleet: Ec2Fleet, price: float, hour: float, seconds: float) -> tuple[float, int, int]:
    """Look on while far more work waits than the hour's budget pays for.

    Returns the most that was billed and committed at any moment (a minute at least for each, and what those that run
    could still cost, were they told to go), the most instances at a time, and how many were started.
    """
    fleet.start()
    fleet.burst(400, 1.0)
    began, worst, most = time.monotonic(), 0.0, 0
    lives: dict[str, tuple[float, float]] = {}
    while time.monotonic() - began < seconds:
        now, alive = time.monotonic(), fleet.alive()
        lives |= {name: (lives.get(name, (now, now))[0], now) for name in alive}
        billed_s = [max(MINIMUM_S, last - first + TO_GO_S * (last == now)) for first, last in lives.values()]
        worst, most = max(worst, sum(billed_s) * price / 3600.0), max(most, len(alive))
        time.sleep(0.2)
    return worst, most, started(fleet)


def fall_over(fleet: Ec2Fleet) -> tuple[float, str]:
    """Have the cheaper pool's types be out everywhere; a dearer pool of another type boots as slowly.

    Returns how long after a burst that one's first instance was there, and what was said.
    """
    dear = {"ec2": fleet.options | {"types": ["r5.large"], "spot": 0}, "price": "0.80/h"}
    fleet.write(pool={"price": "0.40/h"}, others={"dear": dear | {"apps": ["naps"], "slots": 1, "max": 2}})
    for zone in fleet.proxy.zones.values():
        for kind in TYPES:
            for market in ("spot", "on-demand"):
                fleet.proxy.capacity[kind, zone, market] = 0
    fleet.start()
    began = time.time()
    fleet.burst(20, 0.5)
    fleet.until("the next pool gives one", lambda: bool(fleet.cloud.instances()), 60)
    took_s = time.time() - began
    fleet.until("it is told", lambda: "exhausted: " in fleet.log(), 10)
    return took_s, next(line for line in fleet.log().splitlines() if "exhausted: " in line)
