"""How often jobs ended badly, and in which words; and what the slots did, summed over the living and the dead.

Promises: bounded memory. The count is this worker's: a job that fails on another host is counted there.
"""

import signal
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fleetd.codecs.lease import JobCounts
from fleetd.worker.cell import Cell, State
from fleetd.worker.cgroup import Groups

MOST: Final = 10_000
Key = tuple[str, bytes, bytes]


class Attempts:
    """Failed attempts of jobs, by function, unique and handle.

    The handle is part of the key because clients use a unique again: tomorrow's "report" must not inherit the
    attempts of today's. A dispatcher keeps a job's handle when it queues the job again.
    """

    def __init__(self, most: int = MOST) -> None:
        self._counts: OrderedDict[Key, int] = OrderedDict()
        self._most = most

    def add(self, key: Key) -> int:
        """Count one more and return how many there are; the keys longest untouched are forgotten."""
        count = self._counts.pop(key, 0) + 1
        self._counts[key] = count
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)
        return count


def describe(code: int) -> str:
    """Say how a process ended, from its exit code (negative: the signal)."""
    if code >= 0:
        return f"its process ended with exit code {code} in the middle of the job"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "a real-time signal"
    hint = "; out of memory?" if code == -signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}{hint})"


@dataclass(slots=True)
class Faults:
    """Jobs that went wrong, each with the releases that it went wrong under; bounded, the oldest are forgotten."""

    _under: OrderedDict[Key, set[str]] = field(default_factory=OrderedDict)

    def add(self, key: Key, digest: str) -> bool:
        """Write down that a job went wrong under a release; return whether it never had before."""
        under = self._under.setdefault(key, set())
        first = not under
        under.add(digest)
        if len(self._under) > MOST:
            self._under.popitem(last=False)
        return first

    def by(self, digest: str) -> int:
        """Return how many jobs went wrong under this release and under no other: however often each was tried."""
        return sum(under == {digest} for under in self._under.values())


@dataclass(slots=True)
class Books:
    """What outlives every generation of a worker: the attempts of jobs, and whose fault a crash is."""

    attempts: Attempts = field(default_factory=Attempts)
    born: float = field(default_factory=time.monotonic)
    crashes: int = 0
    groups: Groups | None = None  # where the kernel may hold slots to their limit on memory
    crashed: Faults = field(default_factory=Faults)
    failed: Faults = field(default_factory=Faults)


@dataclass(slots=True)
class Totals:
    """What the worker's slots did, by function."""

    jobs: dict[str, JobCounts] = field(default_factory=dict)
    last_end: float = 0.0

    def fold(self, cell: Cell, names: Sequence[str]) -> None:
        """Take over a dead slot's counts. A job that it had begun and not counted is made whole by its state."""
        state = cell.state
        for row, name in enumerate(names):
            counts = cell.counts(row)
            open_jobs = counts.started - counts.done - counts.failed
            match state:
                case State.BUSY:
                    counts = replace(counts, failed=counts.failed + open_jobs)
                case State.ANSWERING:
                    counts = replace(counts, done=counts.done + open_jobs)
                case State.IDLE:
                    counts = replace(counts, started=counts.started - open_jobs)
            self.jobs[name] = add(self.jobs.get(name, JobCounts()), counts)
        self.last_end = max(self.last_end, cell.last_end)


def add(one: JobCounts, other: JobCounts) -> JobCounts:
    """Return the sum of two counts."""
    buckets = dict(one.buckets)
    for bucket, count in other.buckets.items():
        buckets[bucket] = buckets.get(bucket, 0) + count
    return JobCounts(
        one.started + other.started,
        one.done + other.done,
        one.failed + other.failed,
        one.service_s + other.service_s,
        buckets,
        one.running_s + other.running_s,
    )
