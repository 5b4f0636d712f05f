"""What goes through the fleet's store for a client: large payloads, large results, and the ends of jobs.

Promises: a job that needs none of it is submitted as it is; nothing is submitted before its file is whole in the store
and its end will be kept; a call that is given up leaves no thread at work.
"""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from fleetd.blobs.faults import BadFileError
from fleetd.blobs.line import Line, Stop, check_url
from fleetd.blobs.store import Store
from fleetd.client.outcomes import JobState, NotKeptError
from fleetd.codecs.reference import (
    JOB_MARK,
    MARK,
    Reference,
    Wish,
    dump_reference,
    dump_wish,
    is_reference,
    load_reference,
    make_reference,
    result_key,
)
from fleetd.dispatchers.jobs import Submission
from fleetd.dispatchers.submit import Limits
from fleetd.errors import JobError, JobTimeoutError, ProtocolError, UnreachableError, UsageError

MOST_RESULT: Final = 64 * 1024 * 1024
ASK_S: Final = 10.0
EVERY_S: Final = 0.5
HEADER: Final = 256  # what a wish takes at most
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Files:
    """The fleet's store of files: the controller's address and a token of `files.tokens`. `keep_s`: of what is sent."""

    url: str
    token: str = field(default="", repr=False)
    keep_s: float | None = None

    @classmethod
    def from_environment(cls) -> "Files | None":
        """Return what FLEETD_URL and FLEETD_TOKEN say; None without an address."""
        url = os.environ.get("FLEETD_URL", "")
        return cls(url, os.environ.get("FLEETD_TOKEN", "").strip()) if url else None

    def store(self, stop: Stop) -> Store:
        """Return the store."""
        header = f"Bearer {self.token}"
        return Store(Line(check_url(self.url, "files"), lambda *_: header, stop))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of a job's end: that it be kept for so long, and posted to a URL."""

    keep_s: float | None = None
    tell: str = ""

    @property
    def any(self) -> bool:
        """Whether anything is."""
        return self.keep_s is not None or bool(self.tell)


