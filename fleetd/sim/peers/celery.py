"""Celery's `--autoscale`: processes grow with what is queued and shrink half a minute after they last grew.

Source: Celery's documentation, "Workers Guide", Autoscaling, and the options of `Autoscaler`.

Defaults, all: a look every second, keepalive 30 s; as many processes as there are reserved jobs, within min and max, at
once upwards, and down as soon as the last growth is older than the keepalive. A worker reserves four jobs a process
(`prefetch_multiplier`), so that one look grows fourfold at most.
"""

from math import ceil
from typing import ClassVar, Final

from fleetd.core.model import Seconds
from fleetd.sim.scaler import View

KEEPALIVE_S: Final = 30.0
PREFETCH: Final = 4


class Autoscale:
    """Follows the jobs up at once, and down after the keepalive."""

    name: ClassVar[str] = "celery"
    every_s: ClassVar[Seconds] = 1.0
    recent_first: ClassVar[bool] = False

    def __init__(self) -> None:
        self._grown_at = 0.0

    def wanted(self, view: View) -> int:
        """Return a process for each job that waits or runs."""
        have = view.ready + view.booting
        wish = max(view.least, min(ceil((view.waiting + view.running) / view.slots), PREFETCH * max(1, have)))
        if wish > have:
            self._grown_at = view.now
        elif view.now - self._grown_at <= KEEPALIVE_S:
            return have
        return wish
