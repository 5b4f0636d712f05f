"""What becomes of a submission: a handle, or an error that says whether a dispatcher may have the job."""

from dataclasses import dataclass

from fleetd.dispatchers.jobs import Submission
from fleetd.errors import FleetdError, JobError


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A job that `server` ("host:port") took under `handle`. It means nothing after that server's restart."""

    server: str
    handle: str
    unique: str


class OutcomeUnknownError(JobError):
    """The connection ended between sending and the answer: the job may be queued, may run, or may not exist.

    `server` is where it went. Submit `submission` again (the same unique) if it is safe to run twice, or give
    `retry_unknown=True` to have that done.
    """

    def __init__(self, message: str, server: str, submission: Submission) -> None:
        super().__init__(message)
        self.server = server
        self.submission = submission


class BatchError(JobError):
    """Some jobs of a batch were not taken. `outcomes` holds, in order, each one's handle or its error."""

    def __init__(self, outcomes: tuple[JobHandle | FleetdError, ...]) -> None:
        faults = [outcome for outcome in outcomes if isinstance(outcome, FleetdError)]
        super().__init__(f"{len(faults)} of {len(outcomes)} jobs were not taken; the first: {faults[0]}")
        self.outcomes = outcomes
