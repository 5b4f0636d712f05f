"""The queue: submissions, hand-outs, ends and deaths in, packets for the peers and changes for the journal out.

Promises: pure: no I/O, no clock, no chance; time is an argument and never runs backwards. A job that was acknowledged
ends in exactly one way: a worker ended it, it was cancelled, it became a dead letter, or (in the foreground alone) all
its clients left while it waited. It has at most one owner. Within a function a higher priority always goes first, and
equals in the order of their submission; over functions a worker is served in turn. What is to be durable is
acknowledged, and shown to workers, only after `settle` has told that its batch is on disk.
"""

from collections.abc import Iterable
from typing import Final

from fleetd.codecs.gearman import MAX_UNIQUE, RES, Kind, encode
from fleetd.dispatchers.embedded.gather import Gather, row_of
from fleetd.dispatchers.embedded.limits import Limits
from fleetd.dispatchers.embedded.model import DELAYED, GONE, PENDING, RUNNING, WAITING, Batch, Function, Job, Peer, Row
from fleetd.dispatchers.embedded.rules import (
    FULL,
    JOURNAL_FAULT,
    MAX_FUNCTION,
    MAX_FUNCTIONS,
    NAME_FAULT,
    UNIQUE_FAULT,
    Ask,
    Rules,
    error,
    text,
)
from fleetd.dispatchers.embedded.sleepers import Sleepers
from fleetd.dispatchers.embedded.timers import Timers

_CREATED: Final = b"\0RES" + bytes((0, 0, 0, Kind.JOB_CREATED))


