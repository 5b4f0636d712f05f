"""The simulated fleet as it truly is: its nodes, their boots and bills, and the jobs that run on them.

Promises: a node that runs a job is never stopped; whatever comes by chance follows from the seed, node by node, so that
two policies on one seed meet the same luck. Decides nothing: it is told what to launch, fence and stop.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Final, Literal

from fleetd.core.model import (
    Launched,
    LaunchFailed,
    LeaseView,
    NodeId,
    Offer,
    Outcome,
    Policy,
    PoolPolicy,
    Seconds,
    Sighting,
)
from fleetd.errors import UsageError
from fleetd.sim.engine import Station
from fleetd.sim.stream import streams
from fleetd.sim.trace import History, Trace

REVERSAL_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Setup:
    """How a simulation is run. `boots` are least and most by pool, in place of the pool's own."""

    tick_s: Seconds = 5.0
    seed: int = 0
    inputs: Literal["full", "depth"] = "full"
    judged_from_s: Seconds = 0.0  # jobs submitted before are run and paid for, but not judged
    start_wall_s: float | None = None  # wall clock of second 0; None: a Monday 00:00 in the policy's zone
    boots: Mapping[str, tuple[Seconds, Seconds]] = field(default_factory=dict)
    blind: tuple[tuple[Seconds, Seconds], ...] = ()  # the sources cannot be read from..until
    never_up: frozenset[str] = frozenset()  # pools whose nodes never come up
    history: Mapping[str, History] = field(default_factory=dict)  # by queue
    series_step_s: Seconds | None = None


@dataclass(slots=True)
class Box:
    """A node as it truly is. Fenced, it is empty from `empty_at` on."""

    name: NodeId
    number: int
    pool: str
    app: str
    key: str
    ordered_at: Seconds
    speaks: bool  # its worker will: the boot is not one that fails
    up: bool = False
    fenced: bool = False
    empty_at: Seconds = inf
    slots: range = range(0)
    views: dict[int, LeaseView] = field(default_factory=dict)  # kept for those who look: by how many jobs run
    sighting: Sighting | None = None  # kept likewise


@dataclass(slots=True)
class Ground:
    """A pool: what is drawn for its nodes, and its books."""

    pool: PoolPolicy
    boot: tuple[Seconds, Seconds]
    boot_failure: float
    launch_failure: float
    stockout: tuple[tuple[Seconds, Seconds], ...]
    price_per_h: float
    offers: tuple[Offer, Offer]  # in general, and while there are none
    chances: Mapping[str, Random]  # a stream of its own for each kind, so that one kind's use shifts no other
    boxes: dict[NodeId, Box] = field(default_factory=dict)
    changes: int = 0  # of what its provider would list
    closed_s: Seconds = 0.0  # node-seconds billed of nodes that are gone
    made: int = 0
    launches: int = 0
    stops: int = 0
    came_up: int = 0
    failed: int = 0  # boots
    refused: int = 0  # launches that brought nothing
    reversals: int = 0
    last_move: tuple[Seconds, int] = (-inf, 0)  # when, and out (1) or in (-1)

    def billed_s(self, now: Seconds) -> Seconds:
        """Return the node-seconds up to now, those that are there included."""
        least = self.pool.billing_minimum_s
        return self.closed_s + sum([max(now - box.ordered_at, least) for box in self.boxes.values()])

    def moves(self, now: Seconds, direction: Literal[1, -1]) -> None:
        """Note a scale-out or scale-in; one soon after its opposite is a reversal."""
        at, last = self.last_move
        self.reversals += last == -direction and now - at <= REVERSAL_S
        self.last_move = (now, direction)

    def offer(self, now: Seconds) -> Offer:
        """Return what the pool could give now."""
        return self.offers[any(begin <= now < end for begin, end in self.stockout)]


