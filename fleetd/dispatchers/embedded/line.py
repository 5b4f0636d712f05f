"""One connection of the dispatcher: bytes in, packets or lines to the queue, bytes out.

Promises: nonsense closes this connection with one line in the log and touches no other; what the peer does not read is
bounded: it is not read itself meanwhile, and is closed after `STALLED_S` or `MAX_UNSENT` bytes; before the token it may
send `UNPROVEN_BYTES` and lasts `PROVE_S`.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Protocol

from fleetd.codecs.gearman import DEFAULT_MAX_BYTES, REQ, Decoder
from fleetd.dispatchers.embedded import commands, packets
from fleetd.dispatchers.embedded.logs import LOG
from fleetd.dispatchers.embedded.model import Peer
from fleetd.dispatchers.embedded.queue import Queue
from fleetd.dispatchers.embedded.rules import text
from fleetd.errors import ProtocolError

MAX_PACKET: Final = (
    DEFAULT_MAX_BYTES  # results may be this large, as clients take them; payloads have a cap of their own
)
MAX_UNSENT: Final = MAX_PACKET + 1024 * 1024
MAX_LINE: Final = 4096
MAX_HELD: Final = 4096  # unanswered submissions of one connection beyond which it is not read
STALLED_S: Final = 30.0
PROVE_S: Final = 10.0
UNPROVEN_BYTES: Final = 1024
LINGER_S: Final = 5.0  # what was written before a close may take so long to be read

Keep = Callable[[socket.socket], None]


class Hub(Protocol):
    """What a line needs of its server."""

    queue: Queue
    lines: "dict[Peer, Line]"
    pid: int

    def clock(self) -> float:
        """Return the time."""

    def number(self) -> int:
        """Return the number of a new connection."""

    def flush(self) -> None:
        """Send what is due to all."""


class Line(asyncio.Protocol):
    """One connection. The first byte tells whether it speaks packets or text."""

    def __init__(self, server: Hub, keep: Keep) -> None:
        self._server = server
        self._keep = keep
        self._transport: asyncio.Transport | None = None
        self._peer: Peer | None = None
        self._decoder = Decoder(REQ, MAX_PACKET)
        self._text: bytearray | None = None
        self._begun = False
        self._full = False  # it does not read what it is sent
        self._deaf = False  # it is not read
        self.give_up_at = float("inf")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        sock: socket.socket = transport.get_extra_info("socket")
        self._keep(sock)
        self._transport = transport
        name = transport.get_extra_info("peername")
        host = str(name[0]) if name else "-"
        self._peer = self._server.queue.join(self._server.number(), host)
        self._server.lines[self._peer] = self
        if not self._peer.proven:
            self._decoder.max_bytes = UNPROVEN_BYTES
            self.give_up_at = self._server.clock() + PROVE_S

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        peer, server = self._peer, self._server
        if peer is None or peer.fault:
            return
        if not self._begun:
            self._begun = True
            self._text = None if data.startswith(b"\0") else bytearray()
        now = server.clock()
        try:
            if self._text is None:
                for packet in self._decoder.feed(data):
                    packets.receive(server.queue, peer, packet, now)
                    if peer.fault:
                        break
            else:
                self._read_lines(peer, self._text, data, now)
        except ProtocolError as error:
            server.queue.close(peer, str(error))
        if peer.proven and self._decoder.max_bytes != MAX_PACKET:
            self._decoder.max_bytes = MAX_PACKET
            self.give_up_at = float("inf")
        server.flush()

    def _read_lines(self, peer: Peer, held: bytearray, data: bytes, now: float) -> None:
        held += data
        *lines, rest = held.split(b"\n")
        if max(map(len, (*lines, rest))) > MAX_LINE:
            raise ProtocolError(f"a text command of more than {MAX_LINE} bytes")
        for line in lines:
            commands.receive(self._server.queue, peer, bytes(line), now, self._server.pid)
            if peer.fault:
                return
        held[:] = rest

    def flush(self) -> None:
        """Send what is due, and close where the queue says so."""
        peer, transport = self._peer, self._transport
        if peer is None or transport is None:
            return
        if peer.out:
            data = peer.out[0] if len(peer.out) == 1 else b"".join(peer.out)
            peer.out.clear()
            transport.write(data)
            if self._full and transport.get_write_buffer_size() > MAX_UNSENT:
                peer.fault = f"it does not read: {transport.get_write_buffer_size()} bytes wait for it"
                transport.abort()
        if peer.fault:
            LOG.warning(f"connection {peer.ident} of {peer.host} ({text(peer.client_id)}): closed: {peer.fault}")
            self.end()
            return
        self._listen()

    def _listen(self) -> None:
        """Read from it only while it reads what it is sent, and while not too much of it waits for the disk."""
        assert self._peer is not None
        assert self._transport is not None
        deaf = self._full or len(self._peer.held) > MAX_HELD
        if deaf and not self._deaf:
            self._transport.pause_reading()
        elif self._deaf and not deaf and not self._transport.is_closing():
            self._transport.resume_reading()
        self._deaf = deaf

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._full = True
        self.give_up_at = self._server.clock() + STALLED_S
        self._listen()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._full = False
        self.give_up_at = float("inf")
        self._listen()

    def give_up(self) -> None:
        """Close what did not prove itself, or does not read."""
        if self._peer is not None:
            self._peer.fault = (
                f"it read nothing for {STALLED_S:g} s" if self._full else f"no token within {PROVE_S:g} s"
            )
            if self._transport is not None and self._full:
                self._transport.abort()
            self.flush()

    def end(self) -> None:
        """Close the connection behind what was written. Safe twice."""
        peer, self._peer = self._peer, None
        if peer is not None:
            del self._server.lines[peer]
            self._server.queue.leave(peer, self._server.clock())
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.close()
            if transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's signature
        """See asyncio.Protocol."""
        self.end()
        self._server.flush()
