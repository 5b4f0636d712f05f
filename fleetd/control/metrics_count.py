"""What the controller counts while it runs: plain numbers by family and labels, for the metrics page.

Promises: adding is cheap and never fails; no family holds more than `MOST_SERIES` label sets, whatever anybody sends;
each job, boot and decision is counted once. Knows nothing of how a page is written.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from math import exp
from typing import Final, get_args

from fleetd.codecs.history import HistoryRow
from fleetd.codecs.lease import Lease, ReleaseCounts
from fleetd.control import metrics_names as names
from fleetd.control.metrics_names import OTHER, OUTCOMES, Family
from fleetd.core.budget import price
from fleetd.core.learn import JUDGED_S
from fleetd.core.life import EDGES
from fleetd.core.lifecycle import COMING
from fleetd.core.memory import Memory, Rollout
from fleetd.core.model import (
    Command,
    Intent,
    Launch,
    Launched,
    Observation,
    Phase,
    Plan,
    Policy,
    Seconds,
    Stopped,
    Work,
)
from fleetd.errors import ExhaustedError, RefusedError

MOST_SERIES: Final = 4000
DIGITS: Final = 12  # of a release's digest
# A job of bucket b took less than its upper edge: the first bound at or above that holds it.
_BOUND_OF: Final = tuple(bisect_left(names.SERVICE_BUCKETS, edge * 0.999) for edge in EDGES[1:])
Labels = tuple[str, ...]


@dataclass(slots=True)
class Spread:
    """The content of a histogram: how many fell under each bound (the last: above all), and their sum."""

    counts: list[int]
    sum: float = 0.0


@dataclass(slots=True)
class Counts:
    """Counters and histograms by the name of their family and their labels."""

    numbers: dict[str, dict[Labels, float]] = field(default_factory=dict)
    spreads: dict[str, dict[Labels, Spread]] = field(default_factory=dict)
    dropped: int = 0
    letters: dict[str, None] = field(default_factory=dict)  # the last few that were counted, oldest first

    def add(self, family: Family, *labels: str, by: float = 1.0) -> None:
        """Count."""
        of = self.numbers.setdefault(family.name, {})
        if labels in of:
            of[labels] += by
        elif len(of) < MOST_SERIES:
            of[labels] = by
        else:
            self.dropped += 1

    def observe(self, family: Family, *labels: str, value: float | None = None) -> None:
        """Note a value in a histogram; None only sees that the histogram is there."""
        spread = self._spread(family, labels)
        if spread is not None and value is not None:
            spread.counts[bisect_left(family.buckets, value)] += 1
            spread.sum += value

    def buried(self, queue: str, letter: str) -> None:
        """Count a dead letter once: it comes with every lease until it is confirmed, and workers may share a spool."""
        if letter not in self.letters:
            self.letters[letter] = None
            self.add(names.DEAD_COME, queue)
        if len(self.letters) > MOST_SERIES:
            del self.letters[next(iter(self.letters))]

    def served(self, queue: str, work: Work) -> None:
        """Note how long jobs took, from the buckets that workers report."""
        spread = self._spread(names.QUEUE_SECONDS, (queue,))
        if spread is not None:
            for bucket, count in work.ended.items():
                spread.counts[_BOUND_OF[min(max(bucket, 0), len(_BOUND_OF) - 1)]] += count
            spread.sum += work.service_s

    @contextmanager
    def call(self, side: str, adapter: str, call: str) -> Iterator[None]:
        """Time a call to the outside and note how it ended; a cancelled one did not end."""
        began, outcome = time.monotonic(), "ok"
        try:
            yield
        except TimeoutError:
            outcome = "timeout"
            raise
        except ExhaustedError:
            outcome = "exhausted"
            raise
        except RefusedError:
            outcome = "refused"
            raise
        except Exception:
            outcome = "error"
            raise
        except BaseException:
            outcome = ""
            raise
        finally:
            if outcome:
                self.add(names.CALLS, side, adapter, call, outcome)
                self.observe(names.CALL_SECONDS, side, adapter, call, value=time.monotonic() - began)

    def copy(self) -> "Counts":
        """Return what another thread may read while this one counts on."""
        spreads = {
            name: {labels: Spread(list(one.counts), one.sum) for labels, one in of.items()}
            for name, of in self.spreads.items()
        }
        return Counts({name: dict(of) for name, of in self.numbers.items()}, spreads, self.dropped)

    def keep(self, family: Family, labels: frozenset[Labels]) -> None:
        """Forget what does not begin with one of these labels."""
        of = self.numbers.get(family.name, {})
        for one in [one for one in of if one[: len(next(iter(labels), ()))] not in labels]:
            del of[one]

    def _spread(self, family: Family, labels: Labels) -> Spread | None:
        of = self.spreads.setdefault(family.name, {})
        if labels not in of:
            if len(of) >= MOST_SERIES:
                self.dropped += 1
                return None
            of[labels] = Spread([0] * (len(family.buckets) + 1))
        return of[labels]


# ── what a policy will count


def prepare(counts: Counts, policy: Policy) -> None:
    """Begin at zero what the policy's names will count, so that the first count is seen as a rise."""
    queues, pools = tuple(policy.queues), tuple(policy.pools)
    # By the labels of a family. What is known only once it is there (a call, a node, a release) is not here.
    starts: Mapping[Labels, Iterable[Labels]] = {
        (): [()],
        ("queue",): [*product(queues)],
        ("queue", "outcome"): [*product(queues, OUTCOMES)],
        ("pool",): [*product(pools)],
        ("pool", "outcome"): [*product(pools, OUTCOMES)],
        ("pool", "kind"): [*product(pools, names.DECISION_KINDS)],
        ("kind",): [*product(map(_word, get_args(Command)))],
        ("outcome",): [*product(("ok", "error"))],
        ("reason",): [*product(names.REFUSALS)],
    }
    counts.add(names.DEAD_COME, OTHER, by=0)
    for family in names.FAMILIES:
        for labels in starts.get(family.labels, ()):
            if family.kind == "counter":
                counts.add(family, *labels, by=0)
            elif family.kind == "histogram":
                counts.observe(family, *labels)


