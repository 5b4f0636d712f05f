"""What becomes of a job that gave no result: back to its dispatcher, or dead.

Promises: a dead letter is on the disk before the job is answered. The supervisor counts, because it outlives the slot;
where it does not answer, a job is given back rather than called dead too soon; so is one whose letter cannot be
written. While the code is on trial, an error is
the code's rather than the job's: the job may be run again, by what follows.
"""

import logging
import time
from pathlib import Path
from typing import Final, NamedTuple

from fleetd.dispatchers.work import WorkConnection, failure
from fleetd.worker import dead
from fleetd.worker.control import Control
from fleetd.worker.jobs import Job
from fleetd.worker.logs import event
from fleetd.worker.run import Failure

VERDICT_S: Final = 5.0
FULL_S: Final = 1.0  # how fast a job that cannot be kept may come round again


class Duty(NamedTuple):
    """A job function with what this worker's settings make of it."""

    row: int
    job: Job
    limit_s: float
    attempts: int


class Taken(NamedTuple):
    """A job that a dispatcher assigned to this slot."""

    at: int
    link: WorkConnection
    handle: bytes
    function: bytes
    unique: bytes
    payload: bytes


def judge(spool: Path, control: Control, taken: Taken, duty: Duty, failed: Failure) -> bytes | None:
    """Count the attempt. Returns the packet that ends the job, or None where it goes back to the dispatcher."""
    attempts, again = _count(control, taken, duty)
    if (failed.again or again) and attempts < duty.attempts:
        shown = f"{attempts} of {duty.attempts}"
        handle = taken.handle.decode(errors="replace")
        event(
            logging.WARNING,
            "job goes back",
            function=duty.job.name,
            job=handle,
            attempt=shown,
            reason=failed.reason,
        )
        return None
    letter = dead.make_letter(
        duty.job.name,
        (taken.handle, taken.unique),
        taken.payload,
        attempts=attempts,
        reason=failed.reason,
        traceback=failed.traceback,
    )
    if not dead.write(spool, letter):  # with nothing kept of it, an answer would be the end of the job
        time.sleep(FULL_S)
        return None
    control.send({"letter": letter.id})
    return failure(taken.handle, failed.reason)


def _count(control: Control, taken: Taken, duty: Duty) -> tuple[int, bool]:
    """Ask the supervisor, who outlives this slot, which attempt this was, and whether the code is still on trial."""
    key = {"unique": taken.unique.decode("latin-1"), "handle": taken.handle.decode("latin-1")}
    if not control.send({"attempt": {"row": duty.row, **key}}):
        return 1, False
    give_up_at = time.monotonic() + VERDICT_S
    try:
        while (message := control.wait(max(0.01, give_up_at - time.monotonic()))) is not None:
            if "attempts" in message.body:  # anything else says that the cell holds a new order: looked at anyway
                return int(message.body["attempts"]), bool(message.body.get("again"))
    except TimeoutError:
        event(logging.WARNING, "supervisor does not answer", waited_s=VERDICT_S)
    return 1, False
