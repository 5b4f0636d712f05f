"""What the author of a job imports: `from fleetd.worker import Context, Retry, job`.

Promises: the standard library only, and nothing of the controller. Importing it starts nothing.
"""

from fleetd.worker.jobs import Context, Retry, job

__all__ = ["Context", "Retry", "job"]
