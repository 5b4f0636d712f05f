"""Policies, traces and a peer that the simulator's tests share."""

import random
from array import array
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar

from fleetd.core.model import AppPolicy, Objective, Policy, PoolPolicy, QueuePolicy, SourcePolicy
from fleetd.providers.simulated import SimulatedOptions
from fleetd.sim.scaler import Scaler, View
from fleetd.sim.trace import Trace


def pool(name: str = "cloud", options: dict[str, Any] | None = None, **changes: Any) -> PoolPolicy:
    """A simulated pool as the measurements have it."""
    base = PoolPolicy(
        name,
        "simulated",
        SimulatedOptions(**{"boot": (60.0, 120.0), **(options or {})}),
        ("photos",),
        slots=1,
        min_nodes=1,
        max_nodes=2000,
        price_per_h=1.0,
        billing_minimum_s=60.0,
    )
    return replace(base, **changes)


def queue(name: str = "resize", **changes: Any) -> QueuePolicy:
    return replace(QueuePolicy(name, "photos", "main", name, Objective(30.0)), **changes)


def policy(*pools: PoolPolicy, queues: tuple[QueuePolicy, ...] = (), **changes: Any) -> Policy:
    """A fleet of one app with one queue, over the given pools."""
    base = Policy(
        fleet="test",
        sources={"main": SourcePolicy("main", "fake", None)},
        apps={"photos": AppPolicy("photos", path="/app")},
        queues={q.name: q for q in queues or (queue(),)},
        pools={p.name: p for p in pools or (pool(),)},
        stability="thrifty",
    )
    return replace(base, **changes)


def trace(*jobs: tuple[float, float]) -> Trace:
    """Jobs as (submitted_s, service_s)."""
    return Trace(array("d", [job[0] for job in jobs]), array("d", [job[1] for job in jobs]))


def poisson(chance: random.Random, rate: float, mean_s: float, count: int) -> Trace:
    """Jobs that come by chance and take an exponential time."""
    gaps = accumulate(chance.expovariate(rate) for _ in range(count))
    return Trace(array("d", gaps), array("d", [chance.expovariate(1.0 / mean_s) for _ in range(count)]))


def static(count: int, pace_s: float = 60.0) -> type[Scaler]:
    """A peer that wants so many nodes, always."""

    class Static:
        name: ClassVar[str] = "static"
        every_s: ClassVar[float] = pace_s
        recent_first: ClassVar[bool] = False

        def wanted(self, view: View) -> int:
            del view
            return count

    return Static


def plan_of(*steps: tuple[float, int], pace_s: float = 10.0) -> type[Scaler]:
    """A peer that wants, from each moment on, so many nodes."""

    class Planned:
        name: ClassVar[str] = "planned"
        every_s: ClassVar[float] = pace_s
        recent_first: ClassVar[bool] = False

        def wanted(self, view: View) -> int:
            return [count for at, count in steps if at <= view.now][-1]

    return Planned
