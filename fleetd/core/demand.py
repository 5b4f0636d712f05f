"""How many slots each app needs, and how many are worth keeping. The first rule; forecasts come on top of it.

For one queue with objective T (a job is to start within T seconds), T' = 0.7·T, mean service time m, arrival rate λ,
W waiting and R running jobs, the slots wanted are

    need = R·exp(-T'/m) + λ·m·(1 - exp(-T'/m)) + W·m/(m + T')

that is: running jobs that will still hold their slot when T' is over, the offered load of those that arrive meanwhile,
and enough to start all who wait within T'. Jobs far longer than T' need a slot each; far shorter ones share it.

Source: the modified offered load of a queue with exponential service (Jennings, Mandelbaum, Massey, Whitt: "Server
staffing to meet time-varying demand", 1996), with the waiting jobs spread over T'.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import exp
from typing import Final, Literal

from fleetd.core.learn import boot_estimate
from fleetd.core.memory import PoolMemory, QueueMemory
from fleetd.core.model import Observation, Policy, QueuePolicy, Seconds
from fleetd.core.track import Draft

Peaks = tuple[tuple[Seconds, float], ...]  # (when, need), falling
HEADROOM: Final = 0.7  # of the objective is planned with; the rest is for what the plan does not know
HOLD_FLOOR_S: Final[dict[str, Seconds]] = {"calm": 300.0, "thrifty": 10.0}
MEASURED_AT: Final = 3.0  # ended jobs from which on a mean is called measured


@dataclass(frozen=True, slots=True)
class Demand:
    """What an app needs: `need` slots now, `keep` slots not to go below; `frozen` forbids scale-in, with the reason."""

    app: str
    need: float
    keep: float
    waiting: int
    running: int
    urgency: tuple[int, Seconds]  # priority first, then the tightest objective: small is urgent
    frozen: str = ""
    why: str = ""


def demands(draft: Draft, observation: Observation, policy: Policy) -> tuple[dict[str, Demand], dict[str, Peaks]]:
    """Return the demand of every app, and its updated peaks of need."""
    result: dict[str, Demand] = {}
    peaks: dict[str, Peaks] = {}
    for app in policy.apps:
        queues = {name: queue for name, queue in policy.queues.items() if queue.app == app}
        for name, queue in queues.items():
            draft.queues[name] = _needs(draft.queues[name], queue, policy, draft.now)
        need = sum(draft.queues[name].need for name in queues)
        if any(draft.queues[name].waiting and draft.queues[name].need for name in queues):
            need = max(need, 1.0)  # however short the jobs, somebody has to run them
        hold_s = hold(app, policy, draft.pools)
        peaks[app] = push(draft.memory.peaks.get(app, ()), draft.now, need, hold_s)
        floor = float(observation.floors.get(app, 0))
        result[app] = Demand(
            app=app,
            need=max(need, floor),
            keep=max(peaks[app][0][1], floor),
            waiting=sum(draft.queues[name].waiting for name in queues),
            running=sum(draft.queues[name].running for name in queues),
            urgency=_urgency(queues.values()),
            frozen=_frozen(queues, draft, policy),
            why=_why(queues, draft.queues, floor),
        )
    return result, peaks


def need_of(queue: QueueMemory, policy: QueuePolicy) -> float:
    """Return the slots that one queue needs by the formula above; at least a little while any job is there."""
    within_s, mean_s = HEADROOM * policy.objective.wait_s, mean_service(queue, policy)
    stays = exp(-within_s / mean_s)
    arriving = max(0.0, queue.rate) * mean_s * (1.0 - stays)
    waiting = queue.waiting * mean_s / (mean_s + within_s)
    return queue.running * stays + arriving + waiting


def mean_service(queue: QueueMemory, policy: QueuePolicy) -> Seconds:
    """Return the mean service time: ended jobs and the ages of running ones, over the ended (censored exponential).

    The prior, worth one job at first and less with each measured, is the owner's hint, otherwise the objective itself:
    while nothing is known, every waiting job is given about half a slot.
    """
    prior_s = policy.service_s if policy.service_s is not None else HEADROOM * policy.objective.wait_s
    weight = 1.0 / (1.0 + queue.service_n)
    exposure_s = queue.service_sum_s + queue.running_sum_s
    return max(1e-6, (exposure_s + weight * prior_s) / (queue.service_n + weight))


def _needs(queue: QueueMemory, policy: QueuePolicy, fleet: Policy, now: Seconds) -> QueueMemory:
    """Renew the need from the reading. A blind queue keeps its last; past the grace, what the owner declared."""
    if queue.why_blind and queue.read_at != now:
        gives_up = _given_up(queue, policy, fleet, now)
        return replace(queue, need=0.0) if gives_up else queue
    return replace(queue, need=need_of(queue, policy))


def _given_up(queue: QueueMemory, policy: QueuePolicy, fleet: Policy, now: Seconds) -> bool:
    rule = fleet.sources[policy.source].on_blind
    return rule.then == "min" and queue.blind_at is not None and now - queue.blind_at > rule.hold_s


def _frozen(queues: Mapping[str, QueuePolicy], draft: Draft, policy: Policy) -> str:
    blind = [
        f"{name} is blind ({draft.queues[name].why_blind})"
        for name, queue in queues.items()
        if draft.queues[name].blind_at is not None and not _given_up(draft.queues[name], queue, policy, draft.now)
    ]
    return "; ".join(blind)


def _urgency(queues: Iterable[QueuePolicy]) -> tuple[int, Seconds]:
    ranks: dict[Literal["low", "normal", "high"], int] = {"high": 0, "normal": 1, "low": 2}
    listed = [(ranks[q.priority], q.objective.wait_s) for q in queues]
    return min(listed, default=(3, 0.0))


# ── how long capacity is kept


def hold(app: str, policy: Policy, pools: Mapping[str, PoolMemory]) -> Seconds:
    """Return how long past need keeps capacity: twice the paid boot, and not less than the dial `stability` says.

    After twice its boot an idle slot has cost what booting it again would: the ski-rental bound.
    """
    paid_s = [
        max(boot_estimate(pools.get(name, PoolMemory())), pool.billing_minimum_s)
        for name, pool in policy.pools.items()
        if app in pool.apps
    ]
    return max(2.0 * max(paid_s, default=0.0), HOLD_FLOOR_S[policy.stability])


def push(peaks: Peaks, now: Seconds, need: float, hold_s: Seconds) -> Peaks:
    """Add a need to the falling maxima of the last `hold_s` seconds; the first of them is the maximum."""
    kept = [(at, value) for at, value in peaks if now - at <= hold_s and value > need]
    return (*kept, (now, need))


# ── why, in words


def _why(queues: Mapping[str, QueuePolicy], memory: Mapping[str, QueueMemory], floor: float) -> str:
    parts = []
    for name, policy in queues.items():
        queue = memory[name]
        if queue.blind_at is not None and queue.why_blind:
            parts.append(f"{name}: blind ({queue.why_blind}), held at {queue.need:.1f} slots")
            continue
        mean_s = mean_service(queue, policy)
        known = "measured" if queue.service_n >= MEASURED_AT else "assumed"
        parts.append(
            f"{name}: {queue.waiting} waiting, {queue.running} running, {max(0.0, queue.rate):.1f}/s arriving, "
            f"{mean_s:.3g} s each ({known}), to start within {policy.objective.wait_s:g} s: {queue.need:.1f} slots"
        )
    if floor:
        parts.append(f"a schedule wants {floor:.0f} slots")
    return "; ".join(parts) or "no queue names it"
