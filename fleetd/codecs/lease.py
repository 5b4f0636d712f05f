"""The lease protocol between worker and controller: messages as JSON, join tokens, signatures. Sans I/O.

The worker states what is (`POST /v1/lease`) and asks for what should be (`GET /v1/orders?node=…&after=N`, a long
poll). Both directions are signed with HMAC-SHA256 under a key that never travels: a join token is
``scope.key`` where ``key = HMAC(secret, scope)`` (codecs/scope.py); a request carries the scope and the signature of
its method, path and body; an answer carries the signature of its body bound to the request's signature. Replays of a
lease are refused by its sequence. Ages are sent, never time stamps: no clock is trusted.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import starmap
from math import sqrt
from typing import Any, Final, Literal, TypeVar

from fleetd.errors import ProtocolError

PROTOCOL: Final = 1
MAX_BODY: Final = 4 * 1024 * 1024
SCHEME: Final = "Fleetd-HMAC-SHA256"
LEAST_FAILED: Final = 5  # fewer failures are chance, or a bad batch of jobs
DEVIATIONS: Final = 4.0
SLACK: Final = 200
ANSWER_HEADER: Final = "X-Fleetd-Signature"


@dataclass(frozen=True, slots=True)
class JobCounts:
    """Of one job function since the worker's start. `buckets`: ended jobs by floor(4·log2(milliseconds of service))."""

    started: int = 0
    done: int = 0
    failed: int = 0
    service_s: float = 0.0
    buckets: dict[str, int] = field(default_factory=dict)
    running_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReleaseCounts:
    """Of one release on one worker: jobs that ended well and not, and jobs whose slot died under no other release."""

    done: int = 0
    failed: int = 0
    crashed: int = 0

    def worse_than(self, before: "ReleaseCounts") -> str | None:
        """Return why a release fails more often than the one before, beyond chance; None where it does not.

        The failures of n jobs at the share p deviate by sqrt(n·p·(1-p)); DEVIATIONS of that are no chance. That share
        is taken from what ended before, and from SLACK jobs of which one failed: few that all went well prove little.
        """
        ended = self.done + self.failed
        share = (before.failed + 1) / (before.done + before.failed + SLACK)
        likely = ended * share + DEVIATIONS * sqrt(ended * share * (1.0 - share))
        if self.failed < LEAST_FAILED or self.failed <= likely:
            return None
        return f"{self.failed} of {ended} jobs failed, where {100 * share:.1f} % did before"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that used up its attempts. `payload` is base64; `id` is unique, so that storing it twice is harmless."""

    id: str
    function: str
    unique: str
    handle: str
    attempts: int
    reason: str
    traceback: str
    payload: str


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's claim to be alive. `boot` and `seq` order the claims of one process; `idle_s` since the last job.

    `order` is the number of the newest order that `state` already obeys: "drained" means nothing to a controller that
    has since ordered work and drained again, unless the worker had heard of it. "starting": no code runs here yet, so
    this is no capacity. `digest` is the release that takes jobs, `refused` why others must not run here, `releases`
    what the newest few did. `leaving`: why its machine goes by itself, in `leaving_s` seconds where that is known.
    `busy_by`: how a foreign worker's `busy` is known: measured, probed, or "by signal" (it is not); "": one of ours.
    """

    fleet: str
    pool: str
    node: str
    boot: str
    seq: int
    app: str
    state: Literal["starting", "working", "draining", "drained"]
    slots: int
    busy: int
    idle_s: float = 0.0
    pid: int = 0
    key: str = ""
    digest: str = ""
    crashes: int = 0
    order: int = 0
    leaving: str = ""
    leaving_s: float | None = None
    refused: dict[str, str] = field(default_factory=dict)
    releases: dict[str, ReleaseCounts] = field(default_factory=dict)
    busy_by: str = ""
    jobs: dict[str, JobCounts] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """What the controller says to a lease: come again in `next_s`; it counts `ttl_s`; these dead letters are stored.

    `token`, where there is one, is to be used from now on: the one in use ends soon.
    """

    next_s: float
    ttl_s: float
    dead: list[str] = field(default_factory=list)
    token: str = ""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """What the worker should be doing. The newest `number` counts; missing one loses nothing.

    `release` is the digest of the code to run; "" leaves it as it is. `pardoned` names one that may be tried again.
    """

    number: int
    state: Literal["work", "drain", "stop"]
    deadline_s: float | None = None
    release: str = ""
    pardoned: str = ""
    epoch: int = 0
    protocol: int = PROTOCOL


Message = TypeVar("Message", JobCounts, ReleaseCounts, DeadLetter, Lease, LeaseAnswer, WorkerOrder)


def dump(message: Lease | LeaseAnswer | WorkerOrder) -> bytes:
    """Return the message as compact JSON."""
    return json.dumps(asdict(message), separators=(",", ":")).encode()


def load_lease(body: bytes) -> Lease:
    """Read a lease; raises ProtocolError naming the field that is wrong."""
    raw = _object(body, "lease")
    jobs = _map(raw, "jobs", "lease")
    dead = raw.get("dead", [])
    if not isinstance(dead, list):
        raise ProtocolError("lease: dead: must be a list")
    raw["jobs"] = {name: _make(JobCounts, value, f"lease: jobs: {name}") for name, value in jobs.items()}
    releases = _map(raw, "releases", "lease")
    raw["releases"] = {
        name: _make(ReleaseCounts, value, f"lease: releases: {name}") for name, value in releases.items()
    }
    raw["dead"] = [_make(DeadLetter, value, f"lease: dead: {at}") for at, value in enumerate(dead)]
    lease = _make(Lease, raw, "lease")
    if not 0 <= lease.busy <= lease.slots:
        raise ProtocolError(f"lease: busy: {lease.busy} of {lease.slots} slots is impossible")
    if lease.state not in ("starting", "working", "draining", "drained"):
        raise ProtocolError(f"lease: state: unknown state {lease.state!r}")
    return lease


