"""From the recorded history of a fleet to what a simulation needs: traces, the history before them, what it really was.

Promises: the same rows and seed give the same jobs; counts are those that were recorded, to the job. Where a row tells
only how many, the moment is drawn within the row, and the length of the service from those that ended within the hour
around it, evenly on the scale of their buckets.
"""

import random
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from typing import Final

from fleetd.codecs.history import HistoryRow, QueueRow
from fleetd.core.model import Policy, QueuePolicy, Seconds
from fleetd.errors import UsageError
from fleetd.sim.result import QueueResult, Result, Series
from fleetd.sim.trace import History, Trace

AROUND_S: Final = 1800.0  # services are drawn from the jobs that ended so long before and after
ENOUGH: Final = 20  # ended jobs there; with fewer, those of the whole time are drawn from
GAP_S: Final = 60.0  # rows further apart than that have a time between them that nobody saw
ROW_S: Final = 10.0
SEASON_STEP_S: Final = 300.0
SERIES_STEPS: Final = 2400
REAL: Final = "recorded"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A time that was recorded: `start_s` since 1970. `real`: what happened, its waits estimated to about a row."""

    start_s: float
    length_s: Seconds
    traces: Mapping[str, Trace]
    history: Mapping[str, History]
    real: Result
    unseen_s: Seconds = 0.0


def recorded(
    rows: Iterable[HistoryRow], policy: Policy, since_s: float, seed: int, least_step_s: Seconds = ROW_S
) -> Recorded:
    """Return the time from `since_s` on; rows before it make the history that a forecast begins with.

    What really happened has its series in some 2400 steps, each of at least `least_step_s`.
    """
    before, judged = _Before(), list[HistoryRow]()
    for row in rows:
        if row.at_s < since_s:
            before.add(row)
        else:
            judged.append(row)
    if not any(queue.arrived for row in judged for queue in row.queues.values()):
        raise UsageError(
            f"fleet {policy.fleet}: no job is recorded in that time; a running controller records one row every 10 s"
        )
    start_s, end_s = judged[0].at_s, judged[-1].at_s + judged[-1].length_s
    gaps = [(a.at_s + a.length_s, b.at_s) for a, b in pairwise(judged)]
    return Recorded(
        start_s,
        end_s - start_s,
        {name: _trace(name, queue, judged, seed) for name, queue in policy.queues.items()},
        {name: history for name in policy.queues if (history := before.history(name, start_s)).rows},
        what_happened(judged, policy, least_step_s),
        sum(until - since for since, until in gaps if until - since > GAP_S),
    )


# ── jobs


def _trace(name: str, policy: QueuePolicy, rows: Sequence[HistoryRow], seed: int) -> Trace:
    trace, start_s = Trace(array("d"), array("d")), rows[0].at_s
    whole: Counter[int] = Counter()
    for row in rows:
        whole.update(row.queues.get(name, _NONE).ended)
    near = _Near(name, rows)
    last: HistoryRow | None = None
    for row in rows:
        queue = row.queues.get(name, _NONE)
        rng = random.Random(f"{seed}/{name}/{row.at_s:.3f}")  # noqa: S311 - chance that comes again
        unseen = _unseen(name, last, row)
        ended = near.around(row)
        lengths = _lengths(ended if ended.total() >= ENOUGH else whole, policy, queue.arrived + unseen, rng)
        moments: list[float] = []
        if last is not None and unseen:
            ended_s = last.at_s + last.length_s
            moments = sorted(rng.uniform(ended_s, row.at_s) for _ in range(unseen))
        elif unseen:
            moments = [row.at_s] * unseen  # they waited already when the record began
        moments += sorted(row.at_s + rng.random() * row.length_s for _ in range(queue.arrived))
        trace.submitted_s.extend(at_s - start_s for at_s in moments)
        trace.service_s.extend(lengths)
        last = row
    return trace


def _unseen(name: str, last: HistoryRow | None, row: HistoryRow) -> int:
    """Return the jobs that waited at a row's beginning and that no row told of: at the start, and after a gap."""
    queue = row.queues.get(name, _NONE)
    at_first = max(0, queue.waiting - queue.arrived + queue.started)
    if last is None:
        return at_first
    if row.at_s - last.at_s - last.length_s <= GAP_S:
        return 0
    return max(0, at_first - last.queues.get(name, _NONE).waiting)