class Queue:
    """Everything a dispatcher knows. The server hands over what happens, and sends what the `dirty` peers are due.

    `last` is the number of the last job; the journal sees to it that none is used twice.
    """

    def __init__(self, rules: Rules, last: int = 0) -> None:
        self.rules = rules
        self.last = last
        self.jobs: dict[int, Job] = {}
        self.functions: dict[bytes, Function] = {}
        self.letters: dict[int, Row] = {}
        self.peers: dict[int, Peer] = {}
        self.dirty: dict[Peer, None] = {}
        self.notes: list[str] = []  # for the log
        self.shutdown = ""  # "now" or "graceful", once somebody asked for it
        self.timers = Timers()
        self.sleepers = Sleepers(self.timers, self.send)
        self.gather = Gather(rules.durable)
        self.limits = Limits(self.timers, self.give_up)

    # ── peers

    def join(self, ident: int, host: str) -> Peer:
        """Begin a connection."""
        peer = self.peers[ident] = Peer(ident, host, proven=not self.rules.token)
        return peer

    def leave(self, peer: Peer, now: float) -> None:
        """End a connection: its jobs are waiting again at once, and nobody waits for those that it submitted."""
        del self.peers[peer.ident]
        self.dirty.pop(peer, None)
        peer.held.clear()
        for job in list(peer.watching):
            self._unwatch(job, peer)
        ring = list(peer.ring)
        self.forget(peer)
        for job in list(peer.running.values()):
            self.give_up(job, now, "its worker's connection closed")
        if peer.woken:  # the job that it was woken for is another's now
            for function in ring:
                self.sleepers.wake(function, now)

    def send(self, peer: Peer, data: bytes) -> None:
        """Let a peer have a packet, behind everything it is still owed."""
        if peer.held:
            peer.hold(0, data, data)
        else:
            peer.out.append(data)
        self.dirty[peer] = None

    def close(self, peer: Peer, why: str) -> None:
        """Let the server close a connection once it was sent what is due."""
        peer.fault = why
        self.dirty[peer] = None

    def can(self, peer: Peer, name: bytes, limit_s: float, now: float) -> None:
        """Note that a worker serves a function, for at most `limit_s` seconds a job where that is not 0."""
        function = self.function(name)
        if function is None:
            self.send(peer, NAME_FAULT)
            return
        if function not in peer.abilities:
            function.workers += 1
            peer.ring.append(function)
        peer.abilities[function] = limit_s
        if peer.asleep:
            self.sleepers.sleep(peer, now)

    def cannot(self, peer: Peer, name: bytes) -> None:
        """Note that a worker takes no more of a function. What it runs, it runs on (gearmand would queue it again)."""
        function = self.functions.get(name)
        if function is not None and peer.abilities.pop(function, None) is not None:
            function.workers -= 1
            function.sleepers.pop(peer, None)
            peer.ring.remove(function)

    def forget(self, peer: Peer) -> None:
        """Note that a worker takes no more of anything."""
        for function in list(peer.abilities):
            self.cannot(peer, function.name)

    def function(self, name: bytes) -> Function | None:
        """Return a function, new where it was never heard of; None where the name is none, or there are too many."""
        found = self.functions.get(name)
        if found is None and 0 < len(name) <= MAX_FUNCTION and text(name).isprintable():
            if len(self.functions) >= MAX_FUNCTIONS:
                self.functions = {key: one for key, one in self.functions.items() if one.total or one.workers}
            if len(self.functions) < MAX_FUNCTIONS:
                limit = self.rules.max_queue
                found = self.functions[name] = Function(name, [limit, limit, limit])
        return found

    # ── submissions

    def submit(self, peer: Peer, ask: Ask, now: float) -> None:
        """Take a job, or let it be one with the same unique, and answer; or refuse."""
        if len(ask.unique) > MAX_UNIQUE:
            self.send(peer, UNIQUE_FAULT)
        elif len(ask.payload) > self.rules.max_payload:
            self.send(peer, error(b"ARGUMENT_TOO_LARGE", f"The payload may have {self.rules.max_payload} bytes"))
        elif (function := self.function(ask.name)) is None:
            self.send(peer, NAME_FAULT)
        else:
            key = ask.unique if ask.unique != b"-" else b"\0" + ask.payload
            job = function.by_key.get(key) if key else None
            if job is None:
                limit = function.limits[ask.priority]
                if limit and function.total >= limit:
                    self.send(peer, FULL)
                    return
                job = self._new(function, key, ask, now)
            elif ask.background and not job.background:
                # gearmand confirms this one and then drops it together with the foreground client.
                job.background = True
                self.gather.put(job)
            if not ask.background:
                job.clients = [*job.clients, peer]
                peer.watching[job] = None
            self._confirm(peer, job)

    def _new(self, function: Function, key: bytes, ask: Ask, now: float) -> Job:
        self.last += 1
        since = max(now, ask.epoch)
        job = Job(self.last, function, ask.unique, ask.payload, ask.priority, since, ask.background)
        self.jobs[job.number] = job
        if key:
            function.by_key[key] = job
        function.total += 1
        if ask.background and self.rules.durable:
            self.gather.put(job)
        else:
            self._offer(job, now)
        return job

    def _confirm(self, peer: Peer, job: Job) -> None:
        handle = self.handle(job)
        data = _CREATED + len(handle).to_bytes(4, "big") + handle
        batch = self.gather.awaited(job)
        if batch is None:
            self.send(peer, data)
        else:
            self.gather.hold(peer, batch, data, JOURNAL_FAULT)

    def _offer(self, job: Job, now: float) -> None:
        """Let a job wait for a worker, or first for its epoch."""
        if job.since > now:
            job.state = DELAYED
            self.timers.later(job.since, lambda at: self._due(job, at))
            return
        job.function.push(job)
        if job.function.sleepers:
            self.sleepers.wake(job.function, now)

    def _due(self, job: Job, now: float) -> None:
        if job.state == DELAYED:
            job.since = now  # behind those that wait already
            self._offer(job, now)

    def settle(self, batch: Batch, now: float, *, good: bool) -> None:
        """Hear whether a batch is on disk: answer who waits for it, and show its jobs to workers, or forget them."""
        jobs, peers = self.gather.settle(batch, good=good)
        for job in jobs:
            if good:
                if job.state == PENDING:
                    self._offer(job, now)
            elif job.state == PENDING:
                self._detach(job)
            elif job.state != GONE:
                job.background = False  # it was a foreground job before
                if not job.clients and job.state != RUNNING:
                    self._detach(job)
        for peer in peers:
            if self.peers.get(peer.ident) is peer:
                self.dirty[peer] = None

    # ── workers

    def grab(self, peer: Peer, now: float) -> Job | None:
        """Hand out a job: the functions in turn, so that none starves beside a busy one."""
        self.sleepers.get_up(peer)
        ring = peer.ring
        for step in range(len(ring)):
            at = (peer.turn + step) % len(ring)
            function = ring[at]
            if function.waiting:
                peer.turn = at + 1
                job = function.pop()
                job.state = RUNNING
                job.owner = peer
                peer.running[job.number] = job
                function.running += 1
                if limit_s := peer.abilities[function]:
                    self.limits.begin(job, now + limit_s, now)
                return job
        return None

    def give_up(self, job: Job, now: float, why: str) -> None:
        """Take a running job from its worker: it waits again, or it has used up its attempts."""
        self._disown(job)
        job.attempts += 1
        job.state = GONE
        job.progress = (b"0", b"0")
        if not job.background and not job.clients:
            self.finish(job)
        elif job.attempts >= self.rules.attempts:
            self._die(job, now, f"{why}, attempt {job.attempts} of {self.rules.attempts}")
        else:
            if job.background:
                self.gather.attempt(job.number, job.attempts)
            job.function.push_back(job)
            self.sleepers.wake(job.function, now)

    def _disown(self, job: Job) -> None:
        owner, job.owner = job.owner, None
        if owner is not None:
            del owner.running[job.number]
            job.function.running -= 1
            self.limits.end(job)

    # ── ends

    def finish(self, job: Job) -> None:
        """End a job for good; whoever is to hear of it has heard."""
        self._detach(job)
        if job.background:
            self.gather.end(job.number)

    def cancel(self, job: Job) -> bool:
        """Take a job that nobody runs out of the queue; its clients are told that it failed."""
        if job.state == RUNNING:
            return False
        self.tell(job, encode(Kind.WORK_FAIL, self.handle(job), magic=RES))
        self.finish(job)
        return True

    def _die(self, job: Job, now: float, why: str) -> None:
        handle = self.handle(job)
        self.tell(job, encode(Kind.WORK_WARNING, handle, why.encode(), magic=RES))
        self.tell(job, encode(Kind.WORK_FAIL, handle, magic=RES))
        row = row_of(job, why, now)
        self._detach(job)
        self.notes.append(f"job {handle.decode()} of {text(row.function)} is dead: {why}")
        if job.background:
            self.letters[job.number] = row
            self.gather.bury(row)

    def revive(self, number: int, now: float) -> bool:
        """Let a dead letter wait again, its attempts forgotten."""
        row = self.letters.pop(number, None)
        if row is None:
            return False
        self.gather.attempt(number, 0)
        self._admit(row, 0, now, now)
        return True

    def drop(self, number: int) -> bool:
        """Throw a dead letter away."""
        if self.letters.pop(number, None) is None:
            return False
        self.gather.end(number)
        return True

    def recover(self, rows: Iterable[Row], now: float) -> None:
        """Take in what the journal held."""
        for row in rows:
            if row.dead:
                self.letters[row.number] = row
            else:
                self._admit(row, row.attempts, row.since, now)

    def _admit(self, row: Row, attempts: int, since: float, now: float) -> None:
        function = self.function(row.function)
        assert function is not None, "its name was accepted before"
        job = Job(row.number, function, row.unique, row.payload, row.priority, since, background=True)
        job.attempts = attempts
        self.jobs[job.number] = job
        if job.key:
            function.by_key.setdefault(job.key, job)
        function.total += 1
        self._offer(job, now)

    def _detach(self, job: Job) -> None:
        """Forget a job everywhere."""
        function = job.function
        if job.state == WAITING:
            function.withdraw(job)
        self._disown(job)
        job.state = GONE
        del self.jobs[job.number]
        function.total -= 1
        if function.by_key.get(job.key) is job:
            del function.by_key[job.key]
        for peer in job.clients:
            peer.watching.pop(job, None)
        job.clients = ()
        job.payload = b""  # a queue may hold the job itself a while longer

    def _unwatch(self, job: Job, peer: Peer) -> None:
        """Note that a client left. Nobody runs a job for nobody; one that runs already is run to its end."""
        job.clients = [other for other in job.clients if other is not peer]
        peer.watching.pop(job, None)
        if not job.clients and not job.background and job.state != RUNNING:
            self.finish(job)

    def tell(self, job: Job, data: bytes) -> None:
        """Let all its clients have a packet."""
        for peer in job.clients:
            self.send(peer, data)

    def handle(self, job: Job) -> bytes:
        """Return the name of a job towards clients and workers."""
        return b"%s%d" % (self.rules.prefix, job.number)

    def by_handle(self, handle: bytes) -> Job | None:
        """Return the job of a handle, where it is there still."""
        number = handle.removeprefix(self.rules.prefix)
        if len(number) == len(handle) or not number.isdigit() or len(number) > 18:
            return None
        return self.jobs.get(int(number))
