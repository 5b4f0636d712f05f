"""The workers' leases and the orders that wait for them. In memory; what matters of it is in the core's memory.

Promises: a lease that is a replay is refused; a claim to be drained counts only from a worker that has heard the newest
order; counts of jobs are handed to the tick once, whatever is sent twice. Times are on the controller's steady clock.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final, Literal

from fleetd.codecs.lease import JobCounts, Lease, LeaseAnswer, WorkerOrder
from fleetd.control.metrics_count import Counts, count_lease
from fleetd.control.metrics_names import LEASES_REFUSED, UNMATCHED
from fleetd.core.memory import Node, Rollout
from fleetd.core.model import LeaseView, NodeId, Phase, Policy, Seconds, Work
from fleetd.errors import ProtocolError

CADENCE_S: Final = 2.0
TTL_S: Final = 10.0
EPOCH_BITS: Final = 24  # orders of a later epoch are newer than all of an earlier one
BOOTS_KEPT: Final = 8


@dataclass(slots=True)
class Entry:
    """One worker: its latest lease, when it came, and the newest order for it."""

    order: WorkerOrder
    lease: Lease | None = None
    heard_at: Seconds = 0.0
    done: int = 0  # by this boot of the worker
    failed: int = 0
    retired: tuple[str, ...] = ()  # boots before this one: what comes of them again is a replay
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class LeaseBook:
    """All leases of a fleet."""

    def __init__(
        self,
        epoch: int,
        policy: Policy,
        clock: Callable[[], Seconds],
        nudge: Callable[[], None],
        counts: Counts | None = None,
    ) -> None:
        """`nudge` wakes the tick when a worker's state changes; what comes is counted in `counts`."""
        self.counts = counts if counts is not None else Counts()
        self._epoch, self._clock, self._nudge = epoch, clock, nudge
        self.policy = policy
        self.rollouts: Mapping[str, Rollout] = {}  # by app; renewed with every tick
        self.entries: dict[NodeId, Entry] = {}
        self._work: dict[str, Work] = {}

    def adopt(self, nodes: Mapping[NodeId, Node]) -> None:
        """Say anew, after a restart, what each known node should be doing."""
        for name, node in nodes.items():
            self._entry(name, node.app)
            match node.phase:
                case Phase.DRAINING | Phase.STOPPING:
                    app = self.policy.apps.get(node.app)
                    self.order(name, "drain", app.drain_s if app else None)
                case Phase.QUARANTINED:
                    self.order(name, "drain")
                case _:
                    self.order(name, "work")

    def accept(self, lease: Lease) -> LeaseAnswer:
        """Take a lease in; raises ProtocolError for a foreign, stale or repeated one. Dead letters are the caller's."""
        if lease.fleet != self.policy.fleet:
            raise self._refusal(
                "foreign", f"lease: fleet {lease.fleet!r} is not served here, this is {self.policy.fleet!r}"
            )
        entry = self._entry(lease.node)
        before = entry.lease
        same = before if before is not None and before.boot == lease.boot else None
        if same is not None and lease.seq <= same.seq:
            was = f"lease: seq {lease.seq} of {lease.node} was here before ({same.seq} is the newest)"
            raise self._refusal("repeated", was)
        if lease.boot in entry.retired:
            raise self._refusal("outlived", f"lease: {lease.node} has started anew since this one was sent")
        if before is not None and same is None:
            entry.retired = (*entry.retired, before.boot)[-BOOTS_KEPT:]
        count_lease(self.counts, lease, same, self.policy, self.rollouts)
        self._count(lease, same)
        entry.lease, entry.heard_at = lease, self._clock()
        entry.done, entry.failed = (sum(getattr(one, how) for one in lease.jobs.values()) for how in ("done", "failed"))
        self._mind_order(entry, lease)
        if before is None or before.state != lease.state or (before.busy > 0) != (lease.busy > 0):
            self._nudge()
        elif lease.leaving and not before.leaving:
            self._nudge()  # its replacement is to be ordered at once
        return LeaseAnswer(next_s=CADENCE_S, ttl_s=TTL_S)

    def _refusal(self, reason: str, text: str) -> ProtocolError:
        self.counts.add(LEASES_REFUSED, reason)
        return ProtocolError(text)

    def order(self, node: NodeId, state: Literal["work", "drain", "stop"], deadline_s: Seconds | None = None) -> None:
        """Give a worker its newest order and wake its long poll."""
        entry = self._entry(node)
        before = entry.order
        _renew(entry, replace(before, number=before.number + 1, state=state, deadline_s=deadline_s, epoch=self._epoch))

    def reload(self, node: NodeId, digest: str, pardoned: str = "") -> None:
        """Have a worker run a release, and forget that it refused another."""
        entry = self._entry(node)
        number = entry.order.number + 1
        _renew(entry, replace(entry.order, number=number, release=digest, pardoned=pardoned, epoch=self._epoch))

    async def wait(self, node: NodeId, after: int, limit_s: Seconds, app: str = "") -> WorkerOrder | None:
        """Return the newest order once its number is above `after`; None where none came within `limit_s`.

        A worker that is new here is told with it which release of its app to run.
        """
        entry = self._entry(node, app)
        if entry.order.number <= after:
            changed = entry.changed
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await changed.wait()
        return entry.order if entry.order.number > after else None

    def let_go(self) -> None:
        """Answer every long poll, so that the end of the controller waits for none."""
        for entry in self.entries.values():
            entry.changed.set()

    def views(self) -> dict[NodeId, LeaseView]:
        """Return what each worker last said, with its age."""
        now = self._clock()
        return {name: _view(entry, entry.lease, now) for name, entry in self.entries.items() if entry.lease}

    def take_work(self) -> dict[str, Work]:
        """Return what was done since the last call, by queue, with the ages of what runs now."""
        work, self._work = self._work, {}
        now = self._clock()
        running: dict[str, list[Seconds]] = {}
        for entry in self.entries.values():
            if entry.lease is None or now - entry.heard_at > TTL_S:
                continue
            for function, counts in entry.lease.jobs.items():
                queue = self.queue_of(function)
                if queue:
                    ages = [age + now - entry.heard_at for age in counts.running_s]
                    running.setdefault(queue, []).extend(ages)
        for queue in running.keys() | work.keys():
            done = work.get(queue, Work())
            work[queue] = replace(done, running_s=tuple(running.get(queue, ())))
        return work

    def give_back(self, work: Mapping[str, Work]) -> None:
        """Take back what `take_work` gave to a tick that failed."""
        for queue, done in work.items():
            self._add(queue, done)

    def forget(self, known: Mapping[NodeId, Node]) -> None:
        """Drop workers that are neither known nor heard of for long."""
        now = self._clock()
        for name, entry in list(self.entries.items()):
            if name not in known and now - entry.heard_at > 10 * TTL_S:
                del self.entries[name]

    def _entry(self, node: NodeId, app: str = "") -> Entry:
        entry = self.entries.get(node)
        if entry is None:
            first = WorkerOrder(self._epoch << EPOCH_BITS, "work", None, self._release(node, app), epoch=self._epoch)
            entry = self.entries[node] = Entry(first, heard_at=self._clock())
        elif app and not entry.order.release and (release := self._release(node, app)):
            _renew(entry, replace(entry.order, number=entry.order.number + 1, release=release))
        return entry

    def _release(self, node: NodeId, app: str) -> str:
        """Return what a worker should run: what it was told last, or its app's active release."""
        rollout = self.rollouts.get(app)
        return rollout.told.get(node, rollout.active) if rollout else ""

    def queue_of(self, function: str) -> str | None:
        """Return the queue that a job function belongs to."""
        for name, queue in self.policy.queues.items():
            if fnmatchcase(function, queue.match):
                return name
        return None

    def _mind_order(self, entry: Entry, lease: Lease) -> None:
        """Order workers of no pool of ours to end; number orders above what a worker has heard from a lost memory."""
        if lease.pool not in self.policy.pools and entry.order.state != "stop":
            self.order(lease.node, "stop")
        if lease.order > entry.order.number:
            _renew(entry, replace(entry.order, number=lease.order + 1))

    def _count(self, lease: Lease, before: Lease | None) -> None:
        """Add what is new in the counts. Of a worker met in mid-life, what it did before is not news."""
        if before is None and lease.seq > 1:
            return
        for function, counts in lease.jobs.items():
            queue, old = self.queue_of(function), before.jobs.get(function, JobCounts()) if before else JobCounts()
            if queue is None:
                self.counts.add(UNMATCHED, by=max(0, counts.done + counts.failed - old.done - old.failed))
                continue
            new = Work(
                max(0, counts.started - old.started),
                max(0, counts.done - old.done),
                max(0, counts.failed - old.failed),
                max(0.0, counts.service_s - old.service_s),
                ended=_news(counts.buckets, old.buckets),
            )
            self._add(queue, new)

    def _add(self, queue: str, new: Work) -> None:
        sum_ = self._work.get(queue, Work())
        self._work[queue] = Work(
            sum_.started + new.started,
            sum_.done + new.done,
            sum_.failed + new.failed,
            sum_.service_s + new.service_s,
            ended=dict(Counter(sum_.ended) + Counter(new.ended)),
        )