class _Near:
    """The ended jobs of the hour around a row, as rows are asked for in order."""

    def __init__(self, name: str, rows: Sequence[HistoryRow]) -> None:
        self._name, self._rows, self._next = name, rows, 0
        self._held: deque[HistoryRow] = deque()
        self._count: Counter[int] = Counter()

    def around(self, row: HistoryRow) -> Counter[int]:
        while self._next < len(self._rows) and self._rows[self._next].at_s <= row.at_s + AROUND_S:
            taken = self._rows[self._next]
            self._held.append(taken)
            self._count.update(taken.queues.get(self._name, _NONE).ended)
            self._next += 1
        while self._held[0].at_s < row.at_s - AROUND_S:
            self._count.subtract(self._held.popleft().queues.get(self._name, _NONE).ended)
        return self._count


def _lengths(ended: Counter[int], policy: QueuePolicy, count: int, rng: random.Random) -> list[Seconds]:
    """Draw lengths of service from buckets floor(4·log2(milliseconds))."""
    if not count:
        return []
    buckets = sorted(bucket for bucket, jobs in ended.items() if jobs > 0)
    if not buckets:
        if policy.service_s is None:
            raise UsageError(
                f"queue {policy.name}: no worker told how long its jobs take: give it `service: 20s` in the policy"
            )
        return [policy.service_s] * count
    sums = list(accumulate(ended[bucket] for bucket in buckets))
    drawn = [buckets[bisect_left(sums, rng.random() * sums[-1])] for _ in range(count)]
    return [2.0 ** ((bucket + rng.random()) / 4.0) / 1000.0 for bucket in drawn]


