"""Submit jobs and wait for results, with a deadline, from any Python program: the standard library is all it needs.

    with Client(["10.0.0.5:4730", "10.0.0.6:4730"]) as client:
        thumbnail = client.run("resize", picture, wait_s=5)
        handle = client.submit("mail", message)

`Client` is for threads and plain scripts, `AsyncClient` for asyncio. Any other Gearman client may be used as well:
payloads are never wrapped, unless a client asks for more than an answer (docs/files.md):

    store = Files("http://10.0.0.1:7117", "TOKEN")
    with Client(["10.0.0.5:4730"], files=store) as client:
        handle = client.submit("render", file=Path("film.mov"), keep_result_s=86400)
        client.result(handle, wait_s=600, into=Path("film.mp4"))
"""

from fleetd.blobs.faults import BadFileError, StoreFullError
from fleetd.client.aio import AsyncClient
from fleetd.client.claims import Files
from fleetd.client.outcomes import BatchError, JobHandle, JobState, NotKeptError, OutcomeUnknownError
from fleetd.client.sse import asse, sse
from fleetd.client.sync import Client
from fleetd.dispatchers.jobs import JobRefusedError, JobStatus, PayloadTooLargeError, Priority, Submission
from fleetd.errors import FleetdError, JobError, JobTimeoutError, UnreachableError, UsageError

__all__ = [
    "AsyncClient",
    "BadFileError",
    "BatchError",
    "Client",
    "Files",
    "FleetdError",
    "JobError",
    "JobHandle",
    "JobRefusedError",
    "JobState",
    "JobStatus",
    "JobTimeoutError",
    "NotKeptError",
    "OutcomeUnknownError",
    "PayloadTooLargeError",
    "Priority",
    "StoreFullError",
    "Submission",
    "UnreachableError",
    "UsageError",
    "asse",
    "sse",
]
