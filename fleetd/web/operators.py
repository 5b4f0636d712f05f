"""What operators command. Each is answered once a tick has taken it, and says what was done."""

import asyncio
from typing import Any, Final, Literal

from pydantic import Field

from fleetd.control.code import Code
from fleetd.control.dead import letter_of, retry
from fleetd.control.loop import Controller
from fleetd.core.memory import Rollout
from fleetd.core.model import (
    ActivateCommand,
    Command,
    DrainAllCommand,
    DrainCommand,
    HoldCommand,
    NodeId,
    PardonCommand,
    PauseCommand,
    QuarantineCommand,
    RollbackCommand,
    WakeCommand,
    World,
)
from fleetd.core.wakes import lives_on
from fleetd.errors import UsageError
from fleetd.releases.stores import MissingError
from fleetd.web.calls import Asked, Name
from fleetd.web.wire import BusyError, InvalidError, NotFoundError, suggest

MAX_FOR_S: Final = 366 * 86400.0
TAKEN_S: Final = 10.0


class Wake(Asked):
    """Nodes to hold up."""

    pool: Name = Field(description="A pool; or one machine of it, as rack3/node07.")
    count: int = Field(default=1, ge=1, description="At least so many nodes; at most the pool's max.")
    for_s: float = Field(default=3600.0, ge=1, le=MAX_FOR_S)


class Drain(Asked):
    """What is to finish and go."""

    target: Name = Field(description="A pool or a node; a node also by a beginning that only one has.")
    force: bool = Field(default=False, description="Do not wait for running jobs; they go to another.")
    for_s: float | None = Field(default=None, ge=1, le=MAX_FOR_S, description="A pool: for how long; else until woken.")


class Hold(Asked):
    """What is to be left as it is."""

    pool: Name
    for_s: float = Field(ge=0, le=MAX_FOR_S, description="0 ends a hold.")


class Pause(Asked):
    """All scaling."""

    paused: bool = Field(default=True, description="false resumes it.")


class Quarantine(Asked):
    """A node to keep out of service, alive."""

    node: Name
    free: bool = Field(default=False, description="true gives it back.")


class Bury(Asked):
    """What becomes of a dead letter."""

    id: Name
    act: Literal["retry", "drop"]


class OfApp(Asked):
    """An app."""

    app: Name


class Activate(OfApp):
    """A release that an app is to run."""

    digest: Name
    canary: float | None = Field(default=None, gt=0, le=1, description="The share of nodes that try it first.")


class Pardon(OfApp):
    """A release that was refused."""

    digest: Name


