"""What the author of a job imports: `from fleetd.worker import Context, Retry, health, job`.

Promises: the standard library only, and nothing of the controller. Importing it starts nothing.
"""

from fleetd.worker.jobs import Context, Retry, health, job

__all__ = ["Context", "Retry", "health", "job"]
