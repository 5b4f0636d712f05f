"""What operators and their commands call, with the bearer token; a command is answered once a tick has taken it."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fleetd.control.code import Code
from fleetd.control.dead import letter_of, retry
from fleetd.control.loop import Controller
from fleetd.control.shadow import dump_glimpse
from fleetd.control.status import status
from fleetd.core.explain import deep
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
)
from fleetd.errors import UsageError
from fleetd.web.wire import DeniedError, number, read_json, suggest

STUCK_S: Final = 15.0
MAX_FOR_S: Final = 366 * 86400.0
TAKEN_S: Final = 10.0
MOST_ROWS: Final = 1000
_WHOLE: Final = re.compile("[0-9]{1,18}")
Handler = Callable[[Request], Awaitable[Response]]


class Operators:
    """What operators and their commands call."""

    def __init__(self, controller: Controller, token: str, code: Code | None = None) -> None:
        self._controller, self._token, self._code = controller, token, code

    def guard(self, handler: Handler) -> Handler:
        """Let through only those who bear the token."""

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                raise DeniedError("authorization: needs the operator's bearer token (FLEETD_TOKEN)")
            return await handler(request)

        return guarded

    async def health(self, request: Request) -> Response:
        """Say whether the tick goes on; needs no token and tells nothing else."""
        del request
        age_s = self._controller.clock() - self._controller.memory.now
        return JSONResponse({"ok": age_s < STUCK_S, "tick_age_s": round(age_s, 1)}, 200 if age_s < STUCK_S else 503)

    async def journal(self, request: Request) -> Response:
        """Give journal entries after a sequence number, oldest first."""
        after, last = _whole(request, "after", 0), min(_whole(request, "last", 100), MOST_ROWS)
        entries = self._controller.store.journal(after=after, last=last)
        rows = [{"seq": e.seq, "at": e.at, "epoch": e.epoch, "kind": e.kind, "text": e.text} for e in entries]
        return JSONResponse({"entries": rows})

    async def explain(self, request: Request) -> Response:
        """Give what was said of each app and pool at a moment, in seconds since 1970; or the terms of the last tick."""
        if _whole(request, "deep", 0):
            return JSONResponse({"deep": deep(*self._controller.basis)})
        said = self._controller.store.sentences(float(_whole(request, "at", 0)))
        return JSONResponse(
            {
                "why": {about: text for about, (_, text) in said.items()},
                "at": {about: at for about, (at, _) in said.items()},
            }
        )

    async def glimpse(self, request: Request) -> Response:
        """Give what a shadow needs: the whole memory, and the ages of the running jobs."""
        del request
        return Response(dump_glimpse(self._controller), media_type="application/json")

    async def logs(self, request: Request) -> Response:
        """Give the last lines of a node, also of one that is gone."""
        name = request.query_params.get("node", "")
        node = next((known for known in self._controller.memory.nodes if known.partition(".")[0] == name), name)
        pool = node.partition("/")[0]
        provider = self._controller.providers.get(pool)
        if provider is None:
            raise UsageError(f"logs: no pool {pool!r}{suggest(pool, self._controller.policy.pools)}; a node is POOL/ID")
        async with asyncio.timeout(TAKEN_S):
            lines = await provider.logs(node, min(_whole(request, "last", 100), MOST_ROWS))
        return JSONResponse({"node": node, "lines": list(lines)})

    async def dead(self, request: Request) -> Response:
        """Give the dead letters, newest first, or one by its id."""
        name = request.query_params.get("id")
        if name is None:
            return JSONResponse({"letters": self._controller.store.dead(min(_whole(request, "last", 100), MOST_ROWS))})
        return JSONResponse(letter_of(self._controller, name))

    async def bury(self, request: Request) -> Response:
        """Retry a dead letter, or drop it."""
        raw = await read_json(request)
        name, act = str(raw.get("id", "")), raw.get("act")
        if act == "retry":
            return JSONResponse({"done": f"{name}: submitted again: {await retry(self._controller, name)}"})
        if act == "drop":
            letter_of(self._controller, name)
            await self._controller.on_disk(self._controller.store.drop_dead, name)
            return JSONResponse({"done": f"{name}: dropped"})
        raise UsageError(f"act: must be retry or drop, not {act!r}")

    async def hold(self, request: Request) -> Response:
        """Leave a pool as it is for a while; zero seconds end that."""
        raw = await read_json(request)
        pool, for_s = self._pool(raw, "hold"), number(raw, "for_s", 0, MAX_FOR_S)
        done = f"{pool} is left as it is for {for_s:.0f} s" if for_s else f"{pool} moves again"
        return await self._submit(HoldCommand(pool, for_s), done=done)

    async def pause(self, request: Request) -> Response:
        """Pause or resume all scaling."""
        paused = (await read_json(request)).get("paused") is not False
        done = "paused: what runs goes on, nothing is launched or drained" if paused else "resumed"
        return await self._submit(PauseCommand(paused), done=done)

    async def quarantine(self, request: Request) -> Response:
        """Keep a node out of service, alive, or give it back."""
        raw = await read_json(request)
        node, free = self._node(str(raw.get("node", "")), "quarantine"), raw.get("free") is True
        done = (
            f"{node} is {'back in service' if free else 'kept out of service, alive, until `unquarantine` or `drain`'}"
        )
        return await self._submit(QuarantineCommand(node.partition("/")[0], node, free), done=done)

    async def status(self, request: Request) -> Response:
        """Give the picture of the fleet."""
        return JSONResponse(status(self._controller, min(_whole(request, "events", 12), MOST_ROWS)))

    async def wake(self, request: Request) -> Response:
        """Hold nodes of a pool up for a while."""
        raw = await read_json(request)
        name, pools = self._pool(raw, "wake"), self._controller.policy.pools
        count, for_s = number(raw, "count", 1, pools[name].max_nodes), number(raw, "for_s", 1, MAX_FOR_S)
        if not count.is_integer():
            raise UsageError(f"count: must be a whole number, not {count:g}")
        return await self._submit(
            WakeCommand(name, int(count), for_s), done=f"{name} holds at least {int(count)} nodes for {for_s:.0f} s"
        )

    async def drain(self, request: Request) -> Response:
        """Let a node or a pool finish and go."""
        raw = await read_json(request)
        target, force = str(raw.get("target", "")), raw.get("force") is True
        if target in self._controller.policy.pools:
            for_s = number(raw, "for_s", 1, MAX_FOR_S) if raw.get("for_s") is not None else None
            nodes = [n.id for n in self._controller.memory.nodes.values() if n.pool == target]
            forced = [DrainCommand(target, node, force=True) for node in nodes if force]
            done = f"draining pool {target}: {len(nodes)} nodes"
            return await self._submit(DrainCommand(target, for_s=for_s), *forced, done=done)
        node = self._node(target, "drain")
        done = f"{'stopping' if force else 'draining'} node {node}"
        return await self._submit(DrainCommand(node.partition("/")[0], node, force=force), done=done)

    async def activate(self, request: Request) -> Response:
        """Bring a release to the nodes of an app: by canary, or by waves."""
        raw = await read_json(request)
        app, digest = self._app(raw, "activate"), str(raw.get("digest", ""))
        if self._controller.policy.apps[app].path is not None:
            raise UsageError(f"activate: app {app!r} runs what is in its folder; for releases write `release: pushed`")
        canary = number(raw, "canary", 0.0, 1.0) if raw.get("canary") is not None else None
        if canary == 0.0:
            raise UsageError("canary: must be more than 0")
        if self._code is not None:
            await asyncio.to_thread(self._code.fit, app, digest)
        return await self._roll(app, ActivateCommand(app, digest, canary))

    async def rollback(self, request: Request) -> Response:
        """Go back to the release before."""
        app = self._app(await read_json(request), "rollback")
        return await self._roll(app, RollbackCommand(app))

    async def pardon(self, request: Request) -> Response:
        """Let a refused release be activated again."""
        raw = await read_json(request)
        app, digest = self._app(raw, "pardon"), str(raw.get("digest", ""))
        refused = self._controller.memory.rollouts.get(app, Rollout()).refused
        if digest not in refused:
            raise UsageError(f"pardon: no release {digest[:12]!r} of {app!r} was refused")
        return await self._roll(app, PardonCommand(app, digest))

    async def _roll(self, app: str, command: Command) -> Response:
        """Hand a command about releases in, and answer with what was said of it."""
        answer = await self._submit(command, done="")
        if answer.status_code != 200:
            return answer
        said = [event for event in self._controller.plan.events if event.startswith(f"app {app}: ")]
        return JSONResponse({"said": said or [f"app {app}: taken; `fleetd status` shows how far it is"]})

    def _app(self, raw: dict[str, Any], verb: str) -> str:
        name, apps = str(raw.get("app", "")), self._controller.policy.apps
        if name not in apps:
            raise UsageError(f"{verb}: no app {name!r}{suggest(name, apps)}; there are {', '.join(apps)}")
        if apps[name].exec:
            raise UsageError(f"{verb}: app {name!r} is a foreign worker, which has no releases of ours")
        return name

    async def end(self, request: Request) -> Response:
        """End the fleet: every node drains."""
        del request
        return await self._submit(DrainAllCommand(), done="the fleet ends: every node drains")

    def _pool(self, raw: dict[str, Any], verb: str) -> str:
        name, pools = str(raw.get("pool", "")), self._controller.policy.pools
        if name not in pools:
            raise UsageError(f"{verb}: no pool {name!r}{suggest(name, pools)}; there are {', '.join(pools)}")
        return name

    def _node(self, name: str, verb: str) -> NodeId:
        """Return the node of this name: whole, without its start time, or by a beginning that only one has."""
        known = self._controller.memory.nodes
        if name in known:
            return name
        found = [node for node in known if node.partition(".")[0] == name]
        found = found or [node for node in known if name and node.startswith(name)]
        if len(found) == 1:
            return found[0]
        what = "names more than one node" if found else "is no pool and no node"
        likely = "" if found else suggest(name, [*self._controller.policy.pools, *known])
        raise UsageError(f"{verb}: {name!r} {what}{likely}; see `fleetd status`")

    async def _submit(self, *commands: Command, done: str) -> Response:
        """Hand commands in and answer once a tick has taken them."""
        for command in commands:
            self._controller.submit(command)
        if await self._controller.taken(commands, TAKEN_S):
            return JSONResponse({"done": done})
        return JSONResponse({"error": f"not taken within {TAKEN_S:.0f} s, it stays to be done: see the log"}, 503)


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not _WHOLE.fullmatch(text):
        raise UsageError(f"{name}: must be a whole number, not {text!r}")
    return int(text)
