"""The controller's HTTP API: leases and orders for workers, status and commands for operators, all under /v1.

Promises: a worker's request counts only with its token's signature, an operator's only with the bearer token; every
error is `{"error": "one clear line"}`; a body larger than allowed is refused unread.
"""

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from difflib import get_close_matches
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fleetd.codecs.lease import ANSWER_HEADER, MAX_BODY, dump, load_lease, sign_answer, verify
from fleetd.control.loop import Controller
from fleetd.control.status import status
from fleetd.core.model import Command, DrainAllCommand, DrainCommand, NodeId, WakeCommand
from fleetd.errors import FleetdError, ProtocolError, UsageError

STUCK_S: Final = 15.0
BODY_S: Final = 20.0
POLL_S: Final = 20.0
MAX_FOR_S: Final = 366 * 86400.0
TAKEN_S: Final = 10.0
_WHOLE: Final = re.compile("-?[0-9]{1,18}")
Handler = Callable[[Request], Awaitable[Response]]


def make_app(controller: Controller, join_secret: str, operator_token: str) -> Starlette:
    """Return the ASGI application of one controller."""
    workers = _Workers(controller, join_secret)
    operators = _Operators(controller, operator_token)
    return Starlette(
        routes=[
            Route("/healthz", operators.health, methods=["GET"]),
            Route("/v1/lease", workers.lease, methods=["POST"]),
            Route("/v1/orders", workers.orders, methods=["GET"]),
            Route("/v1/status", operators.guard(operators.status), methods=["GET"]),
            Route("/v1/wake", operators.guard(operators.wake), methods=["POST"]),
            Route("/v1/drain", operators.guard(operators.drain), methods=["POST"]),
            Route("/v1/end", operators.guard(operators.end), methods=["POST"]),
        ],
        exception_handlers={
            FleetdError: _refuse,
            ClientDisconnect: _gone,
            404: _unknown,
            405: _unknown,
            Exception: _broken,
        },
    )


class _Workers:
    """What workers call."""

    def __init__(self, controller: Controller, secret: str) -> None:
        self._controller, self._secret = controller, secret

    async def lease(self, request: Request) -> Response:
        body = await _body(request)
        scope, key, signature = self._verify(request, body)
        lease = load_lease(body)
        if scope != f"{lease.fleet}/{lease.pool}":
            raise _DeniedError(f"lease: the token is for {scope}, not for {lease.fleet}/{lease.pool}")
        _own(scope, lease.node, "lease")
        return _signed(key, signature, dump(await self._controller.accept(lease)))

    async def orders(self, request: Request) -> Response:
        scope, key, signature = self._verify(request, b"")
        node, after = request.query_params.get("node", ""), request.query_params.get("after", "0")
        if not node or not _WHOLE.fullmatch(after):
            raise ProtocolError("orders: needs node=ID and after=NUMBER")
        _own(scope, node, "orders")
        order = await self._controller.leases.wait(node, int(after), POLL_S)
        return _signed(key, signature, dump(order)) if order else _signed(key, signature, b"", 204)

    def _verify(self, request: Request, body: bytes) -> tuple[str, str, str]:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        try:
            return verify(self._secret, request.headers.get("authorization", ""), request.method, path, body)
        except ProtocolError as error:
            raise _DeniedError(str(error)) from None


