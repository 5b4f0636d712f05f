"""RQ's no-op: the tally itself. Results are not kept."""

import os

from redis import Redis
from rq import Queue

from bench.apps.tally import BROKER, tick

_BATCH = 500


def enqueue(count: int) -> None:
    """Queue so many."""
    queue = Queue("noop", connection=Redis.from_url(os.environ[BROKER]))
    for done in range(0, count, _BATCH):
        queue.enqueue_many([Queue.prepare_data(tick, result_ttl=0) for _ in range(min(_BATCH, count - done))])
