"""The nouns: the owner's policy, what was observed, what is planned. Frozen values, no behaviour beyond arithmetic.

Units are in the names: `_s` seconds, `_h` hours. A `Seconds` on a clock (`at`, `now`, `since`) counts on the
controller's own steady clock: only differences mean anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from fleetd.codecs.lease import ReleaseCounts

Seconds = float
NodeId = str  # the provider's own: "POOL/PID.STARTTIME", a pod's UID, an instance id, a MAC


# ── the policy


@dataclass(frozen=True, slots=True)
class Objective:
    """A `share` (0..1) of a queue's jobs starts within `wait_s` of being submitted."""

    wait_s: Seconds
    share: float = 0.95


@dataclass(frozen=True, slots=True)
class OnBlind:
    """While a source cannot be read: hold for `hold_s`, then keep what is there or go down to the minimum."""

    hold_s: Seconds = 600.0
    then: Literal["keep", "min"] = "keep"


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """One source: the `kind` of adapter, its own validated `options`, and what to do while it is blind."""

    name: str
    kind: str
    options: Any
    on_blind: OnBlind = OnBlind()


@dataclass(frozen=True, slots=True)
class ReloadPolicy:
    """How a release takes over: `overlap` slots at a time on a node (0: all), on trial for `probation_s`.

    `canary_s`: how long a canary is watched; `crashes`: so many jobs that crash it turn it back. `watch`: paths on the
    node whose change starts a foreign worker anew.
    """

    overlap: int = 0
    health_s: Seconds = 3.0
    probation_s: Seconds = 60.0
    canary_s: Seconds = 60.0
    crashes: int = 2
    watch: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecyclePolicy:
    """When a slot's process is renewed between two jobs; 0 is never. Memory in bytes."""

    jobs: int = 0
    age_s: Seconds = 0.0
    memory: int = 0


@dataclass(frozen=True, slots=True)
class AppPolicy:
    """A set of job functions, from pushed releases or from `path`, a folder; or a foreign worker (`exec`, a command).

    `memory`: what one slot may use by itself, in bytes; 0: no limit.
    """

    name: str
    path: str | None = None
    exec: tuple[str, ...] = ()
    drain_signal: str = "TERM"
    drain_s: Seconds | None = None  # a running job is given this long to end; None: as long as it takes
    attempts: int = 3
    memory: int = 0
    reload: ReloadPolicy = ReloadPolicy()
    recycle: RecyclePolicy = RecyclePolicy()
    drain_then: tuple[str, ...] = ()  # signals of a foreign worker after the deadline, one after the other
    drain_undo: str = ""  # the signal that takes the first one back; "": it is started anew
    probe: tuple[str, ...] = ()  # who tells how busy a foreign worker is: its kind and its words

    @property
    def busy_by(self) -> Literal["", "measured", "probed", "by signal"]:
        """How it is known what a foreign worker runs. By signal: it is not, its end alone tells. "": one of ours."""
        if not self.exec:
            return ""
        if not self.probe:
            return "by signal"
        return "probed" if self.probe[0] in ("command", "http") else "measured"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Jobs of one kind: where they wait (`source`, `match`: a glob over function names), and what runs them."""

    name: str
    app: str
    source: str
    match: str
    objective: Objective
    priority: Literal["low", "normal", "high"] = "normal"
    service_s: Seconds | None = None  # the owner's hint; what is measured replaces it
    job_limit_s: Seconds | None = None


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """Nodes of one provider: `min_nodes`..`max_nodes` of them with `slots` each, at `price_per_h` a node.

    With `act` False it is only watched: what would be launched or drained is said, and not done.
    """

    name: str
    kind: str
    options: Any
    apps: tuple[str, ...]
    slots: int
    min_nodes: int = 0
    max_nodes: int = 1
    price_per_h: float = 0.0
    billing_minimum_s: Seconds = 0.0
    act: bool = True
    per_process: int = 1  # of `slots`, so many share a process


@dataclass(frozen=True, slots=True)
class AlertsPolicy:
    """Where to post what an operator must hear of: a blind source, an open breaker, the budget, a dead letter."""

    webhook: str | None = field(default=None, repr=False)  # its path may be a secret
    on: tuple[Literal["blind", "breaker", "budget", "dead"], ...] = ("blind", "breaker", "budget", "dead")


@dataclass(frozen=True, slots=True)
class ReleasesPolicy:
    """Where pushed releases are kept, which public keys must have signed them (none: no matter), how many stay."""

    store: str = "releases"
    keys: tuple[str, ...] = ()
    keep: int = 5


@dataclass(frozen=True, slots=True)
class FilesPolicy:
    """Where payloads, results and the ends of jobs are kept, and for how long; `most` bytes in all.

    `cap`: larger payloads and results travel as references. `tokens` are those of clients, which may use the store and
    nothing else; `webhooks`: below which URLs the end of a job may be posted, signed with `secret`.
    """

    store: str = "files"
    cap: int = 256 * 1024
    keep_s: Seconds = 24 * 3600.0
    longest_s: Seconds = 30 * 24 * 3600.0
    most: int = 10 * 1024**3
    tokens: tuple[str, ...] = field(default=(), repr=False)
    webhooks: tuple[str, ...] = ()
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SchedulePolicy:
    """A floor of slots per app, from each firing of `cron` (in `timezone`) on for `for_s` seconds."""

    name: str
    cron: str
    for_s: Seconds
    floor: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """Money that may be spent in any rolling hour and in a calendar month; `warn` is the share that is announced."""

    hour: float | None = None
    month: float | None = None
    warn: float = 0.8


@dataclass(frozen=True, slots=True)
class LimitsPolicy:
    """Nodes that may be launched or stopped per minute, over the whole fleet; None: no limit."""

    launches_per_min: float | None = None
    stops_per_min: float | None = None


@dataclass(frozen=True, slots=True)
class LeaderPolicy:
    """Where it is written which of several controllers acts: the kind of adapter, and its options."""

    kind: str
    options: Any


@dataclass(frozen=True, slots=True)
class ControllerPolicy:
    """Where workers and commands reach the controller. `join` is the secret that worker tokens are made from.

    `leader`: None where this controller is the only one. `viewers` and `operators` are tokens beside `token`, which is
    an operator's: viewers may look, operators may act.
    """

    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one, chosen once and remembered
    join: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    viewers: tuple[str, ...] = field(default=(), repr=False)
    operators: tuple[str, ...] = field(default=(), repr=False)
    leader: LeaderPolicy | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The owner's whole file, validated; every name in it that points to another points to one that exists."""

    fleet: str
    sources: Mapping[str, SourcePolicy]
    apps: Mapping[str, AppPolicy]
    queues: Mapping[str, QueuePolicy]
    pools: Mapping[str, PoolPolicy]
    schedules: Mapping[str, SchedulePolicy] = field(default_factory=dict)
    timezone: str = "UTC"
    currency: str = "EUR"
    budget: BudgetPolicy = BudgetPolicy()
    limits: LimitsPolicy = LimitsPolicy()
    stability: Literal["calm", "thrifty", "bounded"] = "calm"
    safe: bool = False  # late jobs are to be rare: the margin is not let shrink as far as the objective allows
    controller: ControllerPolicy = ControllerPolicy()
    alerts: AlertsPolicy = AlertsPolicy()
    releases: ReleasesPolicy = ReleasesPolicy()
    files: FilesPolicy = FilesPolicy()


