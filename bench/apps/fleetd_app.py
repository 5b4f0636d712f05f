"""fleetd's no-op."""

import os

from bench.apps.tally import BROKER, tick
from fleetd.worker import job


@job
def noop(payload: bytes) -> None:  # noqa: ARG001
    """Do nothing."""
    tick()


def enqueue(count: int) -> None:
    """Queue so many."""
    from fleetd.client import Client, Submission  # noqa: PLC0415 - a worker's memory is to hold no client

    with Client(os.environ[BROKER]) as client:
        client.submit_many((Submission("noop") for _ in range(count)), wait_s=60)
