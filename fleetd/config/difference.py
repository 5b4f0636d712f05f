"""What changed between two policies, one line each, in the words of the file: `pools.local.max: 4 -> 8`.

Promises: equal policies give no line, different ones at least one; a secret is shown as changed, never by its value.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from pydantic import BaseModel, SecretBytes, SecretStr

from fleetd.config.findings import cut, printable, show
from fleetd.core import units
from fleetd.core.model import (
    AlertsPolicy,
    AppPolicy,
    BudgetPolicy,
    ControllerPolicy,
    FilesPolicy,
    LimitsPolicy,
    Objective,
    OnBlind,
    Policy,
    PoolPolicy,
    QueuePolicy,
    RecyclePolicy,
    ReloadPolicy,
    SchedulePolicy,
    SourcePolicy,
)

Words = Callable[[Any], str]
Line = tuple[tuple[str | int, ...], str]
Flat = dict[tuple[str | int, ...], tuple[Any, Words]]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return printable(f"{value:g}" if isinstance(value, float) else str(value))


def _hidden(_: Any) -> str:
    return "changed"


_SECRET: Final[Words] = _hidden

# Where a field of a policy value stands in the file, and how its value is written there.
_KEYS: Final[Mapping[tuple[type, str], tuple[tuple[str, ...], Words]]] = {
    (OnBlind, "hold_s"): (("hold",), units.show_seconds),
    (Objective, "wait_s"): (("wait",), units.show_seconds),
    (Objective, "share"): (("share",), units.show_share),
    (AppPolicy, "path"): (("release", "path"), _plain),
    (AppPolicy, "drain_signal"): (("drain", "signal"), _plain),
    (AppPolicy, "drain_s"): (("drain", "deadline"), units.show_seconds),
    (AppPolicy, "memory"): (("memory",), units.show_size),
    (ReloadPolicy, "health_s"): (("health",), units.show_seconds),
    (ReloadPolicy, "probation_s"): (("probation",), units.show_seconds),
    (ReloadPolicy, "canary_s"): (("canary",), units.show_seconds),
    (RecyclePolicy, "age_s"): (("age",), units.show_seconds),
    (RecyclePolicy, "memory"): (("memory",), units.show_size),
    (PoolPolicy, "per_process"): (("slots", "per_process"), _plain),
    (QueuePolicy, "service_s"): (("service",), units.show_seconds),
    (QueuePolicy, "job_limit_s"): (("job_limit",), units.show_seconds),
    (PoolPolicy, "min_nodes"): (("min",), _plain),
    (PoolPolicy, "max_nodes"): (("max",), _plain),
    (PoolPolicy, "price_per_h"): (("price",), units.show_money_per_h),
    (PoolPolicy, "billing_minimum_s"): (("billing", "minimum"), units.show_seconds),
    (SchedulePolicy, "for_s"): (("for",), units.show_seconds),
    (BudgetPolicy, "warn"): (("warn",), units.show_share),
    (LimitsPolicy, "launches_per_min"): (("launches",), units.show_per_minute),
    (LimitsPolicy, "stops_per_min"): (("stops",), units.show_per_minute),
    (ControllerPolicy, "host"): (("listen", "host"), _plain),
    (ControllerPolicy, "port"): (("listen", "port"), _plain),
    (ControllerPolicy, "join"): (("join",), _SECRET),
    (ControllerPolicy, "token"): (("token",), _SECRET),
    (ControllerPolicy, "viewers"): (("tokens", "viewer"), _SECRET),
    (ControllerPolicy, "operators"): (("tokens", "operator"), _SECRET),
    (AlertsPolicy, "webhook"): (("webhook",), _SECRET),
    (FilesPolicy, "cap"): (("cap",), units.show_size),
    (FilesPolicy, "keep_s"): (("keep",), units.show_seconds),
    (FilesPolicy, "longest_s"): (("longest",), units.show_seconds),
    (FilesPolicy, "most"): (("most",), units.show_size),
    (FilesPolicy, "tokens"): (("tokens",), _SECRET),
    (FilesPolicy, "webhooks"): (("webhooks",), _SECRET),
    (FilesPolicy, "secret"): (("secret",), _SECRET),
}
_ENTRIES: Final = (SourcePolicy, AppPolicy, QueuePolicy, PoolPolicy, SchedulePolicy)


def diff(old: Policy, new: Policy) -> list[str]:
    """Return what changed from `old` to `new`, in the order of the file's sections."""
    lines: list[Line] = []
    for name in (field.name for field in fields(Policy)):
        before, after = getattr(old, name), getattr(new, name)
        lines += _entries(name, before, after) if isinstance(before, Mapping) else _changes((name,), before, after)
    return [f"{show(path)}: {text}" for path, text in lines]


def _entries(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Line]:
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            yield (section, name), "removed"
        elif name not in old:
            yield (section, name), "added"
        else:
            yield from _changes((section, name), old[name], new[name])


def _changes(path: tuple[str | int, ...], old: Any, new: Any) -> Iterator[Line]:
    before, after = dict(_flat(path, old, _plain)), dict(_flat(path, new, _plain))
    for at in dict.fromkeys([*before, *after]):
        (was, words), (now, new_words) = before.get(at, (None, _plain)), after.get(at, (None, _plain))
        if was == now:
            continue
        if _SECRET in (words, new_words):
            yield at, "changed"
        else:
            yield at, f"{_shown(was, words)} -> {_shown(now, new_words)}"


def _shown(value: Any, words: Words) -> str:
    return "unset" if value is None or value == () else cut(words(value), 80)


def _flat(path: tuple[str | int, ...], value: Any, words: Words) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield every value below, by its path in the file, with how it is written."""
    if is_dataclass(value) and not isinstance(value, type):
        yield from _fields(path, value)
    elif isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            yield from _flat((*path, info.alias or name), getattr(value, name), _plain)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat((*path, str(key)), item, _plain)
    elif isinstance(value, SecretStr | SecretBytes):
        yield path, (value, _SECRET)
    elif isinstance(value, list | tuple) and any(isinstance(item, BaseModel | SecretStr | Mapping) for item in value):
        for at, item in enumerate(value):
            yield from _flat((*path, at), item, _plain)
    else:
        yield path, (value, words)


def _fields(path: tuple[str | int, ...], value: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    for field in fields(value):
        if field.name == "name" and isinstance(value, _ENTRIES):
            continue
        if field.name == "options":  # they stand under the kind of adapter
            yield from _flat((*path, value.kind), value.options, _plain)
            continue
        keys, words = _KEYS.get((type(value), field.name), ((field.name,), _plain))
        yield from _flat((*path, *keys), getattr(value, field.name), words)
