"""Files and the ends of jobs over HTTP: for clients by their tokens, for the jobs of workers by their tickets.

Promises: bytes pass by in pieces and memory does not grow with a file; what may block runs in threads, so the tick does
not wait for it; a transfer in which nothing moves for a minute is ended, and what came of it is kept. A ticket is
checked against the request that it signs; the bytes themselves are proven by their SHA-256.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, BinaryIO, Final, Literal, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from fleetd.codecs.reference import result_key
from fleetd.codecs.ticket import SCHEME, check_ticket
from fleetd.depot.records import Record, Records, Wanted, reference_of
from fleetd.depot.rooms import Intake
from fleetd.errors import ProtocolError, UsageError
from fleetd.web.blob_shapes import (
    Begun,
    BlobAsked,
    BlobDone,
    BlobNamed,
    Depots,
    Ended,
    JobEnded,
    JobNamed,
    JobsAsked,
    Kept,
    Opened,
    Piece,
    PieceAsked,
)
from fleetd.web.calls import Admit, Asked, Bytes, Call, checked, query
from fleetd.web.wire import DeniedError, SlowError, answer, read_body

CHUNK: Final = 1024 * 1024
DATA: Final = Bytes("application/octet-stream", "A file's bytes.")
STALL_S: Final = 60.0
Model = TypeVar("Model", bound=Asked)


class Blobs:
    """What is done with files and with the ends of jobs."""

    def __init__(self, records: Records, secret: str, admit: Admit) -> None:
        self._depot, self._records, self._secret, self._admit = records.depot, records, secret, admit

    def calls(self) -> tuple[Call, ...]:
        """Return the calls."""
        role: Literal["files"] = "files"
        wrong = {422: "A key, a parameter or its value is wrong; nothing was done."}
        lost = {404: "There is no such thing.", 410: "Its time is over."}
        early = {409: "Not now, or not from there."}
        full = {507: "The store is full."}
        return (
            Call("GET", "/v1/blobs", role, self.about, Depots, raw=True),
            Call("POST", "/v1/blobs", role, self.begin, Begun, BlobAsked, raw=True, refused=wrong | early | full),
            Call("POST", "/v1/blobs/next", role, self.next, Piece, BlobNamed, raw=True, refused=wrong | lost),
            Call("POST", "/v1/blobs/done", role, self.done, Kept, BlobDone, raw=True, refused=wrong | lost | early),
            Call("GET", "/v1/blobs/{id}", role, self.whence, Piece, PieceAsked, raw=True, refused=wrong | lost | early),
            Call("POST", "/v1/blobs/{id}/data", role, self.take, Begun, body=DATA, raw=True,
                 refused=wrong | lost | early | full),
            Call("GET", "/v1/blobs/{id}/data", role, self.give, DATA, PieceAsked, raw=True, refused=wrong | lost),
            Call("POST", "/v1/jobs", role, self.open, Opened, JobsAsked, raw=True, refused=wrong | full),
            Call("POST", "/v1/jobs/end", role, self.end, Ended, JobEnded, raw=True,
                 refused=wrong | lost | early | full),
            Call("POST", "/v1/jobs/cancel", role, self.cancel, Ended, JobNamed, raw=True, refused=wrong | lost),
            Call("GET", "/v1/jobs/{key}", role, self.job, Ended, JobNamed, raw=True, refused=wrong | lost),
        )  # fmt: skip

    # ── files

    async def about(self, request: Request) -> Response:
        """Say how the store is set up, and how full it is."""
        self._known(request, b"")
        files, used = self._depot.files, await asyncio.to_thread(lambda: self._depot.used)
        told = Depots(fleet=self._depot.policy().fleet, cap=files.cap, keep_s=files.keep_s, most=files.most, used=used)
        return _told(told)

    async def begin(self, request: Request) -> Response:
        """Make room for a file; one that was begun before goes on."""
        asked = await self._asked(request, BlobAsked)
        card = await asyncio.to_thread(self._depot.begin, asked.id, asked.size, asked.keep_s)
        return _told(Begun(id=asked.id, expires_at=card.expires_at))

    async def next(self, request: Request) -> Response:
        """Say where the next bytes of a file go."""
        asked = await self._asked(request, BlobNamed)
        card = await asyncio.to_thread(self._depot.find, asked.id)
        where = await asyncio.to_thread(self._depot.next, asked.id)
        about = {"url": None} if where is None else asdict(where)
        return _told(Piece(**about, total=card.size, sha256=card.sha256))

    async def take(self, request: Request) -> Response:
        """Take bytes of a file, from `offset` on; what comes is kept, also where the connection breaks."""
        self._known(request, b"")
        asked = query(request, PieceAsked)
        with self._depot.taking(asked.id, asked.offset) as intake:
            await _poured(request, intake)
        card = await asyncio.to_thread(self._depot.find, asked.id)
        return _told(Begun(id=asked.id, expires_at=card.expires_at))

    async def done(self, request: Request) -> Response:
        """Take a file as whole; its SHA-256 must be the one that is here."""
        asked = await self._asked(request, BlobDone)
        return answer(asdict(await asyncio.to_thread(self._depot.done, asked.id, asked.sha256)))

    async def whence(self, request: Request) -> Response:
        """Say where the bytes of a file are, from `offset` on."""
        self._known(request, b"")
        asked = query(request, PieceAsked)
        card, where = await asyncio.to_thread(self._depot.whence, asked.id, asked.offset)
        return _told(Piece(**asdict(where), total=card.size, sha256=card.sha256))

    async def give(self, request: Request) -> Response:
        """Give the bytes of a file, from `offset` on."""
        self._known(request, b"")
        asked = query(request, PieceAsked)
        card = await asyncio.to_thread(self._depot.find, asked.id)
        if asked.offset > card.size:
            raise UsageError(f"offset: {asked.offset} is beyond the {card.size} bytes of the file")
        file = await asyncio.to_thread(self._depot.open, asked.id, asked.offset)
        headers = {"Content-Length": str(card.size - asked.offset), "Content-Type": "application/octet-stream"}
        return StreamingResponse(_parts(file), headers=headers)

    # ── jobs

    async def open(self, request: Request) -> Response:
        """Note jobs whose ends are to be kept, before they are submitted."""
        asked = await self._asked(request, JobsAsked)
        jobs = [Wanted(job.function, job.unique) for job in asked.jobs]
        return _told(Opened(expires_at=await asyncio.to_thread(self._records.open, jobs, asked.keep_s, asked.tell)))

    async def end(self, request: Request) -> Response:
        """Note how a job ended: for its worker."""
        asked = await self._asked(request, JobEnded, ticket=True)
        try:
            result: Any = base64.b64decode(asked.result, validate=True)
        except binascii.Error:
            raise UsageError("result: is no base64") from None
        if asked.blob is not None:
            result = await asyncio.to_thread(self._depot.done, asked.blob.id, asked.blob.sha256)
        job = Wanted(asked.function, asked.unique)
        record = await asyncio.to_thread(self._records.end, job, asked.state, result)
        return _record(record)

    async def cancel(self, request: Request) -> Response:
        """Note that a job is to be ended: its function can see it."""
        asked = await self._asked(request, JobNamed)
        return _record(await asyncio.to_thread(self._records.cancel, asked.key))

    async def job(self, request: Request) -> Response:
        """Give what is kept of a job."""
        self._known(request, b"")
        return _record(await asyncio.to_thread(self._records.find, query(request, JobNamed).key))

    # ── who asks

    async def _asked(self, request: Request, model: type[Model], *, ticket: bool = False) -> Model:
        """Return what a request says, once it is known who asks."""
        if request.headers.get("authorization", "").startswith(f"{SCHEME} "):
            body = await read_body(request)
            self._known(request, body)
        else:
            self._admit(request, "client")
            if ticket:
                raise DeniedError("authorization: this is for workers alone")
            body = await read_body(request)
        return checked(model, body)

    def _known(self, request: Request, body: bytes) -> None:
        header = request.headers.get("authorization", "")
        if not header.startswith(f"{SCHEME} "):
            self._admit(request, "client")
            return
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        try:
            scope = check_ticket(self._secret, header, self._depot.clock(), (request.method, path, body))
        except ProtocolError as error:
            raise DeniedError(str(error)) from None
        if scope.fleet != self._depot.policy().fleet:
            raise DeniedError(f"authorization: the ticket is for {scope}, and this is {self._depot.policy().fleet}")


async def _poured(request: Request, intake: Intake) -> None:
    """Write a body as it comes: while a piece is written, the next one is on its way."""
    parts, writing = request.stream(), None
    held: list[bytes] = []
    size, part = 0, b"-"
    try:
        while part:
            try:
                async with asyncio.timeout(STALL_S):
                    part = await anext(parts, b"")
            except TimeoutError:
                raise SlowError(f"file: nothing came for {STALL_S:.0f} s") from None
            except ClientDisconnect:  # what came is kept
                part = b""
            held.append(part)
            size += len(part)
            if size >= CHUNK or not part:
                if writing is not None:
                    await writing
                writing = asyncio.create_task(asyncio.to_thread(intake.write, held))
                held, size = [], 0
    finally:
        if writing is not None:
            await asyncio.wait([writing])
    if writing is not None:
        await writing


async def _parts(file: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while data := await asyncio.to_thread(file.read, CHUNK):
            yield data
    finally:
        file.close()


def _record(record: Record) -> Response:
    reference = reference_of(record)
    key = result_key(record.function, record.unique)
    told = {name: value for name, value in asdict(record).items() if name in Ended.model_fields}
    return _told(Ended(**{**told, "key": key, "reference": None if reference is None else Kept(**asdict(reference))}))


def _told(value: BaseModel) -> Response:
    return answer(value.model_dump())
