"""Tasks of Celery and jobs of RQ that write down their beginning and their end. Imported by those workers."""

import os
import time
from pathlib import Path

from celery import Celery

app = Celery("foreign", broker=os.environ.get("BROKER", "redis://"), backend=None)
app.conf.update(task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=1)


def nap(name: str, seconds: float) -> None:
    """Take a while."""
    ledger = Path(os.environ["LEDGER"])
    _note(ledger.with_name("begun"), name)
    time.sleep(seconds)
    _note(ledger, name)


@app.task(name="nap")
def celery_nap(name: str, seconds: float) -> None:
    """The same as a task."""
    nap(name, seconds)


def _note(path: Path, name: str) -> None:
    with path.open("a") as file:
        file.write(f"{name} {os.getpid()}\n")
