"""From the file's shapes to the `Policy` that everything below works with: names in full, units in the names.

Promises: nothing is decided here; every part is valid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from fleetd.config.scalars import split_listen
from fleetd.config.shape import (
    AlertsShape,
    AppShape,
    ControllerShape,
    FilesShape,
    PoolShape,
    QueueShape,
    ScheduleShape,
    SettingsShape,
    SourceShape,
)
from fleetd.core.model import (
    AlertsPolicy,
    AppPolicy,
    BudgetPolicy,
    ControllerPolicy,
    FilesPolicy,
    LeaderPolicy,
    LimitsPolicy,
    Objective,
    OnBlind,
    Policy,
    PoolPolicy,
    QueuePolicy,
    RecyclePolicy,
    ReleasesPolicy,
    ReloadPolicy,
    SchedulePolicy,
    SourcePolicy,
)


@dataclass(frozen=True, slots=True)
class Adapted:
    """The kind of adapter that an entry names, its options, and whether such a pool acts where its entry is silent."""

    kind: str
    options: Any
    acts: bool = True


@dataclass(frozen=True, slots=True)
class Parts:
    """The entries that are valid by themselves; `adapted` by section and name."""

    settings: SettingsShape | None
    sources: Mapping[str, SourceShape]
    apps: Mapping[str, AppShape]
    queues: Mapping[str, QueueShape]
    pools: Mapping[str, PoolShape]
    schedules: Mapping[str, ScheduleShape]
    adapted: Mapping[tuple[str, str], Adapted]


def build(parts: Parts) -> Policy:
    """Return the policy that valid parts make."""
    top = parts.settings
    assert top is not None, "a policy without findings has its settings"
    budget = BudgetPolicy() if top.budget is None else BudgetPolicy(top.budget.hour, top.budget.month, top.budget.warn)
    return Policy(
        fleet=top.fleet,
        sources={name: _source(name, shape, parts) for name, shape in parts.sources.items()},
        apps={name: _app(name, shape) for name, shape in parts.apps.items()},
        queues={name: _queue(name, shape) for name, shape in parts.queues.items()},
        pools={name: _pool(name, shape, parts) for name, shape in parts.pools.items()},
        schedules={name: SchedulePolicy(name, s.cron, s.for_, dict(s.floor)) for name, s in parts.schedules.items()},
        timezone=top.timezone,
        currency=top.currency,
        budget=budget,
        limits=LimitsPolicy(top.limits.launches, top.limits.stops),
        stability=top.stability,
        safe=top.safe,
        controller=_controller(top.controller, parts.adapted.get(("controller", "leader"))),
        alerts=AlertsPolicy() if top.alerts is None else _alerts(top.alerts),
        releases=ReleasesPolicy(top.releases.store, tuple(top.releases.keys), top.releases.keep),
        files=_files(top.files),
    )


def _source(name: str, shape: SourceShape, parts: Parts) -> SourcePolicy:
    of = parts.adapted["sources", name]
    return SourcePolicy(name, of.kind, of.options, OnBlind(shape.on_blind.hold, shape.on_blind.then))


def _app(name: str, shape: AppShape) -> AppPolicy:
    reload, recycle = shape.reload, shape.recycle
    return AppPolicy(
        name=name,
        path=shape.release.path if shape.release else None,
        exec=tuple(shape.exec or ()),
        drain_signal=shape.drain.signal,
        drain_then=tuple(shape.drain.then),
        drain_undo=shape.drain.undo or "",
        drain_s=shape.drain.deadline,
        attempts=shape.attempts,
        memory=shape.memory or 0,
        reload=ReloadPolicy(
            reload.overlap, reload.health, reload.probation, reload.canary, reload.crashes, tuple(reload.watch)
        ),
        recycle=RecyclePolicy(recycle.jobs or 0, recycle.age or 0.0, recycle.memory or 0),
        probe=shape.probe.words if shape.probe else (),
    )


def _queue(name: str, shape: QueueShape) -> QueuePolicy:
    return QueuePolicy(
        name=name,
        app=shape.app,
        source=shape.source,
        match=shape.match,
        objective=Objective(shape.objective.wait, shape.objective.share),
        priority=shape.priority,
        service_s=shape.service,
        job_limit_s=shape.job_limit,
    )


def _pool(name: str, shape: PoolShape, parts: Parts) -> PoolPolicy:
    of = parts.adapted["pools", name]
    return PoolPolicy(
        name=name,
        kind=of.kind,
        options=of.options,
        apps=tuple(dict.fromkeys(shape.apps)),
        slots=shape.slots.total,
        min_nodes=shape.min,
        max_nodes=shape.max,
        price_per_h=shape.price,
        billing_minimum_s=shape.billing.minimum,
        act=of.acts if shape.act is None else shape.act,
        per_process=shape.slots.per_process,
    )


def _controller(shape: ControllerShape, leader: Adapted | None) -> ControllerPolicy:
    host, port = split_listen(shape.listen)
    viewers, operators = (
        tuple(token.get_secret_value() for token in tokens) for tokens in (shape.tokens.viewer, shape.tokens.operator)
    )
    seat = LeaderPolicy(leader.kind, leader.options) if leader else None
    return ControllerPolicy(host, port, _revealed(shape.join), _revealed(shape.token), viewers, operators, seat)


def _files(shape: FilesShape) -> FilesPolicy:
    return FilesPolicy(
        store=shape.store,
        cap=shape.cap,
        keep_s=shape.keep,
        longest_s=shape.longest,
        most=shape.most,
        tokens=tuple(token.get_secret_value() for token in shape.tokens),
        webhooks=tuple(url.get_secret_value() for url in shape.webhooks if isinstance(url, SecretStr)),
        secret=_revealed(shape.secret),
    )


def _alerts(shape: AlertsShape) -> AlertsPolicy:
    assert isinstance(shape.webhook, SecretStr), "its validator makes it one, however it was written"
    return AlertsPolicy(shape.webhook.get_secret_value(), tuple(dict.fromkeys(shape.on)))


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
