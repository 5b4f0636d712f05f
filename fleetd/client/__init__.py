"""Submit jobs and wait for results, with a deadline, from any Python program: the standard library is all it needs.

    with Client(["10.0.0.5:4730", "10.0.0.6:4730"]) as client:
        thumbnail = client.run("resize", picture, wait_s=5)
        handle = client.submit("mail", message)

`Client` is for threads and plain scripts, `AsyncClient` for asyncio. Any other Gearman client may be used as well:
payloads are never wrapped.
"""

from fleetd.client.aio import AsyncClient
from fleetd.client.outcomes import BatchError, JobHandle, OutcomeUnknownError
from fleetd.client.sync import Client
from fleetd.dispatchers.jobs import JobRefusedError, JobStatus, PayloadTooLargeError, Priority, Submission
from fleetd.errors import FleetdError, JobError, JobTimeoutError, UnreachableError, UsageError

__all__ = [
    "AsyncClient",
    "BatchError",
    "Client",
    "FleetdError",
    "JobError",
    "JobHandle",
    "JobRefusedError",
    "JobStatus",
    "JobTimeoutError",
    "OutcomeUnknownError",
    "PayloadTooLargeError",
    "Priority",
    "Submission",
    "UnreachableError",
    "UsageError",
]
