"""Queue depth on a Redis server: lists, streams with a consumer group, Celery's queues and RQ's.

Promises: only commands that read are sent, and what is counted together is counted at one moment, so that a job on its
way from waiting to running is seen once; a key that does not exist is an empty queue; whatever else is not an answer
(a key of another type, a refused password, a server that loads, a node of a cluster, silence) is a SourceError in one
line. May not: use a clock of its own (ages are by the server's TIME), or show a password.

Redis 6.2 or newer, one server: no Sentinel, no Cluster. A queue's `match` is a glob as everywhere in the policy; one
without a wildcard is a name, and not searched for. docs/sources.md says what each kind can tell and what it cannot.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from fleetd.core.model import Reading, Seconds
from fleetd.core.ports import Nudge
from fleetd.core.units import seconds
from fleetd.errors import FleetdError, SourceError, UnreachableError, UsageError
from fleetd.sources.redis.connection import WILD, Command, RedisLine, check_url, text

PEEK: Final = 100  # Celery's unacked messages come whole, so few are looked at
COUNTED: Final = 1000  # entries of a stream come whole, too
PLAUSIBLE_MS: Final = 10**12  # an id before 2001 is not the time that its entry was made
SEP: Final = "\x06\x16"  # between a Celery queue and its priority, and in its bindings
PRIORITIES: Final = range(1, 10)  # of Celery's lists beside the plain one


class RedisOptions(BaseModel):
    """What stands under `redis:` in the policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        description="the server: redis://HOST:PORT/DATABASE, or rediss:// for TLS; with a user redis://USER@HOST"
    )
    password: SecretStr | None = Field(default=None, description="the password of the server, or of that user")
    kind: Literal["list", "stream", "celery", "rq"] = Field(
        default="list", description="how jobs wait there: in plain lists, streams, or as Celery or RQ keeps them"
    )
    group: str = Field(default="", description="stream: the consumer group that the workers read as")
    running: dict[str, str] = Field(
        default_factory=dict, description="list: by queue, a glob over the lists that hold its running jobs"
    )
    prefix: str = Field(default="", description="celery: the broker's global_keyprefix, where it has one")
    timeout: Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str)] = Field(
        default=2.0, gt=0, le=60, allow_inf_nan=False, description="how long the server may take to answer"
    )

    @field_validator("url")
    @classmethod
    def _one_server(cls, url: str) -> str:
        try:
            return check_url(url)
        except UsageError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Self:
        if (self.kind == "stream") != bool(self.group):
            raise ValueError("kind stream needs `group`, the consumer group of its workers; no other kind has one")
        if self.running and self.kind != "list":
            raise ValueError(f"`running` is for kind list; kind {self.kind} tells of running jobs by itself")
        if self.prefix and self.kind != "celery":
            raise ValueError("`prefix` is for kind celery; elsewhere it is a part of `match`")
        return self


class RedisSource:
    """A Source, as `core.ports` describes it; `queues` is glob by queue name."""

    Options: ClassVar[type[RedisOptions]] = RedisOptions

    def __init__(self, name: str, options: RedisOptions, queues: Mapping[str, str]) -> None:
        for queue in options.running:
            if queue not in queues:
                raise UsageError(f"source {name}: running: no queue of this source is called {queue!r}")
        self._options, self._queues = options, dict(queues)
        self._line = RedisLine(options.url, options.password.get_secret_value() if options.password else None)
        self._place = f"source {name}: redis {self._line.address}"

    async def open(self, nudge: Nudge) -> None:
        """Do nothing: the first reading connects, and the server tells nothing unasked."""

    async def read(self) -> Sequence[Reading]:
        """Return a Reading for every queue."""
        try:
            async with asyncio.timeout(self._options.timeout):
                return await _KINDS[self._options.kind](self._line, self._options, self._queues)
        except TimeoutError:
            raise SourceError(f"{self._place}: no answer within {self._options.timeout:g} s") from None
        except FleetdError as error:
            raise SourceError(f"{self._place}: {error}") from None
        except (ValueError, TypeError, LookupError):
            raise SourceError(f"{self._place}: keeps there what {self._options.kind} does not write") from None

    async def close(self) -> None:
        """Drop the connection; safe twice."""
        await self._line.close()


