"""Every metric by name, kind, help text and labels: the one table that the page and docs/metrics.md are made from.

Names follow Prometheus: base units, `_total` on counters. Every series bears the label `fleet` beside its own. Label
values are names of the policy or words listed here, a node's name or the first digits of a release; never a word of a
worker's. Money is in the policy's currency, which `fleetd_info` names.
"""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `buckets`: the upper bounds of a histogram, without the infinite one."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"fleetd_{name}", "gauge", text, labels)


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"fleetd_{name}_total", "counter", text, labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Family:
    return Family(f"fleetd_{name}", "histogram", text, labels, buckets)


SERVICE_BUCKETS: Final = tuple(2.0**octave / 1e3 for octave in range(3, 23))  # 8 ms to over an hour, by octaves
BOOT_BUCKETS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1200.0)
TICK_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
CALL_BUCKETS: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)

DECISION_KINDS: Final = ("launch", "drain", "undrain", "stop", "reload")
OUTCOMES: Final = ("done", "failed")
RELEASE_OUTCOMES: Final = ("done", "failed", "crashed")
HTTP_CODES: Final = (400, 401, 403, 404, 405, 413, 422, 429, 500)  # told from the start; others once they come
REFUSALS: Final = ("foreign", "repeated", "outlived")
OTHER: Final = "other"  # what stands for all that is beyond a bound, or that no name of the policy matches

# ── fleet

INFO: Final = _gauge("info", "Always 1: what runs, and in which currency money is told.", "version", "currency")
STARTED: Final = _gauge("start_time_seconds", "When the controller started, in seconds since 1970.")
EPOCH: Final = _gauge("epoch", "The controller's epoch: it rises by one with each start.")
LEADER: Final = _gauge("leader", "1 where this controller acts, 0 where it only looks on (a shadow, a standby).")
PAUSED: Final = _gauge("paused", "1 while an operator has paused all scaling.")
DEAD: Final = _gauge("dead_letters", "Dead letters that are kept now.")
DEAD_COME: Final = _counter(
    "dead_letters_received", "Dead letters that workers handed in, by queue; `other` for jobs of no queue.", "queue"
)
COST_HOUR: Final = _gauge("cost_hour", "Money spent in the last 60 minutes, over all pools.")
COST_MONTH: Final = _gauge("cost_month", "Money spent in this calendar month so far, over all pools.")
BUDGET: Final = _gauge("budget", "The policy's budget of an hour or a month; absent where there is none.", "window")

# ── queue

QUEUE_INFO: Final = _gauge("queue_info", "Always 1: what a queue belongs to.", "queue", "app", "source", "priority")
QUEUE_WAITING: Final = _gauge("queue_waiting_jobs", "Jobs that wait; the last known number while it is blind.", "queue")
QUEUE_RUNNING: Final = _gauge("queue_running_jobs", "Jobs that run; the last known number while it is blind.", "queue")
QUEUE_OLDEST: Final = _gauge("queue_oldest_wait_seconds", "How long the oldest waiting job has waited (est.).", "queue")
QUEUE_RATE: Final = _gauge("queue_arrivals_per_second", "Jobs that arrive, as the policy reckons.", "queue")
QUEUE_NEED: Final = _gauge("queue_needed_slots", "Slots that the queue needs, without the margin.", "queue")
QUEUE_SERVICE: Final = _gauge(
    "queue_expected_service_seconds", "How long a job is expected to take: its mean.", "queue"
)
QUEUE_OBJECTIVE: Final = _gauge("queue_objective_wait_seconds", "The wait that the policy aims at.", "queue")
QUEUE_SHARE: Final = _gauge("queue_objective_ratio", "The share of jobs that may not wait longer, 0 to 1.", "queue")
QUEUE_LATE: Final = _gauge("queue_late_ratio", "The share of jobs that were late, fading within three days.", "queue")
QUEUE_BLIND: Final = _gauge("queue_blind", "1 while the source cannot be read, or only in part.", "queue")
QUEUE_ARRIVED: Final = _counter("queue_arrived_jobs", "Jobs that arrived; counted every ten seconds.", "queue")
QUEUE_STARTED: Final = _counter("queue_started_jobs", "Jobs that started, as workers or the source tell.", "queue")
QUEUE_JOBS: Final = _counter(
    "queue_jobs", "Jobs that ended, by outcome: done, or failed, which counts each attempt.", "queue", "outcome"
)
QUEUE_JUDGED: Final = _counter("queue_judged_jobs", "Jobs whose wait was judged against the objective.", "queue")
QUEUE_LATE_JOBS: Final = _counter("queue_late_jobs", "Of the judged jobs, those that waited too long.", "queue")
QUEUE_SECONDS: Final = _histogram(
    "queue_service_seconds", "How long jobs took, as their workers measured.", SERVICE_BUCKETS, "queue"
)
UNMATCHED: Final = _counter("unmatched_jobs", "Jobs that workers ended and that no queue of the policy matches.")

# ── pool

POOL_INFO: Final = _gauge("pool_info", "Always 1: the kind of a pool, and whether it acts or is only watched.",
                          "pool", "kind", "act")  # fmt: skip
