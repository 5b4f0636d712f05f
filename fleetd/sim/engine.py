"""The engine of a simulation: jobs of one app, first come first served, on slots that come and go. Floats, no objects.

Promises: a job starts the moment it may; a job that runs is never cut; of two moments that are the same an end comes
before an arrival. Knows nothing of nodes, pools, policies or chance: a station is told which slots open and close.

What makes it fast: in a queue that is first come first served the jobs start in their order, so one number, `head`,
tells all that have started, and while every slot is busy an arrival is no event at all: it is noticed at the next end.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush, heapreplace
from math import inf

from fleetd.core.model import Seconds, Work
from fleetd.sim.stream import Stream, Waits

End = tuple[Seconds, int, int, int]  # when, on which slot, of which stream, which job of it


class Station:
    """One app's jobs and slots. `run` lets time pass; between two runs slots are opened and closed.

    `streams` by falling priority. With `recent_first` the slot that was busy last gets the next job, otherwise the one
    that is idle longest.
    """

    def __init__(self, streams: Sequence[Stream], *, recent_first: bool = False) -> None:
        self.streams = tuple(streams)
        self.ends: list[End] = []  # a heap: of every running job, its end
        self.idle: deque[int] = deque()  # open slots that run nothing, the longest idle first
        self.since: list[Seconds] = []  # of every slot, when it last began or ended a job
        self.owner: list[int] = []  # of every slot, the number of its node
        self.closed: set[int] = set()
        self.now = 0.0
        self.last_end_s = 0.0
        self._recent_first = recent_first

    # ── slots

    def add(self, node: int, count: int) -> range:
        """Open new slots of a node, now; waiting jobs start on them at once."""
        slots = range(len(self.since), len(self.since) + count)
        self.since.extend([self.now] * count)
        self.owner.extend([node] * count)
        self._offer(slots)
        return slots

    def close(self, slots: Iterable[int]) -> Seconds:
        """Let slots take nothing new; return when the last of their jobs ends (now, where none runs)."""
        closing = set(slots)
        self.closed |= closing
        if len(self.idle) and not closing.isdisjoint(self.idle):
            self.idle = deque(slot for slot in self.idle if slot not in closing)
        return max((end[0] for end in self.ends if end[1] in closing), default=self.now)

    def reopen(self, slots: Iterable[int]) -> None:
        """Let closed slots take jobs again, now."""
        back = set(slots) & self.closed
        self.closed -= back
        self._offer(sorted(back - {end[1] for end in self.ends}))

    def _offer(self, slots: Iterable[int]) -> None:
        """Give free slots to the jobs that wait now, and keep the rest idle."""
        for slot in slots:
            stream = next((s for s in self.streams if s.submitted[s.head] <= self.now), None)
            if stream is None:
                self.idle.append(slot)
                continue
            job = stream.head
            stream.waits.append(self.now - stream.submitted[job])
            stream.head += 1
            self.since[slot] = self.now
            heappush(self.ends, (self.now + stream.service[job], slot, self.streams.index(stream), job))

    # ── time

    def run(self, until: Seconds) -> None:
        """Let everything happen that happens up to `until`, that moment included."""
        if len(self.streams) == 1:
            self._run_one(until)
        elif self.streams:
            self._run_many(until)
        self.now = until
        for stream in self.streams:
            stream.look(until)

    def _run_one(self, until: Seconds) -> None:
        """Run a single stream: the loop that a simulation spends its time in."""
        stream = self.streams[0]
        submitted, service, note, done = stream.submitted, stream.service, stream.waits.append, stream.done.append
        ends, idle, since, closed = self.ends, self.idle, self.since, self.closed
        take, give, head = (idle.pop if self._recent_first else idle.popleft), idle.append, stream.head
        arrival, ending, last = submitted[head], ends[0][0] if ends else inf, self.last_end_s
        while True:
            if arrival < ending and idle:
                if arrival > until:
                    break
                slot = take()
                since[slot] = arrival
                heappush(ends, (arrival + service[head], slot, 0, head))
                note(0.0)
                head += 1
                arrival = submitted[head]
            else:
                if ending > until:
                    break
                _, slot, _, job = ends[0]
                done(job)
                since[slot] = last = ending
                if arrival <= ending and not idle and slot not in closed:
                    heapreplace(ends, (ending + service[head], slot, 0, head))
                    note(ending - arrival)
                    head += 1
                    arrival = submitted[head]
                else:
                    heappop(ends)
                    if slot not in closed:
                        give(slot)
            ending = ends[0][0] if ends else inf
        stream.head, self.last_end_s = head, last

    def _run_many(self, until: Seconds) -> None:
        """Run streams of several priorities: of the jobs that wait, the highest priority's first is next."""
        ends, idle, since = self.ends, self.idle, self.since
        while True:
            ending = ends[0][0] if ends else inf
            stream, which, arrival = self._next(ending)
            if arrival < ending and idle:
                if arrival > until:
                    break
                slot, at = (idle.pop() if self._recent_first else idle.popleft()), arrival
            else:
                if ending > until:
                    break
                _, slot, of, job = heappop(ends)
                self.streams[of].done.append(job)
                since[slot] = self.last_end_s = at = ending
                if slot in self.closed:
                    continue
                if arrival > at or idle:
                    idle.append(slot)
                    continue
            since[slot] = at
            stream.waits.append(at - arrival)
            heappush(ends, (at + stream.service[stream.head], slot, which, stream.head))
            stream.head += 1

    def _next(self, ending: Seconds) -> tuple[Stream, int, Seconds]:
        """Return the stream whose job starts next: the first with a job waiting at the next end, or the next to come.

        While a slot is idle nothing waits, so that the next to come is the earliest.
        """
        which, arrival = 0, inf
        for number, stream in enumerate(self.streams):
            at = stream.submitted[stream.head]
            if at <= ending and not self.idle:
                return stream, number, at
            if at < arrival:
                which, arrival = number, at
        return self.streams[which], which, arrival

    # ── looks

    @property
    def waiting(self) -> int:
        """Jobs submitted and not started."""
        return sum(stream.arrived - stream.head for stream in self.streams)

    @property
    def running(self) -> int:
        """Jobs that run."""
        return len(self.ends)

    @property
    def last_s(self) -> Seconds:
        """When the last job is submitted; 0 where there is none."""
        return max((stream.submitted[stream.count - 1] for stream in self.streams if stream.count), default=0.0)

    def busy(self) -> Counter[int]:
        """Return, by node, how many of its slots are busy."""
        owner = self.owner
        return Counter([owner[end[1]] for end in self.ends])

    def worked_s(self) -> Seconds:
        """Return the slot-seconds worked up to now."""
        started = sum(stream.worked[stream.head] for stream in self.streams)
        return started - sum([end[0] for end in self.ends]) + len(self.ends) * self.now

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return, by queue, the jobs that wait and that run."""
        result: dict[str, tuple[int, int]] = {}
        for number, stream in enumerate(self.streams):
            if stream.kinds is None and len(self.streams) == 1:
                result[stream.queues[0]] = (stream.arrived - stream.head, len(self.ends))
            else:
                result |= stream.counts([end[3] for end in self.ends if end[2] == number])
        return result

    def take_work(self) -> dict[str, Work]:
        """Return, by queue, what was done since the last call, with the ages of what runs now."""
        now, since, ends = self.now, self.since, self.ends
        if len(self.streams) == 1:
            ages = [now - since[slot] for _, slot, _, _ in ends]
            return self.streams[0].take_work([end[3] for end in ends], ages)
        result: dict[str, Work] = {}
        for number, stream in enumerate(self.streams):
            mine = [end for end in ends if end[2] == number]
            result |= stream.take_work([end[3] for end in mine], [now - since[end[1]] for end in mine])
        return result

    def forget_work(self) -> None:
        """Drop what `take_work` would tell: nobody asks."""
        for stream in self.streams:
            stream.done.clear()
            stream.told = stream.head

    def waits(self, from_s: Seconds = 0.0) -> list[Waits]:
        """Return the waits of the jobs submitted from `from_s` on, by queue."""
        return [waits for stream in self.streams for waits in stream.split(from_s, self.now)]
