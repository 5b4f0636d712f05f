"""Huey's no-op. Defaults, and no results."""

import os

from huey.api import RedisHuey

from bench.apps.tally import BROKER, tick

huey = RedisHuey("bench", url=os.environ[BROKER], results=False)


@huey.task()
def noop() -> None:
    """Do nothing."""
    tick()


def enqueue(count: int) -> None:
    """Queue so many."""
    for _ in range(count):
        noop()
