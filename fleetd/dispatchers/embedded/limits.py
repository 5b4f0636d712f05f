"""CAN_DO_TIMEOUT: how long a worker said that a job of a function may run.

Promises: pure; a job that runs longer is taken from its worker within `TICK_S`; as with gearmand neither side is told,
and the worker's late answer is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fleetd.dispatchers.embedded.model import Job
from fleetd.dispatchers.embedded.timers import Timers

TICK_S: Final = 0.5  # limits are whole seconds


@dataclass(slots=True, eq=False)
class Limits:
    """One timer for all, not one a job: the timers of short jobs would outlive them by the thousand."""

    timers: Timers
    give_up: Callable[[Job, float, str], None]
    _due: dict[Job, float] = field(default_factory=dict)
    _looking: bool = False

    def begin(self, job: Job, due: float, now: float) -> None:
        """A job was handed out under a limit."""
        self._due[job] = due
        if not self._looking:
            self._looking = True
            self.timers.later(now + TICK_S, self._look)

    def end(self, job: Job) -> None:
        """A job is no longer its worker's."""
        self._due.pop(job, None)

    def _look(self, now: float) -> None:
        for job in [job for job, due in self._due.items() if due <= now]:
            self.give_up(job, now, "it ran longer than its worker's CAN_DO_TIMEOUT")
        self._looking = bool(self._due)
        if self._looking:
            self.timers.later(now + TICK_S, self._look)