class _Operators:
    """What operators and their commands call."""

    def __init__(self, controller: Controller, token: str) -> None:
        self._controller, self._token = controller, token

    def guard(self, handler: Handler) -> Handler:
        """Let through only those who bear the token."""

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                raise _DeniedError("authorization: needs the operator's bearer token (FLEETD_TOKEN)")
            return await handler(request)

        return guarded

    async def health(self, request: Request) -> Response:
        """Say whether the tick goes on; needs no token and tells nothing else."""
        del request
        age_s = self._controller.clock() - self._controller.memory.now
        return JSONResponse({"ok": age_s < STUCK_S, "tick_age_s": round(age_s, 1)}, 200 if age_s < STUCK_S else 503)

    async def status(self, request: Request) -> Response:
        recent = request.query_params.get("events", "12")
        if not _WHOLE.fullmatch(recent) or int(recent) < 0:
            raise UsageError("status: events must be a number")
        return JSONResponse(status(self._controller, min(int(recent), 1000)))

    async def wake(self, request: Request) -> Response:
        raw = await _json(request)
        name, pools = str(raw.get("pool", "")), self._controller.policy.pools
        if name not in pools:
            raise UsageError(f"wake: no pool {name!r}{_suggest(name, pools)}; there are {', '.join(pools)}")
        count, for_s = _number(raw, "count", 1, pools[name].max_nodes), _number(raw, "for_s", 1, MAX_FOR_S)
        if not count.is_integer():
            raise UsageError(f"count: must be a whole number, not {count:g}")
        return await self._submit(
            WakeCommand(name, int(count), for_s), done=f"{name} holds at least {int(count)} nodes for {for_s:.0f} s"
        )

    async def drain(self, request: Request) -> Response:
        raw = await _json(request)
        target, force = str(raw.get("target", "")), raw.get("force") is True
        if target in self._controller.policy.pools:
            for_s = _number(raw, "for_s", 1, MAX_FOR_S) if raw.get("for_s") is not None else None
            nodes = [n.id for n in self._controller.memory.nodes.values() if n.pool == target]
            forced = [DrainCommand(target, node, force=True) for node in nodes if force]
            done = f"draining pool {target}: {len(nodes)} nodes"
            return await self._submit(DrainCommand(target, for_s=for_s), *forced, done=done)
        node = self._node(target)
        done = f"{'stopping' if force else 'draining'} node {node}"
        return await self._submit(DrainCommand(node.partition("/")[0], node, force=force), done=done)

    async def end(self, request: Request) -> Response:
        del request
        return await self._submit(DrainAllCommand(), done="the fleet ends: every node drains")

    def _node(self, name: str) -> NodeId:
        """Return the node of this name: whole, without its start time, or by a beginning that only one has."""
        known = self._controller.memory.nodes
        if name in known:
            return name
        found = [node for node in known if node.partition(".")[0] == name]
        found = found or [node for node in known if name and node.startswith(name)]
        if len(found) == 1:
            return found[0]
        what = "names more than one node" if found else "is no pool and no node"
        likely = "" if found else _suggest(name, [*self._controller.policy.pools, *known])
        raise UsageError(f"drain: {name!r} {what}{likely}; see `fleetd status`")

    async def _submit(self, *commands: Command, done: str) -> Response:
        """Hand commands in and answer once a tick has taken them."""
        for command in commands:
            self._controller.submit(command)
        if await self._controller.taken(commands, TAKEN_S):
            return JSONResponse({"done": done})
        return JSONResponse({"error": f"not taken within {TAKEN_S:.0f} s, it stays to be done: see the log"}, 503)


class _DeniedError(FleetdError):
    """Not allowed: answered with 401."""


class _TooLargeError(FleetdError):
    """A body beyond the limit: answered with 413."""


def _own(scope: str, node: str, place: str) -> None:
    """Let a token speak for nodes of its own pool alone: their names begin with it."""
    if scope.partition("/")[2] != node.partition("/")[0]:
        raise _DeniedError(f"{place}: the token is for {scope}, not for node {node}")


def _suggest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


async def _body(request: Request) -> bytes:
    told = request.headers.get("content-length", "0")
    parts, size = [], int(told) if told.isdecimal() else 0
    refusal = _TooLargeError(f"body: more than the {MAX_BODY} bytes allowed")
    if size > MAX_BODY:
        raise refusal
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY:
                    raise refusal
                parts.append(part)
    except TimeoutError:
        raise ProtocolError(f"body: did not come within {BODY_S:.0f} s") from None
    return b"".join(parts)


async def _json(request: Request) -> dict[str, Any]:
    try:
        raw = json.loads(await _body(request) or b"{}")
    except (ValueError, RecursionError):
        raise UsageError("body: must be JSON") from None
    if not isinstance(raw, dict):
        raise UsageError("body: must be a JSON object")
    return raw


def _number(raw: dict[str, Any], name: str, least: float, most: float) -> float:
    value = raw.get(name, least)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise UsageError(f"{name}: must be a number from {least:g} to {most:g}, not {value!r}")
    return float(value)


def _signed(key: str, signature: str, body: bytes, code: int = 200) -> Response:
    headers = {ANSWER_HEADER: sign_answer(key, signature, body), "Content-Type": "application/json"}
    return Response(body, code, headers)


async def _refuse(request: Request, error: Exception) -> Response:
    del request
    match error:
        case _DeniedError():
            code = 401
        case _TooLargeError():
            code = 413
        case UsageError():
            code = 422
        case _:
            code = 400
    return JSONResponse({"error": str(error)}, code)


async def _unknown(request: Request, error: Exception) -> Response:
    return JSONResponse(
        {"error": f"{request.method} {request.url.path}: there is no such thing here"},
        getattr(error, "status_code", 404),
    )


async def _gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client left before its request was whole."""
    del request, error
    return Response(status_code=400)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{request.method} {request.url.path}: {type(error).__name__}: see the log"}, 500)