def _word(command: type[Command]) -> str:
    return command.__name__.removesuffix("Command").lower()


# ── what a tick did


def count_tick(counts: Counts, observation: Observation, policy: Policy, memories: tuple[Memory, Memory]) -> None:
    """Count what a tick that was carried out took in; `memories` are those before and after it."""
    before, after = memories
    for queue, work in observation.work.items():
        counts.add(names.QUEUE_STARTED, queue, by=work.started)
        counts.add(names.QUEUE_JOBS, queue, "done", by=work.done)
        counts.add(names.QUEUE_JOBS, queue, "failed", by=work.failed)
        counts.served(queue, work)
    for queue in policy.queues:
        judged, late = _judged(before, after, queue)
        counts.add(names.QUEUE_JUDGED, queue, by=judged)
        counts.add(names.QUEUE_LATE_JOBS, queue, by=late)
    for outcome in observation.outcomes:
        if isinstance(outcome, (Launched, Stopped)):
            family = names.POOL_LAUNCHED if isinstance(outcome, Launched) else names.POOL_STOPPED
            for node in outcome.nodes:
                counts.add(family, node.partition("/")[0])
        if isinstance(outcome, Stopped) and outcome.wrong and outcome.nodes:
            counts.add(names.WRONG_VICTIMS, outcome.nodes[0].partition("/")[0], by=outcome.wrong)
    _count_boots(counts, before, after)
    if after.rollouts != before.rollouts:
        known = known_releases(after.rollouts)
        counts.keep(names.RELEASE_JOBS, known)
        for labels in product(known, names.RELEASE_OUTCOMES):
            counts.add(names.RELEASE_JOBS, *labels[0], labels[1], by=0)


def count_plan(counts: Counts, plan: Plan, commands: Iterable[Command]) -> None:
    """Count what was decided, and which commands were taken."""
    for intent in plan.intents:
        counts.add(names.DECISIONS, _pool_of(intent), type(intent).__name__.lower())
    for command in commands:
        counts.add(names.COMMANDS, _word(type(command)))


