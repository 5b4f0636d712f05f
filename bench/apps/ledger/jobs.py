"""A job that does a little and then says so, once, in a ledger outside of fleetd."""

import os
import time

from fleetd.worker import Context, job


@job("record", timeout_s=60)
def record(payload: bytes, context: Context) -> None:
    """Sleep for the payload's milliseconds, then append "UNIQUE SLOT-PID" to the ledger in one write."""
    time.sleep(int(payload) / 1000)
    handle = os.open(os.environ["FLEETD_LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, f"{context.unique} {os.getpid()}\n".encode())
    finally:
        os.close(handle)