def _number(answer: object) -> int:
    if type(answer) is not int or answer < 0:
        raise ValueError
    return answer


def _age_s(time: Sequence[bytes], since_ms: float) -> Seconds | None:
    """Return how old something is by the server's TIME; None where `since_ms` cannot be a time."""
    now_ms = int(time[0]) * 1000 + int(time[1]) / 1000
    return max(0.0, (now_ms - since_ms) / 1000) if since_ms >= PLAUSIBLE_MS else None


def _oldest(ages: Iterable[Seconds | None]) -> Seconds | None:
    return max((age for age in ages if age is not None), default=None)


# ── lists, and Celery on them


async def _lengths(
    line: RedisLine, keys: Mapping[str, Iterable[bytes]], *more: Command
) -> tuple[Counter[str], list[Any]]:
    """Return how long the lists of each name are together, and the answers to the further commands."""
    pairs = [(name, key) for name, listed in keys.items() for key in listed]
    answers = await line.ask([*(("LLEN", key) for _, key in pairs), *more])
    sums: Counter[str] = Counter()
    for (name, _), answer in zip(pairs, answers, strict=False):
        sums[name] += _number(answer)
    return sums, answers[len(pairs) :]


async def _lists(line: RedisLine, options: RedisOptions, queues: Mapping[str, str]) -> list[Reading]:
    waiting = {f"waiting {queue}": await line.found(glob, "list") for queue, glob in queues.items()}
    running = {f"running {queue}": await line.found(glob, "list") for queue, glob in options.running.items()}
    sums, _ = await _lengths(line, waiting | running)
    return [Reading(queue, sums[f"waiting {queue}"], sums[f"running {queue}"]) for queue in queues]