class Fleet:
    """Every pool's nodes and every app's jobs, from second 0 on, when each pool's `min` nodes are up."""

    def __init__(
        self, policy: Policy, traces: Mapping[str, Trace], setup: Setup, *, recent_first: bool = False
    ) -> None:
        """`recent_first`: the node that was busy last gets the next job, otherwise the one that is idle longest."""
        self.now = 0.0
        self.policy = policy
        self.stations = {
            app: Station(streams(policy, app, traces), recent_first=recent_first) for app in sorted(policy.apps)
        }
        self.grounds = {name: _ground(policy.pools[name], setup) for name in sorted(policy.pools)}
        self.boxes: dict[NodeId, Box] = {}
        self.fenced: dict[NodeId, Box] = {}
        self._all: list[Box] = []  # by number
        self._coming: list[tuple[Seconds, int]] = []  # when a boot ends, and of which node
        self._emptying: list[tuple[Seconds, int]] = []
        for ground in self.grounds.values():
            if ground.pool.name not in setup.never_up:
                for _ in range(ground.pool.min_nodes):
                    self._rise(self._make(ground, ground.pool.apps[0], "", speaks=True))

    # ── time

    def advance(self, until: Seconds) -> None:
        """Let time pass."""
        while self._coming and self._coming[0][0] <= until:
            at, number = heappop(self._coming)
            box = self._all[number]
            if box.name in self.boxes:
                self.stations[box.app].run(at)
                self._rise(box)
        for station in self.stations.values():
            station.run(until)
        self.now = until

    def empties_at(self) -> Seconds:
        """Return when the next fenced node is empty, now or later; each is told once, with `take_empty`."""
        while self._emptying:
            at, number = self._emptying[0]
            box = self._all[number]
            if box.fenced and box.empty_at == at and box.name in self.boxes:
                return at
            heappop(self._emptying)
        return inf

    def take_empty(self) -> list[Box]:
        """Return the fenced nodes that are empty by now and were not told before."""
        result: dict[int, Box] = {}  # one that was unfenced and fenced again is queued twice
        while self.empties_at() <= self.now:
            _, number = heappop(self._emptying)
            result[number] = self._all[number]
        return list(result.values())

    def _rise(self, box: Box) -> None:
        """End a boot: the worker speaks and takes jobs, or it never will."""
        box.up, box.sighting = True, None
        ground = self.grounds[box.pool]
        ground.changes += 1
        ground.came_up += box.speaks
        ground.failed += not box.speaks
        if box.speaks:
            station = self.stations[box.app]
            box.slots = station.add(box.number, ground.pool.slots)
            if box.fenced:
                self._close(box)

    def box(self, number: int) -> Box:
        """Return a node by its number, gone or not."""
        return self._all[number]

    # ── what can be done to it

    def launch(self, pool: str, app: str, count: int, key: str = "") -> Outcome:
        """Order nodes."""
        ground = self.grounds[pool]
        if ground.offer(self.now).headroom == 0:
            ground.refused += 1
            return LaunchFailed(key, "exhausted", "none are to be had now, as simulated")
        if ground.launch_failure and ground.chances["launch"].random() < ground.launch_failure:
            ground.refused += 1
            return LaunchFailed(key, "error", "the launch failed, as simulated")
        names = []
        for _ in range(count):
            boot_s = ground.chances["boot"].uniform(*ground.boot)
            fails = ground.chances["fail"].random() < ground.boot_failure
            box = self._make(ground, app, key, speaks=not fails)
            heappush(self._coming, (self.now + boot_s, box.number))
            names.append(box.name)
        ground.launches += count
        ground.moves(self.now, 1)
        return Launched(key, tuple(names))

    def fence(self, name: NodeId) -> None:
        """Let a node take nothing new."""
        box = self.boxes[name]
        self.grounds[box.pool].moves(self.now, -1)
        box.fenced = True
        self.fenced[name] = box
        if box.slots:
            self._close(box)

    def unfence(self, name: NodeId) -> None:
        """Let a fenced node take jobs again."""
        box = self.boxes[name]
        self.grounds[box.pool].moves(self.now, 1)
        box.fenced, box.empty_at = False, inf
        del self.fenced[name]
        self.stations[box.app].reopen(box.slots)

    def stop(self, name: NodeId) -> None:
        """Take a node away. That it runs no job is what every policy owes."""
        box = self.boxes.pop(name)
        assert not box.slots or (box.fenced and box.empty_at <= self.now), f"{name} was stopped and may be busy"
        ground = self.grounds[box.pool]
        del ground.boxes[name]
        self.fenced.pop(name, None)
        ground.changes += 1
        ground.stops += 1
        ground.closed_s += max(self.now - box.ordered_at, ground.pool.billing_minimum_s)
        self.stations[box.app].closed.difference_update(box.slots)

    def _make(self, ground: Ground, app: str, key: str, *, speaks: bool) -> Box:
        ground.made += 1
        name = f"{ground.pool.name}/{ground.made}"
        box = Box(name, len(self._all), ground.pool.name, app, key, self.now, speaks)
        self._all.append(box)
        self.boxes[name] = ground.boxes[name] = box
        ground.changes += 1
        return box

    def _close(self, box: Box) -> None:
        box.empty_at = self.stations[box.app].close(box.slots)
        heappush(self._emptying, (box.empty_at, box.number))


def _ground(pool: PoolPolicy, setup: Setup) -> Ground:
    """Return an empty pool. Of one that is not simulated nobody knows how long it boots unless the setup says so."""
    simulated = pool.options if pool.kind == "simulated" else None
    boot = setup.boots.get(pool.name, simulated.boot if simulated else None)
    if boot is None:
        raise UsageError(f"pool {pool.name}: how long a node boots is not known: say --boot {pool.name}=60s..120s")
    if not 0.0 <= boot[0] <= boot[1] < inf:
        raise UsageError(f"pool {pool.name}: boot {boot[0]:g}s..{boot[1]:g}s: is to be the least and the most")
    seed = f"{setup.seed}/{simulated.seed if simulated else 0}/{pool.name}"
    never = pool.name in setup.never_up
    price_per_h = max(pool.price_per_h, (simulated.price if simulated else None) or 0.0)
    return Ground(
        pool=pool,
        boot=boot,
        boot_failure=1.0 if never else simulated.boot_failure if simulated else 0.0,
        launch_failure=simulated.launch_failure if simulated else 0.0,
        stockout=tuple(simulated.stockout) if simulated else (),
        price_per_h=price_per_h,
        offers=(Offer(None, price_per_h), Offer(0, price_per_h)),
        chances={kind: Random(f"{seed}/{kind}") for kind in ("boot", "fail", "launch", "learned")},  # noqa: S311
    )
