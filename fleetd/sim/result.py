"""What a simulation gives: figures for the table, and series for the charts. Plain values.

Costs are worker-seconds from the launch order to the stop, boots and drains included, each node for at least its
pool's minimum billing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fleetd.core.model import Seconds


@dataclass(frozen=True, slots=True)
class Series:
    """One policy's course. All lists have an entry per `step_s`, the first at `start_s`."""

    step_s: Seconds
    waiting: tuple[int, ...] = ()
    running: tuple[int, ...] = ()
    ready: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by pool: nodes that are up
    coming: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by pool: nodes that boot
    wait_p95_s: tuple[Seconds, ...] = ()  # of the jobs submitted in the step; 0 where there were none
    money: tuple[float, ...] = ()  # spent in the step
    start_s: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class QueueResult:
    """One queue's judged jobs."""

    jobs: int
    late_share: float
    wait_p95_s: Seconds
    objective_s: Seconds


@dataclass(frozen=True, slots=True)
class Result:
    """One policy on one trace; the names are those of `simulate --json`. None: not known (no bound was asked for)."""

    policy: str
    cost_worker_s: float
    cost_money: float
    late_share: float
    wait_p50_s: Seconds
    wait_p95_s: Seconds
    wait_p99_s: Seconds
    launches: int
    stops: int
    reversals_300s: int  # a launch within 300 s after a stop in the same pool, or a stop within 300 s after a launch
    jobs: int
    lost: int  # jobs never started
    bound_worker_s: float | None = None
    cost_over_bound: float | None = None
    queues: Mapping[str, QueueResult] = field(default_factory=dict)
    series: Series | None = None
    notes: tuple[str, ...] = ()  # what a reader has to know: a pool that never came up, an objective out of reach

    def row(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        whole = asdict(self)
        return {name: whole[name] for name in COLUMNS}


COLUMNS = (
    "policy",
    "cost_worker_s",
    "cost_money",
    "bound_worker_s",
    "cost_over_bound",
    "late_share",
    "wait_p50_s",
    "wait_p95_s",
    "wait_p99_s",
    "launches",
    "stops",
    "reversals_300s",
    "jobs",
    "lost",
)
