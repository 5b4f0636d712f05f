"""Queue depth of one or several Gearman dispatchers.

Promises: asks nothing but `prioritystatus`, `status` and, once where it is unknown, `oldest`; a member that cannot be
read keeps its last values and is named with the reason in `Reading.partial`; one that never answered counts nothing,
and is named too; where no member answers, `SourceError`. Members are read at the same time, each within `timeout`.

A queue is a glob over function names. A dispatcher learns a function at its first use, so a glob that matches nothing
is an empty queue. Waiting is the sum of the priorities in `prioritystatus`; the total of `status` includes running
jobs and would count those twice. The two are two commands: a job that starts between them may be missing from both
or in both for one tick.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from fleetd.codecs.admin import OLDEST, CommandRefusedError, FunctionStatus, parse_oldest
from fleetd.core.model import Reading
from fleetd.core.ports import Nudge
from fleetd.core.units import seconds
from fleetd.dispatchers.address import parse_address
from fleetd.dispatchers.admin import AdminConnection
from fleetd.errors import FleetdError, SourceError, UsageError

MAX_SERVERS: Final = 64
EMBEDDED: Final = "127.0.0.1:4730"


class GearmanOptions(BaseModel):
    """What stands under `gearman:` in the policy. `timeout` in seconds bounds one member's reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    servers: list[str] = Field(
        default=[],
        max_length=MAX_SERVERS,
        description="the dispatchers, HOST:PORT or tls://HOST:PORT each; without a port 4730",
    )
    embedded: str = Field(
        default="",
        description="HOST:PORT of a dispatcher of our own, run by the controller; `gearman: embedded`: 127.0.0.1:4730",
    )
    timeout: Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str)] = Field(
        default=2.0, gt=0, le=60, allow_inf_nan=False, description="how long one dispatcher may take to answer"
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Tell editors of the short form, too."""
        return {"anyOf": [handler(core_schema), {"const": "embedded"}]}

    @model_validator(mode="before")
    @classmethod
    def _in_a_word(cls, given: Any) -> Any:
        """`gearman: embedded` says it all."""
        return {"embedded": EMBEDDED} if given == "embedded" else given

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        """Either servers, or one of our own; what follows needs to know only `servers`."""
        if bool(self.servers) == bool(self.embedded):
            raise ValueError("give either servers, a list of HOST:PORT, or embedded")
        if self.embedded:
            try:
                address = parse_address(self.embedded)
            except UsageError as error:
                raise ValueError(f"embedded: {error}") from None
            if address.tls:
                raise ValueError("embedded: HOST:PORT without tls://; start `fleetd dispatcher` yourself to serve TLS")
            object.__setattr__(self, "servers", [str(address)])
        return self

    @field_validator("servers")
    @classmethod
    def _each_once(cls, servers: list[str]) -> list[str]:
        """Spell every address in full, so that '10.0.0.5' and '10.0.0.5:4730' are seen to be one."""
        seen: list[str] = []
        for text in servers:
            try:
                address = str(parse_address(text))
            except UsageError as error:
                raise ValueError(str(error)) from None
            if address in seen:
                raise ValueError(f"{text!r} is listed twice; a dispatcher's jobs would count double")
            seen.append(address)
        return seen


class _Depth(NamedTuple):
    waiting: int
    running: int


@dataclass(slots=True, eq=False)
class _Member:
    """One dispatcher: its connection and what it last said, by function."""

    admin: AdminConnection
    last: Mapping[str, _Depth] = field(default_factory=dict)
    answered: bool = False
    ages: Mapping[str, float] = field(default_factory=dict)  # of the oldest waiting job, where it can tell
    tells_age: bool = True  # until it has said that it knows no such command


class GearmanSource:
    """A Source, as `core.ports` describes it; `queues` is glob by queue name."""

    Options: ClassVar[type[GearmanOptions]] = GearmanOptions

    def __init__(self, name: str, options: GearmanOptions, queues: Mapping[str, str]) -> None:
        self._name = name
        self._timeout_s = options.timeout
        self._queues = dict(queues)
        self._members = [
            _Member(AdminConnection(parse_address(server), timeout_s=options.timeout)) for server in options.servers
        ]

    async def open(self, nudge: Nudge) -> None:
        """Do nothing: the first reading connects, and a dispatcher tells nothing unasked."""

    async def read(self) -> Sequence[Reading]:
        """Return a Reading for every queue; raises SourceError with every member's reason where none answers."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(member)) for member in self._members]
        faults = tuple(reason for task in tasks if (reason := task.result()))
        if len(faults) == len(self._members):
            raise SourceError(f"source {self._name}: {'; '.join(faults)}")
        return [self._reading(queue, glob, faults) for queue, glob in self._queues.items()]

    async def close(self) -> None:
        """Drop every connection; safe twice."""
        for member in self._members:
            await member.admin.close()

    async def _ask(self, member: _Member) -> str | None:
        """Refresh what a member last said; return why it is blind where it is."""
        try:
            async with asyncio.timeout(self._timeout_s):
                member.last = await _depths(member.admin)
                await _ages(member)
        except TimeoutError:
            reason = f"dispatcher {member.admin.address}: no answer within {self._timeout_s:g} s"
        except FleetdError as error:
            reason = str(error)
            member.tells_age = True  # it may be another dispatcher when it comes back
        else:
            member.answered = True
            return None
        return reason if member.answered else f"{reason}; it has not answered yet and counts nothing"

    def _reading(self, queue: str, glob: str, faults: tuple[str, ...]) -> Reading:
        depths = [
            depth for member in self._members for function, depth in member.last.items() if fnmatchcase(function, glob)
        ]
        waiting, running = sum(depth.waiting for depth in depths), sum(depth.running for depth in depths)
        ages = [age for member in self._members for function, age in member.ages.items() if fnmatchcase(function, glob)]
        return Reading(queue, waiting, running, oldest_wait_s=max(ages, default=None), partial=faults)


async def _depths(admin: AdminConnection) -> dict[str, _Depth]:
    try:
        backlog = {row.function: row.waiting for row in await admin.priority_status()}
    except CommandRefusedError:
        backlog = None  # an older dispatcher: what it has in total and does not run, waits
    return {row.function: _Depth(_waiting(row, backlog), row.running) for row in await admin.status()}


async def _ages(member: _Member) -> None:
    """Ask for the age of the oldest jobs, which the embedded dispatcher knows and gearmand does not."""
    if not member.tells_age:
        return
    try:
        rows = parse_oldest(await member.admin.ask(OLDEST))
    except CommandRefusedError:
        member.tells_age, rows = False, ()
    member.ages = {row.function: row.age_s for row in rows}


def _waiting(row: FunctionStatus, backlog: Mapping[str, int] | None) -> int:
    if backlog is None:
        return max(0, row.total - row.running)
    return backlog.get(row.function, 0)
