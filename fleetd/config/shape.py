"""The shape of the policy file: every key, its type, its default and the sentence that explains it.

Promises: the one place where a key is defined; loading, the JSON Schema and the reference all read these models.
What concerns several entries at once is in `check`. Defaults are those of `core.model`.
"""

import os.path
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from fleetd.config.findings import quoted
from fleetd.config.scalars import (
    Amount,
    Cron,
    Currency,
    Duration,
    DurationOrZero,
    Fleet,
    Listen,
    Price,
    Rate,
    Share,
    Size,
    Text,
    Timezone,
    Webhook,
    is_loopback,
    split_listen,
)
from fleetd.core.model import (
    AlertsPolicy,
    AppPolicy,
    BudgetPolicy,
    ControllerPolicy,
    FilesPolicy,
    Objective,
    OnBlind,
    Policy,
    PoolPolicy,
    ReleasesPolicy,
    ReloadPolicy,
)

VERSION: Final = 1
PUSHED: Final = "pushed"
MAX_SLOTS: Final = 4096
MAX_NODES: Final = 100_000
MAX_TOKENS: Final = 100
LEAST_TOKEN: Final = 16
MOST_CAP: Final = 1024 * 1024

# What workers catch, and what the usual foreign ones drain on (sidekiq: TSTP, gunicorn: WINCH, celery: TERM).
Signal = Literal["TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TSTP", "WINCH"]
Harder = Literal["TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TSTP", "WINCH", "KILL"]
Undo = Literal["CONT", "HUP", "USR1", "USR2", "WINCH"]


