"""What the author of a job imports: `from fleetd.worker import Context, File, Retry, health, job`.

Promises: the standard library only, and nothing of the controller. Importing it starts nothing.
"""

from fleetd.blobs.file import File
from fleetd.worker.jobs import Cancelled, Context, Retry, health, job

__all__ = ["Cancelled", "Context", "File", "Retry", "health", "job"]
