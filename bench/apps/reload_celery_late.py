"""`reload_job` as in `reload_celery`, acknowledged late: the task whose process is killed runs again."""

from bench.apps.reload_celery import app, send

__all__ = ["app", "send"]

app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
