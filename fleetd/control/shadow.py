"""A shadow: a controller that decides as the live one would under its own policy, records it, and touches nothing.

Promises: no provider is ever asked to launch or stop, no worker gets an order, no command is taken, whatever is in the
memory that it starts from. It may run beside the live controller of the same fleet.

What there is comes from the live controller, which lends its memory and the ages of the running jobs: its nodes and
orders, what it learned of queues and pools. So the shadow stands in the live one's shoes at every tick, and its intents
are what its policy would do there; only what its own policy keeps in mind (the peaks of its need) is its own. Without a
live controller, nodes are known by their provider's word alone, and taken for busy.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

from fleetd.control.history import Recorder
from fleetd.control.loop import Controller, Make, Say
from fleetd.control.outlook import Adapters
from fleetd.control.watch import TIMEOUT_S, Watch
from fleetd.core.decide import decide
from fleetd.core.memory import Memory, Node
from fleetd.core.model import (
    Blind,
    Command,
    Drain,
    Intent,
    Launch,
    Launched,
    LeaseView,
    NodeId,
    Observation,
    Order,
    Phase,
    Plan,
    Policy,
    Reload,
    Seconds,
    Stop,
    Stopped,
    Undrain,
    Work,
    World,
)
from fleetd.core.ports import Nudge, Provider
from fleetd.errors import FleetdError, RefusedError, UsageError
from fleetd.store.sqlite import Store, dump_memory, load_memory

AGAIN_S: Final = 10.0  # a change of a count is said no oftener than that; what is gone for so long is over
UNOPENED: Final = ("simulated",)  # kinds whose workers live where the provider is open


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What the live controller lends: its memory, and the ages of the running jobs by queue."""

    memory: Memory
    running_s: Mapping[str, tuple[Seconds, ...]]


@dataclass(frozen=True, slots=True)
class _Said:
    """What was said of an intent: of how many, when, and when it was last true."""

    count: int
    at: Seconds
    true_at: Seconds


Ask = Callable[[], Awaitable[Glimpse]]


def dump_glimpse(controller: Controller) -> bytes:
    """Return what a shadow needs to know of this controller, as JSON."""
    running = {name: work.running_s for name, work in controller.observation.work.items() if work.running_s}
    return b'{"memory":%b,"running_s":%b}' % (dump_memory(controller.memory), json.dumps(running).encode())


def load_glimpse(raw: Mapping[str, Any]) -> Glimpse:
    """Read what the live controller lends; raises FleetdError where another version speaks."""
    memory, running = load_memory(json.dumps(raw.get("memory"))), raw.get("running_s")
    if memory is None or not isinstance(running, dict):
        raise FleetdError("the live controller is of another version, its memory cannot be read")
    return Glimpse(memory, {str(name): tuple(map(float, ages)) for name, ages in running.items()})


class Shadow(Controller):
    """A controller with bound hands."""

    def __init__(self, policy: Policy, store: Store, make: Make, say: Say, ask: Ask) -> None:
        """`ask` asks the live controller."""
        super().__init__(policy, store, lambda wanted: looking(make(wanted), wanted), say)
        self._recorder = Recorder(untold=True)
        self._live = Watch("live controller", ask, self.clock)
        self._would: dict[tuple[str, ...], _Said] = {}
        self._events: frozenset[str] = frozenset()
        self._alone = ""

    async def run(self) -> None:
        """Tick until cancelled."""
        watching = asyncio.create_task(self._live.run())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUT_S):
                    await self._live.looked.wait()
            await super().run()
        finally:
            watching.cancel()

    def submit(self, command: Command) -> None:
        """Refuse: whatever an operator wants is for the live controller to do."""
        del command
        raise UsageError(f"this is a shadow of fleet {self.policy.fleet}, it touches nothing: ask the live controller")

    def observe(self) -> Observation:
        """Gather the latest word of everybody, the live controller's above all."""
        observation, live = super().observe(), self._live.latest()
        alone = live.reason if isinstance(live, Blind) else ""
        if bool(alone) != bool(self._alone):
            told = f"no live controller lends its memory, nodes are taken for busy: {alone}" if alone else ""
            self._say("shadow", told or "the live controller lends its memory")
        self._alone = alone
        if isinstance(live, Blind):
            return replace(observation, leases=presumed(observation.worlds, self.policy))
        self.memory = in_its_shoes(live.memory, self.memory)
        work = {name: Work(running_s=ages) for name, ages in live.running_s.items() if name in self.policy.queues}
        return replace(observation, leases=lent(live.memory, observation.now), work=work)

    def decide(self) -> tuple[Plan, Memory]:
        """Decide twice: by the policy, for the record; and as one that only watches, for what is to be remembered."""
        plan, _ = decide(self.observation, self.policy, self.memory)
        watched, memory = decide(self.observation, watched_only(self.policy), self.memory)
        news = [event for event in watched.events if event not in self._events]  # a lent memory sees things anew
        self._events = frozenset(watched.events)
        return Plan((), plan.sentences, (*news, *self._told(plan.intents, memory.now))), memory

    def _carry_out(self, intent: Intent) -> None:
        """Do nothing."""

    def _send_again(self) -> None:
        """Send nothing: the orders in memory are the live controller's."""

    def _told(self, intents: Sequence[Intent], now: Seconds) -> list[str]:
        """Return what is new in the intents, as sentences: the world does not answer to them, so they come again."""
        lines, before = [], self._would
        self._would = {}
        for intent in intents:
            key, count = _key(intent)
            said = before.get(key)
            if said is None or (said.count != count and now - said.at >= AGAIN_S):
                lines.append(f"would {line(intent)}")
                said = _Said(count, now, now)
            self._would[key] = replace(said, true_at=now)
        for key, said in before.items():
            if key not in self._would and now - said.true_at < AGAIN_S:
                self._would[key] = said
            elif key not in self._would:
                lines.append(f"would no longer {' '.join(key)}")
        return lines


