"""The asyncio client: a job in the foreground with its result, or in the background with a handle.

Promises: every call ends by its deadline; nothing is lost silently. A job goes to the server that its unique hashes
to; where that one certainly has not taken it (no connection, or it answered with an error) the next is tried. Where
the connection ended between sending and the answer nobody can know: `OutcomeUnknownError`, unless the caller gave
`retry_unknown=True`, which means: rather twice than not at all. Then the same unique is sent to the same server again,
where it meets its first copy if that is still there, and after that to the others.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Final, Self, TypeVar

from fleetd.client.outcomes import BatchError, JobHandle, OutcomeUnknownError
from fleetd.client.ring import Ring, Server
from fleetd.dispatchers.follow import Listeners, OnBytes, OnProgress
from fleetd.dispatchers.jobs import (
    ConnectionLostError,
    JobRefusedError,
    JobStatus,
    NotSentError,
    Priority,
    Submission,
    new_unique,
)
from fleetd.dispatchers.submit import Limits, SubmitConnection
from fleetd.errors import FleetdError, JobTimeoutError, UnreachableError, UsageError

DEFAULT_WAIT_S: Final = 30.0
DEFAULT_SUBMIT_S: Final = 10.0
BATCH: Final = 128
BATCHES_UNDER_WAY: Final = 2  # one is prepared while the dispatcher works on the other
Outcome = JobHandle | FleetdError
T = TypeVar("T")


class AsyncClient:
    """Submits to `servers`: "host:port" each, or a single one as text. Use it from one event loop.

    Connections open at the first use. `limits` bound each of them: window, seconds, bytes.
    """

    def __init__(self, servers: Sequence[str] | str, *, limits: Limits | None = None) -> None:
        self._ring = Ring(servers, limits or Limits())

    async def run(
        self,
        function: str,
        payload: bytes = b"",
        *,
        wait_s: float = DEFAULT_WAIT_S,
        unique: str | None = None,
        priority: Priority = "normal",
        on_progress: OnProgress | None = None,
        on_data: OnBytes | None = None,
        on_warning: OnBytes | None = None,
        retry_unknown: bool = False,
    ) -> bytes:
        """Run a job in the foreground and return its result, after any data where no `on_data` takes it.

        Raises JobTimeoutError after `wait_s` seconds (the job may still run), JobError where it failed (`remote` is
        the worker's word), OutcomeUnknownError where the connection broke under it, JobRefusedError, UnreachableError,
        UsageError.
        """
        job = submission(function, payload, unique, priority)
        listeners = Listeners(on_progress, on_data, on_warning)
        end_at = asyncio.get_running_loop().time() + wait_s
        reached = False

        async def on(connection: SubmitConnection) -> bytes:
            nonlocal reached
            reached = True
            return await connection.run(job, wait_s=wait_s, listeners=listeners)

        try:
            async with asyncio.timeout_at(end_at) as deadline:
                return await self._somewhere(job, on, end_at=end_at, retry_unknown=retry_unknown)
        except TimeoutError:
            if not deadline.expired():
                raise  # a listener's own
            why = "it may still run" if reached else "no dispatcher could be reached"
            raise JobTimeoutError(f"job {function}: no result within {wait_s:g} s; {why}") from None

    async def submit(
        self,
        function: str,
        payload: bytes = b"",
        *,
        wait_s: float = DEFAULT_SUBMIT_S,
        unique: str | None = None,
        priority: Priority = "normal",
        retry_unknown: bool = False,
    ) -> JobHandle:
        """Queue a job in the background; returns once a dispatcher has confirmed that it has it.

        Raises OutcomeUnknownError, JobRefusedError, UnreachableError (also after `wait_s` seconds), UsageError.
        """
        job = submission(function, payload, unique, priority)
        (outcome,) = await self.place([job], wait_s=wait_s, retry_unknown=retry_unknown)
        if isinstance(outcome, FleetdError):
            raise outcome
        return outcome

    async def submit_many(
        self, jobs: Iterable[Submission], *, wait_s: float = DEFAULT_SUBMIT_S, retry_unknown: bool = False
    ) -> list[JobHandle]:
        """Queue many jobs in the background, pipelined; return their handles in order. `jobs` is consumed as it goes.

        `wait_s` bounds each batch of 128. Raises BatchError with every job's outcome where any was not taken; all
        others are queued.
        """
        outcomes: list[Outcome] = []
        under_way: deque[asyncio.Task[list[Outcome]]] = deque()
        try:
            for batch in batches(jobs):
                placing = self.place(batch, wait_s=wait_s, retry_unknown=retry_unknown)
                under_way.append(asyncio.create_task(placing))
                if len(under_way) == BATCHES_UNDER_WAY:
                    outcomes += await under_way.popleft()
        finally:  # also where the iterable itself raised: what was sent is seen to its end
            for found in await asyncio.gather(*under_way):
                outcomes += found
        return all_taken(outcomes)

    async def status(self, handle: JobHandle) -> JobStatus:
        """Return what the job's dispatcher knows of it. Raises UnreachableError, ProtocolError, UsageError."""
        connection = await self._ring.find(handle.server).connection()
        return await connection.status(handle.handle)

    async def ping(self) -> dict[str, float | None]:
        """Return, by server, the seconds that an echo took; None where it could not be reached."""
        found = await asyncio.gather(*map(_ping, self._ring.servers))
        return {str(server): seconds for server, seconds in zip(self._ring.servers, found, strict=True)}

    async def close(self) -> None:
        """Close every connection; jobs awaited in the foreground fail. Safe twice."""
        await self._ring.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def place(self, jobs: Sequence[Submission], *, wait_s: float, retry_unknown: bool = False) -> list[Outcome]:
        """Queue a batch in the background, each job at the server of its unique; return the outcomes in order."""
        end_at = asyncio.get_running_loop().time() + wait_s
        groups: dict[Server, list[int]] = {}
        for at, job in enumerate(jobs):
            groups.setdefault(self._ring.order(job.unique)[0], []).append(at)
        outcomes: dict[int, Outcome] = {}

        async def fill(server: Server, places: list[int]) -> None:
            batch = [jobs[at] for at in places]
            found = await _together(server, batch, end_at) if len(batch) > 1 else [None]
            outcomes.update((at, one) for at, one in zip(places, found, strict=True) if one is not None)
            unknown = [at for at in places if retry_unknown and isinstance(outcomes.get(at), OutcomeUnknownError)]
            rest = [*unknown, *(at for at in places if at not in outcomes)]
            alone = [self._alone(jobs[at], end_at, outcomes.get(at), retry_unknown=retry_unknown) for at in rest]
            outcomes.update(zip(rest, await asyncio.gather(*alone), strict=True))

        await asyncio.gather(*(fill(server, places) for server, places in groups.items()))
        return [outcomes[at] for at in range(len(jobs))]

    async def _alone(self, job: Submission, end_at: float, before: Outcome | None, *, retry_unknown: bool) -> Outcome:
        """Queue one job in the background at the first server that takes it. `before` is what became of it so far."""

        async def on(connection: SubmitConnection) -> JobHandle:
            (found,) = await connection.submit([job], wait_s=_left(end_at, connection))
            if isinstance(found, JobRefusedError):
                raise found
            return JobHandle(str(connection.address), found, job.unique)

        try:
            return await self._somewhere(job, on, end_at=end_at, before=before, retry_unknown=retry_unknown)
        except FleetdError as error:
            return error

    async def _somewhere(
        self,
        job: Submission,
        on: Callable[[SubmitConnection], Awaitable[T]],
        *,
        end_at: float,
        before: Outcome | None = None,
        retry_unknown: bool,
    ) -> T:
        """Do something at the first server that takes it: the one rule for fail-over, see the module's promise."""
        faults: list[FleetdError] = []
        servers = deque(self._ring.order(job.unique))  # a copy: the ring keeps its own
        again: set[Server] = set()
        if isinstance(before, OutcomeUnknownError):  # where its first copy may be, the second is no second job
            faults.append(before)
            lost_at = self._ring.find(before.server)
            again.add(lost_at)
            servers.remove(lost_at)
            servers.appendleft(lost_at)
        while servers:
            server = servers.popleft()
            try:
                return await on(await _reach(server, end_at))
            except ConnectionLostError as error:
                server.failed(str(error))
                if not retry_unknown:
                    raise _unknown(job, server, error) from None
                if server not in again:
                    again.add(server)
                    servers.appendleft(server)
                faults.append(_unknown(job, server, error))
            except (UnreachableError, JobRefusedError) as error:
                faults.append(error)
        raise _none_took(job, faults)


async def _together(server: Server, jobs: Sequence[Submission], end_at: float) -> list[Outcome | None]:
    """Queue jobs at one server in one send. None: certainly not taken here, to be tried alone."""
    try:
        connection = await _reach(server, end_at)
        found = await connection.submit(jobs, wait_s=_left(end_at, connection))
    except ConnectionLostError as error:
        server.failed(str(error))
        return [_unknown(job, server, error) for job in jobs]
    except (UnreachableError, UsageError):
        return [None for _ in jobs]
    return [
        None if isinstance(handle, JobRefusedError) else JobHandle(str(server), handle, job.unique)
        for job, handle in zip(jobs, found, strict=True)
    ]


async def _reach(server: Server, end_at: float) -> SubmitConnection:
    """Return the server's connection; past `end_at` nothing is begun."""
    try:
        async with asyncio.timeout_at(end_at):
            return await server.connection()
    except TimeoutError:
        raise UnreachableError(f"dispatcher {server}: not reached before the deadline") from None


def _left(end_at: float, connection: SubmitConnection) -> float:
    left_s = end_at - asyncio.get_running_loop().time()
    if left_s <= 0:
        raise NotSentError(f"dispatcher {connection.address}: not reached before the deadline")
    return left_s


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


def _unknown(job: Submission, server: Server, error: ConnectionLostError) -> OutcomeUnknownError:
    what = f"job {job.function}: it is unknown whether the dispatcher took it: {error}"
    return OutcomeUnknownError(what, str(server), job)


def _none_took(job: Submission, faults: Sequence[FleetdError]) -> FleetdError:
    """One error for all: the least certain kind, the words of each."""
    what = "; ".join(dict.fromkeys(map(str, faults)))
    for fault in faults:
        if isinstance(fault, OutcomeUnknownError):
            return OutcomeUnknownError(what, fault.server, job)
    for fault in faults:
        if isinstance(fault, JobRefusedError):
            return JobRefusedError(f"job {job.function}: no dispatcher took it: {what}", fault.code)
    return UnreachableError(f"job {job.function}: no dispatcher took it: {what}")
