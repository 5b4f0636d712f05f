"""What is learned from what was seen: arrival rates, service times, boot times. Numbers in, numbers out.

Arrivals are starts plus the growth of the waiting, counted over a sliding window (docs/decisions/0003). Service times
are sums that older jobs fade out of. Work that the workers report counts whether or not the source can be read.
"""

from dataclasses import replace
from math import exp, floor
from typing import Final

from fleetd.core.memory import PoolMemory, QueueMemory
from fleetd.core.model import Reading, Seconds, Work

RATE_WINDOW_S: Final = 30.0
RATE_BUCKET_S: Final = 5.0
SERVICE_TAU_S: Final = 600.0
BOOT_FLOOR_S: Final = 30.0
BOOT_UNKNOWN_S: Final = 300.0
Arrivals = tuple[tuple[Seconds, int], ...]  # (start of the bucket, how many)


def learn(queue: QueueMemory, reading: Reading | None, work: Work, now: Seconds) -> QueueMemory:
    """Return the queue with a reading (None: it is blind) and the workers' counts since the last tick folded in."""
    seen = queue.read_at is not None
    waiting = queue.waiting if reading is None else max(0, reading.waiting)
    running = queue.running if reading is None else max(0, reading.running)
    arrived = work.started + waiting - queue.waiting if seen else 0  # what waited before the first look came unseen
    arrivals = _count(queue.arrivals, now, arrived)
    kept = exp(-max(0.0, now - queue.learned_at) / SERVICE_TAU_S) if queue.learned_at is not None else 1.0
    return replace(
        queue,
        waiting=waiting,
        running=running,
        read_at=queue.read_at if reading is None else now,
        learned_at=now,
        arrivals=arrivals,
        rate=max(0.0, sum(count for _, count in arrivals)) / RATE_WINDOW_S,
        service_n=queue.service_n * kept + work.done + work.failed,
        service_sum_s=queue.service_sum_s * kept + work.service_s,
        running_sum_s=sum(work.running_s),
    )


def _count(arrivals: Arrivals, now: Seconds, arrived: int) -> Arrivals:
    """Add arrivals to the bucket of now, and forget what is older than the window."""
    bucket = floor(now / RATE_BUCKET_S) * RATE_BUCKET_S
    kept = tuple((at, count) for at, count in arrivals if now - at <= RATE_WINDOW_S)
    if kept and kept[-1][0] == bucket:
        return (*kept[:-1], (bucket, kept[-1][1] + arrived))
    return (*kept, (bucket, arrived)) if arrived else kept


def boot_deadline(pool: PoolMemory) -> Seconds:
    """How long a boot may take: three times the slowest of the last boots, with a floor; generous while unknown."""
    return max(BOOT_FLOOR_S, 3.0 * max(pool.boots_s)) if pool.boots_s else BOOT_UNKNOWN_S


def boot_estimate(pool: PoolMemory) -> Seconds:
    """The 95th percentile of the last boots; zero while unknown."""
    ordered = sorted(pool.boots_s)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] if ordered else 0.0
