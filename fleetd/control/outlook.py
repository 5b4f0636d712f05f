"""All adapters of one policy, opened, watched and closed together: what the fleet looks like now.

Promises: an adapter that cannot be opened, read or closed costs its own pool or queues alone, and no time of others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from fleetd.control.metrics_count import Counts
from fleetd.control.watch import TIMEOUT_S, Watch, one_line
from fleetd.core.memory import Memory, Node
from fleetd.core.model import Blind, LeaseView, NodeId, Plan, Policy, Reading, Seconds, World
from fleetd.core.ports import Known, Listener, Nudge, Provider, Source, Teller
from fleetd.errors import FleetdError

CLOSE_TIMEOUT_S: Final = 2.0
T = TypeVar("T")


@dataclass(slots=True)
class Adapters:
    """What the policy's names were made into."""

    sources: Mapping[str, Source]
    providers: Mapping[str, Provider]


class Outlook:
    """The watches over the adapters of a policy."""

    def __init__(
        self, adapters: Adapters, clock: Callable[[], Seconds], nudge: Nudge, counts: Counts | None = None
    ) -> None:
        """Nothing is asked before `start`. `counts`: where every asking is counted."""
        self.adapters = adapters
        call = (counts or Counts()).call
        self._sources = {
            name: Watch(
                f"source {name}",
                _opening(source, nudge, _reader(source)),
                clock,
                nudge,
                around=partial(call, "source", name, "read"),
            )
            for name, source in adapters.sources.items()
        }
        self._pools = {
            name: Watch(
                f"pool {name}",
                _opening(provider, nudge, provider.list),
                clock,
                nudge,
                around=partial(call, "pool", name, "list"),
            )
            for name, provider in adapters.providers.items()
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: dict[str, asyncio.Task[None]] = {}  # for news, by pool
        self._news: list[str] = []

    def start(self) -> None:
        """Watch until `close`."""
        self._tasks = {asyncio.create_task(watch.run()) for watch in self._sources.values()}
        self._tasks |= {asyncio.create_task(watch.run()) for watch in self._pools.values()}

    async def look(self, limit_s: Seconds) -> None:
        """Wait until every adapter has answered or failed, but not for one that does neither."""
        looked = [watch.looked for watch in self._sources.values()] + [watch.looked for watch in self._pools.values()]
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                for event in looked:
                    await event.wait()

    def readings(self, policy: Policy) -> dict[str, Reading | Blind]:
        """Return the latest reading of every queue."""
        result: dict[str, Reading | Blind] = {}
        for name, queue in policy.queues.items():
            watch = self._sources.get(queue.source)
            latest = watch.latest() if watch else Blind("not read yet")
            if isinstance(latest, Blind):
                result[name] = latest
            else:
                result[name] = latest.get(name, Blind(f"source {queue.source} said nothing of it"))
        return result

    def worlds(self) -> dict[str, World | Blind]:
        """Return the latest world of every pool; what is returned a second time is no longer `fresh`."""
        result: dict[str, World | Blind] = {}
        for name, watch in self._pools.items():
            latest, fresh = watch.latest(), watch.fresh
            watch.fresh = False
            result[name] = replace(latest, fresh=fresh) if isinstance(latest, World) else latest
        return result

    def tell(self, plan: Plan, memory: Memory, policy: Policy, leases: Mapping[NodeId, LeaseView]) -> None:
        """Let the providers that listen know why their pool is as it is, and what is known of its nodes.

        Those that tell are asked for their news.
        """
        for name, provider in self.adapters.providers.items():
            if not policy.pools[name].act:
                continue
            if isinstance(provider, Teller) and (name not in self._asked or self._asked[name].done()):
                self._asked[name] = asyncio.create_task(self._ask_for_news(name, provider))
            if isinstance(provider, Listener):
                nodes = {node.id: _known(node, leases) for node in memory.nodes.values() if node.pool == name}
                provider.hear(plan.sentences.get(f"pool {name}", ""), nodes)

    def take_news(self) -> list[str]:
        """Return what the providers told since the last call."""
        news, self._news = self._news, []
        return news

    async def _ask_for_news(self, pool: str, provider: Teller) -> None:
        with suppress(TimeoutError, FleetdError, OSError):  # what is wrong with the pool, its list says
            async with asyncio.timeout(TIMEOUT_S):
                self._news += [f"pool {pool}: {text}" for text in await provider.news()]

    def look_again(self, pool: str) -> None:
        """Ask the pool's provider now: its nodes have just changed."""
        if pool in self._pools:
            self._pools[pool].kick.set()

    async def close(self) -> list[str]:
        """Stop watching and close every adapter; return what went wrong with that. Bounded, whatever they do."""
        for task in (*self._tasks, *self._asked.values()):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
        adapters: list[Source | Provider] = [*self.adapters.sources.values(), *self.adapters.providers.values()]
        closing = [asyncio.create_task(_close(adapter)) for adapter in adapters]
        if not closing:
            return []
        done, late = await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_S)
        for task in late:
            task.cancel()
        failed = [error for task in done if not task.cancelled() and (error := task.exception())]
        return [one_line(error) for error in failed] + ["an adapter did not close in time"] * len(late)


def _known(node: Node, leases: Mapping[NodeId, LeaseView]) -> Known:
    lease = leases.get(node.id)
    return Known(node.phase, node.busy, lease.age_s, lease.state) if lease else Known(node.phase, node.busy)


async def _close(adapter: Source | Provider) -> None:
    await adapter.close()


def _opening(adapter: Source | Provider, nudge: Nudge, ask: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """Return `ask` that opens the adapter first, and again until that has succeeded."""
    opened = False

    async def call() -> T:
        nonlocal opened
        if not opened:
            await adapter.open(nudge)
            opened = True
        return await ask()

    return call


def _reader(source: Source) -> Callable[[], Awaitable[dict[str, Reading]]]:
    async def read() -> dict[str, Reading]:
        return {reading.queue: reading for reading in await source.read()}

    return read
