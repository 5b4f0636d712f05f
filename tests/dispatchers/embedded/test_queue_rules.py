"""Whatever the order of events: no job is lost, none has two owners, and priorities hold. With crashes in between."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fleetd.codecs.gearman import Kind
from fleetd.dispatchers.embedded.model import DELAYED, PENDING, RUNNING, WAITING, Peer
from fleetd.dispatchers.embedded.rules import Rules
from tests.dispatchers.embedded.table import Table

FUNCTIONS = (b"f", b"g")
BACKGROUND = {Kind.SUBMIT_JOB_BG, Kind.SUBMIT_JOB_HIGH_BG, Kind.SUBMIT_JOB_LOW_BG}
SUBMITS = st.sampled_from([*sorted(BACKGROUND), Kind.SUBMIT_JOB, Kind.SUBMIT_JOB_HIGH, Kind.SUBMIT_JOB_LOW])
ENDS = st.sampled_from([Kind.WORK_COMPLETE, Kind.WORK_FAIL, Kind.WORK_EXCEPTION])
PICK = st.integers(0, 1000)


# ruff: noqa: FBT001 - hypothesis gives every argument by name
class Dispatcher(RuleBasedStateMachine):
    """Clients and workers do anything at any time."""

    durable = True

    @initialize()
    def begin(self) -> None:
        self.table = Table(Rules(durable=self.durable, attempts=3))
        self.clients: list[Peer] = []
        self.workers: list[Peer] = []
        self.asked: dict[Peer, list[bool]] = {}  # a client's unanswered submissions: whether in the background
        self.kept: set[bytes] = set()  # handles of acknowledged background jobs that have not ended
        self._everybody_comes()

    def _everybody_comes(self) -> None:
        for _ in range(2):
            self.client_comes()
        for names in ((b"f",), (b"f",), FUNCTIONS):
            self.worker_comes(set(names))

    # ── what may happen

    @rule()
    def client_comes(self) -> None:
        if len(self.clients) < 4:
            peer = self.table.join()
            self.clients.append(peer)
            self.asked[peer] = []

    @rule(names=st.sets(st.sampled_from(FUNCTIONS), min_size=1))
    def worker_comes(self, names: set[bytes]) -> None:
        if len(self.workers) < 4:
            self.workers.append(self.table.worker(*sorted(names)))

    @precondition(lambda self: self.clients)
    @rule(
        pick=PICK,
        kind=SUBMITS,
        name=st.sampled_from([b"f", b"f", b"g"]),
        unique=st.sampled_from([b"", b"a", b"a", b"-"]),
    )
    def submit(self, pick: int, kind: Kind, name: bytes, unique: bytes) -> None:
        peer = self.clients[pick % len(self.clients)]
        self.asked[peer].append(kind in BACKGROUND)
        self.table.now += pick % 2 / 1000
        answers = self.table.tell(peer, kind, name, unique, b"p%d" % (pick % 3))
        self._answered(peer, answers)

    @precondition(lambda self: self.clients)
    @rule(pick=PICK)
    def client_leaves(self, pick: int) -> None:
        if pick % 3:
            return
        peer = self.clients.pop(pick % len(self.clients))
        self.table.queue.leave(peer, self.table.now)
        del self.asked[peer]

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, deaths=st.integers(1, 3))
    def worker_dies(self, pick: int, deaths: int) -> None:
        """Perhaps several of one job, one after the other."""
        peer = self.workers.pop(pick % len(self.workers))
        for _ in range(deaths - 1):
            self.table.queue.leave(peer, self.table.now)
            peer = self.table.worker(b"f")
            self.table.grab(peer)
        self.table.queue.leave(peer, self.table.now)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def grab(self, pick: int) -> None:
        queue = self.table.queue
        peer = self.workers[pick % len(self.workers)]
        waiting = [job for job in queue.jobs.values() if job.state == WAITING and job.function in peer.abilities]
        handle = self.table.grab(peer)
        if handle is None:
            assert not waiting, "a job waits, and a worker for it was sent away"
            return
        job = queue.by_handle(handle)
        assert job in waiting, "it was handed out while it did not wait"
        better = [
            o for o in waiting if o.function is job.function and (o.priority, o.since) < (job.priority, job.since)
        ]
        assert not better, "an earlier or more urgent one waits"

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def grab_once_more(self, pick: int) -> None:
        self.grab(pick)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, kind=ENDS)
    def end(self, pick: int, kind: Kind) -> None:
        peer = self.workers[pick % len(self.workers)]
        if peer.running:
            job = list(peer.running.values())[pick % len(peer.running)]
            handle = self.table.queue.handle(job)
            self.table.tell(peer, kind, handle, *((b"x",) if kind is not Kind.WORK_FAIL else ()))
            self.kept.discard(handle)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, kind=st.sampled_from([Kind.PRE_SLEEP, Kind.RESET_ABILITIES]))
    def say(self, pick: int, kind: Kind) -> None:
        self.table.tell(self.workers[pick % len(self.workers)], kind)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, name=st.sampled_from(FUNCTIONS), kind=st.sampled_from([Kind.CAN_DO, Kind.CANT_DO]))
    def turn(self, pick: int, name: bytes, kind: Kind) -> None:
        self.table.tell(self.workers[pick % len(self.workers)], kind, name)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, name=st.sampled_from(FUNCTIONS))
    def limit(self, pick: int, name: bytes) -> None:
        self.table.tell(self.workers[pick % len(self.workers)], Kind.CAN_DO_TIMEOUT, name, b"1")

    @precondition(lambda self: self.clients)
    @rule(pick=PICK)
    def delayed(self, pick: int) -> None:
        peer = self.clients[pick % len(self.clients)]
        self.asked[peer].append(True)
        epoch = b"%d" % (self.table.now + pick % 5)
        self._answered(peer, self.table.tell(peer, Kind.SUBMIT_JOB_EPOCH, b"f", b"", epoch, b""))

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.3, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.table.wait(seconds)

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        queue = self.table.queue
        if queue.jobs:
            job = list(queue.jobs.values())[pick % len(queue.jobs)]
            handle = queue.handle(job)
            if queue.cancel(job):
                self.kept.discard(handle)

    @rule(pick=PICK, again=st.booleans())
    def dead(self, pick: int, again: bool) -> None:
        queue = self.table.queue
        if queue.letters:
            number = list(queue.letters)[pick % len(queue.letters)]
            if again:
                assert queue.revive(number, self.table.now)
            else:
                assert queue.drop(number)
                self.kept.discard(b"%s%d" % (queue.rules.prefix, number))

    @rule(good=st.sampled_from([True, True, False]))
    def commit(self, good: bool) -> None:
        if self.table.taken is None:
            self.table.commit(good=good)

    @rule()
    def take(self) -> None:
        if self.table.taken is None:
            self.table.take()

    @precondition(lambda self: self.table.taken)
    @rule(good=st.sampled_from([True, True, True, False]))
    def settle(self, good: bool) -> None:
        self.table.settle(good=good)

    @rule(pick=st.integers(0, 9))
    def crash(self, pick: int) -> None:
        """What was acknowledged is there again; what ended meanwhile may be, and then runs once more."""
        if self.durable and not pick:
            for peer in self.clients:
                self._answered(peer, self.table.heard(peer))
            self.table = self.table.crash()
            self.clients, self.workers, self.asked = [], [], {}
            self._everybody_comes()

    # ── what must hold

    def _answered(self, peer: Peer, packets: list) -> None:  # type: ignore[type-arg]
        for packet in packets:
            if packet.kind in (Kind.JOB_CREATED, Kind.ERROR):
                background = self.asked[peer].pop(0)
                if packet.kind is Kind.JOB_CREATED and background:
                    job = self.table.queue.by_handle(packet.args[0])
                    if job is not None:
                        assert job.background
                        self.kept.add(packet.args[0])

    @invariant()
    def no_job_is_lost(self) -> None:
        for peer in self.clients:
            self._answered(peer, self.table.heard(peer))
        queue = self.table.queue
        for handle in self.kept:
            number = int(handle.removeprefix(queue.rules.prefix))
            assert number in queue.jobs or number in queue.letters, "lost"
            if self.durable:
                assert number in self.table.disk, "acknowledged, and not on disk"

    @invariant()
    def no_job_has_two_owners(self) -> None:
        queue = self.table.queue
        held = [job for peer in queue.peers.values() for job in peer.running.values()]
        assert len(held) == len(set(held))
        for job in queue.jobs.values():
            assert (job in held) == (job.state == RUNNING)
            assert job.state in (PENDING, DELAYED, WAITING, RUNNING)
            assert job.background or job.clients or job.state == RUNNING, "nobody wants it"
        assert set(held) <= set(queue.jobs.values())

    @invariant()
    def the_counts_are_true(self) -> None:
        queue = self.table.queue
        for function in queue.functions.values():
            jobs = [job for job in queue.jobs.values() if job.function is function]
            waiting = [job for job in jobs if job.state == WAITING]
            assert function.total == len(jobs)
            assert function.running == sum(job.state == RUNNING for job in jobs)
            assert function.waiting == len(waiting) == sum(function.counts)
            assert function.counts == [sum(job.priority == p for job in waiting) for p in range(3)]
            assert function.workers == sum(function in peer.abilities for peer in queue.peers.values())
            assert function.oldest() == min((job.since for job in waiting), default=None)
            for priority, held in enumerate(function.queues):
                assert [job for job in held if job.state == WAITING] == sorted(
                    (job for job in waiting if job.priority == priority), key=lambda job: job.since
                ) or len({job.since for job in waiting}) < len(waiting)
            assert set(function.sleepers) == {p for p in queue.peers.values() if p.asleep and function in p.abilities}

    @invariant()
    def the_disk_is_true(self) -> None:
        """Once all is written, the disk holds exactly what a restart needs."""
        queue = self.table.queue
        if self.durable and self.table.taken is None and not queue.gather.stale:
            living = {job.number: job.attempts for job in queue.jobs.values() if job.background}
            assert {row.number: row.attempts for row in self.table.disk.values() if not row.dead} == living
            assert {row.number: row for row in self.table.disk.values() if row.dead} == queue.letters

    @invariant()
    def nobody_sleeps_beside_a_job_for_long(self) -> None:
        """Where a job waits and a worker for it sleeps, a look at the sleepers is due."""
        for function in self.table.queue.functions.values():
            if function.waiting and function.sleepers:
                assert function.watched


class InMemory(Dispatcher):
    """The same without a journal."""

    durable = False


TestDurable = Dispatcher.TestCase
TestDurable.settings = settings(max_examples=100, stateful_step_count=80, deadline=None)
TestInMemory = InMemory.TestCase
TestInMemory.settings = settings(max_examples=60, stateful_step_count=80, deadline=None)
