"""A job that notes in a ledger when it was due, when it started and which release ran it. Needs nothing but Python.

`bench.reload.release` writes copies of this file that differ in the two values below: that is what a release is here.
The payload is "UNIQUE DUE MS"; the line is "UNIQUE PID DUE STARTED RELEASE", times by CLOCK_MONOTONIC, which is one for
all processes of a machine.
"""

import os
import random
import time

RELEASE: int = 0
FAULT: str = ""  # import, crash, hang, leak, or none
LEDGER = "RELOAD_LEDGER"
LEAK_JOBS = 1000  # so many jobs of one process until every one of them fails
_fd = -1
_ran = 0

if FAULT == "import":
    raise ImportError(f"release {RELEASE} cannot be imported")


def health() -> None:
    """Prove that the release may run."""
    if FAULT == "hang":
        time.sleep(3600)


def record(payload: bytes) -> None:
    """Take the payload's milliseconds, then append one line to the ledger in one write."""
    global _fd, _ran  # noqa: PLW0603 - one descriptor and one count for each process
    started = time.monotonic()
    unique, due, ms = payload.decode().split()
    _ran += 1
    if FAULT == "crash":
        os.abort()
    if FAULT == "leak" and random.random() < _ran / LEAK_JOBS:
        raise ValueError(f"release {RELEASE} fails more and more often")
    time.sleep(float(ms) / 1000)
    if _fd < 0:
        _fd = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(_fd, f"{unique} {os.getpid()} {due} {started:.6f} {RELEASE}\n".encode())
