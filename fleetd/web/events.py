"""What happens, as it happens: server-sent events of the fleet's state and of every line of the journal.

Promises: nothing is kept for a reader but its place in the journal, so a slow one costs nothing, and one that takes
nothing for `STALL_S` is cut off; no reader ever holds the tick. A line of the journal bears its number as id: whoever
comes back with `Last-Event-ID` misses none. The state comes at most once a second, and only where it changed.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fleetd.control.loop import Controller
from fleetd.control.status import status
from fleetd.store.sqlite import Entry
from fleetd.web.wire import InvalidError, TooManyError, dump

MOST_READERS: Final = 32
STATE_S: Final = 1.0
BEAT_S: Final = 15.0
STALL_S: Final = 10.0
ROUND: Final = 100  # lines that are read from the journal at once
PAUSE_S: Final = 0.005  # after as many, so that readers with a long way back leave most of the time to the tick
AGAIN_S: Final = 5.0
MEDIA: Final = "text/event-stream"
_WHOLE: Final = re.compile("[0-9]{1,18}")
# What only grows or fades by itself is no change of state.
_FADING: Final = frozenset({"rate", "version", "events", "uptime_s"})


class Events:
    """The readers of one controller, and the state that they share."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._ending, self._turn = asyncio.Event(), asyncio.Lock()
        self._made_at = float("-inf")
        self._core: Any = None
        self._state, self.changes = b"", 0
        self.readers = self.dropped = self.turned_away = 0  # now; cut off since they stalled; one too many

    async def stream(self, request: Request) -> Response:
        """Give events as they happen: `status`, and `journal` with ids; `Last-Event-ID` goes on after that line."""
        told = request.headers.get("last-event-id", "")
        if told and not _WHOLE.fullmatch(told):
            raise InvalidError("Last-Event-ID", "must be the id of an event of here, a whole number")
        for name in request.query_params:
            raise InvalidError(name, "no such parameter; there are none")
        if self.readers >= MOST_READERS:
            self.turned_away += 1
            raise TooManyError(f"events: {MOST_READERS} readers are all there may be", AGAIN_S)
        newest = max((entry.seq for entry in self._controller.store.journal(last=1)), default=0)
        begin = min(int(told), newest) if told else newest
        return _Stream(self, self._parts(begin), getattr(request.state, "abort", None))

    def let_go(self) -> None:
        """End every stream, so that the end of the controller waits for none."""
        self._ending.set()

    async def _parts(self, seq: int) -> AsyncGenerator[bytes, None]:
        """Yield what there is to tell each time that a tick was, and a heart-beat where that was nothing for long."""
        seen, told_at, ending = -1, self._controller.clock(), asyncio.create_task(self._ending.wait())
        yield b"retry: 3000\n\n"
        try:
            while not ending.done():
                ticking = asyncio.create_task(self._controller.ticked.wait())
                if (state := self._fresh(seen)) is not None:
                    seen, told_at = self.changes, self._controller.clock()
                    yield state
                while entries := await self._lines(seq):
                    seq, told_at = entries[-1].seq, self._controller.clock()
                    yield b"".join(map(_line, entries))
                if self._controller.clock() - told_at >= BEAT_S:
                    told_at = self._controller.clock()
                    yield b": still here\n\n"
                await asyncio.wait([ticking, ending], timeout=BEAT_S, return_when=asyncio.FIRST_COMPLETED)
                ticking.cancel()
        finally:
            ending.cancel()

    async def _lines(self, seq: int) -> list[Entry]:
        """Return the next lines of the journal; readers that go a long way back take turns."""
        async with self._turn:
            entries = self._controller.store.journal_page(ROUND, after=seq)
            if len(entries) == ROUND:
                await asyncio.sleep(PAUSE_S)
        return entries

    def _fresh(self, seen: int) -> bytes | None:
        """Return the state where it has changed since a reader saw it; made at most once in `STATE_S`, for all."""
        now = self._controller.clock()
        if now - self._made_at >= STATE_S:
            self._made_at = now
            picture = status(self._controller, 0)
            if (core := _core(picture)) != self._core:
                self._core, self._state = core, b"event: status\ndata: %b\n\n" % dump(picture)
                self.changes += 1
        return self._state if self.changes != seen else None


class _Stream(Response):
    """Writes the parts as the reader takes them, and cuts off whoever does not."""

    media_type = MEDIA

    def __init__(self, of: Events, parts: AsyncGenerator[bytes, None], abort: Callable[[], None] | None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._of, self._parts, self._abort = of, parts, abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        self._of.readers += 1
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait([writing, leaving], return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        except TimeoutError:
            self._of.dropped += 1
            if self._abort:
                self._abort()  # closing would wait for ever for what lies in the socket
        finally:
            self._of.readers -= 1
            for task in (writing, leaving):
                task.cancel()
            await asyncio.wait([writing, leaving])

    async def _write(self, send: Send) -> None:
        head: Message = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await _in_time(send, head)
        async with aclosing(self._parts) as parts:
            async for part in parts:
                await _in_time(send, {"type": "http.response.body", "body": part, "more_body": True})
        await _in_time(send, {"type": "http.response.body", "body": b"", "more_body": False})


async def _in_time(send: Send, message: Message) -> None:
    async with asyncio.timeout(STALL_S):
        await send(message)


async def _left(receive: Receive) -> None:
    with suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass


def _line(entry: Entry) -> bytes:
    row = {"seq": entry.seq, "at": entry.at, "epoch": entry.epoch, "kind": entry.kind, "text": entry.text}
    return b"id: %d\nevent: journal\ndata: %b\n\n" % (entry.seq, dump(row))


def _core(value: Any) -> Any:
    """Return a picture without what moves by itself; of ages and remaining times, whether there are any."""
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if key not in _FADING}
        return {key: bool(one) if key.endswith("_s") else _core(one) for key, one in kept.items()}
    return [_core(one) for one in value] if isinstance(value, list) else value