# ── what is seen


def watched_only(policy: Policy) -> Policy:
    """Return the policy with every pool watched only."""
    return replace(policy, pools={name: replace(pool, act=False) for name, pool in policy.pools.items()})


def in_its_shoes(live: Memory, own: Memory) -> Memory:
    """Return the live controller's memory with what is the shadow's own: above all what its policy looks back at."""
    return replace(
        live,
        epoch=own.epoch,
        now=max(live.now, own.now),
        next_order=own.next_order,
        ending=False,
        paused=False,
        pools={**own.pools, **live.pools},
        queues={**own.queues, **live.queues},
        peaks=own.peaks,
    )


def lent(live: Memory, now: Seconds) -> dict[NodeId, LeaseView]:
    """Return the workers' leases as the live controller remembers them."""
    return {node.id: _lease(node, now) for node in live.nodes.values() if node.heard_at is not None}


def _lease(node: Node, now: Seconds) -> LeaseView:
    heard_at = node.heard_at if node.heard_at is not None else now
    state: Literal["working", "draining", "drained"] = "working"
    if node.phase in (Phase.DRAINING, Phase.STOPPING):
        state = "draining" if node.busy else "drained"
    idle_s = max(0.0, now - node.idle_at) if node.idle_at is not None else 0.0
    age_s = max(0.0, now - heard_at)
    return LeaseView(
        node.id, node.pool, node.app, state, node.slots, node.busy, max(0.0, idle_s - age_s), age_s, node.digest
    )


def presumed(worlds: Mapping[str, World | Blind], policy: Policy) -> dict[NodeId, LeaseView]:
    """Return leases for nodes that their providers call up, as of workers that tell nothing: every slot is busy."""
    leases: dict[NodeId, LeaseView] = {}
    for name, world in worlds.items():
        pool = policy.pools.get(name)
        if pool is None or isinstance(world, Blind):
            continue
        for seen in world.sightings:
            if seen.state == "up":
                app = seen.app if seen.app in pool.apps else pool.apps[0]
                leases[seen.node] = LeaseView(seen.node, name, app or "", "working", pool.slots, pool.slots, 0.0, 0.0)
    return leases


# ── what is not done


def looking(adapters: Adapters, policy: Policy) -> Adapters:
    """Return adapters that can look and nothing else."""
    kinds = {name: policy.pools[name].kind for name in adapters.providers}
    return Adapters(
        adapters.sources,
        {name: Looking(one, opens=kinds[name] not in UNOPENED) for name, one in adapters.providers.items()},
    )


class Looking:
    """A provider that is only looked through."""

    Options: ClassVar[type[Any]] = object
    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "exact"

    def __init__(self, provider: Provider, *, opens: bool) -> None:
        self._provider, self._opens = provider, opens

    async def open(self, nudge: Nudge) -> None:
        """Get ready to look."""
        if self._opens:
            await self._provider.open(nudge)

    async def list(self) -> World:
        """Return what there is."""
        return await self._provider.list()

    async def launch(self, order: Order) -> Launched:
        """Refuse."""
        raise RefusedError(f"pool {order.pool}: a shadow launches nothing")

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Refuse."""
        del grace_s, order
        raise RefusedError(f"{', '.join(nodes)}: a shadow stops nothing")

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        """Return what a node said."""
        return await self._provider.logs(node, last)

    async def close(self) -> None:
        """Let go of everything."""
        await self._provider.close()


# ── words


def line(intent: Intent) -> str:
    """Return an intent as a sentence: launch 3 in rack for photos: why."""
    match intent:
        case Launch(order, reason):
            return f"launch {order.count} in {order.pool} for {order.app}: {reason}"
        case Drain(_, node, _, reason):
            return f"drain {node}: {reason}"
        case Undrain(_, node, reason):
            return f"un-drain {node}: {reason}"
        case Stop(_, nodes, _, reason):
            return f"stop {', '.join(nodes)}: {reason}"
        case Reload(_, node, _, reason):
            return f"reload {node}: {reason}"


def _key(intent: Intent) -> tuple[tuple[str, ...], int]:
    """Return what an intent is about, and how many of it."""
    match intent:
        case Launch(order, _):
            return ("launch", "in", order.pool, "for", order.app), order.count
        case Drain(_, node, _, _):
            return ("drain", node), 1
        case Undrain(_, node, _):
            return ("un-drain", node), 1
        case Stop(_, nodes, _, _):
            return ("stop", *nodes), 1
        case Reload(_, node, digest, _):
            return ("reload", node, "to", digest), 1