def count_row(counts: Counts, row: HistoryRow, observation: Observation, policy: Policy) -> None:
    """Count what only the recorded history knows: arrivals, the jobs of foreign workers, money."""
    for name, queue in row.queues.items():
        counts.add(names.QUEUE_ARRIVED, name, by=queue.arrived)
        if policy.apps[policy.queues[name].app].exec:
            counts.add(names.QUEUE_STARTED, name, by=queue.started)
            counts.add(names.QUEUE_JOBS, name, "done", by=queue.done)
    for name, pool in row.pools.items():
        rule = policy.pools[name]
        counts.add(names.POOL_COST, name, by=pool.money)
        counts.add(names.POOL_NODE_SECONDS, name, by=pool.node_s)
        whole = rule.max_nodes * price(rule, observation) * row.length_s / 3600.0
        counts.add(names.POOL_STATIC, name, by=whole)


def _judged(before: Memory, after: Memory, queue: str) -> tuple[float, float]:
    """Return the jobs judged in a tick, and those that were late: what was added beyond the fading."""
    old, new = before.queues.get(queue), after.queues.get(queue)
    if old is None or new is None or old.learned_at is None or new.learned_at is None:
        return 0.0, 0.0
    kept = exp((old.learned_at - new.learned_at) / JUDGED_S)
    judged = max(0.0, new.judged - old.judged * kept)
    return judged, min(judged, max(0.0, new.late - old.late * kept))


def _count_boots(counts: Counts, before: Memory, after: Memory) -> None:
    for name, node in after.nodes.items():
        old = before.nodes.get(name)
        if old is node or (old is not None and old.phase not in COMING):
            continue
        if node.phase is Phase.READY and node.key:  # of a stray nobody knows when it was started
            counts.observe(names.POOL_BOOT, node.pool, value=max(0.0, after.now - node.launched_at))
        elif old is not None and node.phase is Phase.FAILED:
            counts.add(names.POOL_FAILED, node.pool)
    for name in before.nodes.keys() - after.nodes.keys():
        if before.nodes[name].phase in COMING:
            counts.add(names.POOL_FAILED, before.nodes[name].pool)


def _pool_of(intent: Intent) -> str:
    return intent.order.pool if isinstance(intent, Launch) else intent.pool


# ── what a lease tells


def count_lease(
    counts: Counts, lease: Lease, before: Lease | None, policy: Policy, rollouts: Mapping[str, Rollout]
) -> None:
    """Count what is new in a worker's lease. Of a worker met in mid-life, what it did before is not news."""
    counts.add(names.LEASES)
    if before is None and lease.seq > 1:
        return
    pool = lease.pool if lease.pool in policy.pools else OTHER
    done, failed, spent_s = _ended(lease)
    old_done, old_failed, old_s = _ended(before) if before else (0, 0, 0.0)
    counts.add(names.WORKER_JOBS, pool, "done", by=max(0, done - old_done))
    counts.add(names.WORKER_JOBS, pool, "failed", by=max(0, failed - old_failed))
    counts.add(names.WORKER_SECONDS, pool, by=max(0.0, spent_s - old_s))
    counts.add(names.WORKER_CRASHES, pool, by=max(0, lease.crashes - (before.crashes if before else 0)))
    if lease.app not in policy.apps:
        return
    for digest, new in lease.releases.items():
        old = before.releases.get(digest, ReleaseCounts()) if before else ReleaseCounts()
        release = label_of(digest, rollouts.get(lease.app))
        for outcome in names.RELEASE_OUTCOMES:
            if (more := getattr(new, outcome) - getattr(old, outcome)) > 0:
                counts.add(names.RELEASE_JOBS, lease.app, release, outcome, by=more)


def _ended(lease: Lease) -> tuple[int, int, Seconds]:
    jobs = lease.jobs.values()
    return sum(one.done for one in jobs), sum(one.failed for one in jobs), sum(one.service_s for one in jobs)


def label_of(digest: str, rollout: Rollout | None) -> str:
    """Return the digits of a release that the rollout knows; a worker's word for any other is no label."""
    if not digest:
        return ""
    if rollout and (digest in (rollout.active, rollout.previous, rollout.candidate) or digest in rollout.refused):
        return digest[:DIGITS]
    return OTHER


def known_releases(rollouts: Mapping[str, Rollout]) -> frozenset[Labels]:
    """Return all (app, release) that may be labels."""
    return frozenset(
        (app, digest[:DIGITS])
        for app, one in rollouts.items()
        for digest in (one.active, one.previous, one.candidate, *one.refused, OTHER)
        if digest
    )
