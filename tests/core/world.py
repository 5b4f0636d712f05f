"""A small world for the rules: queues that fill, nodes that boot, fail, vanish, go silent, finish jobs and drain.

It plays the parts of dispatcher, workers and providers against `decide`, one second a tick, and keeps its own books,
so that a rule is checked against what happened and not against what the code believes. Chance comes from a seed.
"""

import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fleetd.core.decide import decide
from fleetd.core.memory import Memory
from fleetd.core.model import (
    AppPolicy,
    Blind,
    Command,
    Drain,
    DrainCommand,
    Intent,
    Launch,
    Launched,
    LaunchFailed,
    LeaseView,
    Objective,
    Observation,
    Offer,
    OnBlind,
    Order,
    Outcome,
    Plan,
    Policy,
    PoolPolicy,
    QueuePolicy,
    Reading,
    Sighting,
    SourcePolicy,
    Stop,
    Stopped,
    Undrain,
    Work,
    World,
)


def policy(*pools: PoolPolicy, **changes: Any) -> Policy:
    """A fleet of one app and one queue, over the given pools."""
    base = Policy(
        fleet="test",
        sources={"main": SourcePolicy("main", "fake", None)},
        apps={"photos": AppPolicy("photos", path="/app")},
        queues={"resize": QueuePolicy("resize", "photos", "main", "resize", Objective(30.0), job_limit_s=60.0)},
        pools={p.name: p for p in pools or (pool(),)},
        stability="thrifty",
    )
    return replace(base, **changes)


def pool(name: str = "local", **changes: Any) -> PoolPolicy:
    """A pool of at most ten nodes with one slot each."""
    return replace(PoolPolicy(name, "fake", None, ("photos",), slots=1, max_nodes=10), **changes)


def blind_policy(hold_s: float, then: Literal["keep", "min"]) -> dict[str, SourcePolicy]:
    """Sources whose blindness is held so long."""
    return {"main": SourcePolicy("main", "fake", None, OnBlind(hold_s, then))}


@dataclass(slots=True)
class Box:
    """A node as it truly is."""

    name: str
    pool: str
    key: str
    slots: int
    ready_at: float
    born_at: float
    fenced: bool = False
    jobs: list[float] = field(default_factory=list)  # when each running job ends
    idle_since: float = 0.0
    silent_until: float = 0.0
    stops_at: float | None = None
    leaving: str = ""