def _leaving(lease: Lease) -> str:
    if not lease.leaving or lease.leaving_s is None:
        return lease.leaving
    return f"{lease.leaving}, {lease.leaving_s:.0f} s left"


def _news(buckets: Mapping[str, int], before: Mapping[str, int]) -> dict[int, int]:
    """Return what was added to each bucket; jobs of less than a millisecond share the lowest."""
    added: dict[int, int] = {}
    for name, count in buckets.items():
        if (more := count - before.get(name, 0)) > 0:
            bucket = max(0, int(name))
            added[bucket] = added.get(bucket, 0) + more
    return added


def _renew(entry: Entry, order: WorkerOrder) -> None:
    entry.order = order
    entry.changed.set()
    entry.changed = asyncio.Event()


def _view(entry: Entry, lease: Lease, now: Seconds) -> LeaseView:
    # A worker that has not heard the newest order speaks of the order before: drained then is not drained now.
    heard = lease.order >= entry.order.number
    state = lease.state if heard or lease.state != "drained" else "draining"
    return LeaseView(
        lease.node,
        lease.pool,
        lease.app,
        state,
        lease.slots,
        lease.busy,
        lease.idle_s,
        now - entry.heard_at,
        lease.digest,
        lease.refused,
        lease.releases,
        _leaving(lease),
    )
