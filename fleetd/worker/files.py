"""The files of jobs: what a job's function gets where a reference came, and what is answered where it returns much.

Promises: only the store of this worker's own controller is ever asked, whatever a reference says; what is fetched is
verified; a job whose result could not be stored has not ended, and is run again; what a job had on this node is removed
with it, and what a killed one left by the next. Jobs without files pay for none of it.
"""

import base64
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from fleetd.blobs.faults import BadFileError, StoreFullError
from fleetd.blobs.file import File
from fleetd.blobs.line import Line
from fleetd.blobs.store import Store
from fleetd.codecs.reference import (
    Reference,
    Wish,
    blob_id,
    dump_reference,
    is_reference,
    load_reference,
    load_wish,
)
from fleetd.codecs.ticket import show_ticket
from fleetd.errors import FleetdError, ProtocolError, UnreachableError, UsageError
from fleetd.worker.jobs import Cancelled, Context, Job, Retry
from fleetd.worker.output import RUNNING
from fleetd.worker.run import as_bytes
from fleetd.worker.settings import Settings

TICKET: Final = ".files-ticket"
ROOM: Final = "jobs"
OURS: Final = b'{"fleetd-'
LOOK_S: Final = 1.0
HALF_S: Final = 24 * 3600.0  # so long what was half fetched waits for its job to come again
T = TypeVar("T")


class Desk:
    """Where the jobs of one process hand files in and get them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.room = settings.cache / ROOM
        self._swept = False

    def dressed(self, job: Job) -> Job:
        """Return the job with a call that opens what came, and sends what it returns."""
        if job.is_async:
            return replace(job, call=partial(self._call_async, job))
        return replace(job, call=partial(self._call, job))

    def store(self) -> Store:
        """Return the controller's store; raises UsageError where there is no controller."""
        if not self._settings.controller:
            raise UsageError("files: this worker has no controller, and so no store of files (--controller)")
        return Store(Line(self._settings.controller, self._authorize), self._settings.fleet)

    def folder(self) -> Path:
        """Make a folder for one job."""
        if not self._swept:
            self._swept = True
            sweep(self.room)
        path = self.room / f"{os.getpid()}-{secrets.token_hex(8)}"
        path.mkdir(parents=True, mode=0o700)
        return path

    def _authorize(self, method: str, path: str, body: bytes) -> str:
        place = self._settings.spool / TICKET
        try:
            return show_ticket(place.read_text("ascii"), method, path, body)
        except (OSError, ValueError, ProtocolError) as error:
            raise FleetdError(f"files: {place}: {getattr(error, 'strerror', None) or error}") from None

    def _call(self, job: Job, payload: bytes, context: Context | None = None) -> Any:
        if context is None and not payload.startswith(OURS) and not job.wants_file:
            result = job.call(payload)
            return _Parcel(self, job).packed(result) if isinstance(result, Path) else result
        with _Parcel(self, job, payload).lent(context) as parcel:
            content = parcel.content()
            try:
                result = job.call(content) if context is None else job.call(content, context)
            except Cancelled:
                return parcel.given_up()
            return parcel.packed(result)

    async def _call_async(self, job: Job, payload: bytes, context: Context | None = None) -> Any:
        if context is None and not payload.startswith(OURS) and not job.wants_file:
            result = await job.call(payload)
            return await _aside(_Parcel(self, job).packed, result) if isinstance(result, Path) else result
        with _Parcel(self, job, payload).lent(context) as parcel:
            content = parcel.content() if not parcel.is_large else await _aside(parcel.content)
            try:
                result = await (job.call(content) if context is None else job.call(content, context))
            except Cancelled:
                return await _aside(parcel.given_up)
            return await _aside(parcel.packed, result) if parcel.sends(result) else result


async def _aside(do: Callable[..., T], *args: Any) -> T:
    import asyncio  # noqa: PLC0415 - async jobs alone

    return await asyncio.to_thread(do, *args)