def load_answer(body: bytes) -> LeaseAnswer:
    """Read the controller's answer to a lease; raises ProtocolError."""
    return _make(LeaseAnswer, _object(body, "lease answer"), "lease answer")


def load_order(body: bytes) -> WorkerOrder:
    """Read an order; raises ProtocolError."""
    order = _make(WorkerOrder, _object(body, "order"), "order")
    if order.state not in ("work", "drain", "stop"):
        raise ProtocolError(f"order: state: unknown state {order.state!r}")
    return order


def _number(value: Any) -> bool:
    """Whether this is a finite number of a sane size: no NaN, no infinity, no bool may reach a decision."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15


def _text(value: Any) -> bool:
    """Whether this is text that can be stored and sent on: JSON can spell half of a surrogate pair, UTF-8 cannot."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _bucket(name: str, count: Any) -> bool:
    """Whether this is a whole number's count of jobs; a bucket of less than a millisecond is negative."""
    digits = name.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 5 and _number(count) and isinstance(count, int)


_CHECKS: Final[Mapping[Any, Callable[[Any], bool]]] = {
    str: _text,
    int: lambda value: _number(value) and isinstance(value, int),
    float: _number,
    float | None: lambda value: value is None or _number(value),
    list[float]: lambda value: isinstance(value, list) and all(map(_number, value)),
    list[str]: lambda value: isinstance(value, list) and all(map(_text, value)),
    dict[str, str]: lambda value: isinstance(value, dict) and all(map(_text, (*value, *value.values()))),
    dict[str, int]: lambda value: isinstance(value, dict) and all(starmap(_bucket, value.items())),
}


def _make(kind: type[Message], raw: Any, place: str) -> Message:
    """Build a dataclass from JSON. Unknown fields are left out: an older side must be able to read a newer one."""
    if not isinstance(raw, dict):
        raise ProtocolError(f"{place}: must be an object")
    values: dict[str, Any] = {}
    for entry in fields(kind):
        if entry.name in raw:
            value, check = raw[entry.name], _CHECKS.get(entry.type)
            if check and not check(value):
                raise ProtocolError(f"{place}: {entry.name}: {value!r:.80} is not a {_spell(entry.type)}")
            values[entry.name] = value
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ProtocolError(f"{place}: {entry.name}: is missing")
    return kind(**values)


def _spell(kind: Any) -> str:
    return str(kind.__name__ if isinstance(kind, type) else kind)


def _object(body: bytes, place: str) -> dict[str, Any]:
    if len(body) > MAX_BODY:
        raise ProtocolError(f"{place}: {len(body)} bytes, more than the {MAX_BODY} allowed")
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{place}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ProtocolError(f"{place}: must be an object")
    if type(raw.get("protocol")) is not int or raw["protocol"] != PROTOCOL:
        raise ProtocolError(f"{place}: protocol {raw.get('protocol')!r} is not spoken here, only {PROTOCOL}")
    return raw


def _map(raw: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    value = raw.get(name, {})
    if not isinstance(value, dict):
        raise ProtocolError(f"{place}: {name}: must be an object")
    if not all(map(_text, value)):
        raise ProtocolError(f"{place}: {name}: a name is no valid text")
    return value


# ── join tokens and signatures


def join_token(secret: str, fleet: str, pool: str) -> str:
    """Return the token that lets any worker join `pool`, for ever."""
    return scope_token(secret, f"{fleet}/{pool}")


def scope_token(secret: str, scope: str) -> str:
    """Return the token of a scope: the scope and the key made for it."""
    return f"{scope}.{_hmac(secret.encode(), b'join/' + scope.encode())}"


def split_token(token: str) -> tuple[str, str]:
    """Return (scope, key); raises ProtocolError without showing the key."""
    scope, dot, key = token.rpartition(".")
    if not dot or "/" not in scope or len(key) != 64:
        raise ProtocolError("join token: malformed; copy it whole, as the controller gave it")
    return scope, key


def sign(key: str, method: str, path: str, body: bytes = b"") -> str:
    """Return the signature of a request."""
    return _hmac(key.encode(), b"\n".join((method.encode(), path.encode(), body)))


def authorization(token: str, method: str, path: str, body: bytes = b"") -> str:
    """Return the value of a request's Authorization header."""
    scope, key = split_token(token)
    return f"{SCHEME} {scope} {sign(key, method, path, body)}"


def sign_answer(key: str, request_signature: str, body: bytes) -> str:
    """Return the signature of an answer, bound to the request that it answers."""
    return _hmac(key.encode(), request_signature.encode() + b"\n" + body)


def verify(secret: str, header: str, method: str, path: str, body: bytes = b"") -> tuple[str, str, str]:
    """Check a request's Authorization header and return (scope, key, signature).

    Raises ProtocolError; the comparison takes the same time whatever differs.
    """
    parts = header.split(" ")
    if len(parts) != 3 or parts[0] != SCHEME:
        raise ProtocolError(f"authorization: must be '{SCHEME} SCOPE SIGNATURE'")
    scope, signature = parts[1], parts[2]
    if not _text(scope):
        raise ProtocolError("authorization: the scope is no valid text")
    key = _hmac(secret.encode(), b"join/" + scope.encode())
    if not hmac.compare_digest(sign(key, method, path, body).encode(), signature.encode(errors="replace")):
        raise ProtocolError(f"authorization: the signature for {scope!r} is wrong; is the join token of this fleet?")
    return scope, key, signature


def _hmac(key: bytes, message: bytes) -> str:
    return hmac.new(key, message, hashlib.sha256).hexdigest()
