"""dramatiq's no-op. Defaults, and no result backend."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.apps.tally import BROKER, tick

dramatiq.set_broker(RedisBroker(url=os.environ[BROKER]))


@dramatiq.actor
def noop() -> None:
    """Do nothing."""
    tick()


def enqueue(count: int) -> None:
    """Queue so many."""
    for _ in range(count):
        noop.send()
