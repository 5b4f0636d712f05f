"""An EC2 Auto Scaling group with step scaling: the longer the backlog per instance, the larger the step.

Source: Amazon EC2 Auto Scaling user guide, "Step and simple scaling policies": an alarm for each direction on metrics a
minute apart; steps by how far the metric is over the threshold; out by a percentage of the capacity and at least by
one, in by a number; nothing goes in while instances warm up.

Defaults: there are none but the instance warm-up of 300 s, only examples.

Chosen, as what gives what was found for this peer: out on one data point of the backlog per instance, in parts of the
acceptable one (the longest acceptable wait over the mean service time), rounded up where the guide rounds down; in by
one instance on five data points of less than 0.8 jobs a slot; a group without instances gets one for any job.
"""

from collections import deque
from math import ceil
from typing import ClassVar, Final

from fleetd.core.model import Seconds
from fleetd.sim.scaler import View

OUT: Final = ((0.3, 0.05), (1.0, 0.3), (3.0, 0.5))  # above so much of the acceptable backlog, grow by this share
PERIODS_IN: Final = 5
QUIET: Final = 0.8  # jobs a slot
WARM_UP_S: Final = 300.0


class StepScaling:
    """Steps out every minute that has a backlog, steps in by ones; instances that boot count as there."""

    name: ClassVar[str] = "step"
    every_s: ClassVar[Seconds] = 60.0
    recent_first: ClassVar[bool] = False

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=PERIODS_IN)
        self._grown_at = -WARM_UP_S

    def wanted(self, view: View) -> int:
        """Return the capacity after the step that the metrics call for."""
        have = view.ready + view.booting
        slots = max(1, have) * view.slots
        self._seen.append((view.waiting + view.running) / slots)
        wait_s = view.waiting * view.mean_service_s / slots  # were all to start in turn
        share = max((share for over, share in OUT if wait_s > over * view.objective_s), default=0.0)
        if share or (view.waiting and not have):
            self._grown_at = view.now
            return have + max(1, ceil(have * share))
        quiet = len(self._seen) == PERIODS_IN and max(self._seen) < QUIET
        if quiet and view.now - self._grown_at >= WARM_UP_S:
            return have - 1
        return have
