"""The slots of one generation: started, watched, buried, replaced.

Promises: one dead slot never ends the others; a job whose slot died is either given back to its dispatcher or, at its
last attempt, answered and written down as a dead letter; a slot that died without a job, or by our own hand, costs no
job an attempt, and neither does the first death of a job under a generation on trial.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from fleetd.codecs.lease import JobCounts
from fleetd.dispatchers.credentials import Credentials
from fleetd.worker.attempts import Books, Totals, add, describe
from fleetd.worker.backoff import backoff_s
from fleetd.worker.burial import bury
from fleetd.worker.cell import Running, Want
from fleetd.worker.children import SlotProcess, make_slots
from fleetd.worker.control import Message
from fleetd.worker.logs import event
from fleetd.worker.nursery import Nursery
from fleetd.worker.output import Overheard
from fleetd.worker.settings import GRACE_S, Settings
from fleetd.worker.wear import too_large, worn

DUMP_S: Final = 0.3  # what faulthandler gets to write the stack before the kill
CAREFUL_S: Final = 10.0
END_S: Final = 10.0  # what a slot's own exit functions may take


class Crew:
    """The slots at their posts. `on_change` is called when something changed that others wait for.

    `on_trial`: the code is new, so what goes wrong is put down to it rather than to the jobs.
    """

    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        books: Books,
        on_change: Callable[[], None],
        on_failed: Callable[[str, str], None],
    ) -> None:
        self._credentials = credentials
        self._books = books
        self._on_change = on_change
        self._failures: dict[int, int] = {}
        self._burials: set[asyncio.Task[None]] = set()
        self._want = Want.WORK
        self._number = 1
        self._posts: dict[int, Want] = {}
        self._totals = Totals()
        self._careful: dict[int, float] = {}  # until when a process takes one job at a time, by its first slot
        self.nursery = Nursery(settings, self._fill, on_failed)
        self.slots: dict[int, SlotProcess] = {}
        self.on_trial = False

    @property
    def settings(self) -> Settings:
        """The settings of the generation, with the digest of the code that it runs."""
        return self.nursery.settings

    # ── orders

    def want(self, want: Want) -> None:
        """Tell every slot, those to come included, what to do; it does what is less of this and its post."""
        self._want = want
        for slot in self.slots.values():
            self._tell(slot)

    def post(self, indices: Iterable[int], want: Want) -> None:
        """Have these slots, to work or to wait fenced; one that ends is replaced for as long as it has its post."""
        indices = list(indices)
        self._posts.update(dict.fromkeys(indices, want))
        for index in indices:
            if index in self.slots:
                self._tell(self.slots[index])
            else:
                self._start(index)

    def dismiss(self, *indices: int) -> None:
        """Let slots finish their jobs and end."""
        for index in indices:
            if self._posts.pop(index, None) is not None and index in self.slots:
                self._tell(self.slots[index])

    def _tell(self, slot: SlotProcess) -> None:
        self._number += 1
        post = Want.STOP if slot.worn else self._posts.get(slot.index, Want.STOP)
        alone = slot.index % self.settings.per_process == 0
        careful = Want.WORK if alone or self._first(slot.index) not in self._careful else Want.FENCE
        slot.want(self._number, max(self._want, post, careful))

    def _first(self, index: int) -> int:
        """Return the first of the slots that share a process with this one."""
        return index - index % self.settings.per_process

    @property
    def posts(self) -> frozenset[int]:
        """The slots that it is to have."""
        return frozenset(self._posts)

    @property
    def at_rest(self) -> bool:
        """Whether every slot has said, under the newest order, that it takes nothing and runs nothing."""
        return all(slot.at_rest for slot in self.slots.values()) and not self._burials

    @property
    def up(self) -> bool:
        """Whether the app is imported and every slot is there."""
        return self.slots.keys() >= self._posts.keys() and all(slot.pid for slot in self.slots.values())

    @property
    def gone(self) -> bool:
        """Whether no slot is left and the last word about each dead one's job is spoken."""
        return not self.slots and not self._burials

    def connected(self, index: int) -> int:
        """To how many dispatchers a slot is connected."""
        return len(self.slots[index].dups) if index in self.slots else 0

    def release(self) -> None:
        """End every slot that has not come to rest; its jobs go back to their dispatchers at no cost."""
        for slot in self.slots.values():
            if not slot.at_rest:
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
        return time.monotonic() - max(self._books.born, self._totals.last_end, *ends)

    def counts(self) -> dict[str, JobCounts]:
        """What this generation did, by function."""
        found = dict(self._totals.jobs)
        for slot in self.slots.values():
            for row, name in enumerate(slot.names):
                found[name] = add(found.get(name, JobCounts()), slot.cell.counts(row))
        for name, age_s in self.busy():
            found[name] = add(found[name], JobCounts(running_s=[age_s]))
        return {name: counts for name, counts in found.items() if counts.started}

    # ── birth

    def _fill(self) -> None:
        for index in self._posts:
            self._start(index)
        self._on_change()

    def _start(self, index: int) -> None:
        """Start the process of a slot, with all slots that share it, once none of them is left of the one before."""
        first = self._first(index)
        group = range(first, first + self.settings.per_process)
        if index not in self._posts or self._want is Want.STOP or not self.nursery.ready:
            return
        if any(other in self.slots for other in group):
            return
        nursery = self.nursery
        slots = make_slots(
            [other for other in group if other in self._posts],
            nursery.names,
            nursery.attempts,
            nursery.text,
            self._credentials,
            digest=self.settings.digest,
        )
        for slot in slots:
            self._tell(slot)
            self.slots[slot.index] = slot
        if self.nursery.bring(slots[0]):
            self._listen(slots[0].output)
            for slot in slots:
                slot.theirs.close()
                asyncio.get_running_loop().add_reader(slot.control.fileno(), partial(self._hear, slot))
        else:
            for slot in slots:
                self._ended(slot, 0, "could not be started")

    def _listen(self, output: Overheard | None) -> None:
        """Log what a slot's process says, until its end or ours."""
        loop = asyncio.get_running_loop()

        def hear() -> None:
            if output is not None and not output.hear():
                loop.remove_reader(output.fileno())

        if output is not None:
            loop.add_reader(output.fileno(), hear)

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
                self._limit(slot, pid)
                event(logging.INFO, "slot started", slot=slot.index, pid=pid, digest=self.nursery.digest)
                self._on_change()
            case {"socket": int(at)}:
                slot.hold(at, self.settings.servers[at], message.fds[0])
                self._on_change()
            case {"closed": int(at)}:
                slot.drop(at)
            case {"attempt": {"row": int(row), "unique": str(unique), "handle": str(handle)}}:
                key = slot.names[row], unique.encode("latin-1"), handle.encode("latin-1")
                self._books.failed.add(key, self.settings.digest)
                slot.control.send({"attempts": self._books.attempts.add(key), "again": self.on_trial})
            case {"bye": _}:
                asyncio.get_running_loop().call_later(END_S, self._outlived, slot)
            case _:  # "fenced", "letter": the cell and the spool hold what there is to know
                self._on_change()

    def _limit(self, slot: SlotProcess, pid: int) -> None:
        """Let the kernel hold a process to its limit on memory, where it can."""
        groups, limit = self._books.groups, self.settings.slot_memory
        if groups is not None and limit and slot.index == self._first(slot.index):
            slot.group = groups.make(limit)
            if slot.group is not None:
                slot.group.enter(pid)

    def _outlived(self, slot: SlotProcess) -> None:
        """A slot that closed its control socket, or said good-bye, should have ended long ago."""
        if self.slots.get(slot.index) is slot:
            event(logging.WARNING, "slot does not end; killed", slot=slot.index, waited_s=END_S)
            slot.kill()

    # ── death

    def owner(self, pid: int) -> Callable[[int], None] | None:
        """Return what to call with the exit code of this process once it is reaped, if it is one of this generation."""
        for slot in list(self.slots.values()):
            self._hear(slot)  # a new slot's first word tells its pid; a dead one's last words count
        dead_slots = self._sharing(pid)
        if dead_slots:
            dead_slots[0].kill()  # what its jobs had started goes with it; its pid is still its own
            return partial(self._died, dead_slots)
        return self.nursery.ended if pid == self.nursery.pid else None

    def _sharing(self, pid: int | None) -> list[SlotProcess]:
        """Return the slots of one process."""
        return [slot for slot in self.slots.values() if pid is not None and slot.pid == pid]

    def _died(self, slots: list[SlotProcess], code: int) -> None:
        """Of several jobs that died with one process nobody knows whose fault it was: they go back at no cost.

        For a while the process that follows takes one job at a time, so that the next death has one suspect.
        """
        busy = [slot for slot in slots if slot.cell.running() is not None]
        if len(busy) > 1 and not any(slot.released or slot.condemned for slot in slots):
            event(logging.ERROR, "process died with several jobs", jobs=len(busy), reason=describe(code))
            self._books.crashes += 1
            if (job := busy[0].cell.running()) is not None:  # one of them stands for the death in a trial
                self._books.crashed.add((busy[0].names[job.row], job.unique, job.handle), self.settings.digest)
            for slot in busy:
                slot.released = True
            self._careful[self._first(slots[0].index)] = time.monotonic() + CAREFUL_S
        for slot in slots:
            self._ended(slot, code, "ended")

    def _relax(self, now: float) -> None:
        """Let processes take several jobs again that were told to be careful."""
        for first in [first for first, until in self._careful.items() if now >= until]:
            del self._careful[first]
            for slot in self.slots.values():
                if self._first(slot.index) == first:
                    self._tell(slot)

    def _ended(self, slot: SlotProcess, code: int, what: str) -> None:
        asyncio.get_running_loop().remove_reader(slot.control.fileno())
        if slot.output is not None:
            asyncio.get_running_loop().remove_reader(slot.output.fileno())
        del self.slots[slot.index]
        running = slot.cell.running()
        self._totals.fold(slot.cell, slot.names)
        slot.note_end()
        if slot.group is not None and code == -signal.SIGKILL and slot.group.killed():
            slot.sentence = f"used more than its limit of {self.settings.slot_memory >> 20} MB; killed by the kernel"
        level = logging.INFO if code == 0 or slot.released else logging.WARNING
        event(level, f"slot {what}", slot=slot.index, pid=slot.pid, code=code, digest=self.nursery.digest)
        ours = slot.released or (slot.condemned is not None and (running is None or slot.condemned != running.seq))
        if running is not None and not ours:
            self._books.crashes += 1
            funeral = bury(slot, running, code, self._books, self.settings, on_trial=self.on_trial)
            burial = asyncio.get_running_loop().create_task(funeral)
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

    # ── the watchdog

    async def watch(self) -> None:
        """End jobs that ran past their limit and its grace, or whose slot grew too large; renew worn slots."""
        now = time.monotonic()
        self._relax(now)
        for slot in list(self.slots.values()):
            job = slot.cell.running()
            if job is not None and job.limit_s and now > job.start + job.limit_s + GRACE_S:
                why = f"ran longer than its limit of {job.limit_s:g} s and {GRACE_S:g} s of grace; killed"
                await self._condemn(slot, job, why)
            elif job is not None and (why := too_large(slot, self.settings)):
                await self._condemn(slot, job, why)
            elif slot.index in self._posts and (why := worn(slot, self.settings)):
                event(logging.INFO, "slot is renewed", slot=slot.index, reason=why)
                for other in self._sharing(slot.pid):
                    other.worn = True
                    self._tell(other)

    async def _condemn(self, slot: SlotProcess, job: Running, why: str) -> None:
        """Dump the stack, look again, kill. The sequence tells whether it is still the same job."""
        slot.dump_stack()
        await asyncio.sleep(DUMP_S)
        now = slot.cell.running() if self.slots.get(slot.index) is slot else None
        if now is not None and now.seq == job.seq:
            for other in self._sharing(slot.pid):
                other.released = other is not slot  # their jobs go back at no cost
            slot.condemned, slot.sentence = job.seq, why
            slot.kill()

    def end(self) -> None:
        """Take no post any more and let the generation's process go; slots finish their jobs."""
        self.dismiss(*self.posts)
        self.nursery.close()

    def kill(self) -> None:
        """End what is left, at once."""
        self.nursery.close()
        for slot in self.slots.values():
            slot.release()

    async def settle(self, limit_s: float) -> None:
        """Wait for the last words about the jobs of dead slots."""
        for burial in list(self._burials):
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await asyncio.shield(burial)
