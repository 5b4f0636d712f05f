"""The asyncio client: a job in the foreground with its result, or in the background with a handle.

Promises: every call ends by its deadline; nothing is lost silently. Which dispatcher takes a job, and what is known
where one fails: client/placing.py. What needs the fleet's store (files, results that are asked for later, cancelling
what runs) needs `files`; everything else does without.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fleetd.client.claims import EVERY_S, Claims, Files, Wanted
from fleetd.client.outcomes import BatchError, JobHandle, JobState, Stopped, key_of
from fleetd.client.placing import Outcome, Placing
from fleetd.client.ring import Ring, Server
from fleetd.dispatchers.admin import AdminConnection
from fleetd.dispatchers.follow import Listeners, OnBytes, OnProgress
from fleetd.dispatchers.jobs import JobStatus, Priority, Submission, new_unique
from fleetd.dispatchers.submit import Limits, SubmitConnection
from fleetd.errors import FleetdError, JobTimeoutError, UnreachableError

DEFAULT_WAIT_S: Final = 30.0
DEFAULT_SUBMIT_S: Final = 10.0
DEFAULT_FILE_S: Final = 3600.0
BATCH: Final = 128
BATCHES_UNDER_WAY: Final = 2  # one is prepared while the dispatcher works on the other
OPEN_AT_ONCE: Final = 500


class AsyncClient:
    """Submits to `servers`: "host:port" each, or a single one as text. Use it from one event loop.

    Connections open at the first use. `limits` bound each of them: window, seconds, bytes. `files`: the fleet's store.
    """

    def __init__(
        self, servers: Sequence[str] | str, *, limits: Limits | None = None, files: Files | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._ring = Ring(servers, self._limits)
        self._placing = Placing(self._ring)
        self._claims = Claims(files, self._limits)

    async def run(
        self,
        function: str,
        payload: bytes = b"",
        *,
        wait_s: float | None = None,
        unique: str | None = None,
        priority: Priority = "normal",
        file: Path | None = None,
        into: Path | None = None,
        on_progress: OnProgress | None = None,
        on_data: OnBytes | None = None,
        on_warning: OnBytes | None = None,
        retry_unknown: bool = False,
    ) -> bytes:
        """Run a job in the foreground and return its result, after any data where no `on_data` takes it.

        `file` is sent in the place of the payload; `into`: the file that the result goes to, b"" is returned then.
        Raises JobTimeoutError after `wait_s` seconds (the job may still run), JobError where it failed (`remote` is
        the worker's word), OutcomeUnknownError where the connection broke under it, JobRefusedError, UnreachableError,
        UsageError; with files BadFileError and StoreFullError. By default it waits for 30 s, with files an hour.
        """
        job = submission(function, payload, unique, priority)
        if wait_s is None:
            wait_s = DEFAULT_FILE_S if file or into else DEFAULT_WAIT_S
        listeners = Listeners(on_progress, on_data, on_warning)
        end_at = asyncio.get_running_loop().time() + wait_s
        doing = "no dispatcher could be reached"

        async def on(connection: SubmitConnection) -> bytes:
            nonlocal doing
            doing = "it may still run"
            left_s = max(0.001, end_at - asyncio.get_running_loop().time())
            return await connection.run(job, wait_s=left_s, listeners=listeners)

        try:
            async with asyncio.timeout_at(end_at) as deadline:
                if self._claims.needed(job, file) or (into is not None and self._claims.there):
                    doing = "its file was not sent yet"
                    job = await self._claims.prepared(job, file, Wanted())
                    doing = "no dispatcher could be reached"
                found = await self._placing.somewhere(job, on, end_at=end_at, retry_unknown=retry_unknown)
                doing = "it is done, and its result was not fetched yet"
                return await self._claims.resolved(found, into)
        except (TimeoutError, JobTimeoutError) as error:
            if isinstance(error, TimeoutError) and not deadline.expired():
                raise  # a listener's own
            raise JobTimeoutError(f"job {function}: no result within {wait_s:g} s; {doing}") from None

    async def submit(
        self,
        function: str,
        payload: bytes = b"",
        *,
        wait_s: float | None = None,
        unique: str | None = None,
        priority: Priority = "normal",
        file: Path | None = None,
        keep_result_s: float | None = None,
        tell: str = "",
        retry_unknown: bool = False,
    ) -> JobHandle:
        """Queue a job in the background; returns once a dispatcher has confirmed that it has it.

        `file` is sent in the place of the payload. With `keep_result_s` or `tell` the job's end is kept for so many
        seconds, for `result`; `tell` is a URL that it is posted to. Raises OutcomeUnknownError, JobRefusedError,
        UnreachableError (also after `wait_s` seconds: 10, with files an hour), UsageError; with files BadFileError and
        StoreFullError.
        """
        job = submission(function, payload, unique, priority)
        if wait_s is None:
            wait_s = DEFAULT_FILE_S if file else DEFAULT_SUBMIT_S
        loop = asyncio.get_running_loop()
        end_at = loop.time() + wait_s
        wanted = Wanted(keep_result_s, tell)
        if wanted.any or self._claims.needed(job, file):
            try:
                async with asyncio.timeout_at(end_at):
                    job = await self._claims.prepared(job, file, wanted)
            except TimeoutError:
                what = "the file store did not take it"
                raise UnreachableError(f"job {function}: {what} within {wait_s:g} s; nothing was submitted") from None
        left_s = max(0.001, end_at - loop.time())
        (outcome,) = await self._placing.place([job], wait_s=left_s, retry_unknown=retry_unknown)
        if isinstance(outcome, FleetdError):
            raise outcome
        return outcome

    async def submit_many(
        self,
        jobs: Iterable[Submission],
        *,
        wait_s: float = DEFAULT_SUBMIT_S,
        keep_result_s: float | None = None,
        retry_unknown: bool = False,
    ) -> list[JobHandle]:
        """Queue many jobs in the background, pipelined; return their handles in order. `jobs` is consumed as it goes.

        `wait_s` bounds each batch of 128. Raises BatchError with every job's outcome where any was not taken; all
        others are queued.
        """
        outcomes: list[Outcome] = []
        under_way: deque[asyncio.Task[list[Outcome]]] = deque()
        try:
            for batch in batches(jobs):
                placing = self.place(batch, wait_s=wait_s, keep_result_s=keep_result_s, retry_unknown=retry_unknown)
                under_way.append(asyncio.create_task(placing))
                if len(under_way) == BATCHES_UNDER_WAY:
                    outcomes += await under_way.popleft()
        finally:  # also where the iterable itself raised: what was sent is seen to its end
            for found in await asyncio.gather(*under_way):
                outcomes += found
        return all_taken(outcomes)

    async def place(
        self,
        jobs: Sequence[Submission],
        *,
        wait_s: float,
        keep_result_s: float | None = None,
        retry_unknown: bool = False,
    ) -> list[Outcome]:
        """Queue a batch in the background, each job at the server of its unique; return the outcomes in order."""
        end_at = asyncio.get_running_loop().time() + wait_s
        if keep_result_s is not None:
            try:
                async with asyncio.timeout_at(end_at):
                    jobs = await self._claims.kept(jobs, Wanted(keep_result_s))
            except (FleetdError, TimeoutError) as error:
                fault = error if isinstance(error, FleetdError) else UnreachableError("the file store did not answer")
                return [fault for _ in jobs]
        left_s = max(0.001, end_at - asyncio.get_running_loop().time())
        return await self._placing.place(jobs, wait_s=left_s, retry_unknown=retry_unknown)

    # ── later

    async def status(self, handle: JobHandle) -> JobStatus:
        """Return what the job's dispatcher knows of it. Raises UnreachableError, ProtocolError, UsageError."""
        connection = await self._ring.find(handle.server).connection()
        return await connection.status(handle.handle)

    async def state(self, job: JobHandle | str, *, function: str = "") -> JobState:
        """Return how far a job is: by its dispatcher, and by what is kept of it. A text is a unique, with `function`.

        Raises UnreachableError, UsageError.
        """
        if isinstance(job, JobHandle):
            status = await self.status(job)
            if status.known:
                return JobState("running" if status.running else "waiting", status.numerator, status.denominator)
        if not self._claims.there:
            return JobState("unknown")
        return await self._claims.state(key_of(job, function))

    async def result(
        self, job: JobHandle | str, *, function: str = "", wait_s: float = 0.0, into: Path | None = None
    ) -> bytes:
        """Return the result of a job that was submitted with `keep_result_s`, by this client or by one before it.

        A text is a unique, with `function`. Raises JobTimeoutError where it has not ended within `wait_s` seconds,
        JobError where it failed, was cancelled, or nothing is kept of it; UnreachableError, BadFileError. To fetch a
        result that is there takes its own time, an hour at most.
        """
        record = await self._claims.ended(key_of(job, function), wait_s)
        try:
            async with asyncio.timeout(DEFAULT_FILE_S):
                return await self._claims.taken(record, into)
        except TimeoutError:
            raise JobTimeoutError(
                f"job {record['function']}: its result did not come in {DEFAULT_FILE_S:g} s"
            ) from None

    async def follow(
        self, job: JobHandle | str, *, function: str = "", wait_s: float = DEFAULT_FILE_S, every_s: float = EVERY_S
    ) -> AsyncIterator[JobState]:
        """Yield the job's state whenever it has changed, until it ended, nobody knows it, or `wait_s` is over."""
        loop = asyncio.get_running_loop()
        end_at, before = loop.time() + wait_s, None
        while True:
            now = await self.state(job, function=function)
            if now != before:
                yield now
            before = now
            if now.over or loop.time() + every_s > end_at:
                return
            await asyncio.sleep(every_s)

    async def cancel(self, job: JobHandle) -> Stopped:
        """Take a job out of its queue; one that runs already is asked to end, where its end is kept.

        Returns "taken out"; "asked" (its function sees that, and may heed it); "runs" where nothing can be done;
        "over" where its dispatcher does not know it any more. Raises UnreachableError.
        """
        status = await self.status(job)
        if status.known and not status.running:
            server = self._ring.find(job.server)
            admin = AdminConnection(server.address)
            try:
                gone = await admin.cancel_job(job.handle)
            finally:
                await admin.close()
            if gone:
                await self._claims.cancelled(job.key)
                return "taken out"
        if not status.known:
            return "over"
        return "asked" if await self._claims.cancelled(job.key) else "runs"

    async def ping(self) -> dict[str, float | None]:
        """Return, by server, the seconds that an echo took; None where it could not be reached."""
        found = await asyncio.gather(*map(_ping, self._ring.servers))
        return {str(server): seconds for server, seconds in zip(self._ring.servers, found, strict=True)}

    async def close(self) -> None:
        """Close every connection; jobs awaited in the foreground fail. Safe twice."""
        self._claims.close()
        await self._ring.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _ping(server: Server) -> float | None:
    try:
        return await (await server.connection()).ping()
    except FleetdError:
        return None


def submission(function: str, payload: bytes, unique: str | None, priority: Priority) -> Submission:
    """Describe a job; one without a unique gets a random one."""
    return Submission(function, payload, new_unique() if unique is None else unique, priority)


def batches(jobs: Iterable[Submission]) -> Iterator[list[Submission]]:
    """Cut an iterable into what is sent at once."""
    source = iter(jobs)
    while batch := list(islice(source, BATCH)):
        yield batch


def all_taken(outcomes: Sequence[Outcome]) -> list[JobHandle]:
    """Return the handles; raises BatchError where a job has none."""
    handles = [outcome for outcome in outcomes if isinstance(outcome, JobHandle)]
    if len(handles) != len(outcomes):
        raise BatchError(tuple(outcomes))
    return handles
