"""The slots of one worker: started, watched, buried, replaced.

Promises: one dead slot never ends the others; a job whose slot died is either given back to its dispatcher or, at its
last attempt, answered and written down as a dead letter; a slot that died without a job, or by our own hand, costs no
job an attempt.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from fleetd.codecs.lease import JobCounts
from fleetd.dispatchers.credentials import Credentials
from fleetd.dispatchers.work import failure
from fleetd.errors import UnreachableError
from fleetd.worker import dead
from fleetd.worker.attempts import Attempts, Totals, add, describe
from fleetd.worker.backoff import backoff_s
from fleetd.worker.cell import Running, Want
from fleetd.worker.children import SlotProcess, make_slot
from fleetd.worker.control import Message
from fleetd.worker.logs import event
from fleetd.worker.nursery import Nursery
from fleetd.worker.settings import GRACE_S, Settings

WATCH_S: Final = 0.25
DUMP_S: Final = 0.3  # what faulthandler gets to write the stack before the kill
END_S: Final = 10.0  # what a slot's own exit functions may take


class Crew:
    """All slots. `on_change` is called when something changed that others wait for: a fence, an end, a dead letter."""

    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        on_change: Callable[[], None],
        on_failed: Callable[[str, str], None],
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._on_change = on_change
        self._attempts = Attempts()
        self._totals = Totals()
        self._born = time.monotonic()
        self._failures: dict[int, int] = {}
        self._burials: set[asyncio.Task[None]] = set()
        self._want = Want.WORK
        self._number = 1
        self.nursery = Nursery(settings, self._fill, on_failed)
        self.slots: dict[int, SlotProcess] = {}
        self.crashes = 0

    # ── orders

    def want(self, want: Want) -> None:
        """Tell every slot, those to come included, what to do."""
        self._want = want
        self._number += 1
        for slot in self.slots.values():
            slot.want(self._number, want)

    @property
    def at_rest(self) -> bool:
        """Whether every slot has said, under the newest order, that it takes nothing and runs nothing."""
        resting = all(slot.cell.acknowledged == self._number for slot in self.slots.values())
        return resting and not self._burials

    @property
    def up(self) -> bool:
        """Whether the app is imported and every slot is there."""
        return len(self.slots) == self._settings.slots and all(slot.pid for slot in self.slots.values())

    @property
    def gone(self) -> bool:
        """Whether no slot is left and the last word about each dead one's job is spoken."""
        return not self.slots and not self._burials

    def release(self) -> None:
        """End every slot that has not come to rest; its jobs go back to their dispatchers at no cost."""
        for slot in self.slots.values():
            if slot.cell.acknowledged != self._number:
                running = slot.cell.running()
                if running is not None:
                    name, handle = slot.names[running.row], running.handle.decode(errors="replace")
                    event(logging.WARNING, "job released", slot=slot.index, function=name, job=handle)
                slot.release()

    # ── what is

    def busy(self) -> list[tuple[str, float]]:
        """The running jobs: function and age."""
        now = time.monotonic()
        running = [(slot, job) for slot in self.slots.values() if (job := slot.cell.running()) is not None]
        return [(slot.names[job.row], max(0.0, now - job.start)) for slot, job in running]

    def idle_s(self) -> float:
        """Seconds since the last job ended, or since the start; 0 while one runs."""
        if any(slot.cell.state for slot in self.slots.values()):
            return 0.0
        ends = (slot.cell.last_end for slot in self.slots.values())
        return time.monotonic() - max(self._born, self._totals.last_end, *ends)

    def counts(self) -> dict[str, JobCounts]:
        """What was done, by function, since the worker's start."""
        found = dict(self._totals.jobs)
        for slot in self.slots.values():
            for row, name in enumerate(slot.names):
                found[name] = add(found.get(name, JobCounts()), slot.cell.counts(row))
        for name, age_s in self.busy():
            found[name] = add(found[name], JobCounts(running_s=[age_s]))
        return {name: counts for name, counts in found.items() if counts.started}

    # ── birth

    def _fill(self) -> None:
        for index in range(self._settings.slots):
            self._start(index)

    def _start(self, index: int) -> None:
        if self._want is Want.STOP or index in self.slots or not self.nursery.ready:
            return
        nursery = self.nursery
        slot = make_slot(index, nursery.names, nursery.attempts, nursery.settings, self._credentials)
        slot.cell.want(self._number, self._want)
        self.slots[index] = slot
        if self.nursery.bring(slot):
            asyncio.get_running_loop().add_reader(slot.control.fileno(), partial(self._hear, slot))
        else:
            self._ended(slot, 0, "could not be started")

    def _hear(self, slot: SlotProcess) -> None:
        messages, open_ = slot.messages()
        for message in messages:
            self._understand(slot, message)
        if not open_ and self.slots.get(slot.index) is slot:
            asyncio.get_running_loop().remove_reader(slot.control.fileno())
            if slot.pid is None:
                self._ended(slot, 1, "ended before its first word")
            else:
                asyncio.get_running_loop().call_later(END_S, self._outlived, slot)

    def _understand(self, slot: SlotProcess, message: Message) -> None:
        match message.body:
            case {"hello": int(pid)}:
                slot.pid = pid
                event(logging.INFO, "slot started", slot=slot.index, pid=pid, digest=self.nursery.digest)
                self._on_change()
            case {"socket": int(at)}:
                slot.hold(at, self._settings.servers[at], message.fds[0])
            case {"closed": int(at)}:
                slot.drop(at)
            case {"attempt": {"row": int(row), "unique": str(unique), "handle": str(handle)}}:
                count = self._attempts.add((slot.names[row], unique.encode("latin-1"), handle.encode("latin-1")))
                slot.control.send({"attempts": count})
            case {"bye": _}:
                asyncio.get_running_loop().call_later(END_S, self._outlived, slot)
            case _:  # "fenced", "letter": the cell and the spool hold what there is to know
                self._on_change()

    def _outlived(self, slot: SlotProcess) -> None:
        """A slot that closed its control socket, or said good-bye, should have ended long ago."""
        if self.slots.get(slot.index) is slot:
            event(logging.WARNING, "slot does not end; killed", slot=slot.index, waited_s=END_S)
            slot.kill()

    # ── death

    def reap(self) -> None:
        """Take note of every child that ended. Called on SIGCHLD."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            for slot in list(self.slots.values()):
                self._hear(slot)  # a new slot's first word tells its pid; a dead one's last words count
            dead_slot = next((slot for slot in self.slots.values() if slot.pid == found.si_pid), None)
            if dead_slot is not None:
                dead_slot.kill()  # what its job had started goes with it; its pid is still its own
            code = os.waitstatus_to_exitcode(os.waitpid(found.si_pid, 0)[1])
            if dead_slot is not None:
                self._ended(dead_slot, code, "ended")
            elif found.si_pid == self.nursery.pid:
                self.nursery.pid = 0
                self.nursery.ended(code)
            # else an orphan that some job left behind: a subreaper inherits it

    def _ended(self, slot: SlotProcess, code: int, what: str) -> None:
        asyncio.get_running_loop().remove_reader(slot.control.fileno())
        del self.slots[slot.index]
        running = slot.cell.running()
        self._totals.fold(slot.cell, slot.names)
        slot.note_end()
        level = logging.INFO if code == 0 or slot.released else logging.WARNING
        event(level, f"slot {what}", slot=slot.index, pid=slot.pid, code=code, digest=self.nursery.digest)
        ours = slot.released or (slot.overdue is not None and (running is None or slot.overdue != running.seq))
        if running is not None and not ours:
            self.crashes += 1
            burial = asyncio.get_running_loop().create_task(self._bury(slot, running, code))
            self._burials.add(burial)
            burial.add_done_callback(self._buried)
        else:
            slot.close()
        asyncio.get_running_loop().call_later(self._delay_s(slot, code), self._start, slot.index)
        self._on_change()

    def _delay_s(self, slot: SlotProcess, code: int) -> float:
        """How long its successor waits: not at all, unless slots here have ended badly in a row."""
        before = 0 if slot.steady else self._failures.get(slot.index, 0)
        failures = 0 if slot.released or (code == 0 and slot.steady) else before + 1
        self._failures[slot.index] = failures
        return backoff_s(failures) if failures > 1 else 0.0

    def _buried(self, burial: asyncio.Task[None]) -> None:
        self._burials.discard(burial)
        self._on_change()
        if not burial.cancelled() and (error := burial.exception()) is not None:
            event(logging.ERROR, "a dead slot's job could not be accounted for", error=repr(error))

    async def _bury(self, slot: SlotProcess, job: Running, code: int) -> None:
        """Count the attempt that a slot died in. Give the job back or, at the last attempt, speak its last word."""
        try:
            function, most = slot.names[job.row], slot.attempts[job.row]
            count = self._attempts.add((function, job.unique, job.handle))
            reason = describe(code)
            if slot.overdue is not None:
                reason = f"ran longer than its limit of {job.limit_s:g} s and {GRACE_S:g} s of grace; killed"
            fields: dict[str, Any] = {"function": function, "job": job.handle.decode(errors="replace")}
            event(logging.ERROR, "job crashed", **fields, attempt=f"{count} of {most}", reason=reason)
            # Over TLS the last word cannot be spoken, and the job may be given out again: one letter is enough.
            if count == most or (count > most and not self._settings.servers[job.link].tls):
                letter = dead.make_letter(
                    function,
                    (job.handle, job.unique),
                    slot.cell.payload(),
                    attempts=count,
                    reason=reason,
                    traceback=slot.stack(),
                )
                await asyncio.to_thread(dead.write, self._settings.spool, letter)
                packet = failure(job.handle, reason)
                await asyncio.to_thread(slot.answer, job.link, packet)
        except UnreachableError as error:
            event(logging.WARNING, "last word not heard", slot=slot.index, error=error)
        finally:
            slot.close()

    # ── the watchdog

    async def watch(self) -> None:
        """End jobs that ran past their limit and its grace. Runs for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for slot in list(self.slots.values()):
                job = slot.cell.running()
                if job is not None and job.limit_s and now > job.start + job.limit_s + GRACE_S:
                    await self._end_overdue(slot, job)

    async def _end_overdue(self, slot: SlotProcess, job: Running) -> None:
        """Dump the stack, look again, kill. The sequence tells whether it is still the same job."""
        slot.dump_stack()
        await asyncio.sleep(DUMP_S)
        now = slot.cell.running() if self.slots.get(slot.index) is slot else None
        if now is not None and now.seq == job.seq:
            slot.overdue = job.seq
            slot.kill()

    async def close(self) -> None:
        """End what is left, at once."""
        self.nursery.close()
        for slot in self.slots.values():
            slot.release()
        give_up_at = time.monotonic() + 2
        while (self.slots or self.nursery.pid) and time.monotonic() < give_up_at:
            self.reap()
            await asyncio.sleep(0.01)
        for burial in list(self._burials):
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await asyncio.shield(burial)
