"""Takes the seat of its fleet, keeps it, and ends this process where it is lost.

Promises: `take` returns once this controller may act, and not before; from then on the process ends, at the latest, at
the deadline after which another may begin: at once, by itself, with a line and a code of its own. Nothing more is sent
then, not even a farewell: what was cancelled in order could still be half-way out. A process that was frozen looks at
the clock before it does anything else: see `guarded_loop`. Workers are untouched.
"""

import asyncio
import os
import random
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NoReturn

from fleetd.control.loop import Say
from fleetd.control.wiring import adapter
from fleetd.core.election import JITTER, KEEP_S, RETRY_S, Seat, Seen, Term, claim, given_back, is_free, see
from fleetd.core.model import Policy, Seconds
from fleetd.errors import FleetdError, LostLeadError, SeatTakenError

GIVE_BACK_S: Final = 3.0
# It goes on while a virtual machine is asleep, which the other clocks do not all do.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> Seconds:
    """Return the time by which a seat is held."""
    return time.clock_gettime(_CLOCK)


def make_leader(policy: Policy, say: Say) -> "Leader | None":
    """Return who takes the policy's seat; None where it names none."""
    chosen = policy.controller.leader
    if chosen is None:
        return None
    seat: Seat = adapter("fleetd.leaders", chosen.kind)(policy.fleet, chosen.options)
    return Leader(seat, f"{socket.gethostname()}_{os.urandom(4).hex()}", say)


def end_process(line: str) -> NoReturn:
    """End at once: no cleaning up, no other thread goes on, no buffer is sent. `line` has been said."""
    del line
    os._exit(LostLeadError.exit_code)


class Leader:
    """One controller that would act, called `me`."""

    def __init__(
        self,
        seat: Seat,
        me: str,
        say: Say,
        *,
        clock: Callable[[], Seconds] = clock,
        end: Callable[[str], Any] = end_process,
    ) -> None:
        """`end` is called when the seat is lost, and must not return to whoever acts."""
        self.seat, self.me, self._say, self._clock, self._end = seat, me, say, clock, end
        self.term = Term()  # ours, while it is held
        self.before = ""  # who held it before us
        self._until: Seconds | None = None  # how long we may act
        self._seen: Seen | None = None
        self._said = ""
        self._writing = asyncio.Lock()

    async def take(self) -> None:
        """Wait until the seat is ours."""
        while True:
            if await self._try():
                return
            await asyncio.sleep(RETRY_S * (1.0 + random.uniform(0.0, JITTER)))  # noqa: S311 - to spread, not to hide

    async def keep(self) -> None:
        """Renew it until cancelled."""
        while True:
            await asyncio.sleep(min(RETRY_S, max(0.0, self._left())))
            await self._renew()
            self.mind()

    async def settle(self, epoch: int, instance: str) -> None:
        """Write down with whom the next one is to go on. Before anything is done, so that it holds whatever comes.

        Raises FleetdError where that cannot be done.
        """
        async with self._writing:
            if (epoch, instance) != (self.term.epoch, self.term.instance):
                await self._write(replace(self.term, epoch=epoch, instance=instance))

    def mind(self) -> None:
        """End this process where its time is over. To be called before each act."""
        if self._until is not None and self._clock() >= self._until:
            self._lose(f"could not be renewed for {KEEP_S:.0f} s")

    async def give_back(self) -> None:
        """Let the next one begin at once. Only once nothing acts any more."""
        if self._until is None:
            return
        self._until = None
        try:
            async with asyncio.timeout(GIVE_BACK_S), self._writing:
                await self.seat.write(given_back(self.term))
        except (FleetdError, TimeoutError) as error:
            self._say("leader", f"{self.seat.place}: was not given back, it expires by itself: {_line(error)}")

    def holder(self) -> str:
        """Return who acts, as far as this one has seen."""
        return self._seen.term.holder if self._seen else ""

    # ── below

    async def _try(self) -> bool:
        try:
            self._seen = see(self._seen, await self.seat.read(), self._clock())
            if not is_free(self._seen, self._clock()):
                self._say_once(f"standby: {self.seat.place} is held by {self.holder()}")
                return False
            self.before = self.holder()
            await self._write(claim(self._seen, self.me))
        except SeatTakenError:
            return False
        except FleetdError as error:
            self._say_once(_line(error))
            return False
        return True

    async def _write(self, term: Term) -> None:
        """Write our record. Our time counts from before it was sent: nobody can have seen it earlier."""
        sent_at = self._clock()
        self.term = await self.seat.write(term)
        self._until, self._said = sent_at + KEEP_S, ""

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._left())), self._writing:
                try:
                    await self._write(self.term)
                except SeatTakenError:
                    await self._write(self._reclaimed(await self.seat.read()))
        except TimeoutError:
            return
        except LostLeadError:
            raise
        except FleetdError as error:
            self._say_once(f"{self.seat.place}: not renewed, {max(0.0, self._left()):.0f} s left: {_line(error)}")

    def _reclaimed(self, found: Term | None) -> Term:
        """Return what to write where our record was touched: an answer of ours was lost, or somebody deleted it."""
        if found is None:
            return replace(self.term, version="")
        if found.holder != self.me:
            self._lose(f"{found.holder or 'somebody'} has taken it")
        return replace(self.term, version=found.version)

    def _left(self) -> Seconds:
        return float("inf") if self._until is None else self._until - self._clock()

    def _lose(self, why: str) -> None:
        line = f"{self.seat.place}: {why}: this controller acts no more and ends; workers go on"
        self._until = None
        self._say("leader", line)
        self._end(line)
        raise LostLeadError(line)

    def _say_once(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._say("leader", line)


def guarded_loop(mind: Callable[[], None]) -> asyncio.AbstractEventLoop:
    """Return an event loop that calls `mind` each time that it wakes, before anything runs on it."""

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait; whatever was to be done on waking is not done where the time is over."""
            found: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
            mind()
            return found

    return asyncio.SelectorEventLoop(Selector())


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
