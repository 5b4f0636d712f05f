"""Which dispatcher takes a job: the one rule for fail-over, for jobs in the foreground and in the background.

Promises: a job goes to the server that its unique hashes to; where that one certainly has not taken it (no connection,
or it answered with an error) the next is tried. Where the connection ended between sending and the answer nobody can
know: `OutcomeUnknownError`, unless the caller gave `retry_unknown=True`, which means: rather twice than not at all.
Then the same unique is sent to the same server again, where it meets its first copy if that is still there, and after
that to the others.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fleetd.client.outcomes import JobHandle, OutcomeUnknownError
from fleetd.client.ring import Ring, Server
from fleetd.dispatchers.jobs import ConnectionLostError, JobRefusedError, NotSentError, Submission
from fleetd.dispatchers.submit import SubmitConnection
from fleetd.errors import FleetdError, UnreachableError, UsageError

Outcome = JobHandle | FleetdError
T = TypeVar("T")


class Placing:
    """Places jobs at the servers of a ring."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

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
            return JobHandle(str(connection.address), found, job.unique, job.function)

        try:
            return await self.somewhere(job, on, end_at=end_at, before=before, retry_unknown=retry_unknown)
        except FleetdError as error:
            return error

    async def somewhere(
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
        None if isinstance(handle, JobRefusedError) else JobHandle(str(server), handle, job.unique, job.function)
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
