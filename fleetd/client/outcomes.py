"""What becomes of a submission: a handle, or an error that says whether a dispatcher may have it; and how far it is."""

from dataclasses import dataclass, field
from typing import Literal

from fleetd.codecs.reference import result_key
from fleetd.dispatchers.jobs import Submission
from fleetd.errors import FleetdError, JobError, UsageError

Stopped = Literal["taken out", "asked", "runs", "over"]


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A job that `server` ("host:port") took under `handle`. It means nothing after that server's restart.

    `function` and `unique` do: by them the job's end is found, where that is kept.
    """

    server: str
    handle: str
    unique: str
    function: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """The key under which the job's end is kept."""
        return key_of(self, "")


def key_of(job: "JobHandle | str", function: str) -> str:
    """Return the key under which a job's end is kept; raises UsageError where its function is not known."""
    unique, of = (job.unique, job.function or function) if isinstance(job, JobHandle) else (job, function)
    if not of:
        raise UsageError(f"job {unique!r:.80}: function: which function's job is it? Give function=…")
    return result_key(of, unique)


@dataclass(frozen=True, slots=True)
class JobState:
    """How far a job is: `done` of `total` as its function tells it, 0 of 0 where it tells nothing.

    "unknown": its dispatcher does not know it (it ended, or never was), and nothing is kept of its end.
    """

    name: Literal["waiting", "running", "done", "failed", "cancelled", "unknown"]
    done: int = 0
    total: int = 0
    reason: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.name not in ("waiting", "running")


class NotKeptError(JobError):
    """Nothing is kept of a job's end: it was submitted without `keep_result_s`, or long ago, or never."""


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
