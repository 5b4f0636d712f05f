"""The server: moves bytes between sockets, the queue and the journal. It decides nothing.

Promises: the event loop never waits for the disk (one thread commits, batch after batch, and what arrives meanwhile
goes into the next one); what was acknowledged is on disk, also when `run` ends.
"""

import asyncio
import itertools
import os
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from fleetd.dispatchers.embedded.journal import STRIDE, Journal, JournalError
from fleetd.dispatchers.embedded.line import PROVE_S, Keep, Line
from fleetd.dispatchers.embedded.logs import LOG
from fleetd.dispatchers.embedded.model import Batch, Peer
from fleetd.dispatchers.embedded.queue import Queue

BACKLOG: Final = 1024
LAZY_S: Final = 0.02  # ends wait so long for company: nobody waits for them, and a commit costs a turn of the disk
FAULT_S: Final = 0.5  # between a failed commit and the next
MAX_TIMER_S: Final = 1.0

Clock = Callable[[], float]


def make_clock() -> Clock:
    """Seconds since 1970 that never run backwards, and go on while a laptop sleeps."""
    base = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: base + time.clock_gettime(time.CLOCK_BOOTTIME)


class Server:
    """`open`, then `run` until somebody ends it by `stop`, then `close`."""

    def __init__(self, queue: Queue, journal: Journal | None, disk: ThreadPoolExecutor, clock: Clock) -> None:
        self.queue = queue
        self.clock = clock
        self.lines: dict[Peer, Line] = {}
        self.port = 0
        self._journal = journal
        self._disk = disk
        self._stale = asyncio.Event()
        self._urgent = asyncio.Event()
        self._over = asyncio.Event()
        self._graceful = False
        self._closed = False
        self._connections = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self._fault = ""

    async def open(self, host: str, port: int, context: ssl.SSLContext | None, keep: Keep) -> None:
        """Listen; raises OSError."""
        self._listener = await self._loop.create_server(
            lambda: Line(self, keep),
            host,
            port,
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=PROVE_S if context else None,
            ssl_shutdown_timeout=1.0 if context else None,
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        self._set_timer()

    async def run(self) -> None:
        """Serve until `stop`; then what is gathered is on disk."""
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write())
            await self._over.wait()
            writer.cancel()
        if self.queue.gather.stale:
            await self._commit()

    def stop(self, *, graceful: bool = False) -> None:
        """End `run`: at once, or after the last running job. New connections are refused from now on."""
        if self._listener is not None:
            self._listener.close()
        self._graceful = graceful
        if not graceful or not self._busy():
            self._over.set()

    async def close(self) -> None:
        """Drop every connection. Safe twice. What their end would change is not written: it ended with us."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.close()
        for line in list(self.lines.values()):
            line.end()
        await asyncio.sleep(0)

    def _busy(self) -> bool:
        return any(function.running for function in self.queue.functions.values())

    # ── after each event

    def number(self) -> int:
        """Return the number of a new connection."""
        return next(self._connections)

    def flush(self) -> None:
        """Send what the queue has for its peers, and let the journal know what it has for the disk."""
        if self._closed:
            return
        queue = self.queue
        while queue.dirty:
            dirty, queue.dirty = queue.dirty, {}
            for peer in dirty:
                line = self.lines.get(peer)
                if line is not None:
                    line.flush()
        if queue.gather.stale:
            self._stale.set()
            if queue.gather.urgent:
                self._urgent.set()
        due = queue.timers.due
        if due is not None and due < self._timer_due:
            self._set_timer()
        if queue.notes or queue.shutdown or self._graceful:
            self._heed()

    def _heed(self) -> None:
        """Do what is rare: notes for the log, and an end that somebody asked for."""
        queue = self.queue
        for note in queue.notes:
            LOG.warning(note)
        queue.notes.clear()
        if queue.shutdown or self._graceful:
            self.stop(graceful=self._graceful or queue.shutdown == "graceful")

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due, now = self.queue.timers.due, self.clock()
        # The loop's clock stands still while a laptop sleeps; this one does not: look at least so often.
        wait_s = MAX_TIMER_S if due is None else min(MAX_TIMER_S, max(0.0, due - now))
        self._timer_due = now + wait_s
        self._timer = self._loop.call_later(wait_s, self._tick)

    def _tick(self) -> None:
        now = self.clock()
        self.queue.timers.tick(now)
        for line in [line for line in self.lines.values() if line.give_up_at <= now]:
            line.give_up()
        self._timer_due = float("inf")
        self.flush()
        self._set_timer()

    # ── the disk

    async def _write(self) -> None:
        while True:
            await self._stale.wait()
            if not self.queue.gather.urgent:
                try:
                    async with asyncio.timeout(LAZY_S):
                        await self._urgent.wait()
                except TimeoutError:
                    pass
            self._stale.clear()
            self._urgent.clear()
            if not await self._commit():
                await asyncio.sleep(FAULT_S)
            self.flush()

    async def _commit(self) -> bool:
        """Write one batch. No time-out: a thread that waits for a disk can only be waited for."""
        batch = self.queue.gather.take()
        writing = self._loop.run_in_executor(self._disk, self._try, batch)
        try:
            fault = await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._settled(batch, await writing)
            raise
        self._settled(batch, fault)
        return not fault

    def _try(self, batch: Batch) -> str:
        assert self._journal is not None
        try:
            self._journal.commit(batch)
        except JournalError as error:
            return str(error)
        return ""

    def _settled(self, batch: Batch, fault: str) -> None:
        if fault != self._fault:
            LOG.error(f"{fault}; submissions are refused") if fault else LOG.warning("the journal is written again")
            self._fault = fault
        self.queue.settle(batch, self.clock(), good=not fault)
        self.flush()


def recover(queue: Queue, journal: Journal, now: float) -> None:
    """Fill a queue from the journal; call it in the journal's thread, before the server is open."""
    queue.last = journal.start * STRIDE
    queue.recover(journal.rows(), now)