# ── what is observed


@dataclass(frozen=True, slots=True)
class Reading:
    """One queue as its source tells it: jobs `waiting` (not started) and `running`; the rest where it is known.

    `partial` names the members of a redundant source that could not be read now; their last values are in the sum.
    """

    queue: str
    waiting: int
    running: int
    oldest_wait_s: Seconds | None = None
    arrived_total: int | None = None
    done_total: int | None = None
    partial: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blind:
    """The absence of an answer, with the reason. Never a zero."""

    reason: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """A node as its provider reports it. `key` is the order that it came from, where the provider can tell."""

    node: NodeId
    state: Literal["off", "warm", "booting", "up"]
    app: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What more a provider could give now: `headroom` nodes (None: unknown) at `price_per_h`; `why` it is so few."""

    headroom: int | None = None
    price_per_h: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """All that a provider sees of its pool. `fresh`: it was not shown to a tick before, so absence in it is news.

    `goes_first`: the nodes in the only order in which they can go; empty where the provider can end any.
    `gone`: why nodes that are no longer listed went, where the provider knows.
    """

    sightings: tuple[Sighting, ...] = ()
    offer: Offer = Offer()
    fresh: bool = True
    goes_first: tuple[NodeId, ...] = ()
    gone: Mapping[NodeId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeaseView:
    """The latest word of a worker: `age_s` seconds old, on a node with `slots`, of which `busy` run a job.

    `digest`: the release that it runs; `refused`: why others must not run there; `releases`: what they did.
    `leaving`: why its machine goes by itself, whatever anybody wants.
    """

    node: NodeId
    pool: str
    app: str
    state: Literal["starting", "working", "draining", "drained"]
    slots: int
    busy: int
    idle_s: Seconds
    age_s: Seconds
    digest: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    releases: Mapping[str, ReleaseCounts] = field(default_factory=dict)
    leaving: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """What the workers did for one queue since the last tick; `running_s` are the ages of the jobs running now.

    `ended`: ended jobs by the length of their service, in buckets floor(4·log2(milliseconds)).
    """

    started: int = 0
    done: int = 0
    failed: int = 0
    service_s: Seconds = 0.0
    running_s: tuple[Seconds, ...] = ()
    ended: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """A launch: `count` nodes of `pool` for `app`. `key` makes it idempotent; `total` is what the pool then holds.

    `named`: the machines that an operator wants by name, no more than `count`; they come first.
    """

    key: str
    pool: str
    app: str
    count: int
    total: int
    epoch: int
    named: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Launched:
    """The outcome of an order: these nodes were started. Fewer than ordered is a partial success."""

    key: str
    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """The outcome of an order that brought nothing."""

    key: str
    kind: Literal["exhausted", "refused", "error"]
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The outcome of a stop: these nodes are gone or going. Gone already is success.

    `wrong`: so many others went instead, where the provider cannot choose; they drain.
    """

    nodes: tuple[NodeId, ...]
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class StopFailed:
    """The outcome of a stop that the provider would not or could not carry out."""

    nodes: tuple[NodeId, ...]
    reason: str