class _Before:
    """Arrivals before the start, by step: weeks of rows are not kept."""

    def __init__(self) -> None:
        self._arrived: dict[str, Counter[int]] = defaultdict(Counter)
        self._seen_s: Counter[int] = Counter()

    def add(self, row: HistoryRow) -> None:
        """Take in a row."""
        step = int((row.at_s + 0.5 * row.length_s) // SEASON_STEP_S)
        self._seen_s[step] += ceil(row.length_s)
        for name, queue in row.queues.items():
            self._arrived[name][step] += queue.arrived

    def history(self, name: str, start_s: float) -> History:
        """Return a queue's arrivals in even steps; those that were not seen for at least half are left out."""
        arrived = self._arrived.get(name, Counter())
        steps = [step for step in sorted(self._seen_s) if self._seen_s[step] >= 0.5 * SEASON_STEP_S]
        rows = [(step * SEASON_STEP_S - start_s, arrived[step]) for step in steps]
        return History(SEASON_STEP_S, tuple(row for row in rows if row[0] + SEASON_STEP_S <= 0.0))


# ── what really happened


def what_happened(rows: Sequence[HistoryRow], policy: Policy, least_step_s: Seconds) -> Result:
    """Return the recorded time as a simulation would tell it. A wait goes from a row of arrivals to one of starts."""
    waits = {name: _waits(name, rows) for name in policy.queues}
    queues = {name: _queue_result(one, policy.queues[name].objective.wait_s) for name, one in waits.items() if one}
    everything = sorted(pair for one in waits.values() for _, pair in one)
    jobs = sum(count for _, count in everything)
    late = sum(queue.late_share * queue.jobs for queue in queues.values())
    pools = [pool for row in rows for pool in row.pools.values()]
    return Result(
        policy=REAL,
        cost_worker_s=sum(pool.node_s for pool in pools),
        cost_money=sum(pool.money for pool in pools),
        late_share=late / jobs if jobs else 0.0,
        wait_p50_s=_percentile(everything, 0.5),
        wait_p95_s=_percentile(everything, 0.95),
        wait_p99_s=_percentile(everything, 0.99),
        launches=sum(pool.launched for pool in pools),
        stops=sum(pool.stopped for pool in pools),
        reversals_300s=sum(_reversals(name, rows) for name in policy.pools),
        jobs=jobs,
        lost=0,
        queues=queues,
        series=_series(rows, policy, waits, least_step_s),
        notes=("what really happened; waits are estimated from counts, to about 10 s",),
    )


Pairs = list[tuple[float, tuple[Seconds, int]]]  # (when they came, (how long they waited, how many))


def _waits(name: str, rows: Sequence[HistoryRow]) -> Pairs:
    """Return the waits of the jobs that started, first come first served."""
    waiting: deque[tuple[float, int]] = deque()
    result: Pairs = []
    for row in rows:
        queue, middle_s = row.queues.get(name, _NONE), row.at_s + 0.5 * row.length_s
        if queue.arrived:
            waiting.append((middle_s, queue.arrived))
        left = queue.started
        while left and waiting:
            came_s, count = waiting.popleft()
            taken = min(left, count)
            left -= taken
            result.append((came_s, (middle_s - came_s, taken)))
            if count > taken:
                waiting.appendleft((came_s, count - taken))
    return result


def _queue_result(waits: Pairs, objective_s: Seconds) -> QueueResult:
    ordered = sorted(pair for _, pair in waits)
    jobs = sum(count for _, count in ordered)
    late = sum(count for wait_s, count in ordered if wait_s > objective_s)
    return QueueResult(jobs, late / jobs if jobs else 0.0, _percentile(ordered, 0.95), objective_s)


def _percentile(ordered: Sequence[tuple[Seconds, int]], share: float) -> Seconds:
    """Return the nearest rank among (value, how often), smallest first."""
    wanted = ceil(share * sum(count for _, count in ordered))
    for value, count in ordered:
        wanted -= count
        if wanted <= 0:
            return value
    return 0.0


def _reversals(name: str, rows: Sequence[HistoryRow]) -> int:
    """Count changes of direction within 300 s of the change before."""
    count, direction, at_s = 0, 0, 0.0
    for row in rows:
        pool = row.pools.get(name)
        for way, moved in ((1, pool.launched), (-1, pool.stopped)) if pool else ():
            if moved:
                count += direction == -way and row.at_s - at_s <= 300.0
                direction, at_s = way, row.at_s
    return count


def _series(rows: Sequence[HistoryRow], policy: Policy, waits: Mapping[str, Pairs], least_step_s: Seconds) -> Series:
    start_s, length_s = rows[0].at_s, rows[-1].at_s + rows[-1].length_s - rows[0].at_s
    step_s = max(least_step_s, ceil(length_s / SERIES_STEPS / ROW_S) * ROW_S)
    steps = max(1, ceil(length_s / step_s))
    at_end: list[HistoryRow | None] = [None] * steps
    money = [0.0] * steps
    for row in rows:
        at = min(steps - 1, int((row.at_s - start_s) / step_s))
        at_end[at] = row
        money[at] += sum(pool.money for pool in row.pools.values())
    came: list[list[tuple[Seconds, int]]] = [[] for _ in range(steps)]
    for one in waits.values():
        for came_s, pair in one:
            came[min(steps - 1, int((came_s - start_s) / step_s))].append(pair)
    queues = [list(row.queues.values()) if row else [] for row in at_end]
    return Series(
        step_s,
        tuple(sum(queue.waiting for queue in one) for one in queues),
        tuple(sum(queue.running for queue in one) for one in queues),
        {
            name: tuple(row.pools[name].ready if row and name in row.pools else 0 for row in at_end)
            for name in policy.pools
        },
        {
            name: tuple(row.pools[name].coming if row and name in row.pools else 0 for row in at_end)
            for name in policy.pools
        },
        tuple(_percentile(sorted(one), 0.95) for one in came),
        tuple(money),
    )


_NONE: Final = QueueRow()