class Operators:
    """What operators command."""

    def __init__(self, controller: Controller, code: Code | None = None) -> None:
        self._controller, self._code = controller, code

    async def wake(self, asked: Wake) -> dict[str, Any]:
        """Hold nodes of a pool, or one machine of it, up for a while, whatever the queues say."""
        name, _, machine = asked.pool.partition("/")
        if machine:
            return await self._wake_machine(self._pool(name), machine, asked)
        pool, most = self._pool(asked.pool), self._controller.policy.pools[asked.pool].max_nodes
        if asked.count > most:
            raise InvalidError("count", f"{pool} has at most {most} nodes")
        done = f"{pool} holds at least {asked.count} nodes for {asked.for_s:.0f} s"
        return await self._submit(WakeCommand(pool, asked.count, asked.for_s), done=done)

    async def _wake_machine(self, pool: str, machine: str, asked: Wake) -> dict[str, Any]:
        world = self._controller.observation.worlds.get(pool)
        seen = [sighting.node for sighting in world.sightings] if isinstance(world, World) else []
        if not any(lives_on(node, pool, machine) for node in seen):
            known = sorted({node.partition("/")[2].partition(".")[0] for node in seen})
            raise InvalidError("pool", f"{pool} knows no machine {machine!r}{suggest(machine, known)}")
        if asked.count != 1:
            raise InvalidError("count", f"{asked.pool} is one machine")
        done = f"{asked.pool} is held up for {asked.for_s:.0f} s"
        return await self._submit(WakeCommand(pool, 1, asked.for_s, machine), done=done)

    async def drain(self, asked: Drain) -> dict[str, Any]:
        """Let a node or a pool finish its jobs and go."""
        target = asked.target
        if target in self._controller.policy.pools:
            nodes = [n.id for n in self._controller.memory.nodes.values() if n.pool == target]
            forced = [DrainCommand(target, node, force=True) for node in nodes if asked.force]
            done = f"draining pool {target}: {len(nodes)} nodes"
            return await self._submit(DrainCommand(target, for_s=asked.for_s), *forced, done=done)
        node = self._node(target, "target")
        done = f"{'stopping' if asked.force else 'draining'} node {node}"
        return await self._submit(DrainCommand(node.partition("/")[0], node, force=asked.force), done=done)

    async def hold(self, asked: Hold) -> dict[str, Any]:
        """Leave a pool as it is for a while; zero seconds end that."""
        pool, for_s = self._pool(asked.pool), asked.for_s
        done = f"{pool} is left as it is for {for_s:.0f} s" if for_s else f"{pool} moves again"
        return await self._submit(HoldCommand(pool, for_s), done=done)

    async def pause(self, asked: Pause) -> dict[str, Any]:
        """Pause or resume all scaling; what runs goes on."""
        done = "paused: what runs goes on, nothing is launched or drained" if asked.paused else "resumed"
        return await self._submit(PauseCommand(asked.paused), done=done)

    async def quarantine(self, asked: Quarantine) -> dict[str, Any]:
        """Keep a node out of service, alive, or give it back."""
        node, free = self._node(asked.node, "node"), asked.free
        done = (
            f"{node} is {'back in service' if free else 'kept out of service, alive, until `unquarantine` or `drain`'}"
        )
        return await self._submit(QuarantineCommand(node.partition("/")[0], node, free), done=done)

    async def bury(self, asked: Bury) -> dict[str, Any]:
        """Submit a dead letter's job again, or forget the letter."""
        try:
            letter_of(self._controller, asked.id)
        except UsageError as error:
            raise NotFoundError(str(error)) from None
        if asked.act == "retry":
            return {"done": f"{asked.id}: submitted again: {await retry(self._controller, asked.id)}"}
        await self._controller.on_disk(self._controller.store.drop_dead, asked.id)
        return {"done": f"{asked.id}: dropped"}

    async def end(self, asked: Asked) -> dict[str, Any]:
        """End the fleet: every node drains."""
        del asked
        return await self._submit(DrainAllCommand(), done="the fleet ends: every node drains")

    # ── releases

    async def activate(self, asked: Activate) -> dict[str, Any]:
        """Bring a release to the nodes of an app: by canary, or by waves."""
        app = self._app(asked.app)
        if self._controller.policy.apps[app].path is not None:
            raise InvalidError("app", f"{app!r} runs what is in its folder; for releases write `release: pushed`")
        if self._code is not None:
            try:
                await asyncio.to_thread(self._code.fit, app, asked.digest)
            except MissingError as error:
                raise NotFoundError(str(error)) from None
        return await self._roll(app, ActivateCommand(app, asked.digest, asked.canary))

    async def rollback(self, asked: OfApp) -> dict[str, Any]:
        """Go back to the release before."""
        app = self._app(asked.app)
        return await self._roll(app, RollbackCommand(app))

    async def pardon(self, asked: Pardon) -> dict[str, Any]:
        """Let a release that failed and was refused since be activated again."""
        app = self._app(asked.app)
        if asked.digest not in self._controller.memory.rollouts.get(app, Rollout()).refused:
            raise InvalidError("digest", f"no release {asked.digest[:12]!r} of {app!r} was refused")
        return await self._roll(app, PardonCommand(app, asked.digest))

    async def _roll(self, app: str, command: Command) -> dict[str, Any]:
        """Hand a command about releases in, and answer with what was said of it."""
        await self._submit(command, done="")
        said = [event for event in self._controller.plan.events if event.startswith(f"app {app}: ")]
        return {"said": said or [f"app {app}: taken; `fleetd status` shows how far it is"]}

    # ── names

    def _pool(self, name: str) -> str:
        pools = self._controller.policy.pools
        if name not in pools:
            raise InvalidError("pool", f"no pool {name!r}{suggest(name, pools)}; there are {', '.join(pools)}")
        return name

    def _app(self, name: str) -> str:
        apps = self._controller.policy.apps
        if name not in apps:
            raise InvalidError("app", f"no app {name!r}{suggest(name, apps)}; there are {', '.join(apps)}")
        if apps[name].exec:
            raise InvalidError("app", f"{name!r} is a foreign worker, which has no releases of ours")
        return name

    def _node(self, name: str, place: str) -> NodeId:
        """Return the node of this name: whole, without its start time, or by a beginning that only one has."""
        known = self._controller.memory.nodes
        if name in known:
            return name
        found = [node for node in known if node.partition(".")[0] == name]
        found = found or [node for node in known if node.startswith(name)]
        if len(found) == 1:
            return found[0]
        what = "names more than one node" if found else "is no pool and no node"
        likely = "" if found else suggest(name, [*self._controller.policy.pools, *known])
        raise InvalidError(place, f"{name!r} {what}{likely}; see `fleetd status`")

    async def _submit(self, *commands: Command, done: str) -> dict[str, Any]:
        """Hand commands in and answer once a tick has taken them."""
        for command in commands:
            self._controller.submit(command)
        if await self._controller.taken(commands, TAKEN_S):
            return {"done": done}
        raise BusyError(f"not taken within {TAKEN_S:.0f} s, it stays to be done: see the log")
