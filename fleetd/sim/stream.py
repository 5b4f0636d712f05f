"""The jobs of one app and one priority, as one stream in the order of their submission, and what is known of them.

Promises: they start in their order, so that how many have started says which have; a job is its place in the stream.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import accumulate
from math import inf, log2
from typing import Final

from fleetd.core.model import Policy, Seconds, Work
from fleetd.sim.trace import Trace

LEAST_S: Final = 0.001  # what is shorter is counted in the first bucket
RANKS: Final = ("high", "normal", "low")


@dataclass(frozen=True, slots=True)
class Waits:
    """What the jobs of a queue waited: those that started, and so far those that did not."""

    queue: str
    started: "array[float]"
    unstarted: "array[float]"


class Stream:
    """A stream of jobs. `kinds` tells the queue of each, where there are more queues than one."""

    def __init__(self, traces: Sequence[tuple[str, Trace]]) -> None:
        self.queues = tuple(name for name, _ in traces)
        self.kinds: list[int] | None = None
        if len(traces) == 1:
            self.submitted, self.service = list(traces[0][1].submitted_s), list(traces[0][1].service_s)
        else:
            jobs = list(merge(*(_jobs(kind, trace) for kind, (_, trace) in enumerate(traces))))
            self.submitted, self.service = [job[0] for job in jobs], [job[3] for job in jobs]
            self.kinds = [job[1] for job in jobs]
        self.count = len(self.submitted)
        self.submitted.append(inf)  # so that the engine need not ask whether there is another
        self.worked = array("d", accumulate(self.service, initial=0.0))  # service of the first so many jobs
        self.waits = array("d")  # of every job that has started
        self.head = 0  # the next job to start
        self.arrived = 0  # jobs submitted by the latest moment looked at
        self.done: list[int] = []  # jobs that ended since they were last taken
        self.told = 0  # jobs whose start was taken
        self._buckets: list[int] | None = None

    @property
    def buckets(self) -> list[int]:
        """Of every job, the bucket of its service time, as workers report it."""
        if self._buckets is None:
            self._buckets = [int(4.0 * log2(1000.0 * took_s)) if took_s >= LEAST_S else 0 for took_s in self.service]
        return self._buckets

    def look(self, now: Seconds) -> None:
        """Count the arrivals up to now."""
        self.arrived = bisect_right(self.submitted, now, self.arrived, self.count)

    def counts(self, runs: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Return, by queue, how many jobs wait, and how many of these run."""
        if self.kinds is None:
            return {self.queues[0]: (self.arrived - self.head, len(runs))}
        kinds = self.kinds
        waiting, running = Counter(kinds[self.head : self.arrived]), Counter([kinds[job] for job in runs])
        return {name: (waiting[kind], running[kind]) for kind, name in enumerate(self.queues)}

    def take_work(self, runs: Sequence[int], ages: Sequence[Seconds]) -> dict[str, Work]:
        """Return, by queue, what was done since the last call, and of the jobs that run their ages."""
        done, started = self.done[:], self.head - self.told
        self.done.clear()
        kinds, first, self.told = self.kinds, self.told, self.head
        if kinds is None:
            return {self.queues[0]: self._work(started, done, tuple(ages))}
        starts, result = Counter(kinds[first : self.head]), {}
        for kind, name in enumerate(self.queues):
            mine = tuple([age for job, age in zip(runs, ages, strict=True) if kinds[job] == kind])
            result[name] = self._work(starts[kind], [job for job in done if kinds[job] == kind], mine)
        return result

    def _work(self, started: int, done: list[int], ages: tuple[Seconds, ...]) -> Work:
        service, buckets = self.service, self.buckets
        took_s = sum([service[job] for job in done])
        return Work(started, len(done), 0, took_s, ages, Counter([buckets[job] for job in done]))

    def split(self, from_s: Seconds, now: Seconds) -> list[Waits]:
        """Return, by queue, the waits of the jobs submitted from `from_s` on."""
        first = bisect_left(self.submitted, from_s, 0, self.count)
        head = max(first, self.head)
        lost = array("d", [now - at for at in self.submitted[head : self.count]])
        if self.kinds is None:
            return [Waits(self.queues[0], self.waits[first:], lost)]
        result = [Waits(name, array("d"), array("d")) for name in self.queues]
        for kind, wait in zip(self.kinds[first : self.head], self.waits[first:], strict=True):
            result[kind].started.append(wait)
        for kind, wait in zip(self.kinds[head:], lost, strict=True):
            result[kind].unstarted.append(wait)
        return result


def streams(policy: Policy, app: str, traces: Mapping[str, Trace]) -> list[Stream]:
    """Return an app's jobs, a stream for each priority that its queues have, the highest first."""
    of: dict[str, list[tuple[str, Trace]]] = {}
    for name in sorted(policy.queues):
        if policy.queues[name].app == app:
            trace = traces.get(name) or Trace(array("d"), array("d"))
            of.setdefault(policy.queues[name].priority, []).append((name, trace))
    return [Stream(of[rank]) for rank in RANKS if rank in of]


def _jobs(kind: int, trace: Trace) -> Iterator[tuple[Seconds, int, int, Seconds]]:
    """Yield what sorts by submission, then by the queues' order, then by the order within the queue."""
    for number, (at_s, took_s) in enumerate(zip(trace.submitted_s, trace.service_s, strict=True)):
        yield at_s, kind, number, took_s