class Claims:
    """The dealings of one client with the store."""

    def __init__(self, files: Files | None, limits: Limits) -> None:
        if files is not None:
            check_url(files.url, "files")
        self._files, self._limits = files, limits
        self._cap = 0
        self._stops: set[Stop] = set()

    @property
    def there(self) -> bool:
        """Whether there is a store."""
        return self._files is not None

    def needed(self, job: Submission, file: Path | None) -> bool:
        """Whether a job's payload goes through the store. Raises UsageError for one that could be mistaken."""
        payload: object = job.payload
        if file is not None:
            if payload:
                raise UsageError(f"job {job.function}: it has both a payload and a file; give one of them")
            return True
        if isinstance(payload, bytes) and payload.startswith((MARK, JOB_MARK)):
            raise UsageError(f"job {job.function}: payload: it begins as a reference does, and would be taken for one")
        return self.there and isinstance(payload, bytes) and len(payload) > self._limits.max_payload - HEADER

    async def prepared(self, job: Submission, file: Path | None, wanted: Wanted) -> Submission:
        """Return the job as it is to be submitted, once all that it needs is in the store."""
        cap = await self._ask_cap()
        payload = job.payload
        if file is not None or len(payload) > min(cap, self._limits.max_payload - HEADER):
            payload = dump_reference(await self._sent(job, file))
        (kept,) = await self.kept([replace(job, payload=payload)], wanted)
        return kept

    async def kept(self, jobs: Sequence[Submission], wanted: Wanted) -> list[Submission]:
        """Return jobs with the wish before their payloads; their ends will be kept where that is wanted."""
        cap = await self._ask_cap()
        if wanted.any:
            named = [{"function": job.function, "unique": job.unique} for job in jobs]
            asked = {"jobs": named, "keep_s": wanted.keep_s, "tell": wanted.tell}
            await self._in_thread(lambda store: store.ask("POST", "/v1/jobs", asked))
        keys = [result_key(job.function, job.unique) if wanted.any else "" for job in jobs]
        return [
            replace(job, payload=dump_wish(Wish(cap, key), job.payload)) for job, key in zip(jobs, keys, strict=True)
        ]

    async def resolved(self, result: bytes, into: Path | None) -> bytes:
        """Return a result, or write it to a file; a reference is followed."""
        if not is_reference(result) or not self.there:
            return result if into is None else await asyncio.to_thread(_written, into, result)
        try:
            reference = load_reference(result)
        except ProtocolError as error:
            raise BadFileError(f"result: {error}") from None
        return await self._fetched(reference, into)

    async def ended(self, key: str, wait_s: float) -> dict[str, Any]:
        """Return what is kept of a job once it has ended; raises JobTimeoutError at the deadline, NotKeptError."""
        loop = asyncio.get_running_loop()
        end_at, late = loop.time() + wait_s, JobTimeoutError(f"job {key[:12]}: has not ended within {wait_s:g} s")
        while True:
            try:
                async with asyncio.timeout_at(end_at if wait_s else end_at + ASK_S):
                    record = await self._record(key)
            except TimeoutError:
                raise late from None
            left_s = end_at - loop.time()
            if record["state"] != "waiting":
                return record
            if left_s <= 0:
                raise late
            await asyncio.sleep(min(EVERY_S, left_s))

    async def taken(self, record: dict[str, Any], into: Path | None) -> bytes:
        """Return the result of a job that has ended, or write it to a file; raises JobError where there is none."""
        place = f"job {record['function']}"
        match record["state"]:
            case "failed":
                raise JobError(f"{place}: {record['reason']}", str(record["reason"]).encode())
            case "cancelled":
                raise JobError(f"{place}: was cancelled")
        if record["reference"] is not None:
            return await self._fetched(make_reference(record["reference"]), into)
        result = base64.b64decode(record["result"])
        return result if into is None else await asyncio.to_thread(_written, into, result)

    async def state(self, key: str) -> JobState:
        """Return how a job ended, as it is kept; "unknown" where nothing is."""
        try:
            async with _soon():
                record = await self._record(key)
        except NotKeptError:
            return JobState("unknown")
        if record["state"] == "waiting":  # known to nobody else: taken in just now, or its end is on its way
            return JobState("waiting")
        return JobState(record["state"], reason=record["reason"])

    async def cancelled(self, key: str) -> bool:
        """Ask that a job be ended; False where its end is not kept, or there is no store."""
        if not self.there:
            return False
        try:
            async with _soon():
                await self._in_thread(lambda store: store.ask("POST", "/v1/jobs/cancel", {"key": key}))
        except BadFileError:
            return False
        return True

    def close(self) -> None:
        """End what is under way. Safe twice."""
        for stop in list(self._stops):
            stop()

    async def _record(self, key: str) -> dict[str, Any]:
        try:
            return await self._in_thread(lambda store: store.ask("GET", f"/v1/jobs/{key}"))
        except BadFileError as error:
            raise NotKeptError(str(error)) from None

    async def _sent(self, job: Submission, file: Path | None) -> Reference:
        keep_s = self._files.keep_s if self._files else None
        try:
            if file is None:
                return await self._in_thread(lambda store: store.send_bytes(job.payload, keep_s))
            return await self._in_thread(lambda store: store.send(file, keep_s))
        except OSError as error:
            raise UsageError(f"job {job.function}: file: {file}: {error.strerror or error}") from None

    async def _fetched(self, reference: Reference, into: Path | None) -> bytes:
        if into is not None:
            await self._in_thread(lambda store: store.fetch(reference, into))
            return b""
        most = max(self._limits.max_result, 0)
        if reference.size > min(most, MOST_RESULT):
            raise JobError(f"result: {reference.size} bytes are too many for memory: give into=PATH")
        return await self._in_thread(lambda store: b"".join(store.stream(reference)))

    async def _ask_cap(self) -> int:
        if not self._cap:
            self._cap = int((await self._in_thread(lambda store: store.ask("GET", "/v1/blobs")))["cap"])
        return self._cap

    async def _in_thread(self, do: Callable[[Store], T]) -> T:
        """Do something that blocks; given up, it ends at once, and its thread soon."""
        if self._files is None:
            raise UsageError("client: this needs the fleet's store: give the client files=Files(URL, TOKEN)")
        stop = Stop()
        self._stops.add(stop)
        try:
            return await asyncio.to_thread(do, self._files.store(stop))
        except asyncio.CancelledError:
            stop()
            raise
        finally:
            self._stops.discard(stop)


@asynccontextmanager
async def _soon() -> AsyncIterator[None]:
    """Bound a question that has no deadline of its own."""
    try:
        async with asyncio.timeout(ASK_S):
            yield
    except TimeoutError:
        raise UnreachableError(f"client: the file store did not answer within {ASK_S:g} s") from None


def _written(path: Path, content: bytes) -> bytes:
    try:
        new = path.with_name(f".{path.name[:100]}.new")
        new.write_bytes(content)
        new.replace(path)
    except OSError as error:
        raise UsageError(f"result: {path}: {error.strerror or error}") from None
    return b""