async def _celery(line: RedisLine, options: RedisOptions, queues: Mapping[str, str]) -> list[Reading]:
    keys = {queue: await line.found(glob, "list", options.prefix, SEP) for queue, glob in queues.items()}
    for queue, glob in queues.items():
        if not WILD.search(glob):  # one more list per priority; a search finds them by itself
            keys[queue] += [keys[queue][0] + f"{SEP}{priority}".encode() for priority in PRIORITIES]
    unacked = f"{options.prefix}unacked"
    peek: Command = ("HRANDFIELD", unacked, PEEK, "WITHVALUES")
    sums, (held, peeked) = await _lengths(line, keys, ("HLEN", unacked), peek)
    where = [(str(exchange), str(key)) for _, exchange, key in map(json.loads, peeked[1::2])]
    names = await _celery_names(line, options.prefix, where)
    seen = {queue: sum(fnmatchcase(names[at], glob) for at in where) for queue, glob in queues.items()}
    return [Reading(queue, sums[queue], -(-seen[queue] * _number(held) // max(1, len(where)))) for queue in queues]


async def _celery_names(line: RedisLine, prefix: str, where: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the queue for each (exchange, routing key): the one bound by it; without a binding, the key itself."""
    exchanges = sorted({exchange for exchange, _ in where if exchange})
    bound = await line.ask([("SMEMBERS", f"{prefix}_kombu.binding.{exchange}") for exchange in exchanges])
    names = {at: at[1] for at in where}
    for exchange, members in zip(exchanges, bound, strict=True):
        for member in members:
            routing_key, *_, queue = text(member).split(SEP)
            if (exchange, routing_key) in names:
                names[exchange, routing_key] = queue
    return names


# ── RQ


async def _rq(line: RedisLine, options: RedisOptions, queues: Mapping[str, str]) -> list[Reading]:
    del options
    names = {queue: [glob] for queue, glob in queues.items()}
    if any(map(WILD.search, queues.values())):
        (known,) = await line.ask([("SMEMBERS", "rq:queues")])  # a queue whose jobs all run has no list, but is here
        every = [text(key).removeprefix("rq:queue:") for key in known]
        names |= {q: [n for n in every if fnmatchcase(n, glob)] for q, glob in queues.items() if WILD.search(glob)}
    return [await _rq_queue(line, queue, names[queue]) for queue in queues]


async def _rq_queue(line: RedisLine, queue: str, names: Sequence[str]) -> Reading:
    looks: list[Command] = []
    for name in names:
        looks += [("LLEN", f"rq:queue:{name}"), ("ZCARD", f"rq:wip:{name}"), ("LINDEX", f"rq:queue:{name}", 0)]
    answers = await line.ask(looks)
    firsts = [job for job in answers[2::3] if job]
    time, *stamps = await line.ask([("TIME",), *(("HGET", b"rq:job:" + job, "enqueued_at") for job in firsts)])
    ages = [_age_s(time, _enqueued_ms(stamp)) for stamp in stamps if stamp]
    return Reading(queue, sum(map(_number, answers[::3])), sum(map(_number, answers[1::3])), _oldest(ages))


def _enqueued_ms(stamp: bytes) -> float:
    try:
        return datetime.fromisoformat(text(stamp)).timestamp() * 1000
    except ValueError:  # of a version that writes it otherwise: no age is better than a wrong one
        return 0.0


# ── streams


class _Stream(NamedTuple):
    """A stream that a group reads, as XINFO tells it. `lag` None: entries were deleted and the server lost count."""

    key: bytes
    length: int
    added: int | None
    pending: int
    last: bytes
    read: int | None
    lag: int | None


async def _streams(line: RedisLine, options: RedisOptions, queues: Mapping[str, str]) -> list[Reading]:
    return [await _stream(line, options.group, q, await line.found(glob, "stream")) for q, glob in queues.items()]


async def _stream(line: RedisLine, group: str, queue: str, keys: Sequence[bytes]) -> Reading:
    told = await line.ask([("XINFO", what, key) for key in keys for what in ("STREAM", "GROUPS")])
    found = [_of_group(group, *one) for one in zip(keys, told[::2], told[1::2], strict=True)]
    streams = [stream for stream in found if stream]
    nexts: list[Command] = [
        ("XRANGE", stream.key, b"(" + stream.last, "+", "COUNT", COUNTED if stream.lag is None else 1)
        for stream in streams
    ]
    time, *entries = await line.ask([("TIME",), *nexts])
    # The lag counts entries that were trimmed unread, too; no more can wait than are there.
    waits = [min(s.length, len(e) if s.lag is None else s.lag) for s, e in zip(streams, entries, strict=True)]
    ages = [_age_s(time, int(some[0][0].partition(b"-")[0])) for some in entries if some]
    running = sum(stream.pending for stream in streams)
    arrived, read = _sum(stream.added for stream in streams), _sum(stream.read for stream in streams)
    done = None if read is None else max(0, read - running)
    return Reading(queue, sum(waits), running, _oldest(ages), arrived, done)


def _of_group(name: str, key: bytes, stream: Any, groups: Any) -> _Stream | None:
    """Return what the server says of a stream and the group; None for one that does not exist, or is empty."""
    if stream is None or groups is None:
        return None
    about, listed = _pairs(stream), [group for group in map(_pairs, groups) if group[b"name"] == name.encode()]
    length, added = _number(about[b"length"]), about.get(b"entries-added")
    if listed:
        at = listed[0]
        pending, last = _number(at[b"pending"]), at[b"last-delivered-id"]
        read = 0 if last == b"0-0" else at.get(b"entries-read")
        return _Stream(key, length, added, pending, last, read, at.get(b"lag"))
    if not length:
        return None
    fix = f"make it with XGROUP CREATE {text(key)} {name} 0"
    raise UnreachableError(f"the stream {text(key)!r} has no group {name!r}, so nothing tells what waits; {fix}")


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _sum(counts: Iterable[int | None]) -> int | None:
    every = list(counts)
    known = [_number(count) for count in every if count is not None]
    return sum(known) if len(known) == len(every) else None


_KINDS: Final = {"list": _lists, "stream": _streams, "celery": _celery, "rq": _rq}