class _Parcel:
    """One job's payload as it came, and its end as it goes."""

    def __init__(self, desk: Desk, job: Job, payload: bytes = b"") -> None:
        self._desk, self._job = desk, job
        self._payload, self._wish = payload, Wish(0)
        self._wished = False
        self._folder: Path | None = None
        self._asked_at, self._cancelled = 0.0, False
        if payload.startswith(OURS):
            try:
                wish, self._payload = load_wish(payload)
            except ProtocolError as error:
                raise BadFileError(str(error)) from None
            if wish is not None:
                self._wish, self._wished = wish, True

    @contextmanager
    def lent(self, context: Context | None) -> "Iterator[_Parcel]":
        """Let a context ask; at the end nothing of it is left."""
        if context is not None:
            context.lend(self)
        try:
            yield self
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def is_large(self) -> bool:
        """Whether a reference came."""
        return is_reference(self._payload)

    def content(self) -> bytes | File:
        """Return what the function is called with; raises BadFileError, Retry."""
        if not self.is_large:
            return File(self._payload, folder=self.folder) if self._job.wants_file else self._payload
        try:
            reference = load_reference(self._payload)
            blob_id(reference, self._desk.store().fleet)
        except ProtocolError as error:
            raise BadFileError(str(error)) from None
        file = File(reference, self._desk.store(), self.folder)
        if self._job.wants_file:
            self._desk.store().check(reference)
            return file
        return _or_again(file.read)

    def folder(self) -> Path:
        """Return the job's own folder."""
        if self._folder is None:
            self._folder = self._desk.folder()
        return self._folder

    def sends(self, result: Any) -> bool:
        """Whether a result needs more than an answer."""
        return self._wished or isinstance(result, Path)

    def packed(self, result: Any) -> Any:
        """Return what is answered, once all that it needs is in the store; raises Retry, BadFileError."""
        return _or_again(partial(self._packed, result)) if self.sends(result) else result

    def given_up(self) -> bytes:
        """Note that the client got what it asked for: the end."""
        if self._wish.key:
            _or_again(partial(self._end, "cancelled", b""))
        return b""

    def cancelled(self) -> bool:
        """Ask the store, once a second at most; one that cannot tell has not heard of it."""
        now = time.monotonic()
        if self._wish.key and not self._cancelled and now - self._asked_at >= LOOK_S:
            self._asked_at = now
            with suppress(FleetdError):
                store = replace(self._desk.store(), patience_s=0.0)
                self._cancelled = bool(store.ask("GET", f"/v1/jobs/{self._wish.key}", wait_s=LOOK_S)["cancel"])
        return self._cancelled

    def _packed(self, result: Any) -> bytes:
        store = self._desk.store()
        reference: Reference | None = None
        if isinstance(result, Path):
            try:
                reference = store.send(result)
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise  # the job's limit
                raise BadFileError(f"{self._job.name} returned {result}: {error.strerror or error}") from None
            content = dump_reference(reference)
        else:
            content = as_bytes(self._job, result)
            if len(content) > self._wish.cap:
                reference = store.send_bytes(content)
                content = dump_reference(reference)
        if self._wish.key:
            self._end("done", content if reference is None else reference)
        return content

    def _end(self, state: str, result: bytes | Reference) -> None:
        name, _, unique = RUNNING.get() or (self._job.name, b"", b"")
        asked: dict[str, Any] = {"function": name, "unique": unique.decode(errors="surrogateescape"), "state": state}
        if isinstance(result, Reference):
            asked["blob"] = {"id": blob_id(result), "sha256": result.sha256}
        else:
            asked["result"] = base64.b64encode(result).decode()
        self._desk.store().ask("POST", "/v1/jobs/end", asked)


def _or_again(do: Callable[[], T]) -> T:
    """Do something with the store; where it is away or full, the job is to be run again: nothing of it is lost."""
    try:
        return do()
    except (UnreachableError, StoreFullError) as error:
        raise Retry(f"{error}") from None


def sweep(room: Path) -> None:
    """Remove what jobs of dead processes left; what they had half fetched stays a day, for them to go on with."""
    with suppress(OSError):
        for path in room.iterdir():
            number = path.name.partition("-")[0]
            if number.isdecimal() and not Path("/proc", number).exists():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".part" and time.time() - path.stat().st_mtime > HALF_S:
                path.unlink(missing_ok=True)
