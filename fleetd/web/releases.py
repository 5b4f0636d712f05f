"""Releases over HTTP: operators push, list and clean, workers and operators fetch.

Promises: a bundle goes through a file, never whole through memory, and what may block runs in threads: the tick does
not wait for it. What is pushed is verified before it is listed. A worker's request is signed as its others are; the
answer is not: it is asked for by the digest of its content, which proves more than a signature of ours.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fleetd.codecs.lease import SCHEME, verify
from fleetd.control.code import Code
from fleetd.control.loop import Controller
from fleetd.control.status import status
from fleetd.errors import ProtocolError, UsageError
from fleetd.releases.bundle import MOST_BUNDLE
from fleetd.releases.faults import on_disk
from fleetd.releases.stores import MissingError
from fleetd.web.wire import DeniedError, TooLargeError, number, read_json

CHUNK: Final = 256 * 1024
STALL_S: Final = 60.0
MOST_KEEP: Final = 10_000
Handler = Callable[[Request], Awaitable[Response]]


class Releases:
    """What is done with releases."""

    def __init__(
        self,
        controller: Controller,
        shelf: Code,
        secret: str,
        guard: Callable[[Handler], Handler],
        most: int = MOST_BUNDLE,
    ) -> None:
        self._controller, self._shelf, self._secret, self._guard, self._most = controller, shelf, secret, guard, most

    def routes(self) -> list[Route]:
        """Return the routes; each is guarded."""
        return [
            Route("/v1/releases", self._guard(self.push), methods=["POST"]),
            Route("/v1/releases", self._guard(self.list), methods=["GET"]),
            Route("/v1/releases/gc", self._guard(self.gc), methods=["POST"]),
            Route("/v1/releases/{digest}", self.fetch, methods=["GET"]),
        ]

    async def push(self, request: Request) -> Response:
        """Take a bundle, verify it and keep it."""
        with (
            on_disk(tempfile.gettempdir(), "take the release"),
            tempfile.TemporaryDirectory(prefix="fleetd-push-") as room,
        ):
            path = Path(room, "bundle")
            await self._receive(request, path)
            entry = await asyncio.to_thread(self._shelf.put, path)
        return JSONResponse({"digest": entry.digest, "app": entry.app, "version": entry.version})

    async def list(self, request: Request) -> Response:
        """Give what is on the shelf, newest first."""
        app = request.query_params.get("app")
        entries = await asyncio.to_thread(self._shelf.list)
        return JSONResponse({"releases": [asdict(entry) for entry in entries if app in (None, entry.app)]})

    async def gc(self, request: Request) -> Response:
        """Remove releases that are neither in use nor among the newest of their app."""
        usual = self._controller.policy.releases.keep
        keep = number({"keep": usual} | await read_json(request), "keep", 0, MOST_KEEP)
        used = in_use(status(self._controller, 0))
        return JSONResponse({"deleted": await asyncio.to_thread(self._shelf.gc, used, int(keep))})

    async def fetch(self, request: Request) -> Response:
        """Give a bundle's bytes, to a worker of any pool or to an operator."""
        if not request.headers.get("authorization", "").startswith(f"{SCHEME} "):
            return await self._guard(self._give)(request)
        try:
            verify(self._secret, request.headers["authorization"], request.method, _path(request))
        except ProtocolError as error:
            raise DeniedError(str(error)) from None
        return await self._give(request)

    async def _give(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        try:
            entry = await asyncio.to_thread(self._shelf.find, digest)
        except MissingError as error:
            return JSONResponse({"error": str(error)}, 404)
        headers = {"Content-Length": str(entry.size), "Content-Type": "application/octet-stream"}
        return StreamingResponse(self._parts(digest), headers=headers)

    async def _parts(self, digest: str) -> AsyncIterator[bytes]:
        file = await asyncio.to_thread(self._shelf.open, digest)
        try:
            while data := await asyncio.to_thread(file.read, CHUNK):
                yield data
        finally:
            file.close()

    async def _receive(self, request: Request, path: Path) -> None:
        """Write the body to a file as it comes; raises TooLargeError, or UsageError where it stops coming."""
        refusal = TooLargeError(f"release: more than the {self._most} bytes allowed")
        told = request.headers.get("content-length", "0")
        if told.isdecimal() and int(told) > self._most:
            raise refusal
        size, parts = 0, request.stream()
        with path.open("wb") as file:
            while True:
                try:
                    async with asyncio.timeout(STALL_S):
                        part = await anext(parts)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise UsageError(f"release: nothing came for {STALL_S:.0f} s") from None
                size += len(part)
                if size > self._most:
                    raise refusal
                await asyncio.to_thread(file.write, part)


def in_use(picture: dict[str, Any]) -> set[str]:
    """Return the digests that a status tells of: active, the way back, on trial, or still running somewhere."""
    used: set[str] = set()
    for app in picture.get("releases", {}).values():
        used |= {app[role] for role in ("active", "previous", "candidate") if app.get(role)} | set(app.get("nodes", {}))
    return used


def _path(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")
