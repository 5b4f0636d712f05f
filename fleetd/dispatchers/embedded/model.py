"""What the embedded dispatcher holds: jobs, functions and connections. Data alone; `queue` decides what becomes of it.

Promises: a waiting job costs one slotted object, its payload, its unique and two index entries, and no more: a
million of them must fit into a laptop. No I/O, no clock.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

HIGH, NORMAL, LOW = range(3)
PENDING: Final = 0  # in the background, not yet on disk: no worker sees it
DELAYED: Final = 1  # its epoch is to come
WAITING: Final = 2
RUNNING: Final = 3
GONE: Final = 4  # ended, dropped or dead; a queue may still hold it and passes it over
_SLACK: Final = 64


@dataclass(slots=True, eq=False)
class Job:
    """One job. `since`: when it began to wait (of a delayed one: its epoch). Plain integers, not enums: a million."""

    number: int
    function: "Function"
    unique: bytes
    payload: bytes
    priority: int
    since: float
    background: bool
    state: int = PENDING
    attempts: int = 0  # how often it was handed out and its worker died
    owner: "Peer | None" = None
    clients: "Sequence[Peer]" = ()  # once for each submission, because each is answered
    progress: tuple[bytes, bytes] = (b"0", b"0")

    @property
    def key(self) -> bytes:
        """What makes two submissions one; empty: nothing does. A unique of "-" means the payload itself."""
        return self.unique if self.unique != b"-" else b"\0" + self.payload


@dataclass(slots=True, eq=False)
class Function:
    """One function's queues, by priority, and who could serve it."""

    name: bytes
    limits: list[int]  # by priority: jobs, running ones included, beyond which a priority is refused; 0 = never
    queues: tuple[deque[Job], deque[Job], deque[Job]] = field(default_factory=lambda: (deque(), deque(), deque()))
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])  # those that wait, without the GONE
    waiting: int = 0
    total: int = 0
    running: int = 0
    workers: int = 0
    by_key: dict[bytes, Job] = field(default_factory=dict)
    sleepers: "dict[Peer, None]" = field(default_factory=dict)
    watched: bool = False  # whether a look at its sleepers is due

    def push(self, job: Job) -> None:
        """Let the job wait behind all others."""
        queue = self.queues[job.priority]
        if queue and queue[-1].since > job.since:  # an epoch that passed while the job was written
            job.since = queue[-1].since
        queue.append(job)
        self._count(job)

    def push_back(self, job: Job) -> None:
        """Let a job that was handed out wait again, in its old place: among the few that are as old, near the front."""
        queue = self.queues[job.priority]
        age = (job.since, job.number)
        at = next((at for at, other in enumerate(queue) if (other.since, other.number) > age), len(queue))
        queue.insert(at, job)
        self._count(job)

    def _count(self, job: Job) -> None:
        job.state = WAITING
        self.counts[job.priority] += 1
        self.waiting += 1

    def pop(self) -> Job:
        """Return the job to run next. There must be one."""
        for priority in (HIGH, NORMAL, LOW):
            if self.counts[priority]:
                job = self._first(priority)
                self.queues[priority].popleft()
                self._forget(priority)
                return job
        raise AssertionError("nothing waits")

    def withdraw(self, job: Job) -> None:
        """Take a waiting job out. Its place is only marked, and cleared with others once there are many."""
        job.state = GONE
        self._forget(job.priority)
        queue = self.queues[job.priority]
        if len(queue) > 2 * self.counts[job.priority] + _SLACK:
            kept = [other for other in queue if other.state == WAITING]
            queue.clear()
            queue.extend(kept)

    def oldest(self) -> float | None:
        """Return since when the oldest waiting job waits."""
        return min((self._first(p).since for p in (HIGH, NORMAL, LOW) if self.counts[p]), default=None)

    def _first(self, priority: int) -> Job:
        queue = self.queues[priority]
        while queue[0].state != WAITING:
            queue.popleft()
        return queue[0]

    def _forget(self, priority: int) -> None:
        self.counts[priority] -= 1
        self.waiting -= 1


@dataclass(slots=True, eq=False)
class Peer:
    """One connection: client, worker, admin, or all at once."""

    ident: int
    host: str
    proven: bool  # showed the token, or none is needed
    client_id: bytes = b"-"
    exceptions: bool = False
    abilities: dict[Function, float] = field(default_factory=dict)  # with the seconds that a job may run; 0 = any
    ring: list[Function] = field(default_factory=list)
    turn: int = 0
    running: dict[int, Job] = field(default_factory=dict)
    watching: dict[Job, None] = field(default_factory=dict)
    asleep: bool = False
    woken: bool = False  # told of a job, and did not ask for it yet
    out: list[bytes] = field(default_factory=list)
    held: deque[tuple[int, bytes, bytes]] = field(default_factory=deque)
    fault: str = ""  # why the connection is to be closed once `out` is sent

    def hold(self, batch: int, good: bytes, bad: bytes) -> None:
        """Answer once the batch is settled: `good` where it is on disk, else `bad`. What comes later waits behind it.

        Answers are matched to requests by their order, so none may overtake another.
        """
        self.held.append((batch, good, bad))

    def release(self, batch: int, *, good: bool) -> None:
        """Let go what waited for the batch, as far as nothing before it still waits for another."""
        held = self.held
        while held and held[0][0] in (0, batch):
            _, yes, no = held.popleft()
            self.out.append(yes if good else no)
        for at, (number, yes, no) in enumerate(held):
            if number == batch:
                held[at] = (0, yes, yes) if good else (0, no, no)


@dataclass(frozen=True, slots=True)
class Row:
    """A background job as the journal keeps it. A dead letter has a reason in `dead` and its time in `died`."""

    number: int
    function: bytes
    unique: bytes
    payload: bytes
    priority: int
    since: float
    attempts: int = 0
    dead: str = ""
    died: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit writes, in this order: rows, attempts (of a living job) by number, and the numbers that ended."""

    number: int
    rows: tuple[Row, ...]
    attempts: dict[int, int]
    ends: tuple[int, ...]
