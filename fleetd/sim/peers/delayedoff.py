"""DELAYEDOFF: a job that finds no idle server sets one up; a server idle for as long as a set-up is turned off.

Source: Gandhi, Gupta, Harchol-Balter, Kozuch: "Optimality analysis of energy-performance trade-off for server farm
management" (Performance Evaluation 67, 2010), and Gandhi, Harchol-Balter, Raghunathan, Kozuch: "AutoScale: dynamic,
robust capacity management for multi-tier data centers" (ACM TOCS 30, 2012).

As there: a job goes to the server that was busy last, so that the others run out of their time; a set-up that began is
not called off; and the wait before turning off costs what a set-up costs: where idle servers are as dear as booting
ones it lasts as long as a set-up, which is measured here.

Chosen: a look every 5 s; the document acts at every arrival.
"""

from math import ceil
from typing import ClassVar, Final

from fleetd.core.model import Seconds
from fleetd.sim.scaler import View

UNKNOWN_S: Final = 60.0  # while no set-up has ended yet


class DelayedOff:
    """As many set-ups as jobs wait, and an idle timer."""

    name: ClassVar[str] = "delayedoff"
    every_s: ClassVar[Seconds] = 5.0
    recent_first: ClassVar[bool] = True

    def __init__(self) -> None:
        self._booting = 0
        self._booted = 0
        self._booting_s = 0.0  # of all set-ups together

    def wanted(self, view: View) -> int:
        """Return those that are on, without the expired, and one set-up for each job that waits."""
        idle_limit_s = self._setup_s(view.booting)
        expired = 0 if view.waiting else sum(idle_s >= idle_limit_s for idle_s in view.idle_s)
        self._booting = max(view.booting, ceil(view.waiting / view.slots))
        return view.ready - expired + self._booting

    def _setup_s(self, booting: int) -> Seconds:
        """Return the mean time of a set-up, by Little's law: the time of all together over how many ended."""
        self._booted += max(0, self._booting - booting)
        self._booting_s += (self._booting + booting) / 2.0 * self.every_s
        return self._booting_s / self._booted if self._booted else UNKNOWN_S
