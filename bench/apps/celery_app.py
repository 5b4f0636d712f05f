"""Celery's no-op. No result backend; all else is Celery's default: early acknowledgement, a prefetch of 4 a process.

With `acks_late` off a message is acknowledged before its task runs, so a task whose process is killed is lost.
"""

import os

from celery import Celery

from bench.apps.tally import BROKER, tick

app = Celery("bench", broker=os.environ[BROKER], backend=None)
app.conf.task_ignore_result = True


@app.task(name="noop")
def noop() -> None:
    """Do nothing."""
    tick()


def enqueue(count: int) -> None:
    """Queue so many."""
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            noop.apply_async(producer=producer)
