"""One connection to a dispatcher, as requests and answers: what `submit.py` speaks through.

Promises: answers are matched to requests in the order of sending, which is how a dispatcher answers; at most `window`
requests are unanswered, later callers wait in line; a dispatcher that owes an answer and gives none for `answer_s` is
given up; when the connection ends, everything under way fails at once with the same one reason, and what was never
sent fails as `NotSentError`. It never reconnects.

How gearmand 1.1.20 behaves here, measured: ERROR takes the place of the answer; two submissions of one unique get the
same handle, and from then on every WORK packet comes once for each of them.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from fleetd.codecs.gearman import DEFAULT_MAX_BYTES, Decoder, Kind, Packet
from fleetd.dispatchers.address import Address
from fleetd.dispatchers.faults import reason
from fleetd.dispatchers.follow import Follower
from fleetd.dispatchers.jobs import DEFAULT_MAX_PAYLOAD, ConnectionLostError, JobRefusedError, NotSentError
from fleetd.errors import ProtocolError, UsageError

DEFAULT_WINDOW: Final = 256
DEFAULT_CONNECT_S: Final = 2.0
DEFAULT_ANSWER_S: Final = 5.0
_LOG: Final = logging.getLogger(__name__)
_LAST: Final = frozenset({Kind.WORK_COMPLETE, Kind.WORK_FAIL, Kind.WORK_EXCEPTION})
_WORK: Final = _LAST | {Kind.WORK_STATUS, Kind.WORK_DATA, Kind.WORK_WARNING}

Answer = Packet | JobRefusedError


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection. `window` requests unanswered; seconds to connect and to the next answer; bytes each way."""

    window: int = DEFAULT_WINDOW
    connect_s: float = DEFAULT_CONNECT_S
    answer_s: float = DEFAULT_ANSWER_S
    max_payload: int = DEFAULT_MAX_PAYLOAD
    max_result: int = DEFAULT_MAX_BYTES

    def __post_init__(self) -> None:
        for name in ("window", "connect_s", "answer_s", "max_payload", "max_result"):
            if not getattr(self, name) > 0:
                raise UsageError(f"dispatcher limits: {name}: must be more than 0, not {getattr(self, name)!r}")


@dataclass(slots=True, eq=False)
class Request:
    """`count` packets sent in one go, each answered by a packet of kind `answer` or by a refusal in its place."""

    answer: Kind
    data: bytes
    count: int = 1
    follower: Follower | None = None
    sent: bool = False
    answers: list[Answer] = field(default_factory=list)
    done: asyncio.Future[None] | None = None


