"""KEDA with the Horizontal Pod Autoscaler: one job, waiting or running, per slot.

Source: Kubernetes documentation, "Horizontal Pod Autoscaling" (algorithm details; configurable scaling behaviour,
default behaviour), and KEDA's documentation, "ScaledObject specification" and "Scaling Deployments".

Defaults: sync every 15 s, tolerance 0.1, growth by 100 % or by 4 pods per 15 s, whichever is more, shrinking to the
highest wish of the last 300 s; from and to zero KEDA decides by itself, with a poll every 30 s and a cooldown of 300 s.

Chosen: an average value of one job a slot, running jobs included (waiting ones alone would take busy pods for idle).
"""

from collections import deque
from math import ceil
from typing import ClassVar, Final

from fleetd.core.model import Seconds
from fleetd.sim.scaler import View

TOLERANCE: Final = 0.1
GROWTH: Final = 2
GROWTH_PODS: Final = 4
WINDOW_S: Final = 300.0
POLL_S: Final = 30.0
COOLDOWN_S: Final = 300.0


class Keda:
    """HPA on an external metric with an average value; nothing else moves a count that is above zero."""

    name: ClassVar[str] = "keda"
    every_s: ClassVar[Seconds] = 15.0
    recent_first: ClassVar[bool] = False

    def __init__(self) -> None:
        self._wishes: deque[tuple[Seconds, int]] = deque()
        self._active_at = 0.0

    def wanted(self, view: View) -> int:
        """Return the metric over its target, held within tolerance, window and pace."""
        have, jobs = view.ready + view.booting, view.waiting + view.running
        if jobs:
            self._active_at = view.now
        polls = view.now % POLL_S < self.every_s
        if not have:
            self._wishes.clear()  # the HPA is off
            return 1 if jobs and polls else 0
        if view.least == 0 and polls and view.now - self._active_at >= COOLDOWN_S:
            return 0
        return self._hpa(view.now, have, jobs / view.slots)

    def _hpa(self, now: Seconds, have: int, jobs: float) -> int:
        wish = have if abs(jobs / have - 1.0) <= TOLERANCE else ceil(jobs)
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - WINDOW_S:
            self._wishes.popleft()
        if wish < have:
            wish = min(have, max(past for _, past in self._wishes))
        return max(1, min(wish, max(GROWTH * have, have + GROWTH_PODS)))
