"""What the dashboards show: seven of them, each a list of panels, each a question with the queries that answer it.

Values only; scripts/dashboards.py makes Grafana's JSON of them. A panel's `why` says what to read off it.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["stat", "lines", "stack", "table", "heat"]
Query = tuple[str, str]  # PromQL, and what its series are called


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is one of Grafana's; `limits`: values from which on it is yellow, and red."""

    kind: Kind
    title: str
    unit: str
    why: str
    queries: tuple[Query, ...]
    width: int = 12
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. `variables`: name to the query of its values, beside `fleet`."""

    name: str
    title: str
    about: str
    variables: dict[str, str]
    panels: tuple[Panel, ...]


def _stat(title: str, unit: str, why: str, expr: str, *, limits: tuple[float, float] | None = None) -> Panel:
    return Panel("stat", title, unit, why, ((expr, ""),), 4, limits)


def _lines(title: str, unit: str, why: str, *queries: Query, width: int = 12) -> Panel:
    return Panel("lines", title, unit, why, queries, width)


def _stack(title: str, unit: str, why: str, *queries: Query, width: int = 12) -> Panel:
    return Panel("stack", title, unit, why, queries, width)


def _table(title: str, why: str, expr: str, width: int = 24) -> Panel:
    return Panel("table", title, "short", why, ((expr, ""),), width)


F: Final = 'fleet="$fleet"'
Q: Final = f'{F}, queue=~"$queue"'
P: Final = f'{F}, pool=~"$pool"'
A: Final = f'{F}, app=~"$app"'
RATE: Final = "[$__rate_interval]"
QUEUES: Final = f"label_values(fleetd_queue_info{{{F}}}, queue)"
POOLS: Final = f"label_values(fleetd_pool_info{{{F}}}, pool)"
APPS: Final = f"label_values(fleetd_queue_info{{{F}}}, app)"


def _quantile(share: float, family: str, labels: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({family}_bucket{{{labels}}}{RATE})))"


OVERVIEW: Final = Board(
    "overview", "fleetd: overview", "Is every queue served in time, by what, and what does it cost?", {},
    (
        _stat("Waiting jobs", "short", "All queues together.", f"sum(fleetd_queue_waiting_jobs{{{F}}})"),
        _stat("Oldest wait", "s", "The job that has waited longest.", f"max(fleetd_queue_oldest_wait_seconds{{{F}}})"),
        _stat("Late, last hour", "percentunit", "Of the jobs judged in the last hour, those that waited too long.",
              f"sum(increase(fleetd_queue_late_jobs_total{{{F}}}[1h]))"
              f" / clamp_min(sum(increase(fleetd_queue_judged_jobs_total{{{F}}}[1h])), 1)", limits=(0.02, 0.05)),
        _stat("Slots busy", "percentunit", "Of the slots that are ready; under 1 there is room.",
              f"sum(fleetd_pool_busy_slots{{{F}}}) / clamp_min(sum(fleetd_pool_slots{{{F}}}), 1)"),
        _stat("Cost an hour", "short", "All nodes at the prices now, in the currency of the policy.",
              f"sum(fleetd_pool_cost_per_hour{{{F}}})"),
        _stat("In trouble", "short", "Blind queues, blind pools and open breakers. 0 is good.",
              f"sum(fleetd_queue_blind{{{F}}}) + sum(fleetd_pool_blind{{{F}}}) + sum(fleetd_pool_breaker_open{{{F}}})",
              limits=(1, 3)),
        _lines("Waiting by queue", "short", "What waits, and where.",
               (f"fleetd_queue_waiting_jobs{{{F}}}", "{{queue}}")),
        _lines("Oldest wait against the objective", "short", "Above 1 a queue misses its objective at the moment.",
               (f"fleetd_queue_oldest_wait_seconds{{{F}}} / fleetd_queue_objective_wait_seconds{{{F}}}", "{{queue}}")),
        _stack("Nodes by pool", "short", "All nodes that are held, in any phase.",
               (f"sum by (pool) (fleetd_pool_nodes{{{F}}})", "{{pool}}")),
        _lines("Slots", "short", "Needed is what the queues' jobs keep busy; wanted has the margin with it.",
               (f"sum(fleetd_queue_needed_slots{{{F}}})", "needed"),
               (f"sum(fleetd_pool_wanted_slots{{{F}}})", "wanted"),
               (f"sum(fleetd_pool_slots{{{F}}})", "ready"),
               (f"sum(fleetd_pool_busy_slots{{{F}}})", "busy")),
        _lines("Jobs ended", "ops", "By outcome, all queues.",
               (f"sum by (outcome) (rate(fleetd_queue_jobs_total{{{F}}}{RATE}))", "{{outcome}}")),
        _lines("Decisions", "short", "Intents of the policy by kind; `fleetd explain` says why each was made.",
               (f"sum by (kind) (increase(fleetd_decisions_total{{{F}}}{RATE}))", "{{kind}}")),
    ),
)  # fmt: skip

QUEUE: Final = Board(
    "queue", "fleetd: queues", "What waits, how fast it comes, how long it takes, how much is late.",
    {"queue": QUEUES},
    (
        _lines("Waiting and running", "short", "From the source; a blind queue keeps its last value.",
               (f"fleetd_queue_waiting_jobs{{{Q}}}", "{{queue}} waiting"),
               (f"fleetd_queue_running_jobs{{{Q}}}", "{{queue}} running")),
        _lines("Oldest wait and objective", "s", "The line above is what the policy promises.",
               (f"fleetd_queue_oldest_wait_seconds{{{Q}}}", "{{queue}} oldest"),
               (f"fleetd_queue_objective_wait_seconds{{{Q}}}", "{{queue}} objective")),
        _lines("Arrivals", "ops", "What came, and the rate that the policy reckons with.",
               (f"rate(fleetd_queue_arrived_jobs_total{{{Q}}}{RATE})", "{{queue}} came"),
               (f"fleetd_queue_arrivals_per_second{{{Q}}}", "{{queue}} reckoned")),
        _lines("Starts and ends", "ops", "Starts above ends: the running grow.",
               (f"rate(fleetd_queue_started_jobs_total{{{Q}}}{RATE})", "{{queue}} started"),
               (f"sum by (queue, outcome) (rate(fleetd_queue_jobs_total{{{Q}}}{RATE}))", "{{queue}} {{outcome}}")),
        _lines("Service time", "s", "Median and 95th percentile, and the mean that the policy expects.",
               (_quantile(0.5, "fleetd_queue_service_seconds", Q, "queue"), "{{queue}} median"),
               (_quantile(0.95, "fleetd_queue_service_seconds", Q, "queue"), "{{queue}} 95 %"),
               (f"fleetd_queue_expected_service_seconds{{{Q}}}", "{{queue}} expected")),
        Panel("heat", "Service times", "s", "Each column is the jobs that ended, by how long they took.",
              ((f"sum by (le) (increase(fleetd_queue_service_seconds_bucket{{{Q}}}{RATE}))", "{{le}}"),)),
        _lines("Late jobs", "percentunit", "The share late, fading within three days, and what the objective allows.",
               (f"fleetd_queue_late_ratio{{{Q}}}", "{{queue}} late"),
               (f"1 - fleetd_queue_objective_ratio{{{Q}}}", "{{queue}} allowed")),
        _lines("Judged and late", "ops", "How many jobs the shares rest on.",
               (f"rate(fleetd_queue_judged_jobs_total{{{Q}}}{RATE})", "{{queue}} judged"),
               (f"rate(fleetd_queue_late_jobs_total{{{Q}}}{RATE})", "{{queue}} late")),
        _lines("Needed slots", "short", "The queue's own part of its app's need.",
               (f"fleetd_queue_needed_slots{{{Q}}}", "{{queue}}")),
        _lines("Blind", "short", "1 while the source cannot be read: nothing is scaled in then.",
               (f"fleetd_queue_blind{{{Q}}}", "{{queue}}")),
        _lines("Dead letters", "short", "Jobs that used up their attempts: `fleetd dead`.",
               (f"increase(fleetd_dead_letters_received_total{{{F}}}{RATE})", "{{queue}}")),
        _table("Queues", "What belongs to what.", f"fleetd_queue_info{{{Q}}}", 12),
    ),
)  # fmt: skip

POOL: Final = Board(
    "pool", "fleetd: pools", "Capacity by phase, what is wanted, how long it takes to come up, what fails.",
    {"pool": POOLS},
    (
        _stack("Nodes by phase", "short", "Ready is capacity, the others are on their way to or from it.",
               (f"sum by (phase) (fleetd_pool_nodes{{{P}}})", "{{phase}}")),
        _lines("Wanted and limits", "short", "Wanted at max: the pool is what limits; look at the budget and max.",
               (f"fleetd_pool_wanted_nodes{{{P}}}", "{{pool}} wanted"),
               (f"fleetd_pool_max_nodes{{{P}}}", "{{pool}} max"),
               (f"fleetd_pool_min_nodes{{{P}}}", "{{pool}} min")),
        _lines("Slots", "short", "Busy below ready is room; wanted is by app.",
               (f"fleetd_pool_slots{{{P}}}", "{{pool}} ready"),
               (f"fleetd_pool_busy_slots{{{P}}}", "{{pool}} busy"),
               (f"fleetd_pool_wanted_slots{{{P}}}", "{{pool}} wanted for {{app}}")),
        _lines("Boot time", "s", "Of the boots in this time, and the 95th percentile that the policy learned.",
               (_quantile(0.5, "fleetd_pool_boot_seconds", P, "pool"), "{{pool}} median"),
               (f"fleetd_pool_expected_boot_seconds{{{P}}}", "{{pool}} learned")),
        _lines("Nodes started and stopped", "short", "Both high at once is thrashing: see docs/policy.md, stability.",
               (f"increase(fleetd_pool_launched_nodes_total{{{P}}}{RATE})", "{{pool}} started"),
               (f"increase(fleetd_pool_stopped_nodes_total{{{P}}}{RATE})", "{{pool}} stopped"),
               (f"increase(fleetd_wrong_victims_total{{{P}}}{RATE})", "{{pool}} ended instead of the drained")),
        _lines("Launches that failed", "short", "Exhausted: none to be had. Refused: asking again will not help.",
               ((f'sum by (adapter, outcome) (increase(fleetd_calls_total{{{F}, adapter=~"$pool", side="pool", '
                f'call="launch", outcome!="ok"}}{RATE}))'), "{{adapter}} {{outcome}}"),
               (f"increase(fleetd_pool_failed_boots_total{{{P}}}{RATE})", "{{pool}} never came up")),
        _lines("Breaker", "short", "1 while the pool is left alone after failures, and how many in a row.",
               (f"fleetd_pool_breaker_open{{{P}}}", "{{pool}} open"),
               (f"fleetd_pool_consecutive_failures{{{P}}}", "{{pool}} failures"),
               (f"fleetd_pool_blind{{{P}}}", "{{pool}} blind")),
        _lines("Decisions", "short", "What was decided for the pool; `fleetd explain POOL` says why.",
               (f"sum by (pool, kind) (increase(fleetd_decisions_total{{{P}}}{RATE})) > 0", "{{pool}} {{kind}}")),
        _lines("Jobs by its workers", "ops", "Those of nodes that are gone included.",
               (f"sum by (pool, outcome) (rate(fleetd_worker_jobs_total{{{P}}}{RATE}))", "{{pool}} {{outcome}}")),
        _table("Pools", "Kind, and whether it acts or is only watched.", f"fleetd_pool_info{{{P}}}", 12),
    ),
)  # fmt: skip

NODES: Final = Board(
    "nodes", "fleetd: nodes and racks", "Each node: its phase, what it runs, since when its worker has not spoken.",
    {"pool": POOLS},
    (
        _stat("Nodes", "short", "All that are held.", f"sum(fleetd_pool_nodes{{{P}}})"),
        _stat("Lost or failed", "short", "Out of touch, or never came up.",
              f'sum(fleetd_pool_nodes{{{P}, phase=~"lost|failed"}})', limits=(1, 3)),
        _stat("Quarantined", "short", "Kept out of service by an operator.",
              f'sum(fleetd_pool_nodes{{{P}, phase="quarantined"}})'),
        _stat("Oldest lease", "s", "Workers speak every two seconds; at ten a node is lost.",
              f"max(fleetd_lease_age_seconds{{{P}}})", limits=(5, 10)),
        _stat("Slot crashes", "short", "Slots that died in this time.",
              f"sum(increase(fleetd_worker_crashes_total{{{P}}}[$__range]))", limits=(1, 10)),
        _stat("Not shown", "short", "Beyond the bound of single nodes; they are in the sums.",
              f"fleetd_nodes_omitted{{{F}}}"),
        _table("Nodes", "One row a node: `fleetd explain`, `fleetd logs NODE` and `fleetd drain NODE` go on from here.",
               f"fleetd_node_info{{{P}}}"),
        _lines("Busy slots by node", "short", "A node at 0 for long should be on its way out.",
               (f"fleetd_node_busy_slots{{{P}}}", "{{node}}")),
        _lines("Age of leases", "s", "A saw of two seconds; a rising line is a node out of touch.",
               (f"fleetd_node_lease_age_seconds{{{P}}}", "{{node}}")),
        _lines("Jobs by node", "ops", "By the nodes that are here.",
               (f"sum by (node) (rate(fleetd_node_jobs_total{{{P}}}{RATE}))", "{{node}}")),
        _stack("Workers by state", "short", "What the workers say of themselves.",
               (f"sum by (state) (fleetd_workers{{{P}}})", "{{state}}")),
        _lines("Time in jobs", "percentunit", "Slots' worth of work done, as a share of the slots that are ready.",
               ((f"sum by (pool) (rate(fleetd_worker_job_seconds_total{{{P}}}{RATE})) / "
                f"clamp_min(sum by (pool) (avg_over_time(fleetd_pool_slots{{{P}}}{RATE})), 1)"), "{{pool}}")),
    ),
)  # fmt: skip

RELEASES: Final = Board(
    "releases", "fleetd: releases", "Which code runs where, how far a candidate is, and whether it fails more.",
    {"app": APPS},
    (
        _table("Releases", "By role: active, previous, candidate, refused. `fleetd release list` knows more.",
               f"fleetd_release_info{{{A}}}"),
        _stack("Nodes by release", "short", "A rollout is one colour giving way to the other.",
               (f"fleetd_release_nodes{{{A}}}", "{{app}} {{release}}")),
        _lines("Share of the candidate", "percentunit", "0 while none comes in.",
               (f"fleetd_release_candidate_ratio{{{A}}}", "{{app}}")),
        _lines("Jobs by release", "ops", "By the release that ran them.",
               (f"sum by (app, release, outcome) (rate(fleetd_release_jobs_total{{{A}}}{RATE}))",
                "{{app}} {{release}} {{outcome}}")),
        _lines("Share of jobs that fail", "percentunit", "By release; a candidate far above the active is turned back.",
               ((f'(sum by (app, release) (increase(fleetd_release_jobs_total{{{A}, outcome!="done"}}{RATE})) or '
                f"0 * sum by (app, release) (increase(fleetd_release_jobs_total{{{A}}}{RATE}))) / "
                f"clamp_min(sum by (app, release) (increase(fleetd_release_jobs_total{{{A}}}{RATE})), 1)"),
                "{{app}} {{release}}")),
        _lines("Reloads", "short", "Nodes that were told to run another release.",
               (f'sum by (pool) (increase(fleetd_decisions_total{{{F}, kind="reload"}}{RATE}))', "{{pool}}")),
        _lines("Refused releases", "short", "Kept out after they failed; `fleetd release pardon` lets one in again.",
               ((f'count by (app) (fleetd_release_info{{{A}, role="refused"}}) or '
                f'0 * count by (app) (fleetd_release_info{{{A}, role="active"}})'), "{{app}}")),
    ),
)  # fmt: skip

COST: Final = Board(
    "cost", "fleetd: cost", "What the fleet costs, against its budgets and against machines that always run.",
    {"pool": POOLS},
    (
        _stat("This month", "short", "So far, all pools.", f"fleetd_cost_month{{{F}}}"),
        _stat("Last hour", "short", "All pools.", f"fleetd_cost_hour{{{F}}}"),
        _stat("Month's budget used", "percentunit", "At 100 % nothing more is launched.",
              f'fleetd_cost_month{{{F}}} / ignoring (window) fleetd_budget{{{F}, window="month"}}', limits=(0.8, 0.95)),
        _stat("Hour's budget used", "percentunit", "At 100 % nothing more is launched.",
              f'fleetd_cost_hour{{{F}}} / ignoring (window) fleetd_budget{{{F}, window="hour"}}', limits=(0.8, 0.95)),
        _stat("Saved", "short", "Since the controller started, against each pool's max all the time.",
              f"sum(fleetd_pool_saved_cost{{{P}}})"),
        _stat("Saved", "percentunit", "The same as a share of what max would have cost.",
              f"sum(fleetd_pool_saved_cost{{{P}}}) / clamp_min(sum(fleetd_pool_static_cost_total{{{P}}}), 0.000001)"),
        _stack("Cost an hour by pool", "short", "Nodes times price.",
               (f"fleetd_pool_cost_per_hour{{{P}}}", "{{pool}}")),
        _lines("Price of a node", "short", "What the provider asks now, an hour; never below the policy's word.",
               (f"fleetd_pool_node_cost_per_hour{{{P}}}", "{{pool}}")),
        _lines("Spent and static", "short", "In this time; the gap is what was saved.",
               (f"sum(increase(fleetd_pool_cost_total{{{P}}}{RATE}))", "spent"),
               (f"sum(increase(fleetd_pool_static_cost_total{{{P}}}{RATE}))", "static")),
        _lines("Cost of a thousand jobs", "short", "Money in this time by jobs ended in it.",
               ((f"1000 * sum(increase(fleetd_pool_cost_total{{{P}}}{RATE})) / "
                f"clamp_min(sum(increase(fleetd_worker_jobs_total{{{P}}}{RATE})), 1)"), "a thousand jobs")),
        _lines("Node hours", "h", "Time of nodes held, by pool.",
               (f"increase(fleetd_pool_node_seconds_total{{{P}}}{RATE}) / 3600", "{{pool}}")),
        _lines("Time paid and idle", "percentunit", "Slots that are ready and run nothing.",
               ((f"1 - sum by (pool) (fleetd_pool_busy_slots{{{P}}}) / "
                f"clamp_min(sum by (pool) (fleetd_pool_slots{{{P}}}), 1)"), "{{pool}}")),
    ),
)  # fmt: skip

CONTROLLER: Final = Board(
    "controller", "fleetd: controller", "Is the controller itself well: its tick, its journal, what it asks of others?",
    {},
    (
        _stat("Leads", "short", "1: it acts. 0: a shadow.", f"max(fleetd_leader{{{F}}})"),
        _stat("Since the last tick", "s", "More than a few seconds is a stuck controller.",
              f"time() - max(fleetd_tick_timestamp_seconds{{{F}}})", limits=(5, 15)),
        _stat("Up for", "s", "Since its start.", f"time() - max(fleetd_start_time_seconds{{{F}}})"),
        _stat("Epoch", "short", "Rises by one with each start.", f"max(fleetd_epoch{{{F}}})"),
        _stat("Paused", "short", "1 while an operator has paused all scaling.", f"max(fleetd_paused{{{F}}})",
              limits=(1, 2)),
        _stat("Dead letters", "short", "Kept now: `fleetd dead`.", f"fleetd_dead_letters{{{F}}}", limits=(1, 100)),
        _lines("Tick", "s", "How long ticks take: half of them, and all but one of a hundred.",
               (_quantile(0.5, "fleetd_tick_duration_seconds", F, "fleet"), "median"),
               (_quantile(0.99, "fleetd_tick_duration_seconds", F, "fleet"), "99 %")),
        _lines("Lateness", "s", "How late ticks begin: a starved machine shows here first.",
               (_quantile(0.99, "fleetd_tick_lateness_seconds", F, "fleet"), "99 %")),
        _lines("Journal", "s", "How long a write takes, 99th percentile.",
               (_quantile(0.99, "fleetd_journal_write_duration_seconds", F, "fleet"), "99 %")),
        _lines("Writes and failures", "ops", "A tick that cannot be written does nothing.",
               (f"sum by (outcome) (rate(fleetd_journal_writes_total{{{F}}}{RATE}))", "write {{outcome}}"),
               (f"rate(fleetd_tick_failures_total{{{F}}}{RATE})", "failed ticks")),
        _lines("Calls to the outside", "ops", "By adapter and how they ended.",
               (f"sum by (adapter, call, outcome) (rate(fleetd_calls_total{{{F}}}{RATE}))",
                "{{adapter}} {{call}} {{outcome}}")),
        _lines("How long calls take", "s", "95th percentile.",
               (_quantile(0.95, "fleetd_call_duration_seconds", F, "adapter, call"), "{{adapter}} {{call}}")),
        _lines("Leases", "ops", "Accepted, and refused by reason.",
               (f"rate(fleetd_leases_accepted_total{{{F}}}{RATE})", "accepted"),
               (f"rate(fleetd_leases_refused_total{{{F}}}{RATE})", "refused: {{reason}}")),
        _lines("Refused requests", "ops", "By the code of the answer: wrong tokens are 401, too large bodies 413.",
               (f"sum by (code) (rate(fleetd_http_refused_total{{{F}}}{RATE}))", "{{code}}")),
        _lines("Commands of operators", "short", "By kind.",
               (f"sum by (kind) (increase(fleetd_commands_total{{{F}}}{RATE}))", "{{kind}}")),
        _lines("Memory", "bytes", "Of the controller's process.",
               ('process_resident_memory_bytes{job=~"fleetd.*"}', "resident")),
        _lines("Processor", "percentunit", "Cores in use.",
               (f'rate(process_cpu_seconds_total{{job=~"fleetd.*"}}{RATE})', "controller")),
        _lines("Bounds", "short", "Nodes without series of their own, counts dropped, jobs that no queue matches.",
               (f"fleetd_nodes_omitted{{{F}}}", "nodes omitted"),
               (f"fleetd_metrics_dropped_total{{{F}}}", "counts dropped"),
               (f"fleetd_unmatched_jobs_total{{{F}}}", "unmatched jobs")),
    ),
)  # fmt: skip

BOARDS: Final = (OVERVIEW, QUEUE, POOL, NODES, RELEASES, COST, CONTROLLER)
# What is drawn as a mark over every panel.
ANNOTATIONS: Final = {
    "decisions": (f"sum by (pool, kind) (increase(fleetd_decisions_total{{{F}}}{RATE})) > 0", "{{kind}} in {{pool}}"),
    "releases": (
        f'fleetd_release_info{{{F}, role="active"}} unless fleetd_release_info{{{F}, role="active"}} offset 1m',
        "{{app}} runs {{release}}",
    ),
    "operators": (f"sum by (kind) (increase(fleetd_commands_total{{{F}}}{RATE})) > 0", "an operator: {{kind}}"),
}
