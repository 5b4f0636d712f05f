"""What is learned from what was seen: how jobs come and how long they take, and how long nodes take to boot.

Numbers in, numbers out. Work that the workers report counts whether or not the source can be read. Where workers tell
nothing of their jobs (foreign ones), starts are estimated from the running and the mean service time.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from math import exp
from typing import Final

from fleetd.core.flow import follow, rate, settle, spread
from fleetd.core.forecast import observe, prime_season
from fleetd.core.life import bucket_of, live
from fleetd.core.margin import learn_price
from fleetd.core.memory import Memory, PoolMemory, QueueMemory
from fleetd.core.model import Policy, QueuePolicy, Reading, Seconds, Work

HEADROOM: Final = 0.7  # of the objective: for working off who waits, and for a job of which nothing is known
BOOTS_KNOWN: Final = 3  # from so many on a pool is known
BOOT_FLOOR_S: Final = 30.0
BOOT_UNKNOWN_S: Final = 300.0
GRACE_S: Final = 300.0
JUDGED_S: Final = 3 * 86400.0  # within which late jobs fade
LEAD_S: Final = 30.0  # for an order to be heard and a rush to begin early
NOTHING: Final = Work()


def prior(policy: QueuePolicy) -> Seconds:
    """Return the mean service time to begin with: the owner's hint, otherwise most of the objective."""
    return policy.service_s if policy.service_s is not None else HEADROOM * policy.objective.wait_s


def mean_service(queue: QueueMemory, policy: QueuePolicy) -> Seconds:
    """Return the mean service time, as far as it is known."""
    return queue.life.curve.mean_s if queue.life.curve is not None else prior(policy)


def learn(
    queue: QueueMemory,
    policy: QueuePolicy,
    reading: Reading | None,
    told: Work | None,
    now: Seconds,
    *,
    blind_at: Seconds | None,
    why_blind: str,
    safe: bool = False,
) -> QueueMemory:
    """Return the queue with a reading (None: it is blind) and the workers' counts since the last tick folded in."""
    work = told or NOTHING
    begun = queue.read_at is not None
    waiting = queue.waiting if reading is None else max(0, reading.waiting)
    running = queue.running if reading is None else max(0, reading.running)
    since = queue.learned_at if queue.learned_at is not None else now
    knows = queue.told or work.started > 0
    started, owed = (work.started, 0.0) if knows else _estimated_starts(queue, policy, running, now - since)
    flow, judged, late = queue.flow, 0, 0.0
    if begun:
        arrived = started + waiting - queue.waiting
        if reading is not None and queue.read_at is not None and now > since:
            flow = spread(flow, waiting - queue.waiting, queue.read_at, since)
            flow, judged, late = follow(flow, arrived, started, wait_s=policy.objective.wait_s, since=since, now=now)
        elif reading is None and started:  # as many came as went, as far as is known
            flow, _, _ = follow(flow, started, started, wait_s=policy.objective.wait_s, since=since, now=now)
        if (
            flow.begun_at is not None and now - flow.begun_at < GRACE_S
        ):  # what was late before anybody looked tells nothing
            judged, late = 0, 0.0
    elif reading is not None:
        arrived = 0
        flow = settle(flow, waiting, reading.oldest_wait_s, now)
    else:
        arrived = 0
    kept = exp((since - now) / JUDGED_S)
    seen = queue.judged * kept + judged
    return QueueMemory(
        waiting=waiting,
        running=running,
        read_at=queue.read_at if reading is None else now,
        learned_at=now,
        blind_at=blind_at,
        why_blind=why_blind,
        flow=flow,
        life=live(queue.life, work.ended or _lumped(work), work.running_s, prior(policy), now),
        season=observe(queue.season, max(0, arrived), now) if begun else queue.season,
        rate=rate(flow, now) if reading is not None else queue.rate,
        need=queue.need,
        price_s=learn_price(
            queue.price_s,
            judged,
            late,
            allowed=1.0 - policy.objective.share,
            share=queue.late / max(1.0, queue.judged),
            known=queue.judged,
            safe=safe,
        ),
        judged=seen,
        late=queue.late * kept + late,
        told=knows,
        owed=owed,
    )


def _estimated_starts(queue: QueueMemory, policy: QueuePolicy, running: int, elapsed_s: Seconds) -> tuple[int, float]:
    """Return the starts that explain the running: those that ended were replaced. And the fraction left over."""
    ended = 0.5 * (queue.running + running) * elapsed_s / mean_service(queue, policy)
    starts = queue.owed + ended + running - queue.running
    whole = max(0, int(starts))
    return whole, max(-100.0, starts - whole)


def _lumped(work: Work) -> dict[int, int]:
    """Return the ended jobs as if all had taken the mean, where the workers do not tell their lengths."""
    ended = work.done + work.failed
    return {bucket_of(work.service_s / ended): ended} if ended and work.service_s > 0.0 else {}


def boot_deadline(pool: PoolMemory) -> Seconds:
    """How long a boot may take: three times the slowest of the last boots, with a floor; generous while unknown."""
    floor_s = BOOT_FLOOR_S if len(pool.boots_s) >= BOOTS_KNOWN else BOOT_UNKNOWN_S
    return max(floor_s, 3.0 * max(pool.boots_s, default=0.0))


def boot_estimate(pool: PoolMemory, share: float = 0.95) -> Seconds:
    """Return a percentile of the last boots, the 95th unless told otherwise; zero while unknown."""
    ordered = _in_order(pool.boots_s)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@lru_cache(maxsize=64)
def _in_order(boots_s: tuple[Seconds, ...]) -> tuple[Seconds, ...]:
    """Return boots as they are asked for, several times a tick; new ones come once in many."""
    return tuple(sorted(boots_s))


def leads(policy: Policy, memory: Memory) -> dict[str, Seconds]:
    """Return, by app, how long before its start a schedule's floor begins: the time that its nodes take to boot."""
    result = dict.fromkeys(policy.apps, 0.0)
    for name, pool in policy.pools.items():
        boot_s = boot_estimate(memory.pools[name]) if name in memory.pools else 0.0
        for app in pool.apps:
            result[app] = max(result[app], boot_s + LEAD_S)
    return result


def prime(memory: Memory, queue: str, rows: Iterable[tuple[Seconds, int]], step_s: Seconds) -> Memory:
    """Return memory that knows a queue's history: (start, arrivals within `step_s`), oldest first, on its clock."""
    known = memory.queues.get(queue, QueueMemory())
    known = replace(known, season=prime_season(known.season, rows, step_s))
    return replace(memory, queues={**memory.queues, queue: known})
