"""One caller that waits for a foreground job: hears the worker's packets in order and turns them into a result.

Promises: listeners are called in the waiting task, never from the connection's callbacks, so what they raise reaches
only that caller; what a job may send is bounded by `max_result` bytes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fleetd.codecs.gearman import Kind, Packet
from fleetd.errors import FleetdError, JobError

OnProgress = Callable[[int, int], None]
OnBytes = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Listeners:
    """Called as a job goes on: `on_progress(numerator, denominator)`, and chunks of its data and its warnings.

    Progress that is not in whole numbers is the worker's mistake and is left out.
    """

    on_progress: OnProgress | None = None
    on_data: OnBytes | None = None
    on_warning: OnBytes | None = None


class Follower:
    """Waits for one job of `function`."""

    __slots__ = ("_function", "_inbox", "_left", "_max_result", "_wake", "_warned")

    def __init__(self, function: str, max_result: int) -> None:
        self._function = function
        self._max_result = max_result
        self._inbox: deque[Packet | FleetdError] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._left = False
        self._warned = b""  # the last warning: before a WORK_FAIL it is the reason

    def hear(self, word: Packet | FleetdError) -> None:
        """Take the next packet of the job, or the error that ends the waiting."""
        if self._left:
            return
        self._inbox.append(word)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def leave(self) -> None:
        """Stop listening: the caller is gone."""
        self._left = True
        self._inbox.clear()

    async def follow(self, listeners: Listeners) -> bytes:
        """Return the job's result, after any data that no listener took. Raises JobError, ConnectionLostError."""
        kept: list[bytes] = []
        size = 0
        while True:
            kind, args = await self._next()
            if kind is Kind.WORK_COMPLETE or (kind is Kind.WORK_DATA and listeners.on_data is None):
                kept.append(args[1])
                size += len(args[1])
            if size > self._max_result:
                raise JobError(f"job {self._function}: result: more than the {self._max_result} bytes allowed")
            if kind is Kind.WORK_COMPLETE:
                return b"".join(kept)
            self._tell(Packet(kind, args), listeners)

    def _tell(self, packet: Packet, listeners: Listeners) -> None:
        match packet.kind:
            case Kind.WORK_FAIL:
                said = self._warned.decode(errors="backslashreplace") or "failed at its worker"
                raise JobError(f"job {self._function}: {said:.2000}", self._warned)
            case Kind.WORK_EXCEPTION:
                text = packet.args[1].decode(errors="backslashreplace")
                raise JobError(f"job {self._function}: {text:.2000}", packet.args[1])
            case Kind.WORK_DATA if listeners.on_data is not None:
                listeners.on_data(packet.args[1])
            case Kind.WORK_WARNING:
                self._warned = packet.args[1]
                if listeners.on_warning is not None:
                    listeners.on_warning(packet.args[1])
            case Kind.WORK_STATUS if listeners.on_progress is not None:
                if all(part.isdigit() and len(part) < 19 for part in packet.args[1:]):
                    listeners.on_progress(int(packet.args[1]), int(packet.args[2]))

    async def _next(self) -> Packet:
        while not self._inbox:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        word = self._inbox.popleft()
        if isinstance(word, FleetdError):
            raise word
        return word
