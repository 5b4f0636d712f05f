"""What a peer's policy is: a rule that is shown one pool at its own pace and says how many nodes it wants.

Peers are given more than they have in life: the true mean service time, and a drain that takes idle nodes first and
never cuts a job. Each is a short file in `peers/` that names the document it follows.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from fleetd.core.model import Seconds


@dataclass(frozen=True, slots=True)
class View:
    """One app in one pool as a peer sees it. Nodes have `slots` each; draining ones are in none of the counts."""

    now: Seconds
    waiting: int  # jobs of the app that are not started
    running: int  # jobs that run, on any node
    arrived: int  # jobs submitted since this peer was last asked
    ready: int  # nodes that are up
    booting: int
    idle_s: tuple[Seconds, ...]  # of each ready node that runs nothing, longest first
    busy_slot_s: Seconds  # slot-seconds worked since this peer was last asked
    slots: int
    least: int  # the pool's min and max
    most: int
    mean_service_s: Seconds
    objective_s: Seconds


class Scaler(Protocol):
    """A peer. It may remember what it likes; a new one is made for every run and pool."""

    name: ClassVar[str]
    every_s: ClassVar[Seconds]  # how often it is asked
    recent_first: ClassVar[bool]  # whether the node that was busy last gets the next job; otherwise the longest idle

    def wanted(self, view: View) -> int:
        """Return how many nodes there should be, booting ones included; the simulation keeps it within least..most."""