Outcome = Launched | LaunchFailed | Stopped | StopFailed


@dataclass(frozen=True, slots=True)
class WakeCommand:
    """An operator wants `count` nodes of `pool` up for `for_s` seconds, whatever the queues say; or one `machine`."""

    pool: str
    count: int
    for_s: Seconds
    machine: str = ""


@dataclass(frozen=True, slots=True)
class DrainCommand:
    """An operator wants a node (or, for `for_s` seconds, a whole pool) to finish its jobs and go."""

    pool: str
    node: NodeId | None = None
    for_s: Seconds | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class DrainAllCommand:
    """The fleet is to end: every node drains, nothing is launched."""


@dataclass(frozen=True, slots=True)
class HoldCommand:
    """An operator wants a pool left as it is for `for_s` seconds: no launch, no scale-in. Zero ends it."""

    pool: str
    for_s: Seconds


@dataclass(frozen=True, slots=True)
class PauseCommand:
    """An operator stops (or resumes) all scaling: what runs goes on, what drains ends, nothing new is begun."""

    paused: bool


@dataclass(frozen=True, slots=True)
class QuarantineCommand:
    """An operator keeps a node out of service, alive for a look, until it is freed or drained."""

    pool: str
    node: NodeId
    free: bool = False


@dataclass(frozen=True, slots=True)
class ActivateCommand:
    """A release is to run on all nodes of an app: first on the share `canary` of them, or by waves, or `at_once`."""

    app: str
    digest: str
    canary: float | None = None
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class RollbackCommand:
    """An operator wants the release before: instead of the one that comes in, or of the active one."""

    app: str


@dataclass(frozen=True, slots=True)
class PardonCommand:
    """An operator lets a refused release be activated again."""

    app: str
    digest: str


Command = (
    WakeCommand
    | DrainCommand
    | DrainAllCommand
    | HoldCommand
    | PauseCommand
    | QuarantineCommand
    | ActivateCommand
    | RollbackCommand
    | PardonCommand
)


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything one tick may know."""

    now: Seconds
    month: str = ""  # "2026-11" in the policy's time zone: what the monthly budget counts in
    readings: Mapping[str, Reading | Blind] = field(default_factory=dict)  # by queue
    worlds: Mapping[str, World | Blind] = field(default_factory=dict)  # by pool
    leases: Mapping[NodeId, LeaseView] = field(default_factory=dict)
    work: Mapping[str, Work] = field(default_factory=dict)  # by queue
    floors: Mapping[str, int] = field(default_factory=dict)  # slots by app, from the schedules
    outcomes: tuple[Outcome, ...] = ()
    commands: tuple[Command, ...] = ()
    lease_ttl_s: Seconds = 10.0


# ── what is planned


class Phase(StrEnum):
    """Where a node is in its life; `lifecycle.MOVES` says how it gets from one to another."""

    REQUESTED = "requested"
    BOOTING = "booting"
    READY = "ready"
    LOST = "lost"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Launch:
    """Start nodes."""

    order: Order
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Fence a node: it takes nothing new, finishes what runs and says so. `deadline_s` None: as long as it takes."""

    pool: str
    node: NodeId
    deadline_s: Seconds | None
    reason: str


@dataclass(frozen=True, slots=True)
class Undrain:
    """Lift the fence: the cheapest scale-out."""

    pool: str
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop nodes that are drained, never came up, or that an operator forces."""

    pool: str
    nodes: tuple[NodeId, ...]
    grace_s: Seconds
    reason: str


@dataclass(frozen=True, slots=True)
class Reload:
    """Have a node run a release; `pardoned` is one that it is to forget having refused."""

    pool: str
    node: NodeId
    digest: str
    reason: str
    pardoned: str = ""


Intent = Launch | Drain | Undrain | Stop | Reload


@dataclass(frozen=True, slots=True)
class Plan:
    """One tick's intents and, for each app and pool, a sentence that says why it is so."""

    intents: tuple[Intent, ...] = ()
    sentences: Mapping[str, str] = field(default_factory=dict)  # "app photos" or "pool local" to its sentence
    events: tuple[str, ...] = ()  # what changed since the last tick, for log and journal
