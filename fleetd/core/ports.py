"""The two ports, as Protocols. An adapter is one file, one entry point, and the conformance suite of its port.

Every call may be cancelled at its time-out; an adapter holds no state that a cancelled call could break. What it
raises is `SourceError` or `ProviderError` with the queue's or pool's name; anything else is a bug in the adapter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from fleetd.core.model import (
    AppPolicy,
    Launched,
    NodeId,
    Order,
    Phase,
    PoolPolicy,
    Reading,
    Seconds,
    Stopped,
    World,
)

Nudge = Callable[[], None]


@dataclass(frozen=True, slots=True)
class WorkerLaunch:
    """What a provider needs to start a worker that finds its way home.

    `apps` by name; `servers` the dispatchers by app; `limits` the job limit in seconds by app (None: no limit).
    `keys`: who must have signed the code that it runs. `token` makes the join token for one pool.
    """

    fleet: str
    instance: str  # tells this fleet's nodes from those of another of the same name
    controller_url: str
    state_dir: str
    apps: Mapping[str, AppPolicy]
    servers: Mapping[str, tuple[str, ...]]
    limits: Mapping[str, Seconds | None]
    token: Callable[[str], str]
    keys: tuple[str, ...] = ()

    def options(self, app: AppPolicy, pool: PoolPolicy) -> list[str]:
        """Return the part of a worker's command line that the policy decides, the same wherever it is started.

        It stands at the line's end: what follows `--exec` is a foreign worker's own.
        """
        if app.exec:
            return self._foreign(app, pool)
        limit_s, reload, recycle = self.limits.get(app.name), app.reload, app.recycle
        given: list[tuple[str, object]] = [("--server", server) for server in self.servers.get(app.name, ())]
        given += [("--key", key) for key in self.keys]
        given += [("--slots", pool.slots // pool.per_process), ("--per-process", pool.per_process)]
        given += [("--attempts", app.attempts), ("--job-limit", limit_s), ("--drain-deadline", app.drain_s)]
        given += [("--overlap", reload.overlap), ("--health", reload.health_s), ("--crashes", reload.crashes)]
        given += [("--probation", reload.probation_s), ("--slot-memory", app.memory)]
        given += [("--recycle-jobs", recycle.jobs), ("--recycle-after", recycle.age_s)]
        given += [("--recycle-memory", recycle.memory)]
        words = [(name, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in given if value]
        return [word for pair in words for word in pair]

    def _foreign(self, app: AppPolicy, pool: PoolPolicy) -> list[str]:
        given: list[tuple[str, object]] = [("--slots", pool.slots)]
        if app.probe[:1] == ("gearman",):
            given += [("--server", server) for server in self.servers.get(app.name, ())]
        given += [("--probe", word) for word in app.probe]
        given += [("--drain-signal", name) for name in (app.drain_signal, *app.drain_then)]
        given += [("--drain-deadline", app.drain_s), ("--undo-signal", app.drain_undo)]
        given += [("--watch", path) for path in app.reload.watch]
        given += [("--memory", app.memory), ("--recycle-after", app.recycle.age_s)]
        given += [("--recycle-memory", app.recycle.memory)]
        # In one word each: a probe's may begin with a dash.
        words = [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in given if value
        ]
        return [*words, "--exec", *app.exec]


class Source(Protocol):
    """Tells the depth of queues. Made as `cls(name, options, queues)`, `queues` being glob by queue name."""

    Options: ClassVar[type[Any]]  # a pydantic model: what stands under the adapter's key in the policy

    async def open(self, nudge: Nudge) -> None:
        """Get ready; a push source keeps `nudge` and calls it to wake the tick. Must not need the server to be up."""

    async def read(self) -> Sequence[Reading]:
        """Return a Reading for every queue; raise SourceError where nothing can be said."""

    async def close(self) -> None:
        """Let go of everything; safe twice."""


class Provider(Protocol):
    """Starts and stops nodes. Made as `cls(pool, options, launch)`.

    Every node's name begins with its pool's and a slash: that is what a worker's token is held against.
    `victims` says whether `stop` hits exactly the named nodes, the highest ordinals, or any. Where a class says
    `stops_by_order = True`, the workers are ordered to end by the answer to their lease before `stop` is called.
    """

    Options: ClassVar[type[Any]]
    victims: ClassVar[Literal["exact", "ordinal", "advisory"]]

    async def open(self, nudge: Nudge) -> None:
        """Get ready; may keep `nudge` and call it when a node changes."""

    async def list(self) -> World:
        """Return every node of the pool, strays included, and what more could be had."""

    async def launch(self, order: Order) -> Launched:
        """Start `order.count` nodes; the same key again starts only what is missing. May be partial.

        Raises ExhaustedError, RefusedError or ProviderError.
        """

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Stop these nodes, giving each `grace_s` seconds; those that are gone already count as stopped."""

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        """Return the last lines that a node said, also of one that is gone or never came up.

        Raises ProviderError where nothing of it is kept.
        """

    async def close(self) -> None:
        """Let go of everything but the nodes, which live on; safe twice."""


@dataclass(frozen=True, slots=True)
class Known:
    """What fleetd knows of a node: its phase, how many jobs it runs, and what its worker said last, `age_s` ago.

    `age_s` is None and `state` empty where it has said nothing to this controller yet.
    """

    phase: Phase
    busy: int = 0
    age_s: Seconds | None = None
    state: str = ""


@runtime_checkable
class Listener(Protocol):
    """A provider that needs to know, or to write down beside its nodes, what fleetd knows of them."""

    def hear(self, sentence: str, nodes: Mapping[NodeId, Known]) -> None:
        """Take in why the pool is as it is, and its nodes. Called at each tick; must not wait."""


@runtime_checkable
class Teller(Protocol):
    """A provider to whose nodes things happen that the journal should hold: what was refused, cut off, seen."""

    async def news(self) -> Sequence[str]:
        """Return what happened since the last call, each sentence once. Called at most once at a time."""


SourceFactory = Callable[[str, Any, Mapping[str, str]], Source]
ProviderFactory = Callable[[PoolPolicy, Any, WorkerLaunch], Provider]