class Line(asyncio.Protocol):
    """Safe for many tasks of one event loop. `lost` says why the connection ended, once it has."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address = address
        self.limits = limits
        self.lost: str | None = None
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = loop.create_future()
        self._decoder = Decoder(max_bytes=limits.max_result)
        self._asked: deque[Request] = deque()
        self._unanswered = 0
        self._followers: dict[bytes, deque[Follower]] = {}
        self._turn = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self._paused = False
        self._out: list[bytes] = []
        self._moved_at = 0.0  # when the dispatcher last answered, or was first asked after a pause
        self._watch: asyncio.TimerHandle | None = None

    async def ask(self, request: Request) -> list[Answer]:
        """Send and return the answers, as many as `request.count`; `request.sent` tells how far it came.

        Raises NotSentError or ConnectionLostError. May be cancelled; the answers are then passed over.
        """
        request.done = self._loop.create_future()
        await self._send(request)
        await request.done  # bounded: `_check` gives up a dispatcher that does not answer
        return request.answers

    async def close(self) -> None:
        """End the connection; what is under way fails with ConnectionLostError. Safe twice."""
        self.lose("closed by this program")
        if self._transport is not None:
            await asyncio.shield(self._closed)

    async def _send(self, asked: Request) -> None:
        """Wait for room in the window, then write. Nothing is sent where this raises."""
        async with self._turn:
            while self.lost is None and not self._has_room(asked.count):
                self._room = self._loop.create_future()
                await self._room
            if self.lost is not None:
                raise NotSentError(f"dispatcher {self.address}: {self.lost}")
            if not self._asked:
                self._moved_at = self._loop.time()
            asked.sent = True
            self._asked.append(asked)
            self._unanswered += asked.count
            if not self._out:
                self._loop.call_soon(self._flush)  # what other tasks send now travels in the same segment
            self._out.append(asked.data)
            if self._watch is None:
                self._watch = self._loop.call_later(self.limits.answer_s, self._check)

    def _has_room(self, count: int) -> bool:
        return not self._paused and (not self._asked or self._unanswered + count <= self.limits.window)

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _flush(self) -> None:
        data, self._out = b"".join(self._out), []
        if self._transport is not None and self.lost is None:
            self._transport.write(data)

    def _check(self) -> None:
        """Give up a dispatcher that has gone silent. It is watched only while it owes an answer."""
        self._watch = None
        if not self._asked or self.lost is not None:
            return
        left_s = self._moved_at + self.limits.answer_s - self._loop.time()
        if left_s > 0:
            self._watch = self._loop.call_later(left_s, self._check)
        else:
            self.lose(f"no answer within {self.limits.answer_s:g} s")

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.lost is not None:
            return
        try:
            for packet in self._decoder.feed(data):
                if packet.kind in _WORK:
                    self._hear(packet)
                else:
                    self._answered(packet)
        except ProtocolError as error:
            self.lose(str(error))
        self._make_room()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = False
        self._moved_at = self._loop.time()  # it reads: a large batch on a slow line is no silence
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.lose(f"the connection broke: {reason(exc)}" if exc else "the dispatcher closed the connection")
        if not self._closed.done():
            self._closed.set_result(None)

    def _answered(self, packet: Packet) -> None:
        if not self._asked:
            if packet.kind is not Kind.ERROR:
                raise ProtocolError(f"{packet.kind.name} that nothing asked for")
            _LOG.warning("dispatcher %s: an error that answers nothing: %r", self.address, packet.args)
            return
        head = self._asked[0]
        if packet.kind is Kind.ERROR:
            head.answers.append(self._refusal(packet))
        elif packet.kind is head.answer:
            head.answers.append(packet)
            if head.follower is not None:
                self._followers.setdefault(packet.args[0], deque()).append(head.follower)
        else:
            raise ProtocolError(f"{packet.kind.name} where {head.answer.name} was due")
        self._unanswered -= 1
        self._moved_at = self._loop.time()
        if len(head.answers) == head.count:
            self._asked.popleft()
            if head.done is not None and not head.done.done():
                head.done.set_result(None)

    def _refusal(self, packet: Packet) -> JobRefusedError:
        code, text = (arg.decode(errors="backslashreplace") for arg in packet.args)
        return JobRefusedError(f"dispatcher {self.address}: refused: {text or code}"[:300], code)

    def _hear(self, packet: Packet) -> None:
        """Give a worker's word to the next follower of its job: each of them gets one of the copies.

        One that gave up keeps its place until the job ends, because its copies go on coming.
        """
        followers = self._followers.get(packet.args[0])
        if followers is None:
            return
        if packet.kind in _LAST:
            followers.popleft().hear(packet)
            if not followers:
                del self._followers[packet.args[0]]
        else:
            followers[0].hear(packet)
            followers.rotate(-1)

    def lose(self, reason: str) -> None:
        """End everything under way with one reason; the first counts."""
        if self.lost is not None:
            return
        self.lost = reason
        if self._transport is not None:
            self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
        what = f"dispatcher {self.address}: {reason}"
        for asked in self._asked:
            if asked.done is not None and not asked.done.done():
                asked.done.set_exception(ConnectionLostError(what))
        for followers in self._followers.values():
            for follower in followers:
                follower.hear(ConnectionLostError(what))
        self._asked.clear()
        self._followers.clear()
        self._make_room()
