"""Releases over HTTP: operators push, list and clean, workers and operators fetch.

Promises: a bundle goes through a file, never whole through memory, and what may block runs in threads: the tick does
not wait for it. What is pushed is verified before it is listed. A worker's request is signed as its others are; the
answer is not: it is asked for by the digest of its content, which proves more than a signature of ours.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fleetd.codecs.lease import SCHEME
from fleetd.control.code import Code
from fleetd.control.loop import Controller
from fleetd.control.status import status
from fleetd.releases.bundle import MOST_BUNDLE
from fleetd.releases.faults import on_disk
from fleetd.releases.stores import MissingError
from fleetd.web.calls import Admit, Asked, Name
from fleetd.web.pages import Page, dump_cursor, load_cursor
from fleetd.web.signed import Signatures
from fleetd.web.wire import NotFoundError, SlowError, TooLargeError, answer

CHUNK: Final = 256 * 1024
STALL_S: Final = 60.0
MOST_KEEP: Final = 10_000


class ReleasesAsked(Page):
    """Which releases."""

    app: Name | None = Field(default=None, description="Of this app alone.")


class Keep(Asked):
    """What stays."""

    keep: int | None = Field(default=None, ge=0, le=MOST_KEEP, description="The newest of each app; default: policy.")


class DigestAsked(Asked):
    """Which release."""

    digest: Name


class Releases:
    """What is done with releases. `most`: the bytes of a bundle."""

    def __init__(self, controller: Controller, shelf: Code, secret: str, admit: Admit, most: int = MOST_BUNDLE) -> None:
        self._controller, self._shelf, self._admit, self.most = controller, shelf, admit, most
        self._signatures = Signatures(secret, controller.clock)

    async def push(self, request: Request) -> Response:
        """Take a bundle, verify it and keep it."""
        with (
            on_disk(tempfile.gettempdir(), "take the release"),
            tempfile.TemporaryDirectory(prefix="fleetd-push-") as room,
        ):
            path = Path(room, "bundle")
            await self._receive(request, path)
            entry = await asyncio.to_thread(self._shelf.put, path)
        return answer({"digest": entry.digest, "app": entry.app, "version": entry.version})

    async def list(self, asked: ReleasesAsked) -> dict[str, Any]:
        """Give what is on the shelf in pages, newest first."""
        found = await asyncio.to_thread(self._shelf.list)
        entries = [entry for entry in found if asked.app in (None, entry.app)]
        if asked.cursor:
            pushed_at, digest = load_cursor(asked.cursor, "releases", float, str)
            entries = [entry for entry in entries if (-entry.pushed_at, entry.digest) > (-pushed_at, digest)]
        page = entries[: asked.limit]
        more = len(entries) > asked.limit
        following = dump_cursor("releases", page[-1].pushed_at, page[-1].digest) if more else None
        return {"releases": [asdict(entry) for entry in page], "next": following}

    async def gc(self, asked: Keep) -> dict[str, Any]:
        """Remove releases that are neither in use nor among the newest of their app."""
        keep = self._controller.policy.releases.keep if asked.keep is None else asked.keep
        used = in_use(status(self._controller, 0))
        return {"deleted": await asyncio.to_thread(self._shelf.gc, used, keep)}

    async def fetch(self, request: Request) -> Response:
        """Give a bundle's bytes, to a worker of any pool or to an operator."""
        header = request.headers.get("authorization", "")
        if not header.startswith(f"{SCHEME} "):
            self._admit(request, "viewer")
        else:
            self._signatures.current(self._signatures.check(request), "release")
        digest = request.path_params["digest"]
        try:
            entry = await asyncio.to_thread(self._shelf.find, digest)
        except MissingError as error:
            raise NotFoundError(str(error)) from None
        headers = {"Content-Length": str(entry.size), "Content-Type": "application/octet-stream"}
        return StreamingResponse(self._parts(digest), headers=headers)

    async def _parts(self, digest: str) -> AsyncIterator[bytes]:
        opening = asyncio.create_task(asyncio.to_thread(self._shelf.open, digest))
        try:
            file = await asyncio.shield(opening)
            while data := await asyncio.to_thread(file.read, CHUNK):
                yield data
        finally:
            opening.add_done_callback(_close)  # whoever leaves while it is being opened leaves no open file

    async def _receive(self, request: Request, path: Path) -> None:
        """Write the body to a file as it comes; raises TooLargeError, or SlowError where it stops coming."""
        refusal = TooLargeError(f"release: more than the {self.most} bytes allowed")
        told = request.headers.get("content-length", "0")
        if told.isdecimal() and int(told) > self.most:
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
                    raise SlowError(f"release: nothing came for {STALL_S:.0f} s") from None
                size += len(part)
                if size > self.most:
                    raise refusal
                await asyncio.to_thread(file.write, part)


def _close(opening: asyncio.Task[BinaryIO]) -> None:
    if not opening.cancelled() and not opening.exception():
        opening.result().close()


def in_use(picture: dict[str, Any]) -> set[str]:
    """Return the digests that a status tells of: active, the way back, on trial, or still running somewhere."""
    used: set[str] = set()
    for app in picture.get("releases", {}).values():
        used |= {app[role] for role in ("active", "previous", "candidate") if app.get(role)} | set(app.get("nodes", {}))
    return used