class Shape(BaseModel):
    """A mapping with fixed keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _not_guessed(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if len(text) < LEAST_TOKEN or not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError(f"a token has at least {LEAST_TOKEN} characters of ASCII, and no space or line break")
    return token


Token = Annotated[SecretStr, AfterValidator(_not_guessed)]


class OnBlindShape(Shape):
    """What to do while a source cannot be read."""

    hold: DurationOrZero = Field(default=OnBlind().hold_s, description="Change nothing for this long.")
    then: Literal["keep", "min"] = Field(
        default=OnBlind().then, description="After that: keep the nodes that are there, or go down to each pool's min."
    )


class SourceShape(Shape):
    """Where queue depth is read. Exactly one further key names the kind of source and holds its options."""

    on_blind: OnBlindShape = Field(default=OnBlindShape(), description="What to do while the source cannot be read.")


class ReleaseShape(Shape):
    """Worker code of ours: `pushed`, as releases; or from a folder that is watched, for development."""

    path: Text | None = Field(
        default=None,
        description="The folder of the code, relative to the policy file; a change in it is loaded at once. "
        "`release: pushed` instead runs what `fleetd release activate` names.",
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Tell editors of the short form, too."""
        folder = {**handler(core_schema), "required": ["path"]}
        return {"anyOf": [folder, {"const": PUSHED}]}

    @model_validator(mode="before")
    @classmethod
    def _in_a_word(cls, given: Any) -> Any:
        """`release: pushed` says it all."""
        if given == PUSHED:
            return {}
        if isinstance(given, Mapping) and not given:
            raise ValueError("needs a path; or write `release: pushed`")
        return given

    @field_validator("path")
    @classmethod
    def _is_there(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is None:
            return None
        assert info.context is not None, "a policy is validated with its surroundings"
        full = os.path.abspath(Path(info.context["base_dir"]) / path)  # noqa: PTH100 - links stay as they are
        if info.context.get("code", True) and not os.path.isdir(full):  # noqa: PTH112 - Path.is_dir raises on names that are too long
            raise ValueError(f"no folder {quoted(path)} beside the policy file")
        return full


class DrainShape(Shape):
    """How a worker is told to finish."""

    signal: Signal = Field(
        default="TERM", description="The signal that makes a foreign worker (`exec`) finish and end."
    )
    deadline: Duration | None = Field(
        default=None, description="A running job is given this long to end. Without it: as long as it takes."
    )
    then: list[Harder] = Field(
        default=[],
        max_length=8,
        description="What a foreign worker is sent after the deadline, one every 10 s; nothing harder, ever.",
    )
    undo: Undo | None = Field(
        default=None,
        description="The signal by which a foreign worker takes jobs again. Without it: it ends, and is started anew.",
    )

    @model_validator(mode="after")
    def _climbs(self) -> Self:
        if "KILL" in self.then[:-1]:
            raise ValueError("'then' has signals after KILL, which none outlives: make it the last")
        if self.then and self.deadline is None:
            raise ValueError("'then' needs a 'deadline': without one nothing harder is ever sent")
        return self


class ProbeShape(Shape):
    """Who tells how busy a foreign worker is. Exactly one key."""

    celery: Text | None = Field(
        default=None, description="The worker's own remote control, by its Redis broker: redis://HOST:PORT/DATABASE."
    )
    rq: Text | None = Field(default=None, description="RQ's own register of workers: redis://HOST:PORT/DATABASE.")
    gearman: list[Text] | None = Field(
        default=None,
        min_length=1,
        description="Globs over its job functions: where none of them runs anywhere, it is idle.",
    )
    command: list[Text] | None = Field(
        default=None,
        min_length=1,
        description='A command, word by word: it prints {"busy": 3}, or ends with 0 for idle and 1 for busy.',
    )
    http: Text | None = Field(
        default=None, description='A URL that answers {"busy": 3}, or 200 for idle; anything else is no answer.'
    )

    @property
    def words(self) -> tuple[str, ...]:
        """The kind and what belongs to it."""
        found = [(name, getattr(self, name)) for name in type(self).model_fields if getattr(self, name) is not None]
        return tuple(w for name, given in found for w in (name, *((given,) if isinstance(given, str) else given)))

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = list(type(self).model_fields)
        if len([kind for kind in kinds if getattr(self, kind) is not None]) != 1:
            raise ValueError(f"needs exactly one of {', '.join(kinds)}")
        for kind, schemes in {"celery": "redis", "rq": "redis", "http": "http"}.items():
            url = getattr(self, kind)
            if url is not None and not re.fullmatch(rf"{schemes}s?://[^\s/:@]+(@[^\s/:@]+)?(:\d{{1,5}})?(/\S*)?", url):
                raise ValueError(f"{kind!r}: expected {schemes}://HOST:PORT; a password is read from the environment")
        return self


class ReloadShape(Shape):
    """How a new release takes over."""

    overlap: int = Field(
        default=ReloadPolicy().overlap,
        ge=0,
        le=MAX_SLOTS,
        description="Slots of the new release on a node beyond its slots; 1 is slot by slot, where memory is short. "
        "0: all of them.",
    )
    health: Duration = Field(
        default=ReloadPolicy().health_s, description="How long the app's health check may take, once it is imported."
    )
    probation: DurationOrZero = Field(
        default=ReloadPolicy().probation_s,
        description="How long a release is on trial after it took over: what goes wrong turns it back.",
    )
    canary: DurationOrZero = Field(
        default=ReloadPolicy().canary_s, description="How long the nodes of a canary are watched before the others."
    )
    crashes: int = Field(
        default=ReloadPolicy().crashes, ge=1, le=1000, description="So many jobs that crash a release turn it back."
    )
    watch: list[Text] = Field(
        default=[],
        max_length=100,
        description="Paths on the node: a change in what they hold starts a foreign worker anew, once it has drained.",
    )


class RecycleShape(Shape):
    """When a slot's process is renewed, between two jobs."""

    jobs: int | None = Field(default=None, ge=1, description="After so many jobs.")
    age: Duration | None = Field(default=None, description="Once it is so old.")
    memory: Size | None = Field(default=None, description="Once it has grown so large, as 300MB.")


class AppShape(Shape):
    """A set of job functions. Exactly one of `release` and `exec`."""

    release: ReleaseShape | None = Field(default=None, description="Worker code of ours.")
    exec: list[Text] | None = Field(
        default=None, min_length=1, description="The command line of a foreign worker, word by word; no shell reads it."
    )
    drain: DrainShape = Field(default=DrainShape(), description="How a worker is told to finish.")
    attempts: int = Field(
        default=AppPolicy("").attempts, ge=1, le=1000, description="Attempts of a job before it is a dead letter."
    )
    memory: Size | None = Field(
        default=None, description="What one slot may use by itself, as 512MB; a job that uses more is ended."
    )
    reload: ReloadShape = Field(default=ReloadShape(), description="How a new release takes over.")
    recycle: RecycleShape = Field(default=RecycleShape(), description="When a slot's process is renewed.")
    probe: ProbeShape | None = Field(
        default=None, description="Who tells how busy a foreign worker is. Without it: nobody, it is drained by signal."
    )

    @model_validator(mode="after")
    def _foreign(self) -> Self:
        drain, watch = self.drain, self.reload.watch
        keys = {"probe": self.probe, "drain.then": drain.then, "drain.undo": drain.undo, "reload.watch": watch}
        for key in [key for key, given in keys.items() if given and not self.exec]:
            raise ValueError(f"{key!r} is for a foreign worker ('exec'); worker code of ours needs none")
        if self.exec and self.recycle.jobs:
            raise ValueError("'recycle.jobs' is for worker code of ours; the jobs of a foreign worker are not counted")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.release and self.exec:
            raise ValueError("has both 'release' and 'exec'; give one of them")
        if not self.release and not self.exec:
            raise ValueError("needs 'release' (worker code of ours) or 'exec' (a foreign worker)")
        return self


class ObjectiveShape(Shape):
    """The wait that a queue aims at."""

    wait: Duration = Field(description="Jobs start within this time of being submitted.")
    share: Share = Field(default=Objective(1).share, description="The share of jobs for which that holds.")


class QueueShape(Shape):
    """Jobs of one kind: where they wait and what runs them."""

    app: Text = Field(description="The app that runs these jobs.")
    source: Text = Field(description="The source that tells their number.")
    match: str = Field(
        min_length=1, max_length=255, description="A glob over the names of job functions (or queues) in the source."
    )
    objective: ObjectiveShape = Field(description="The wait that the queue aims at.")
    priority: Literal["low", "normal", "high"] = Field(
        default="normal", description="Who gets slots first where there are not enough."
    )
    service: Duration | None = Field(
        default=None,
        description="How long a job takes, as a hint until it is measured; foreign workers cannot be measured.",
    )
    job_limit: Duration | None = Field(
        default=None, description="The longest a job may run. Needed on priced pools once a budget is set."
    )


class BillingShape(Shape):
    """How the provider bills a node."""

    minimum: DurationOrZero = Field(
        default=PoolPolicy("", "", None, (), 1).billing_minimum_s,
        description="The least time that a node is billed for.",
    )


class SlotsShape(Shape):
    """Jobs that one node runs at a time: a number, or processes of several jobs each."""

    processes: int = Field(ge=1, le=MAX_SLOTS, description="Processes of a node.")
    per_process: int = Field(
        default=1,
        ge=1,
        le=MAX_SLOTS,
        description="Jobs that one process runs at a time: async ones on its loop, others in threads.",
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Tell editors of the short form, too."""
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_SLOTS}, handler(core_schema)]}

    @model_validator(mode="before")
    @classmethod
    def _in_a_number(cls, given: Any) -> Any:
        """`slots: 4` is four processes of one job each."""
        return {"processes": given} if isinstance(given, int | str | float) else given

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if self.total > MAX_SLOTS:
            raise ValueError(f"{self.total} slots are more than the {MAX_SLOTS} that one node may have")
        return self

    @property
    def total(self) -> int:
        """Jobs that one node runs at a time."""
        return self.processes * self.per_process


class PoolShape(Shape):
    """Nodes of one provider. Exactly one further key names the kind of provider and holds its options."""

    apps: list[Text] = Field(min_length=1, description="The apps that its nodes may run.")
    slots: SlotsShape = Field(description="Jobs that one node runs at a time.")
    min: int = Field(default=0, ge=0, le=MAX_NODES, description="The fewest nodes to keep.")
    max: int = Field(ge=0, le=MAX_NODES, description="The most nodes to have.")
    price: Price = Field(default=0.0, description="The price of a node; {max: …} for one that varies.")
    billing: BillingShape = Field(default=BillingShape(), description="How the provider bills a node.")
    act: bool | None = Field(
        default=None,
        description="false: only watch, say what would be done and do nothing. Left out, the kind of provider decides.",
    )


class ScheduleShape(Shape):
    """A floor of slots at set times."""

    cron: Cron = Field(
        description="When it begins: minute, hour, day, month, weekday, in the policy's time zone. Weekdays by name."
    )
    for_: Duration = Field(alias="for", description="How long it lasts.")
    floor: dict[str, int] = Field(min_length=1, description="Slots to keep, by app; fleetd chooses the pool.")


class BudgetShape(Shape):
    """A hard limit on money, spent and committed. At least one of `hour` and `month`."""

    hour: Amount | None = Field(default=None, description="The most in any 60 minutes, in the policy's currency.")
    month: Amount | None = Field(default=None, description="The most in a calendar month, in the policy's currency.")
    warn: Share = Field(default=BudgetPolicy().warn, description="The share of a budget at which a warning is given.")

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if self.hour is None and self.month is None:
            raise ValueError("needs 'hour', 'month' or both")
        return self


class LimitsShape(Shape):
    """How fast the fleet may change."""

    launches: Rate | None = Field(default=None, description="Nodes that may be launched, over all pools.")
    stops: Rate | None = Field(default=None, description="Nodes that may be stopped, over all pools.")


class TokensShape(Shape):
    """Further tokens, so that each person and program has its own, and one can be taken back."""

    viewer: list[Token] = Field(default=[], max_length=MAX_TOKENS, description="Tokens of those who may look.")
    operator: list[Token] = Field(default=[], max_length=MAX_TOKENS, description="Tokens of those who may act.")


class LeaderShape(Shape):
    """Where it is written which of several controllers acts. One key names the kind of place and holds its options."""


class ControllerShape(Shape):
    """Where workers and commands reach the controller."""

    listen: Listen = Field(
        default=f"{ControllerPolicy().host}:{ControllerPolicy().port}",
        description="Address and port; port 0 is a free one. Beyond loopback `join` is needed.",
    )
    join: SecretStr | None = Field(
        default=None, description="The secret that the join tokens of workers are made from."
    )
    token: SecretStr | None = Field(default=None, description="The token that commands and the console must show.")
    tokens: TokensShape = Field(default=TokensShape(), description="Further tokens, by what they allow.")
    leader: LeaderShape | None = Field(
        default=None, description="Where it is written which of several controllers acts; without it there is but one."
    )

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        host, _ = split_listen(self.listen)
        if not is_loopback(host) and self.join is None:
            raise ValueError(f"listens on {host}, beyond this machine: leases are code execution, so it needs 'join'")
        return self


class AlertsShape(Shape):
    """Whom to tell of what an operator must hear."""

    webhook: Webhook = Field(description="The http or https URL that alerts are posted to; a secret one by reference.")
    on: list[Literal["blind", "breaker", "budget", "dead"]] = Field(
        default=list(AlertsPolicy().on),
        min_length=1,
        description="What to tell of: a blind queue, a pool's open breaker, the budget, dead letters.",
    )


class ReleasesShape(Shape):
    """Where pushed releases are kept, and whose signature they need."""

    store: Text = Field(
        default=ReleasesPolicy().store,
        description="A folder, relative to the fleet's own, or s3://BUCKET/PREFIX.",
    )
    keys: list[Text] = Field(
        default=list(ReleasesPolicy().keys),
        description="Public keys, `ed25519:…` each: with any, a release that none of them signed runs nowhere.",
    )
    keep: int = Field(
        default=ReleasesPolicy().keep,
        ge=1,
        le=10_000,
        description="Releases of an app that are kept beside those in use.",
    )


class FilesShape(Shape):
    """Where payloads, results and the ends of jobs are kept."""

    store: Text = Field(
        default=FilesPolicy().store, description="A folder, relative to the fleet's own, or s3://BUCKET/PREFIX."
    )
    cap: Size = Field(
        default=FilesPolicy().cap, description="Payloads and results above this travel as references, as 256KB."
    )
    keep: Duration = Field(default=FilesPolicy().keep_s, description="How long a file is kept, where nobody says.")
    longest: Duration = Field(default=FilesPolicy().longest_s, description="The longest that one may be kept.")
    most: Size = Field(default=FilesPolicy().most, description="What all of them may take, as 100GB.")
    tokens: list[Token] = Field(
        default=[],
        max_length=MAX_TOKENS,
        description="Tokens of clients: they may use this store and nothing else of the API.",
    )
    webhooks: list[Webhook] = Field(
        default=[], max_length=MAX_TOKENS, description="The end of a job may be posted to URLs below these."
    )
    secret: Token | None = Field(
        default=None, description="The key that such posts are signed with; needed where there are webhooks."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.cap > MOST_CAP:
            raise ValueError(f"'cap' is at most {MOST_CAP // 1024} KiB: what is larger has its place in the store")
        if self.webhooks and self.secret is None:
            raise ValueError("has webhooks, so it needs 'secret': their receivers must be able to tell who posts")
        return self


class SettingsShape(Shape):
    """The keys at the top of the file that are not tables of named entries."""

    version: int = Field(ge=VERSION, le=VERSION, description="The version of the policy language: 1.")
    fleet: Fleet = Field(description="The fleet's name; it tells its nodes from those of other fleets.")
    timezone: Timezone = Field(default="UTC", description="The time zone of schedules and of the monthly budget.")
    currency: Currency = Field(default="EUR", description="The currency of all prices and budgets, for display.")
    budget: BudgetShape | None = Field(default=None, description="A hard limit on money, spent and committed.")
    limits: LimitsShape = Field(default=LimitsShape(), description="How fast the fleet may change.")
    stability: Literal["calm", "thrifty", "bounded"] = Field(
        default="calm",
        description="calm keeps idle nodes a while for the next rush; thrifty lets them go soon; bounded never boots "
        "ahead, and lets a node go once it has been idle for as long as its boot.",
    )
    safe: bool = Field(
        default=Policy("", {}, {}, {}, {}).safe,
        description="true: late jobs are to be rare; a tenth of what the objectives allow is aimed at.",
    )
    controller: ControllerShape = Field(default=ControllerShape(), description="Where workers reach the controller.")
    alerts: AlertsShape | None = Field(default=None, description="Whom to tell of what an operator must hear.")
    releases: ReleasesShape = Field(default=ReleasesShape(), description="Where pushed releases are kept.")
    files: FilesShape = Field(default=FilesShape(), description="Where payloads, results and ends of jobs are kept.")


class PolicyShape(SettingsShape):
    """A fleetd policy."""

    sources: dict[str, SourceShape] = Field(description="Where queue depth is read, by name.")
    apps: dict[str, AppShape] = Field(description="What runs the jobs, by name.")
    queues: dict[str, QueueShape] = Field(description="The jobs, by name.")
    pools: dict[str, PoolShape] = Field(description="Where nodes come from, by name.")
    schedules: dict[str, ScheduleShape] = Field(default={}, description="Floors of slots at set times, by name.")
