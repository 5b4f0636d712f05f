"""`reload_job` as a dramatiq actor, by its defaults. The code comes from the path."""

import importlib
import os
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.apps.tally import BROKER

dramatiq.set_broker(RedisBroker(url=os.environ[BROKER]))
job = importlib.import_module("reload_job")


@dramatiq.actor
def record(payload: str) -> None:
    """Run the code that is on the path."""
    job.record(payload.encode())


def send(batch: Sequence[tuple[str, str]]) -> None:
    """Queue the jobs."""
    for _, payload in batch:
        record.send(payload)
