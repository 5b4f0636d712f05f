"""Celery's no-op as in `celery_app`, acknowledged late: the task whose process is killed runs again."""

from bench.apps.celery_app import app, enqueue

__all__ = ["app", "enqueue"]

app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
