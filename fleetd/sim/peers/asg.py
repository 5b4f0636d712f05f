"""An EC2 Auto Scaling group with target tracking on the backlog per instance.

Source: Amazon EC2 Auto Scaling user guide, "Scaling policy based on Amazon SQS" (the acceptable backlog per instance is
the longest acceptable wait over the mean service time) and "Target tracking scaling policies" (out in proportion to the
metric, in more gradually).

Defaults: metrics a minute apart; an alarm on three of three above the target, one on fifteen of fifteen below 90 % of
it; an instance warm-up of 300 s, in which nothing goes in.

Left open by the guide: how far one step goes. Here it grows to at most four times the capacity and takes a tenth of it
away, which gives what was found for this peer. Without instances the metric is undefined: any job raises the alarm.
"""

from collections import deque
from math import ceil, inf
from typing import ClassVar, Final

from fleetd.core.model import Seconds
from fleetd.sim.scaler import View

HIGH: Final = 3  # data points
LOW: Final = 15
LOW_SHARE: Final = 0.9
WARM_UP_S: Final = 300.0
MOST_GROWTH: Final = 4.0
LEFT: Final = 0.9
LEAST_S: Final = 0.001


class TargetTracking:
    """Follows the backlog per instance; instances that boot count as there."""

    name: ClassVar[str] = "asg"
    every_s: ClassVar[Seconds] = 60.0
    recent_first: ClassVar[bool] = False

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=LOW)
        self._grown_at = -WARM_UP_S

    def wanted(self, view: View) -> int:
        """Return the capacity in proportion to metric over target, once an alarm has fired."""
        have = view.ready + view.booting
        target = view.slots * max(view.objective_s, LEAST_S) / max(view.mean_service_s, LEAST_S)
        backlog = view.waiting / max(1, have)
        self._seen.append(backlog if have or not view.waiting else inf)
        high = list(self._seen)[-HIGH:]
        if len(high) == HIGH and min(high) > target:
            self._grown_at = view.now
            return max(have, ceil(max(1, have) * min(MOST_GROWTH, backlog / target)))
        quiet = len(self._seen) == LOW and max(self._seen) < LOW_SHARE * target
        if quiet and have and view.now - self._grown_at >= WARM_UP_S:
            return min(have - 1, ceil(have * LEFT))
        return have
