"""What the fleet remembers between ticks. Frozen values; `decide` takes one and returns the next.

Everything that outlives a tick is here: nodes, orders under way, learned times, breakers, money spent. Back-offs and
deadlines are moments in these values, never sleeps. The store writes it down whole, so that a restart goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleetd.core.flow import Flow, Rate
from fleetd.core.forecast import Season
from fleetd.core.life import Life
from fleetd.core.margin import FIRST_PRICE_S
from fleetd.core.model import NodeId, Order, Phase, Seconds


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is or will be. `missing_at`: since when it is not listed. `idle_at`: since when it runs nothing.

    `heard_at` is when its worker last spoke, to within half of a lease's time: it is renewed no oftener than that.
    """

    id: NodeId
    pool: str
    app: str
    phase: Phase
    since: Seconds
    launched_at: Seconds
    slots: int
    key: str = ""
    busy: int = 0
    idle_at: Seconds | None = None
    digest: str = ""
    heard_at: Seconds | None = None
    missing_at: Seconds | None = None
    missing: int = 0
    pinned: bool = False  # drained by an operator or the budget: nothing un-drains it
    asked_at: Seconds | None = None  # when the provider was last asked to stop it
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """An order that was sent, or is about to be, and whose nodes are not all known."""

    order: Order
    at: Seconds


@dataclass(frozen=True, slots=True)
class Wake:
    """An operator's floor under a pool, until a moment; or one machine of it that is to be up until then."""

    count: int
    until: Seconds
    machine: str = ""


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What is learned of a pool: its last boot times, and its breaker, closed while `open_until` is past."""

    boots_s: tuple[Seconds, ...] = ()
    failures: int = 0
    open_until: Seconds = 0.0
    why_open: str = ""
    drained_until: Seconds = 0.0
    held_until: Seconds = 0.0
    wakes: tuple[Wake, ...] = ()
    blind_at: Seconds | None = None  # since when its provider cannot be read
    why_blind: str = ""


@dataclass(frozen=True, slots=True)
class QueueMemory:
    """The last good reading of a queue and what is learned of its jobs.

    `price_s`: what a late job is worth, in slot-seconds; `judged`, `late`: jobs, in weights that fade within days.
    `told`: its workers tell of starts and ends. `owed`: a fraction of a start that is estimated and not counted yet.
    """

    waiting: int = 0
    running: int = 0
    read_at: Seconds | None = None
    learned_at: Seconds | None = None
    blind_at: Seconds | None = None
    why_blind: str = ""
    flow: Flow = Flow()
    life: Life = Life()
    season: Season = Season()
    rate: Rate = Rate()
    need: float = 0.0  # its own part of its app's need, without the margin
    price_s: Seconds = FIRST_PRICE_S
    judged: float = 0.0
    late: float = 0.0
    told: bool = False
    owed: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The slots that were cheapest for a load at a moment."""

    slots: int = 0
    load: float = 0.0
    at: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """Which releases the nodes of an app run: `active`, and `candidate` on a `share` of them while it comes in.

    `previous` is what a rollback goes to, `refused` says by digest why a release stays out, `told` what each node was
    told last. `settled_at`: since when all nodes of the share run the candidate; `active_at`: when `active` became so,
    `share_at`: when the share became what it is.
    """

    active: str = ""
    previous: str = ""
    candidate: str = ""
    share: float = 0.0
    canary: bool = False
    settled_at: Seconds | None = None
    active_at: Seconds = 0.0
    share_at: Seconds = 0.0
    refused: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[NodeId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spend:
    """Money accrued: by minute for the last hour, and in the current month."""

    at: Seconds | None = None
    minutes: tuple[tuple[int, float], ...] = ()
    month: str = ""
    month_total: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """All of it. `peaks`, by "APP in POOL": the falling maxima of its need, newest last; scale-in looks back at it."""

    epoch: int = 0
    now: Seconds = 0.0
    next_order: int = 1
    ending: bool = False
    paused: bool = False
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    orders: Mapping[str, Pending] = field(default_factory=dict)
    pools: Mapping[str, PoolMemory] = field(default_factory=dict)
    queues: Mapping[str, QueueMemory] = field(default_factory=dict)
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)  # by app
    peaks: Mapping[str, tuple[tuple[Seconds, float], ...]] = field(default_factory=dict)
    wanted: Mapping[str, Wanted] = field(default_factory=dict)  # likewise, by load and margin
    launched: tuple[tuple[Seconds, int], ...] = ()  # (when, how many) within the last minute: the ramp limits
    stopped: tuple[tuple[Seconds, int], ...] = ()
    spend: Spend = Spend()