POOL_NODES: Final = _gauge("pool_nodes", "Nodes by phase of their life.", "pool", "phase")
POOL_WANTED: Final = _gauge("pool_wanted_nodes", "Nodes it is to have: ready, lost, coming and ordered.", "pool")
POOL_WANTED_SLOTS: Final = _gauge("pool_wanted_slots", "Slots wanted for an app from this pool.", "pool", "app")
POOL_MIN: Final = _gauge("pool_min_nodes", "The fewest nodes, by the policy.", "pool")
POOL_MAX: Final = _gauge("pool_max_nodes", "The most nodes, by the policy.", "pool")
POOL_SLOTS: Final = _gauge("pool_slots", "Slots of the nodes that are ready.", "pool")
POOL_BUSY: Final = _gauge("pool_busy_slots", "Slots that run a job, on all nodes.", "pool")
POOL_BLIND: Final = _gauge("pool_blind", "1 while the provider cannot be read.", "pool")
POOL_BOOT: Final = _histogram("pool_boot_seconds", "From the order to the worker's first word.", BOOT_BUCKETS, "pool")
POOL_BOOT_LEARNED: Final = _gauge("pool_expected_boot_seconds", "The 95th percentile of the last boots.", "pool")
POOL_LAUNCHED: Final = _counter("pool_launched_nodes", "Nodes that were started.", "pool")
POOL_STOPPED: Final = _counter("pool_stopped_nodes", "Nodes that were stopped.", "pool")
WRONG_VICTIMS: Final = _counter("wrong_victims", "Nodes that a cluster ended instead of the drained ones.", "pool")
POOL_FAILED: Final = _counter("pool_failed_boots", "Nodes that never came up.", "pool")
POOL_FAILURES: Final = _gauge("pool_consecutive_failures", "Failed launches and boots since the last success.", "pool")
POOL_BREAKER: Final = _gauge("pool_breaker_open", "1 while the pool is not asked for nodes after failures.", "pool")
POOL_PRICE: Final = _gauge("pool_node_cost_per_hour", "What one node costs an hour, at the price now.", "pool")
POOL_COST_RATE: Final = _gauge("pool_cost_per_hour", "What all nodes of the pool cost an hour, now.", "pool")
POOL_COST: Final = _counter("pool_cost", "Money that the pool cost since the controller started.", "pool")
POOL_STATIC: Final = _counter("pool_static_cost", "What `max` nodes would have cost in the same time.", "pool")
POOL_SAVED: Final = _gauge("pool_saved_cost", "Static cost less cost: saved against the pool's max all the time.",
                           "pool")  # fmt: skip
POOL_NODE_SECONDS: Final = _counter("pool_node_seconds", "Time of nodes that were held.", "pool")

# ── worker

WORKERS: Final = _gauge("workers", "Workers whose lease is alive, by what they say of themselves.", "pool", "state")
WORKER_JOBS: Final = _counter(
    "worker_jobs", "Jobs that workers ended, those of nodes gone included.", "pool", "outcome"
)
WORKER_SECONDS: Final = _counter("worker_job_seconds", "Time that workers spent in jobs that ended.", "pool")
WORKER_CRASHES: Final = _counter("worker_crashes", "Slots that died.", "pool")

# ── node

NODE_INFO: Final = _gauge(
    "node_info", "Always 1: a node, its phase, and the release that it runs.", "pool", "node", "app", "phase", "release"
)
NODE_BUSY: Final = _gauge("node_busy_slots", "Slots that run a job.", "pool", "node")
NODE_LEASE: Final = _gauge("node_lease_age_seconds", "Since when its worker has not spoken.", "pool", "node")
NODE_JOBS: Final = _counter("node_jobs", "Jobs that its worker ended since it started.", "pool", "node", "outcome")
NODES_OMITTED: Final = _gauge("nodes_omitted", "Nodes beyond the bound: they are in the pools' sums alone.")

# ── release

RELEASE_INFO: Final = _gauge(
    "release_info", "Always 1: a release, and whether it is active, previous, candidate or refused.",
    "app", "release", "role",
)  # fmt: skip
RELEASE_NODES: Final = _gauge("release_nodes", "Nodes that run a release; `other` beyond the known.", "app", "release")
RELEASE_SHARE: Final = _gauge("release_candidate_ratio", "The share of nodes that a candidate is to have.", "app")
RELEASE_JOBS: Final = _counter(
    "release_jobs", "Jobs by the release that ran them: done, failed, crashed.", "app", "release", "outcome"
)

# ── controller

TICK: Final = _histogram("tick_duration_seconds", "How long a tick took, its write included.", TICK_BUCKETS)
TICK_LATE: Final = _histogram("tick_lateness_seconds", "How late a tick began.", TICK_BUCKETS)
TICK_FAILED: Final = _counter("tick_failures", "Ticks of which nothing could be written, so nothing was done.")
TICK_AT: Final = _gauge("tick_timestamp_seconds", "When the last tick decided, in seconds since 1970.")
DECISIONS: Final = _counter("decisions", "Intents that were decided, by kind.", "pool", "kind")
COMMANDS: Final = _counter("commands", "Commands of operators that were taken, by kind.", "kind")
JOURNAL: Final = _counter("journal_writes", "Writes to the journal and memory: ok or error.", "outcome")
JOURNAL_SECONDS: Final = _histogram("journal_write_duration_seconds", "How long a write took.", TICK_BUCKETS)
CALLS: Final = _counter(
    "calls", "Calls to the outside, by source or pool, and how they ended.", "side", "adapter", "call", "outcome"
)
CALL_SECONDS: Final = _histogram(
    "call_duration_seconds", "How long calls to the outside took.", CALL_BUCKETS, "side", "adapter", "call"
)
HTTP_REFUSED: Final = _counter("http_refused", "Requests that the API refused, by the code of the answer.", "code")
LEASES: Final = _counter("leases_accepted", "Leases that were taken in.")
LEASES_REFUSED: Final = _counter(
    "leases_refused", "Leases refused: of another fleet, said before, or of a worker that has started anew.", "reason"
)
LEASE_AGE: Final = _gauge("lease_age_seconds", "The age of the oldest lease of a node that should have one.", "pool")
DROPPED: Final = _counter("metrics_dropped", "Counts that were not kept: too many label values.")

FAMILIES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Family))