@dataclass(slots=True)
class Toy:
    """The world. `step` runs one tick and returns the plan; the books are public."""

    policy: Policy
    seed: int
    memory: Memory = field(default_factory=lambda: Memory(epoch=1))
    now: float = 1000.0
    waiting: int = 0
    boxes: dict[str, Box] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    blind_until: float = 0.0
    boot_s: tuple[float, float] = (1.0, 20.0)
    service_s: tuple[float, float] = (0.5, 40.0)
    boot_fails: float = 0.0
    launch_fails: float = 0.0
    crash: float = 0.0
    wedged: frozenset[str] = frozenset()  # pools that never answer an order
    count: int = 0
    cut_busy: list[str] = field(default_factory=list)  # stops that hit a node with a running job
    costs: list[tuple[float, float]] = field(default_factory=list)
    chance: random.Random = field(init=False)
    starts: int = 0
    ends: int = 0
    service: float = 0.0
    forced: set[str] = field(default_factory=set)
    gone: dict[str, str] = field(default_factory=dict)  # what the provider knows of those that went
    offer: Offer = field(default_factory=Offer)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def wild(self) -> "Toy":
        """Let boots fail, launches fail and nodes crash."""
        self.boot_fails, self.launch_fails, self.crash = 0.15, 0.1, 0.01
        return self

    # ── a tick

    def step(self, arrivals: int = 0, commands: tuple[Command, ...] = ()) -> Plan:
        """One second: things happen, then fleetd looks and decides, then its plan is carried out."""
        self.now += 1.0
        self.waiting += arrivals
        self._live()
        self.forced |= {c.node for c in commands if isinstance(c, DrainCommand) and c.force and c.node}
        plan, self.memory = decide(self.observe(commands), self.policy, self.memory)
        self.outcomes, self.starts, self.ends, self.service = [], 0, 0, 0.0
        for intent in plan.intents:
            self._act(intent)
        return plan

    def observe(self, commands: tuple[Command, ...] = ()) -> Observation:
        """What fleetd may see now."""
        running = sum(len(box.jobs) for box in self.boxes.values())
        blind = self.now < self.blind_until
        reading = Blind("connection refused") if blind else Reading("resize", self.waiting, running)
        worlds = {
            name: World(
                tuple(
                    Sighting(box.name, "up" if box.ready_at <= self.now else "booting", "photos", box.key)
                    for box in self.boxes.values()
                    if box.pool == name
                ),
                self.offer,
                gone=self.gone,
            )
            for name in self.policy.pools
        }
        return Observation(
            now=self.now,
            month="2026-11",
            readings={"resize": reading},
            worlds=worlds,
            leases={box.name: self._lease(box) for box in self.boxes.values() if self._speaks(box)},
            work={"resize": Work(self.starts, self.ends, 0, self.service, ())},
            outcomes=tuple(self.outcomes),
            commands=commands,
        )

    def _speaks(self, box: Box) -> bool:
        return box.ready_at <= self.now and box.silent_until <= self.now

    def _lease(self, box: Box) -> LeaseView:
        state: Literal["working", "draining", "drained"]
        state = "working" if not box.fenced else "draining" if box.jobs else "drained"
        idle_s = 0.0 if box.jobs else self.now - max(box.idle_since, box.ready_at)
        lease = LeaseView(box.name, box.pool, "photos", state, box.slots, len(box.jobs), idle_s, 0.0)
        return replace(lease, leaving=box.leaving)

    # ── what happens by itself

    def _live(self) -> None:
        for box in list(self.boxes.values()):
            ended = [end for end in box.jobs if end <= self.now]
            if ended:
                self.ends += len(ended)
                box.jobs = [end for end in box.jobs if end > self.now]
                box.idle_since = self.now
            if box.stops_at is not None and box.stops_at <= self.now:
                self._end(box)
            elif self.chance.random() < self.crash:
                self.waiting += len(box.jobs)  # the dispatcher hands them to another
                self._end(box)
        for box in self.boxes.values():
            while self.waiting and box.ready_at <= self.now and not box.fenced and len(box.jobs) < box.slots:
                took = self.chance.uniform(*self.service_s)
                box.jobs.append(self.now + took)
                self.waiting -= 1
                self.starts += 1
                self.service += took
        rate = sum(self.policy.pools[box.pool].price_per_h for box in self.boxes.values())
        self.costs.append((self.now, rate / 3600.0))

    def _end(self, box: Box) -> None:
        """A box goes; what it was rented for at least is billed."""
        del self.boxes[box.name]
        pool = self.policy.pools[box.pool]
        rest_s = pool.billing_minimum_s - (self.now - box.born_at)
        if rest_s > 0.0:
            self.costs.append((self.now, pool.price_per_h * rest_s / 3600.0))

    # ── what fleetd makes happen

    def _act(self, intent: Intent) -> None:
        match intent:
            case Launch(order):
                self._launch(order)
            case Drain(_, node):
                if node in self.boxes:
                    self.boxes[node].fenced = True
            case Undrain(_, node):
                if node in self.boxes:
                    self.boxes[node].fenced = False
            case Stop(_, nodes):
                for node in nodes:
                    if node in self.boxes:
                        if self.boxes[node].jobs and node not in self.forced:
                            self.cut_busy.append(node)
                        self.boxes[node].stops_at = self.now + 1.0
                self.outcomes.append(Stopped(nodes))

    def _launch(self, order: Order) -> None:
        if order.pool in self.wedged:
            return
        if self.chance.random() < self.launch_fails:
            self.outcomes.append(LaunchFailed(order.key, "error", "the provider is out of order"))
            return
        names = []
        for at in range(order.count):
            self.count += 1
            machine = f"{order.named[at]}." if at < len(order.named) else ""
            name = f"{order.pool}/{machine}{self.count}"
            names.append(name)
            boots = self.chance.random() >= self.boot_fails
            ready_at = self.now + self.chance.uniform(*self.boot_s) if boots else float("inf")
            slots = self.policy.pools[order.pool].slots
            self.boxes[name] = Box(name, order.pool, order.key, slots, ready_at, self.now, idle_since=self.now)
        self.outcomes.append(Launched(order.key, tuple(names)))


def spent(toy: Toy, window_s: float = 3600.0) -> float:
    """The most that any window of so many seconds has cost."""
    best = total = 0.0
    start = 0
    for at, cost in toy.costs:
        total += cost
        while toy.costs[start][0] <= at - window_s:
            total -= toy.costs[start][1]
            start += 1
        best = max(best, total)
    return best
