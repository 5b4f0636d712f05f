"""What the API answers with. The sentences become the OpenAPI document's.

Promises: a key stays once it was given out (docs/compatibility.md); times are in seconds, moments in seconds since
1970.
"""

from typing import Literal

from pydantic import Field

from fleetd.core.model import Phase
from fleetd.web.calls import Told


class Money(Told):
    """What nodes cost, in the policy's currency."""

    hour: float = Field(description="In the last 60 minutes.")
    month: float = Field(description="In this calendar month.")


class Queue(Told):
    """Jobs of one kind. What was never read is null or left out."""

    app: str
    waiting: int | None
    running: int | None
    blind: str = Field(description="Why it cannot be read now; empty where it can.")
    rate: float | None = Field(default=None, description="Jobs that come, a second.")
    service_s: float | None = Field(default=None, description="How long a job takes.")
    service_measured: bool | None = None
    need: float | None = Field(default=None, description="Slots that it needs by itself.")
    objective_s: float | None = Field(default=None, description="The wait that it aims at.")
    blind_s: float | None = None


class Pool(Told):
    """Nodes of one provider."""

    kind: str
    apps: list[str]
    slots: int = Field(description="Jobs that one node runs at a time.")
    min: int
    max: int
    price_per_h: float
    ready: int
    coming: int
    draining: int
    lost: int
    quarantined: int
    busy: int = Field(description="Slots with a job.")
    boot_s: float | None = Field(description="How long a boot takes, as learned.")
    breaker_s: float = Field(description="For how long nothing is launched, after failures.")
    breaker_why: str
    drained: bool
    blind: str = Field(description="Why its provider cannot be read now; empty where it can.")
    blind_s: float
    held_s: float
    act: bool = Field(description="false: what would be done is said, and not done.")
    drain: str = Field(description='"by signal": nobody tells how busy its foreign workers are; else empty.')


class Node(Told):
    """What a provider started."""

    id: str
    pool: str
    app: str
    phase: Phase
    phase_s: float = Field(description="Since when it is in this phase.")
    age_s: float
    slots: int
    busy: int
    idle_s: float
    lease_s: float | None = Field(description="Since when its worker was not heard of; null: never heard of.")
    digest: str = Field(description="The beginning of the digest of the release that takes jobs there.")
    reason: str


class Rollout(Told):
    """Which release of an app runs where."""

    active: str | None
    previous: str | None
    candidate: str | None
    stage: Literal["canary", "waves"] | None
    share: float = Field(description="The share of nodes that try the candidate.")
    nodes: dict[str, int] = Field(description="Nodes by digest.")
    refused: dict[str, str] = Field(description="Why, by digest.")


class Line(Told):
    """A line of the journal, as the status shows it."""

    at: float
    kind: str
    text: str


class Status(Told):
    """The fleet at a glance."""

    version: str
    uptime_s: float
    fleet: str
    epoch: int = Field(description="Grows with every start of the controller.")
    ending: bool
    paused: bool
    currency: str
    spent: Money
    queues: dict[str, Queue]
    pools: dict[str, Pool]
    nodes: list[Node]
    releases: dict[str, Rollout] = Field(description="By app.")
    why: dict[str, str] = Field(description="Why the fleet is as it is, by app and pool.")
    dead: int = Field(description="Dead letters that are kept.")
    events: list[Line] = Field(description="The newest lines of the journal, oldest first.")


class Paged(Told):
    """A page of a list."""

    next: str | None = Field(description="The cursor of the page that follows; null on the last one.")


class Nodes(Paged):
    """Nodes, by pool and age."""

    nodes: list[Node]


class JournalEntry(Line):
    """A line of the journal with its number."""

    seq: int = Field(description="Grows by one with every line.")
    epoch: int


class Journal(Paged):
    """Lines of the journal, oldest first."""

    entries: list[JournalEntry]


class Letter(Told):
    """A job that used up its attempts."""

    id: str
    at: float
    pool: str
    node: str
    function: str
    unique: str
    handle: str
    attempts: int
    reason: str
    traceback: str
    payload: str = Field(description="In base64.")


class Letters(Paged):
    """Dead letters, newest first."""

    letters: list[Letter]


class Release(Told):
    """A bundle of worker code that is kept."""

    digest: str
    app: str
    version: str
    kind: str
    size: int
    signed: bool
    pushed_at: float


class Releases(Paged):
    """Releases, newest first."""

    releases: list[Release]


class Pushed(Told):
    """A release that was verified and is kept."""

    digest: str
    app: str
    version: str


class Deleted(Told):
    """Releases that are gone."""

    deleted: list[str] = Field(description="Their digests.")


class Why(Told):
    """What was said of each app and pool, and when."""

    why: dict[str, str]
    at: dict[str, float]


class Terms(Told):
    """Every term of the last decision."""

    deep: list[str] = Field(description="ABOUT: terms.")


class Logs(Told):
    """The last lines of a node."""

    node: str
    lines: list[str]


class Glimpse(Told):
    """What a shadow controller needs of the live one. Its inside is no interface."""

    memory: dict[str, object]
    running_s: dict[str, list[float]]


class Done(Told):
    """What a command did, once a tick has taken it."""

    done: str


class Said(Told):
    """What was said of a roll-out."""

    said: list[str]


class Alive(Told):
    """All is as it should be."""

    ok: Literal[True]
