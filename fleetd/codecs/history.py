"""A row of the recorded history: what a fleet had to do and what it cost in some ten seconds. Text in, values out.

Promises: compact, since a month of rows is kept: what is zero is not written, and a queue or pool of which all is zero
is left out. A row of an older or newer version reads as far as it is understood; anything else raises ProtocolError.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Final

from fleetd.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue: `waiting` and `running` at the row's end, the rest within it.

    `ended`: jobs by the length of their service, in buckets floor(4·log2(milliseconds)). `blind`: it could not be read
    at the row's end, so `waiting` and `running` are older, and what arrived comes with the next row that sees.
    """

    waiting: int = 0
    running: int = 0
    arrived: int = 0
    started: int = 0
    done: int = 0
    failed: int = 0
    ended: Mapping[int, int] = field(default_factory=dict)
    blind: bool = False


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One pool: nodes at the row's end; node-seconds paid, money, launches and stops within it."""

    ready: int = 0
    coming: int = 0
    draining: int = 0
    launched: int = 0
    stopped: int = 0
    node_s: float = 0.0
    money: float = 0.0


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """What happened from `at_s` (seconds since 1970) on for `length_s`. No row: nobody was looking."""

    at_s: float
    length_s: float
    queues: Mapping[str, QueueRow] = field(default_factory=dict)
    pools: Mapping[str, PoolRow] = field(default_factory=dict)


_QUEUE: Final = {
    "waiting": "w", "running": "r", "arrived": "a", "started": "b", "done": "d", "failed": "f", "blind": "z",
}  # fmt: skip
_POOL: Final = {
    "ready": "u", "coming": "c", "draining": "o", "launched": "l", "stopped": "x", "node_s": "t", "money": "m",
}  # fmt: skip
MONEY_DIGITS: Final = 8
BUCKETS: Final = range(-64, 256)  # from far below a millisecond to far beyond a lifetime


def dump_row(row: HistoryRow) -> str:
    """Return the row as compact JSON; `at_s` is not in it: it is what the row is stored under."""
    queues = {name: _dump(one, _QUEUE) for name, one in row.queues.items()}
    for name, queue in row.queues.items():
        if queue.ended:
            queues[name]["e"] = {str(bucket): count for bucket, count in sorted(queue.ended.items())}
    pools = {name: _dump(one, _POOL) for name, one in row.pools.items()}
    body: dict[str, Any] = {"s": round(row.length_s, 3)}
    body |= {"q": kept} if (kept := {name: one for name, one in queues.items() if one}) else {}
    body |= {"p": kept} if (kept := {name: one for name, one in pools.items() if one}) else {}
    return json.dumps(body, separators=(",", ":"))


def load_row(at_s: float, body: str) -> HistoryRow:
    """Read a row; raises ProtocolError."""
    try:
        raw = json.loads(body)
        return HistoryRow(
            at_s,
            max(0.0, _number(raw["s"])),
            {str(name): _load_queue(one) for name, one in raw.get("q", {}).items()},
            {str(name): PoolRow(**_load(one, _POOL_FIELDS)) for name, one in raw.get("p", {}).items()},
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ProtocolError(f"history: the row of {at_s:.0f} cannot be read: {error}") from None


def _dump(row: QueueRow | PoolRow, keys: Mapping[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, key in keys.items():
        value = getattr(row, name)
        if value:
            result[key] = round(value, MONEY_DIGITS) if isinstance(value, float) else int(value)
    return result


def _load(raw: Mapping[str, Any], names: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields that are there and known, each of its own type, and never below zero."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        if key in names:
            name, kind = names[key]
            found[name] = value if type(value) is kind and 0 <= value < inf else kind(max(0, _number(value)))
    return found


def _load_queue(raw: Mapping[str, Any]) -> QueueRow:
    ended: dict[int, int] = {}
    for bucket, count in raw["e"].items() if "e" in raw else ():
        if int(bucket) not in BUCKETS:
            raise ValueError("a bucket is beyond all times")
        if _number(count) > 0:
            ended[int(bucket)] = int(count)
    return QueueRow(**_load(raw, _QUEUE_FIELDS), ended=ended)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError(f"{str(value)[:20]!r} is no number")
    return value


_QUEUE_FIELDS: Final = {key: (name, type(getattr(QueueRow(), name))) for name, key in _QUEUE.items()}
_POOL_FIELDS: Final = {key: (name, type(getattr(PoolRow(), name))) for name, key in _POOL.items()}
