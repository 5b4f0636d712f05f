"""A worker slot's connection to one dispatcher: blocking, bounded and lean, for a process that runs one job at a time.

Promises: at most one GRAB is outstanding; an answer and the next GRAB travel in one send; no call waits longer than
`SEND_S` for the dispatcher to take a packet's next bytes, or `WAIT_S` for its next packet; every failure is an
`UnreachableError` that names the dispatcher, after which only `release` is left to call. It never sends CANT_DO or
RESET_ABILITIES: gearmand 1.1.20 re-queues the running jobs of a connection that does.

It is a blocking socket on purpose: the kernel's own time-outs cost nothing per call, where a poll before each would.
"""

import socket
import ssl
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum, auto
from typing import Final

from fleetd.codecs.gearman import Decoder, Kind, Packet, encode
from fleetd.dispatchers.address import Address
from fleetd.dispatchers.credentials import Credentials, read_credentials
from fleetd.dispatchers.dial import open_socket
from fleetd.dispatchers.faults import reason
from fleetd.errors import ProtocolError, UnreachableError, UsageError

WAIT_S: Final = 0.02  # a dispatcher answers a GRAB at once; after this the slot looks at its other business
SEND_S: Final = 10.0
CLOSE_S: Final = 1.0
_CHUNK: Final = 64 * 1024
_TIMEVAL: Final = struct.Struct("@ll")
GRAB: Final = encode(Kind.GRAB_JOB_UNIQ)
PRE_SLEEP: Final = encode(Kind.PRE_SLEEP)


def failure(handle: bytes, reason: str) -> bytes:
    """Return the packets that end a job without a result: the reason as a warning to its client, then the failure.

    Not WORK_EXCEPTION: to a client that did not ask for exceptions gearmand 1.1.20 passes it on as a WORK_FAIL with a
    NUL too many after the handle, and libgearman then waits for ever.
    """
    return encode(Kind.WORK_WARNING, handle, reason.encode(errors="backslashreplace")) + encode(Kind.WORK_FAIL, handle)


class State(Enum):
    """What the connection is doing, as the slot sees it."""

    CLOSED = auto()  # never opened, lost, or being opened again
    IDLE = auto()  # may be asked for a job
    GRABBING = auto()  # a GRAB is out: NO_JOB or a job comes back
    ASLEEP = auto()  # PRE_SLEEP is out: NOOP comes once there is a job
    ASSIGNED = auto()  # a job of this connection runs, or waits for its turn in this slot


class WorkConnection:
    """One open connection. `state` is its slot's to change where no method does; `grabs` counts the GRABs sent."""

    __slots__ = ("_decoder", "_sock", "address", "grabs", "state")

    def __init__(self, address: Address, sock: socket.socket) -> None:
        self.address = address
        self.state = State.IDLE
        self.grabs = 0
        self._sock = sock
        self._decoder = Decoder()
        sock.setblocking(True)  # noqa: FBT003
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(0, int(WAIT_S * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(SEND_S), 0))

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop and for the supervisor's duplicate."""
        return self._sock.fileno()

    def greet(self, client_id: str, functions: Iterable[str]) -> None:
        """Name this worker and what it can do."""
        packets = [encode(Kind.SET_CLIENT_ID, client_id.encode())]
        packets += [encode(Kind.CAN_DO, name.encode()) for name in functions]
        self.send(b"".join(packets))

    def grab(self) -> None:
        """Ask for a job; NO_JOB or JOB_ASSIGN_UNIQ will come."""
        assert self.state is not State.GRABBING
        self.state = State.GRABBING
        self.grabs += 1
        self.send(GRAB)

    def sleep(self) -> None:
        """Say that this worker waits for a NOOP. One comes at once where a job was queued since the NO_JOB."""
        self.state = State.ASLEEP
        self.send(PRE_SLEEP)

    def answer(self, packet: bytes, *, grab: bool) -> None:
        """Send the job's last packet and, in the same segment, ask for the next job."""
        if grab:
            self.state = State.GRABBING
            self.grabs += 1
            self.send(packet + GRAB)
        else:
            self.state = State.IDLE
            self.send(packet)

    def send(self, data: bytes) -> None:
        """Send everything; raises UnreachableError."""
        try:
            self._sock.sendall(data)
        except BlockingIOError:
            raise UnreachableError(f"dispatcher {self.address}: took no bytes for {SEND_S:g} s") from None
        except OSError as error:
            raise self._broke(error) from None

    def receive(self) -> list[Packet]:
        """Return the packets that came, after `WAIT_S` at most; none where none is whole. Raises UnreachableError."""
        try:
            data = self._sock.recv(_CHUNK)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError as error:
            raise self._broke(error) from None
        if not data:
            raise UnreachableError(f"dispatcher {self.address}: it closed the connection")
        try:
            return self._decoder.feed(data)
        except ProtocolError as error:
            raise UnreachableError(f"dispatcher {self.address}: {error}") from None

    def close(self) -> None:
        """End in good order: what was sent arrives, even where unread packets are left. Safe twice.

        Closing a socket with unread bytes resets the connection, and the reset may overtake a job's answer.
        """
        give_up_at = time.monotonic() + CLOSE_S
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < give_up_at:
                with suppress(BlockingIOError, TimeoutError):
                    if not self._sock.recv(_CHUNK):
                        break
        self.release()

    def release(self) -> None:
        """End now: the dispatcher re-queues this connection's job at once. Safe twice.

        The shutdown ends the connection itself, so that duplicates in other processes hold nothing up.
        """
        self.state = State.CLOSED
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _broke(self, error: OSError) -> UnreachableError:
        return UnreachableError(f"dispatcher {self.address}: {reason(error)}")


class TlsConnection(WorkConnection):
    """The same over TLS, where the kernel's time-outs are not those of a packet: the TLS layer has its own.

    The base class reads whole TLS records, because its chunk is larger than the largest of them; what it should ever
    leave behind in the TLS layer, where no event loop can see it, is read before it is waited for.
    """

    __slots__ = ("_tls",)

    def __init__(self, address: Address, sock: ssl.SSLSocket) -> None:
        super().__init__(address, sock)
        self._tls = sock
        sock.settimeout(WAIT_S)

    def send(self, data: bytes) -> None:
        """Send everything; raises UnreachableError."""
        left, give_up_at = memoryview(data), time.monotonic() + SEND_S
        while left:
            try:
                left = left[self._tls.send(left) :]
                give_up_at = time.monotonic() + SEND_S
            except TimeoutError:  # tried again with the same bytes, as TLS demands
                if time.monotonic() > give_up_at:
                    raise UnreachableError(f"dispatcher {self.address}: took no bytes for {SEND_S:g} s") from None
            except OSError as error:
                raise self._broke(error) from None

    def receive(self) -> list[Packet]:
        """Return the packets that came, after `WAIT_S` at most; none where none is whole. Raises UnreachableError."""
        packets = super().receive()
        while self._tls.pending():
            packets += super().receive()
        return packets


async def dial(address: Address, connect_s: float, credentials: Credentials | None = None) -> WorkConnection:
    """Connect and prove the token, each within `connect_s` seconds; raises UnreachableError.

    `credentials`: those of the environment unless given.
    """
    try:
        sock = await open_socket(address, connect_s, credentials or read_credentials())
    except UsageError as error:  # a certificate that was fine at the start: it may be so again
        raise UnreachableError(f"dispatcher {address}: {error}") from None
    return TlsConnection(address, sock) if isinstance(sock, ssl.SSLSocket) else WorkConnection(address, sock)
