"""`reload_job` as an RQ job. Results are not kept; the code comes from the path."""

import os
from collections.abc import Sequence

from redis import Redis
from rq import Queue

from bench.apps.tally import BROKER

_queue = Queue("record", connection=Redis.from_url(os.environ[BROKER]))


def send(batch: Sequence[tuple[str, str]]) -> None:
    """Queue the jobs, in one pipeline."""
    _queue.enqueue_many(
        [
            Queue.prepare_data("reload_job.record", (payload.encode(),), job_id=unique, result_ttl=0)
            for unique, payload in batch
        ]
    )
