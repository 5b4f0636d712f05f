"""What the command line sets, what a submission is, and the refusals that the queue answers with.

Promises: values alone; a refusal has the code that gearmand 1.1.20 uses where it knows the case.
"""

from dataclasses import dataclass
from typing import Final

from fleetd.codecs.gearman import RES, Kind, encode

MAX_FUNCTION: Final = 512  # bytes of a name
MAX_FUNCTIONS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What the command line sets. `prefix`: of handles. `attempts`: hand-outs that may end in the worker's death."""

    prefix: bytes = b"H:local:"
    attempts: int = 3
    max_payload: int = 256 * 1024
    max_queue: int = 1_000_000  # jobs of a function, running ones included; 0: no limit
    durable: bool = False
    token: bytes = b""  # empty: nobody has to show one


@dataclass(slots=True)
class Ask:
    """A submission as the packet tells it. Not frozen: it is made for every job, and freezing doubles its cost."""

    name: bytes
    unique: bytes
    payload: bytes
    priority: int
    background: bool
    epoch: float = 0.0


def error(code: bytes, said: str) -> bytes:
    """Return the ERROR packet."""
    return encode(Kind.ERROR, code, said.encode(), magic=RES)


def text(name: bytes) -> str:
    """Return bytes from outside as they can be shown."""
    return name.decode(errors="backslashreplace")


JOURNAL_FAULT: Final = error(b"QUEUE_ERROR", "The job could not be written to disk and was not taken")
FULL: Final = error(b"QUEUE_ERROR", "Job queue is full")
UNIQUE_FAULT: Final = error(b"ARGUMENT_TOO_LARGE", "Unique value too large")
NAME_FAULT: Final = error(b"INVALID_FUNCTION_NAME", f"A function's name has 1 to {MAX_FUNCTION} printable bytes")
