"""Keeps the latest word of every source and provider, each asked by a task of its own, each under a time-out.

Promises: one that is slow, lies, fails or never answers delays no other and never the tick; its absence is `Blind` with
the reason. An answer older than `STALE_S` is Blind too.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from fleetd.core.model import Blind, Seconds
from fleetd.errors import FleetdError

TIMEOUT_S: Final = 5.0
STALE_S: Final = 8.0
REASON_LENGTH: Final = 500
T = TypeVar("T")


@dataclass(slots=True)
class Watch(Generic[T]):
    """The latest answer to `ask`, repeated every `every_s` seconds. `fresh` is set while it was not looked at yet."""

    name: str
    ask: Callable[[], Awaitable[T]]
    clock: Callable[[], Seconds]
    news: Callable[[], None] = lambda: None  # called when an answer differs from the one before
    every_s: Seconds = 1.0
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # entered for each asking: it counts and times
    answer: T | Blind = field(default_factory=lambda: Blind("not read yet"))
    at: Seconds | None = None
    fresh: bool = False
    kick: asyncio.Event = field(default_factory=asyncio.Event)
    looked: asyncio.Event = field(default_factory=asyncio.Event)  # an answer, or the lack of one, is here

    async def run(self) -> None:
        """Ask for ever; ends only by cancellation."""
        while True:
            self.kick.clear()
            before = self.answer
            await self.once()
            if self.answer != before:
                self.news()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.every_s):  # not wait_for: before Python 3.12 it can lose a cancellation
                    await self.kick.wait()

    async def once(self) -> None:
        """Ask one time."""
        try:
            with self.around():
                async with asyncio.timeout(TIMEOUT_S):
                    self.answer = await self.ask()
        except TimeoutError:
            self.answer = Blind(f"no answer within {TIMEOUT_S:.0f} s")
        except (FleetdError, OSError) as error:
            self.answer = Blind(one_line(error))
        except Exception as error:  # noqa: BLE001 - an adapter's bug blinds its own pool or queues, nothing else
            self.answer = Blind(f"{self.name}: {type(error).__name__}: {one_line(error)}")
        self.at, self.fresh = self.clock(), True
        self.looked.set()

    def latest(self) -> T | Blind:
        """Return the last answer while it is fresh enough."""
        if self.at is not None and self.clock() - self.at > STALE_S and not isinstance(self.answer, Blind):
            return Blind(f"no answer for {self.clock() - self.at:.0f} s")
        return self.answer


def one_line(error: BaseException) -> str:
    """Return an adapter's error as one line that the store and every view can take, whatever is in it."""
    return " ".join(str(error).split())[:REASON_LENGTH].encode(errors="replace").decode()
