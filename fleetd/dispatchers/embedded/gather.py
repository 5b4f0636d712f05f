"""What the journal is still to learn, gathered into batches, and who waits for which.

Promises: pure. An end or a death is never forgotten: where its batch could not be written it is in the next one. A
submission of a batch that could not be written is given back to be refused. One batch is under way at a time.
"""

from dataclasses import dataclass, field

from fleetd.dispatchers.embedded.model import GONE, Batch, Job, Peer, Row


@dataclass(slots=True, eq=False)
class Gather:
    """Not `durable`: everything is passed over, and nothing waits."""

    durable: bool
    batch: int = 1  # the one that is being gathered
    _jobs: list[Job] = field(default_factory=list)
    _taken: list[Job] = field(default_factory=list)
    _dead: dict[int, Row] = field(default_factory=dict)
    _attempts: dict[int, int] = field(default_factory=dict)
    _ends: list[int] = field(default_factory=list)
    _unsettled: dict[Job, int] = field(default_factory=dict)
    _holding: dict[int, dict[Peer, None]] = field(default_factory=dict)

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for the batch that is being gathered."""
        return self.batch in self._holding

    @property
    def stale(self) -> bool:
        """Whether there is anything for the journal."""
        return bool(self._jobs or self._dead or self._attempts or self._ends or self.urgent)

    def put(self, job: Job) -> None:
        """A background job was submitted."""
        if self.durable:
            self._jobs.append(job)
            self._unsettled[job] = self.batch

    def bury(self, row: Row) -> None:
        """A job became a dead letter."""
        if self.durable:
            self._dead[row.number] = row
            self._attempts.pop(row.number, None)

    def attempt(self, number: int, attempts: int) -> None:
        """A job waits again."""
        if self.durable:
            self._attempts[number] = attempts

    def end(self, number: int) -> None:
        """A background job is no more."""
        if self.durable:
            self._ends.append(number)

    def awaited(self, job: Job) -> int | None:
        """Return the batch that is to bring the job to disk, None where it needs none."""
        return self._unsettled.get(job)

    def hold(self, peer: Peer, batch: int, good: bytes, bad: bytes) -> None:
        """Answer a peer once the batch is settled."""
        peer.hold(batch, good, bad)
        self._holding.setdefault(batch, {})[peer] = None

    def take(self) -> Batch:
        """Close the batch that was gathered; `settle` is due before the next is taken."""
        rows = [row_of(job) for job in self._jobs if job.state != GONE]
        batch = Batch(self.batch, (*rows, *self._dead.values()), self._attempts, tuple(self._ends))
        self._taken, self._jobs = self._jobs, []
        self._dead, self._attempts, self._ends = {}, {}, []
        self.batch += 1
        return batch

    def settle(self, batch: Batch, *, good: bool) -> tuple[list[Job], list[Peer]]:
        """Hear what became of a batch; return its submissions and the peers that were answered."""
        jobs, self._taken = self._taken, []
        for job in jobs:
            del self._unsettled[job]
        if not good:
            living = {number: times for number, times in batch.attempts.items() if number not in self._dead}
            self._attempts = living | self._attempts
            self._dead = {row.number: row for row in batch.rows if row.dead} | self._dead
            self._ends = [*batch.ends, *self._ends]
        peers = list(self._holding.pop(batch.number, ()))
        for peer in peers:
            peer.release(batch.number, good=good)
        return jobs, peers


def row_of(job: Job, dead: str = "", died: float = 0.0) -> Row:
    """Return a job as the journal keeps it."""
    name = job.function.name
    return Row(job.number, name, job.unique, job.payload, job.priority, job.since, job.attempts, dead, died)
