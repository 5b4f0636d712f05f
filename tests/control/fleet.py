"""A small fleet for the controller's tests: a source and providers that are real classes, and do as they are told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fleetd.codecs.lease import JobCounts, Lease
from fleetd.control.loop import Controller
from fleetd.control.outlook import Adapters
from fleetd.core.model import (
    AppPolicy,
    Launched,
    NodeId,
    Objective,
    Order,
    Policy,
    PoolPolicy,
    QueuePolicy,
    Reading,
    Seconds,
    Sighting,
    SourcePolicy,
    Stopped,
    World,
)
from fleetd.core.ports import Nudge
from fleetd.errors import FleetdError
from fleetd.store.sqlite import Store


def pool(name: str = "local", **changes: Any) -> PoolPolicy:
    """A pool of at most ten nodes with one slot each."""
    return replace(PoolPolicy(name, "fake", None, ("photos",), slots=1, max_nodes=10), **changes)


def policy(*pools: PoolPolicy, **changes: Any) -> Policy:
    """One app and one queue over these pools."""
    base = Policy(
        fleet="test",
        sources={"main": SourcePolicy("main", "fake", None)},
        apps={"photos": AppPolicy("photos", path="/app", drain_s=60.0)},
        queues={"resize": QueuePolicy("resize", "photos", "main", "resize_*", Objective(30.0), job_limit_s=60.0)},
        pools={p.name: p for p in pools or (pool(),)},
    )
    return replace(base, **changes)


def lease(node: str = "local/1.1", seq: int = 1, **changes: Any) -> Lease:
    """A worker's lease."""
    base = Lease("test", node.partition("/")[0], node, "boot", seq, "photos", "working", 1, 0)
    return replace(base, **changes)


def counts(started: int, done: int = 0, failed: int = 0, service_s: float = 0.0) -> dict[str, JobCounts]:
    """What a worker did of resize_small."""
    return {"resize_small": JobCounts(started, done, failed, service_s)}


@dataclass(slots=True)
class FakeSource:
    """One queue with `waiting` jobs, or an error."""

    Options: ClassVar[type[Any]] = object
    waiting: int = 0
    error: Exception | None = None
    opens: int = 0
    closed: int = 0

    async def open(self, nudge: Nudge) -> None:
        self.opens += 1

    async def read(self) -> Sequence[Reading]:
        if self.error:
            raise self.error
        return [Reading("resize", self.waiting, 0)]

    async def close(self) -> None:
        self.closed += 1


@dataclass(slots=True)
class Machines:
    """The nodes of one pool, living on through any number of providers: key by node."""

    nodes: dict[NodeId, str] = field(default_factory=dict)
    stopped: list[NodeId] = field(default_factory=list)
    count: int = 0


@dataclass(slots=True)
class FakeProvider:
    """Starts and stops machines. `before` is called first in every launch; `wedged` never answers one."""

    Options: ClassVar[type[Any]] = object
    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "exact"
    name: str
    machines: Machines = field(default_factory=Machines)
    before: Callable[[Order], None] = lambda order: None
    error: Exception | None = None
    open_error: Exception | None = None
    wedged: bool = False
    opened: bool = False
    launches: list[Order] = field(default_factory=list)
    closed: int = 0

    async def open(self, nudge: Nudge) -> None:
        if self.open_error:
            raise self.open_error
        self.opened = True

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        return [f"{node} says nothing"][-last:]

    async def list(self) -> World:
        assert self.opened
        return World(tuple(Sighting(node, "up", "photos", key) for node, key in self.machines.nodes.items()))

    async def launch(self, order: Order) -> Launched:
        self.launches.append(order)
        self.before(order)
        if self.wedged:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        nodes = self.machines.nodes
        while sum(key == order.key for key in nodes.values()) < order.count:
            self.machines.count += 1
            nodes[f"{self.name}/{self.machines.count}.1"] = order.key
        return Launched(order.key, tuple(node for node, key in nodes.items() if key == order.key))

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        for node in nodes:
            self.machines.nodes.pop(node, None)
            self.machines.stopped.append(node)
        return Stopped(tuple(nodes))

    async def close(self) -> None:
        self.closed += 1


@dataclass(slots=True)
class Fleet:
    """A controller over fakes, its store on disk. `make` makes adapters of what stands in `source` and `providers`."""

    folder: Path
    policy: Policy
    source: FakeSource = field(default_factory=FakeSource)
    providers: dict[str, FakeProvider] = field(default_factory=dict)
    said: list[tuple[str, str]] = field(default_factory=list)
    store: Store = field(init=False)
    controller: Controller = field(init=False)

    def __post_init__(self) -> None:
        for name in self.policy.pools:
            self.providers.setdefault(name, FakeProvider(name))
        self.start()

    def start(self) -> None:
        """Make a controller, as a start of the program does."""
        self.store = Store(self.folder)
        self.controller = Controller(self.policy, self.store, self.make, lambda *line: self.said.append(line))

    def make(self, wanted: Policy) -> Adapters:
        """Return the adapters of a policy."""
        return Adapters(
            {"main": self.source},
            {name: self.providers.setdefault(name, FakeProvider(name)) for name in wanted.pools},
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Controller]:
        """The controller's life, cancelled at the end and its store closed, as the program does."""
        life = asyncio.create_task(self.controller.run())
        try:
            yield self.controller
            if life.done():
                life.result()
        finally:
            life.cancel()
            with suppress(asyncio.CancelledError):
                await life
            self.store.close()

    async def speak(self, node: NodeId, *, seq: int | None = None, **changes: Any) -> None:
        """Let a node's worker say what it is, having heard its newest order."""
        entry = self.controller.leases.entries.get(node)
        if seq is None:
            seq = entry.lease.seq + 1 if entry and entry.lease else 1
        order = entry.order.number if entry else 0
        await self.controller.accept(lease(node, seq, order=order, **changes))

    async def all_speak(self) -> None:
        """Let every machine's worker speak, and obey."""
        for provider in self.providers.values():
            for node in list(provider.machines.nodes):
                entry = self.controller.leases.entries.get(node)
                drained = entry is not None and entry.order.state != "work"
                with suppress(FleetdError):
                    await self.speak(node, state="drained" if drained else "working")


async def until(check: Callable[[], object], limit_s: float = 5.0) -> None:
    """Wait until it holds; fail if it does not within the limit."""
    deadline = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)
