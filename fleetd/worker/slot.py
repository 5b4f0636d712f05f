"""One slot at work: takes jobs from every dispatcher, one at a time, and answers them.

Promises: one job runs at any instant; one GRAB is out at any instant, so that no job waits in a busy slot while others
idle (only a dispatcher that owes an answer for seconds is passed over, and a job that it then assigns is run next);
no dispatcher is starved; fenced, it sends no GRAB, and says so only once nothing runs and no answer is owed. It never
waits on one dispatcher while another has work, and it never ends in the middle of a job of its own will.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from fleetd.codecs.gearman import Kind, Packet, encode
from fleetd.dispatchers.credentials import Credentials, refusal
from fleetd.dispatchers.work import WAIT_S, State, WorkConnection, dial, failure
from fleetd.errors import UnreachableError
from fleetd.worker.backoff import backoff_s
from fleetd.worker.cell import Cell, Want
from fleetd.worker.control import Control
from fleetd.worker.files import Desk
from fleetd.worker.jobs import Context, Job
from fleetd.worker.logs import event
from fleetd.worker.output import RUNNING, finish
from fleetd.worker.run import Alarm, Failure, run_async, run_plain, run_threaded
from fleetd.worker.settings import Settings
from fleetd.worker.spans import make_spans
from fleetd.worker.turns import Turns
from fleetd.worker.verdict import Duty, Taken, judge

CONNECT_S: Final = 5.0
ANSWER_S: Final = 10.0  # a fenced slot waits no longer for the answer to its last GRAB
_SETTLED_S: Final = 5.0  # a connection that lived this long starts its back-off anew


class Slot:
    """The life of one slot process, from its first connection to its last answer."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        control: Control,
        cell: Cell,
        *,
        jobs: Sequence[Job],
        parent: int,
        credentials: Credentials,
        threads: Executor | None,
        desk: Desk,
    ) -> None:
        """`threads`: others share this process, so plain jobs run there, and nobody may hold the loop up."""
        self._threads = threads
        self._settings = settings
        self._credentials = credentials
        self._name = name
        self._control = control
        self._cell = cell
        self._parent = parent
        self._duties = {
            job.name.encode(): Duty(
                row, desk.dressed(job), job.timeout_s or settings.job_limit_s or 0.0, job.attempts or settings.attempts
            )
            for row, job in enumerate(jobs)
        }
        self._turns = Turns(len(settings.servers))
        self._lost: dict[int, asyncio.Future[str]] = {}
        self._held: deque[Taken] = deque()
        self._busy = False
        self._orphan = False
        self._acknowledged = 0
        self._giving_up: asyncio.TimerHandle | None = None
        # Async jobs may leave tasks behind on the loop, so it must turn between jobs.
        self._hot = threads is None and not any(job.is_async for job in jobs)
        self._alarm = Alarm()
        self._spans = make_spans(settings)
        self._span: Any = None  # of the running job, where jobs are traced

    async def run(self) -> None:
        """Work until told to stop, or until the supervisor is gone."""
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        if self._threads is None:
            self._alarm.install()
        self._loop.add_reader(self._control.fileno(), self._hear)
        async with asyncio.TaskGroup() as self._tasks:
            keepers = [self._tasks.create_task(self._keep(at)) for at in range(len(self._turns.links))]
            if len(keepers) > 1:
                keepers.append(self._tasks.create_task(self._pass_over_late()))
            self._take()  # it may have been born fenced
            await self._finished
            for keeper in keepers:
                keeper.cancel()
        self._loop.remove_reader(self._control.fileno())
        for link in self._turns.links:
            if link is not None:
                self._loop.remove_reader(link.fileno())
                link.close()
        self._control.send({"bye": True})

    # ── connections

    async def _keep(self, at: int) -> None:
        """Keep one dispatcher connected for as long as the slot lives."""
        address, failures = self._settings.servers[at], 0
        while True:
            try:
                link = await dial(address, CONNECT_S, self._credentials)
                link.greet(self._name, (name.decode() for name in self._duties))
            except UnreachableError as error:
                failures += 1
                if failures == 1:
                    event(logging.WARNING, "dispatcher not reachable", dispatcher=address, error=error)
                await asyncio.sleep(backoff_s(failures))
                continue
            if failures:
                event(logging.INFO, "dispatcher found", dispatcher=address, tries=failures)
            since = time.monotonic()
            reason = await self._open(at, link)
            if not reason:
                failures = 0
                continue
            failures = 1 if time.monotonic() - since > _SETTLED_S else failures + 1
            await asyncio.sleep(backoff_s(failures))

    def _open(self, at: int, link: WorkConnection) -> asyncio.Future[str]:
        """Take work from a new connection; the future tells why it ended, "" for of our own will."""
        self._lost[at] = lost = self._loop.create_future()
        self._turns.links[at] = link
        self._control.send({"socket": at}, link.fileno())
        self._loop.add_reader(link.fileno(), partial(self._pump, at, link))
        self._take()
        return lost

    def _lose(self, at: int, link: WorkConnection, reason: str) -> None:
        """Close a connection: lost, or given up so that the dispatcher queues its job again."""
        if self._turns.links[at] is not link:
            return
        self._loop.remove_reader(link.fileno())
        link.release()
        self._turns.links[at] = None
        self._turns.answered(at)
        self._held = deque(taken for taken in self._held if taken.link is not link)
        self._control.send({"closed": at})
        if reason:
            event(logging.WARNING, "dispatcher lost", dispatcher=link.address, error=reason)
        if not self._lost[at].done():
            self._lost[at].set_result(reason)
        self._take()

    async def _pass_over_late(self) -> None:
        """Let other dispatchers be asked while one has owed its answer for a second or two."""
        while True:
            await asyncio.sleep(1.0)
            if self._turns.note_late():
                self._take()

    # ── packets

    def _pump(self, at: int, link: WorkConnection) -> None:
        """Read, run, answer, for as long as the answer brings the next job, but let the loop turn now and then."""
        leave_at = time.monotonic() + WAIT_S
        try:
            while True:
                packets = link.receive()
                for packet in packets:
                    self._handle(at, link, packet)
                waiting = link.state is State.GRABBING and packets and self._hot
                if not waiting or time.monotonic() >= leave_at:
                    return
        except UnreachableError as error:
            self._lose(at, link, str(error))

    def _handle(self, at: int, link: WorkConnection, packet: Packet) -> None:
        match packet.kind:
            case Kind.JOB_ASSIGN_UNIQ:
                link.state = State.ASSIGNED
                self._turns.answered(at)
                taken = Taken(at, link, *packet.args)
                if self._busy or self._held:
                    self._held.append(taken)
                else:
                    self._run(taken)
            case Kind.NO_JOB:
                self._turns.answered(at)
                link.state = State.IDLE
                if self._may_grab():  # else others should get the NOOP
                    link.sleep()
                self._take()
            case Kind.NOOP:
                if link.state is State.ASLEEP:
                    link.state = State.IDLE
                self._take()
            case Kind.ERROR:  # it answers nothing in particular: a late result of a job that was cancelled, mostly
                code, text = (arg.decode(errors="backslashreplace") for arg in packet.args)
                if why := refusal(code):
                    raise UnreachableError(f"dispatcher {link.address}: {why}")
                event(logging.WARNING, "dispatcher error", dispatcher=link.address, code=code, said=text)
            case _:
                raise UnreachableError(f"dispatcher {link.address}: {packet.kind.name} was not asked for")

    # ── what to do next

    def _may_grab(self) -> bool:
        if os.getppid() != self._parent:
            self._orphan = True
        return not self._orphan and self._cell.may_grab()

    def _take(self) -> None:
        """Run what is held, or ask for a job, or come to rest: whatever is next while nothing runs."""
        if self._busy:
            return
        if self._held:
            self._run(self._held.popleft())
        elif not self._may_grab():
            self._rest()
        else:
            self._grab(self._turns.next())

    def _grab(self, at: int | None) -> None:
        link = None if at is None else self._turns.links[at]
        if at is None or link is None:
            return
        try:
            link.grab()
        except UnreachableError as error:
            self._lose(at, link, str(error))

    def _rest(self) -> None:
        """Acknowledge the fence, or end, once nothing runs and no answer is owed."""
        if self._turns.owing():
            if self._giving_up is None:
                self._giving_up = self._loop.call_later(ANSWER_S, self._give_up)
            return
        number, want = self._cell.order()
        if self._orphan or want is Want.STOP:
            if not self._finished.done():
                self._finished.set_result(None)
        elif number != self._acknowledged:
            self._acknowledged = number
            self._cell.acknowledge(number)
            self._control.send({"fenced": number})

    def _give_up(self) -> None:
        self._giving_up = None
        for at, link in self._turns.owing():
            if not self._may_grab():
                self._lose(at, link, f"no answer to the last GRAB within {ANSWER_S:g} s")

    def _hear(self) -> None:
        """The supervisor wrote a new order into the cell, or is gone."""
        try:
            self._orphan = self._control.wait(0) is None
        except BlockingIOError:
            return
        if self._orphan:
            event(logging.WARNING, "supervisor gone; this slot ends after its job")
            self._loop.remove_reader(self._control.fileno())
        self._take()

    # ── jobs

    def _run(self, taken: Taken) -> None:
        duty = self._duties.get(taken.function)
        if duty is None:
            unknown = taken.function.decode(errors="backslashreplace")
            self._send(taken, failure(taken.handle, f"this worker has no job {unknown}"))
            if taken.link.state is not State.CLOSED:
                taken.link.state = State.IDLE
            self._take()
            return
        self._busy = True
        row, job, limit_s, _ = duty
        start = time.monotonic()
        self._cell.begin(row, taken.at, (taken.handle, taken.unique), taken.payload, start, limit_s)
        context = self._context(taken, duty, start) if job.wants_context else None
        RUNNING.set((job.name, taken.handle, taken.unique))  # a task or a thread of its own takes it along
        if self._spans is None:
            self._start(taken, duty, context, start)
        else:
            with self._spans.job(job.name, taken.handle.decode(errors="replace")) as self._span:
                self._start(taken, duty, context, start)
        RUNNING.set(None)

    def _start(self, taken: Taken, duty: Duty, context: Context | None, start: float) -> None:
        job = duty.job
        if job.is_async:
            self._tasks.create_task(self._run_async(taken, duty, context, start))
        elif self._threads is not None:
            self._tasks.create_task(self._run_in_thread(self._threads, taken, duty, context, start))
        else:
            self._ended(taken, duty, context, start, run_plain(job, taken.payload, context, self._alarm, duty.limit_s))

    def _context(self, taken: Taken, duty: Duty, start: float) -> Context:
        handle, unique = (name.decode(errors="backslashreplace") for name in (taken.handle, taken.unique))
        deadline = start + duty.limit_s if duty.limit_s else None
        send = self._say if self._threads is None or duty.job.is_async else self._say_from_thread
        return Context(duty.job.name, handle, unique, partial(send, taken), deadline)

    async def _run_async(self, taken: Taken, duty: Duty, context: Context | None, start: float) -> None:
        self._ended(taken, duty, context, start, await run_async(duty.job, taken.payload, context, duty.limit_s))

    async def _run_in_thread(
        self, threads: Executor, taken: Taken, duty: Duty, context: Context | None, start: float
    ) -> None:
        """Run a plain function where it holds nobody up. Nothing interrupts a thread: the soft limit does not act."""
        run = partial(copy_context().run, run_threaded, duty.job, taken.payload, context)
        outcome = await self._loop.run_in_executor(threads, run)
        self._ended(taken, duty, context, start, outcome)

    def _say_from_thread(self, taken: Taken, kind: Kind, args: tuple[bytes, ...]) -> None:
        self._loop.call_soon_threadsafe(self._say, taken, kind, args)

    def _say(self, taken: Taken, kind: Kind, args: tuple[bytes, ...]) -> None:
        """Send what a running job tells its client."""
        self._send(taken, encode(kind, taken.handle, *args))

    def _send(self, taken: Taken, packets: bytes) -> None:
        """Send to the job's dispatcher; with the dispatcher gone nobody listens."""
        if taken.link.state is State.CLOSED:
            return
        try:
            taken.link.send(packets)
        except UnreachableError as error:
            self._lose(taken.at, taken.link, str(error))

    def _ended(self, taken: Taken, duty: Duty, context: Context | None, start: float, outcome: bytes | Failure) -> None:
        """Answer the job, with the next GRAB in the same send where it goes to the same dispatcher."""
        self._cell.answering()
        finish((duty.job.name, taken.handle, taken.unique))
        if self._spans is not None:
            self._spans.end(self._span, outcome)
        if context is not None:
            context.end()
        now, link = time.monotonic(), taken.link
        if isinstance(outcome, bytes):
            packet: bytes | None = encode(Kind.WORK_COMPLETE, taken.handle, outcome)
        else:
            packet = judge(self._settings.spool, self._control, taken, duty, outcome)
        following = None if self._held or not self._may_grab() else self._turns.next(answering=link)
        try:
            if link.state is State.CLOSED:
                event(logging.WARNING, "result lost with its dispatcher", job=taken.handle.decode(errors="replace"))
            elif packet is None:
                self._lose(taken.at, link, "")
            else:
                link.answer(packet, grab=following == taken.at)
        except UnreachableError as error:
            self._lose(taken.at, link, str(error))
        self._cell.end(start, now, done=isinstance(outcome, bytes))
        self._busy = False
        if following is None or link.state is State.CLOSED:
            self._take()
        elif following != taken.at:
            self._grab(following)
