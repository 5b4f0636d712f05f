"""`reload_job` as a Celery task, by its defaults: acknowledged before it runs. The code comes from the path."""

import importlib
import os
from collections.abc import Sequence

from celery import Celery

from bench.apps.tally import BROKER

app = Celery("reload", broker=os.environ[BROKER], backend=None)
app.conf.task_ignore_result = True
job = importlib.import_module("reload_job")


@app.task(name="record")
def record(payload: str) -> None:
    """Run the code that is on the path."""
    job.record(payload.encode())


def send(batch: Sequence[tuple[str, str]]) -> None:
    """Queue the jobs."""
    with app.producer_pool.acquire(block=True) as producer:
        for unique, payload in batch:
            record.apply_async((payload,), task_id=unique, producer=producer)
