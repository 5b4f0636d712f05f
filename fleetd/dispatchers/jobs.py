"""What is submitted and what comes back: a job's description, its state at the dispatcher, and the errors between.

Promises: a `Submission` that encodes is one that gearmand takes as it stands; what it would cut, merge or mistake is
refused here, in one line that says what to do.
"""

import uuid
from dataclasses import dataclass, field
from typing import Final, Literal

from fleetd.codecs.gearman import MAX_UNIQUE, Kind, encode
from fleetd.errors import JobError, UnreachableError, UsageError

Priority = Literal["high", "normal", "low"]
DEFAULT_MAX_PAYLOAD: Final = 256 * 1024
MAX_FUNCTION: Final = 512
_FOREGROUND: Final[dict[str, Kind]] = {
    "high": Kind.SUBMIT_JOB_HIGH,
    "normal": Kind.SUBMIT_JOB,
    "low": Kind.SUBMIT_JOB_LOW,
}
_BACKGROUND: Final[dict[str, Kind]] = {
    "high": Kind.SUBMIT_JOB_HIGH_BG,
    "normal": Kind.SUBMIT_JOB_BG,
    "low": Kind.SUBMIT_JOB_LOW_BG,
}


class NotSentError(UnreachableError):
    """The connection was gone before a byte of this was sent: the dispatcher certainly does not have it."""


class ConnectionLostError(UnreachableError):
    """The connection ended after this was sent and before its answer came: the outcome is unknown."""


class JobRefusedError(JobError):
    """The dispatcher answered with an error: it certainly did not take the job. `code` is its own, as QUEUE_ERROR."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class PayloadTooLargeError(UsageError):
    """The payload exceeds the cap of this client."""


def new_unique() -> str:
    """Return 32 random hex digits."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to submit. `unique` (1 to 64 bytes): jobs of the same function and unique are one while it lasts.

    Never use one unique both in the foreground and in the background: gearmand merges the two, and drops the job
    unrun when the foreground client leaves.
    """

    function: str
    payload: bytes = b""
    unique: str = field(default_factory=new_unique)
    priority: Priority = "normal"

    def encode(self, *, background: bool, max_payload: int = DEFAULT_MAX_PAYLOAD) -> bytes:
        """Return the SUBMIT packet. Raises UsageError naming the field, PayloadTooLargeError above `max_payload`."""
        kind = (_BACKGROUND if background else _FOREGROUND).get(self.priority)
        if kind is None:
            raise UsageError(f"job: priority: {self.priority!r:.40} is none of high, normal, low")
        if not isinstance(self.payload, bytes):
            raise UsageError(f"job {self.function}: payload: must be bytes, not {type(self.payload).__name__}")
        if len(self.payload) > max_payload:
            raise PayloadTooLargeError(
                f"job {self.function}: payload: {len(self.payload)} bytes, more than the {max_payload} allowed; "
                "store it elsewhere and send a reference to it (claim-check), or raise max_payload"
            )
        function = _name("function", self.function, MAX_FUNCTION)
        unique = _name("unique", self.unique, MAX_UNIQUE)
        if unique == b"-":
            raise UsageError("job: unique: '-' means 'the payload itself' to a dispatcher; choose another")
        return encode(kind, function, unique, self.payload)


def _name(label: str, text: str, limit: int) -> bytes:
    """Names go through line- and tab-separated answers later: a control character there would forge rows."""
    if not text or not text.isprintable():
        raise UsageError(f"job: {label}: {text!r:.80} must be printable text of at least one character")
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"job: {label}: {text!r:.80} is no valid Unicode") from None
    if len(raw) > limit:
        raise UsageError(f"job: {label}: {len(raw)} bytes, more than the {limit} allowed: {text!r:.80}")
    return raw


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a dispatcher knows of a job. Not `known`: it ended, or never was; the two cannot be told apart.

    `numerator` of `denominator` is the worker's own measure of progress, 0 of 0 where it gave none.
    """

    known: bool
    running: bool
    numerator: int
    denominator: int
